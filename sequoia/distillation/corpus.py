"""The target writes its own training text: token ids and last hidden states, in resumable shards.

Two sources: answers to given prompts, and whole conversations that the target invents from the bare
opening of its chat template. The hidden states make the teacher's distribution one matmul away.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sequoia.distillation.conversation import Conversation, Template, conversations
from sequoia.distillation.decode import Decoder, draw


def write(
    decoder: Decoder,
    template: Template,
    stream: Iterator[Conversation],
    generator: torch.Generator,
) -> Iterator[Conversation]:
    """Write the conversations of `stream`, yielding each as it ends; freed rows take the next."""
    prefixes = {
        tuple(opening): decoder.prefix_of(opening) for opening in (template.opening, template.bare)
    }

    def start(row: int) -> Conversation | None:
        fresh = next(stream, None)
        if fresh is None:
            return None
        keys_and_values, hidden = prefixes[tuple(fresh.opening)]
        decoder.seed(row, keys_and_values)
        fresh.token_ids = list(fresh.opening)
        fresh.hidden = list(hidden)
        if fresh.prompt is not None:
            fresh.forced = [*fresh.prompt, *template.middle]
            fresh.upcoming = fresh.forced.pop(0)
        else:
            first = decoder.logits(hidden[-1:])
            fresh.upcoming = int(draw(first, torch.tensor([fresh.temperature]), generator))
        return fresh

    rows = [start(row) for row in range(len(decoder.index))]
    while any(rows):
        positions = torch.tensor([len(row.token_ids) if row else 0 for row in rows])
        hidden = decoder.step(torch.tensor([row.upcoming if row else 0 for row in rows]), positions)
        temperatures = torch.tensor([row.temperature if row else 0.0 for row in rows])
        drawn = draw(decoder.logits(hidden), temperatures, generator).tolist()
        for index, row in enumerate(rows):
            if row is None:
                continue
            row.token_ids.append(row.upcoming)
            row.hidden.append(hidden[index])
            if not row.advance(drawn[index], template.middle):
                rows[index] = start(index)
                yield row


def write_corpus(
    decoder: Decoder,
    template: Template,
    prompts: list[list[int]],
    folder: Path,
    *,
    deadline: float,
    seed: int = 0,
    shard_tokens: int = 32768,
    report: Callable[[int, float], None] = lambda tokens, rate: None,
) -> None:
    """Let the target write until `deadline` (seconds of `time.monotonic`), in shards in `folder`.

    A shard is complete or absent, so the run may be stopped at any moment; a later run goes on with
    new conversations. `report` hears the tokens written by this run and the tokens a second.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "corpus.json"
    begun = json.loads(state.read_text())["begun"] if state.exists() else 0
    shard = len(list(folder.glob("shard-*.safetensors")))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + begun)
    length = decoder.cache.shape[-2]
    stream = conversations(template, prompts, length, begun, seed)
    begun += len(decoder.index)
    finished: list[Conversation] = []
    pending, written, began = 0, 0, time.monotonic()

    def flush() -> None:
        nonlocal finished, pending, written, shard
        if finished:
            save_shard(folder / f"shard-{shard:05d}.safetensors", finished)
            state.write_text(json.dumps({"begun": begun}))
            written += pending
            report(written, written / (time.monotonic() - began))
            finished, pending, shard = [], 0, shard + 1

    try:
        for row in write(decoder, template, stream, generator):
            finished.append(row)
            pending += len(row.token_ids)
            begun += 1
            if pending >= shard_tokens:
                flush()
            if time.monotonic() >= deadline:
                break
    finally:
        flush()


def save_shard(path: Path, rows: list[Conversation]) -> None:
    """Write conversations end to end, whole or not at all.

    `token_ids` int32 [tokens]; `hidden` [tokens, hidden], the state after reading each token;
    `lengths`, `answer_starts` int32 [conversations]; `temperatures` float32 [conversations].
    """
    tensors = {
        "token_ids": torch.tensor([x for row in rows for x in row.token_ids], dtype=torch.int32),
        "hidden": torch.stack([x for row in rows for x in row.hidden]),
        "lengths": torch.tensor([len(row.token_ids) for row in rows], dtype=torch.int32),
        "answer_starts": torch.tensor([row.answer_start for row in rows], dtype=torch.int32),
        "temperatures": torch.tensor([row.answer_temperature for row in rows]),
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.rename(path)


def load_shards(folder: Path) -> list[dict[str, Tensor]]:
    """Every complete shard in `folder`, oldest first (see `save_shard` for the tensors)."""
    return [load_file(path) for path in sorted(folder.glob("shard-*.safetensors"))]

"""`python -m sequoia.distillation`: make a draft that agrees with a target."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig

from sequoia.distillation import corpus, evaluate
from sequoia.distillation.card import Making, write_acceptance, write_card
from sequoia.distillation.conversation import Template
from sequoia.distillation.decode import Decoder
from sequoia.distillation.loss import Example, examples_of
from sequoia.distillation.student import EMBEDDING, Student, frequent_ids
from sequoia.distillation.train import Progress, Settings, Trainer

LENGTH = 288
"""Tokens of a conversation at most."""
HEAD_POSITIONS = 60_000
"""Positions on which the frequency of token ids is estimated."""


def main(
    target: Annotated[
        Path,
        typer.Option(
            exists=True, file_okay=False, help="Folder of the target: config, weights, tokenizer."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the draft to.")],
    prompts: Annotated[
        list[Path], typer.Option(exists=True, help="JSON lines with `prompt`, to answer.")
    ],
    unseen: Annotated[
        list[Path], typer.Option(exists=True, help="JSON lines to judge by, never trained on.")
    ],
    work: Annotated[Path, typer.Option(help="Folder for the corpus and checkpoints; resumed.")],
    corpus_minutes: Annotated[
        float, typer.Option(min=0, help="Time for the target to write.")
    ] = 30,
    train_minutes: Annotated[
        float, typer.Option(min=0, help="Time to train, all runs together.")
    ] = 45,
    layers: Annotated[str, typer.Option(help="The target's layers to keep.")] = "0,29",
    vocab_size: Annotated[
        int, typer.Option(min=8, help="Token ids that the draft can say.")
    ] = 12288,
    rows: Annotated[int, typer.Option(min=1, help="Conversations written side by side.")] = 128,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a training batch.")] = 2048,
    learning_rate: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 2e-3,
    tv_start: Annotated[
        float, typer.Option(min=0, help="Part of the training after which TV joins the loss.")
    ] = 0.6,
    unseen_prompts: Annotated[int, typer.Option(min=1, help="Unseen prompts to judge by.")] = 20,
    unseen_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    name: Annotated[str | None, typer.Option(help="The target's name; OUT's last part.")] = None,
    seed: int = 0,
) -> None:
    """Let the target write, teach a cut-down copy of it, judge it and write its folder.

    Stop it at any time with Ctrl-C: the draft is written from where it stands, and the same command
    goes on from there.
    """
    config = LlamaConfig.from_pretrained(target)
    weights = load_weights(target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    template = Template.of(tokenizer)
    halves = {key: tensor.to(torch.bfloat16) for key, tensor in weights.items()}
    texts, judged = read_prompts(prompts), read_prompts(unseen)
    judged = judged[:: max(1, len(judged) // unseen_prompts)][:unseen_prompts]

    if corpus_minutes:
        corpus.write_corpus(
            Decoder(config, halves, rows, LENGTH),
            template,
            [tokenizer.encode(text, add_special_tokens=False) for text in texts],
            work / "corpus",
            deadline=time.monotonic() + 60 * corpus_minutes,
            seed=seed,
            report=lambda tokens, rate: typer.echo(f"wrote {tokens} tokens, {rate:.0f} a second"),
        )
    shards = corpus.load_shards(work / "corpus")
    examples = examples_of(shards)
    if not examples:
        raise typer.BadParameter("no corpus yet: raise --corpus-minutes")
    head = weights.get("lm_head.weight", weights[EMBEDDING])
    head_token_ids = chosen_ids(work, examples, head, vocab_size, tokenizer.all_special_ids)
    student = Student(config, weights, [int(x) for x in layers.split(",")], head_token_ids)
    settings = Settings(
        seconds=60 * train_minutes,
        batch_tokens=batch_tokens,
        learning_rate=learning_rate,
        tv_start=tv_start,
        seed=seed,
    )
    trainer = Trainer(student, settings, work / "checkpoint")
    try:
        trainer.run(examples, show)
    except KeyboardInterrupt:
        typer.echo("stopped: writing the draft as it stands")
    target_name = name or out.name
    student.save(out, target_name)

    encoded = [tokenizer.encode(text, add_special_tokens=False)[:256] for text in judged]
    room = len(template.opening) + len(template.middle) + max(map(len, encoded)) + unseen_tokens
    found = evaluate.continuations(
        Decoder(config, halves, 3 * len(encoded), room),
        template,
        encoded,
        (0.0, 0.6, 1.0),
        new_tokens=unseen_tokens,
        seed=seed,
    )
    student.eval()
    agreements = [
        evaluate.agreement(student, head, continuation, temperature)
        for temperature, continuation in found.items()
    ]
    write_acceptance(out, agreements)
    draft_seconds, target_seconds = evaluate.level_over_token(student, config, halves)
    making = Making(
        target=target_name,
        command=shlex.join(["python", "-m", "sequoia.distillation", *sys.argv[1:]]),
        corpus_tokens=sum(len(shard["token_ids"]) for shard in shards),
        trained_tokens=trainer.tokens,
        corpus_minutes=corpus_minutes,
        train_minutes=trainer.seconds / 60,
        layers=student.layers,
        head_tokens=len(head_token_ids),
        draft_seconds=draft_seconds,
        target_seconds=target_seconds,
    )
    write_card(out, making, agreements)
    typer.echo((out / "README.md").read_text())


def chosen_ids(
    work: Path, examples: list[Example], head: Tensor, size: int, always: list[int]
) -> Tensor:
    """The head's token ids, int64 [size]; a training that is resumed keeps the ones it has."""
    kept = work / "head.safetensors"
    if kept.exists():
        found = load_file(kept)["token_ids"]
        if len(found) == size:
            return found
        raise typer.BadParameter(f"{work} holds a training with --vocab-size {len(found)}")
    hidden = torch.cat([example.hidden[example.answer_start - 1 :] for example in examples])
    sample = torch.split(hidden[:: max(1, len(hidden) // HEAD_POSITIONS)], 256)
    found = frequent_ids(sample, head, size, always)
    save_file({"token_ids": found}, kept)
    return found


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint's safetensors files, as fp32; BadParameter where none is."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= {name: tensor.float() for name, tensor in load_file(path).items()}
    if not tensors:
        raise typer.BadParameter(f"no safetensors weights in {folder}")
    return tensors


def read_prompts(paths: list[Path]) -> list[str]:
    """The `prompt`, or the first of the `turns`, of each line; BadParameter where there is none."""
    texts: list[str] = []
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            entry = json.loads(line)
            text = entry.get("prompt") or (entry.get("turns") or [None])[0]
            if not text:
                raise typer.BadParameter(f"{path}:{number}: neither `prompt` nor `turns`")
            texts.append(text)
    if not texts:
        raise typer.BadParameter(f"no prompts in {', '.join(map(str, paths))}")
    return texts


def show(progress: Progress) -> None:
    """Report every twentieth step."""
    if progress.step % 20 == 0:
        typer.echo(
            f"step {progress.step}  {progress.tokens:,} tokens  {progress.seconds:.0f} s"
            f"  KL {progress.kl:.3f}  sum min(p, q) {progress.overlap:.3f}"
        )


if __name__ == "__main__":
    typer.run(main)

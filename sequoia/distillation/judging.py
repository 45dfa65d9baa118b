"""How a finished draft is judged: on prompts that it has not learned from."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sequoia.acceptance.continuations import Prompt, write
from sequoia.acceptance.measure import Agreement, Measuring, measure
from sequoia.acceptance.pair import Pair
from sequoia.distillation.loss import Example
from sequoia.settings import SamplingSettings

TEMPERATURES = (0.0, 0.6, 1.0)
PROMPTS = 20
NEW_TOKENS = 64
HOLD_OUT_EVERY = 50


@dataclass(frozen=True, slots=True)
class Judgement:
    """How the draft agrees with its target at one temperature, by level of a tree."""

    temperature: float
    levels: tuple[Agreement, ...]


def prompt_of(example: Example) -> tuple[int, ...]:
    """What the target read before it answered; of foreign text the first half."""
    start = example.answer_start
    return tuple(example.token_ids[: start if start > 1 else len(example.token_ids) // 2].tolist())


def hold_out(examples: Sequence[Example]) -> tuple[list[Example], list[tuple[int, ...]]]:
    """The examples to learn from, and the prompts to judge by.

    About every 50th prompt is judged by, chosen by its hash: what is held out of a smaller corpus is
    held out of a larger one too, and a prompt that comes again and again counts once. Where the hash
    chooses none, the first prompt is judged by.
    """
    prompts = [prompt_of(example) for example in examples]
    unseen = [prompt for prompt in dict.fromkeys(prompts) if _is_held_out(prompt)] or prompts[:1]
    held = set(unseen)
    learned = [
        example for example, prompt in zip(examples, prompts, strict=True) if prompt not in held
    ]
    return learned, unseen


def _is_held_out(prompt: tuple[int, ...]) -> bool:
    return zlib.crc32(np.array(prompt, dtype="<u4").tobytes()) % HOLD_OUT_EVERY == 0


def judge(
    pair: Pair,
    prompts: Sequence[tuple[int, ...]],
    seed: int,
    report: Callable[[float], None] = lambda part: None,
) -> list[Judgement]:
    """Compare draft and target along what the target answers to prompts.

    Args:
        pair: both, as their workers load them.
        prompts: token ids; too long ones are cut in front.
        seed: of the texts and of the children drawn.
        report: told the part that is done.
    """
    new_tokens = min(NEW_TOKENS, pair.context_length // 2)
    room = pair.context_length - new_tokens
    asked = [Prompt(prompt[-room:], new_tokens) for prompt in prompts]
    steps = 2 * len(asked)  # a prompt's answer is written, then compared
    judgements: list[Judgement] = []
    for temperature in TEMPERATURES:
        before = len(judgements) * steps

        def told(done: int, before: int = before) -> None:
            report((before + done) / (len(TEMPERATURES) * steps))

        def compared(done: int, before: int = before) -> None:
            told(len(asked) + done, before)

        sampling = SamplingSettings(temperature=temperature)
        texts = write(pair.target, asked, sampling, pair.stop_token_ids, seed=seed, report=told)
        levels = measure(
            pair.target, pair.draft, texts, Measuring(temperature, seed=seed), compared
        )
        judgements.append(Judgement(temperature, levels))
    return judgements


def write_acceptance(path: Path, judgements: Sequence[Judgement]) -> None:
    """Write the acceptance vectors and what goes with them, by temperature.

    The keys of a temperature: `vector`, `rejection`, `overlap`, `coverage` and `top_match` as
    `sequoia acceptance --json` has them, at the first level; `levels`, the vectors and overlaps of
    all that were measured; `positions`, the tokens that were predicted.
    """
    fields = {f"{one.temperature:g}": _fields(one.levels) for one in judgements}
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _fields(levels: Sequence[Agreement]) -> dict[str, object]:
    first = levels[0]
    return {
        "positions": first.positions,
        "overlap": first.overlap,
        "coverage": first.coverage,
        "top_match": {str(k): value for k, value in first.top_match.items()},
        "vector": list(first.vector),
        "rejection": {str(k): value for k, value in enumerate(first.rejection, start=1)},
        "levels": [
            {"level": number, "overlap": level.overlap, "vector": list(level.vector)}
            for number, level in enumerate(levels, start=1)
        ],
    }

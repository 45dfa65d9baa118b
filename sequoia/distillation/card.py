"""What a draft's folder says about itself: the model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sequoia.acceptance.timing import PassTimes
from sequoia.distillation.judging import Judgement
from sequoia.distillation.student import Shape

TOPS = (1, 2, 4, 8)
AGREEMENT_NOTE = """
At temperature 0 sum and cover are those of the distributions at temperature 1. `acceptance.json` has
the acceptance vectors: 0, then the probability that the k-th child of a node is the accepted one (k = 1
to 32), then the probability that none is."""


@dataclass(frozen=True, slots=True)
class Making:
    """How a draft was made.

    Attributes:
        target: reference of its target.
        licence: the target's; None where it is not known.
        command: what made it.
        shape: what was cut out of the target.
        head_tokens: token ids that it can say.
        corpus_tokens: distinct tokens of the corpus.
        corpus_seconds: spent on the corpus.
        learned_tokens: read in learning, repeats included.
        learned_seconds: spent on learning.
        part: of the learning that is done, 0 to 1.
    """

    target: str
    licence: str | None
    command: str
    shape: Shape
    head_tokens: int
    corpus_tokens: int
    corpus_seconds: float
    learned_tokens: int
    learned_seconds: float
    part: float


def write_card(
    path: Path,
    making: Making,
    judgements: Sequence[Judgement] = (),
    times: PassTimes | None = None,
) -> None:
    """Write the card of a draft, of one that is not measured or not finished as well."""
    parts = [
        f"# A draft for {making.target}",
        *([] if judgements else [_unfinished(making)]),
        _what_it_is(making),
        f"Made with:\n\n    {making.command}",
        _figures(making, times),
    ]
    if judgements:
        parts.append(_agreement(judgements))
        parts.append("![rejection rate](rejection.png)")
    if making.learned_tokens:
        parts.append("![learning curve](learning.png)")
    licence = making.licence or "that of the target, from whose weights it is made"
    parts.append(f"Licence: {licence}.")
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _unfinished(making: Making) -> str:
    if making.part < 1:
        return (
            f"**Unfinished:** stopped after {making.part:.0%} of the learning. It works, but agrees "
            "less with its target than it could; the command below with `--resume` goes on."
        )
    return "**Not measured:** the command below with `--resume` measures it."


def _what_it_is(making: Making) -> str:
    layers = ", ".join(map(str, making.shape.layers))
    noun = "layer" if len(making.shape.layers) == 1 else "layers"
    width = "" if making.shape.width is None else f", {making.shape.width} feed-forward units wide"
    read = (
        "It reads the target's hidden states beside the tokens."
        if making.shape.reads_features
        else "It reads tokens alone."
    )
    return (
        f"A small model that guesses what {making.target} will say next, for speculative decoding "
        f"with Sequoia. It is {noun} {layers} of its target{width}, trained further on text that the "
        f"target wrote or read, to give the target's distribution. {read} The embedding and the head "
        f"(the rows of {making.head_tokens:,} token ids) are the target's own and are not in this "
        "folder. Alone it writes poor text; it is of use with its target only."
    )


def _figures(making: Making, times: PassTimes | None) -> str:
    lines = [
        f"- corpus: {making.corpus_tokens:,} tokens, {making.corpus_seconds / 60:.1f} min",
        f"- learning: {making.learned_tokens:,} tokens read, {making.learned_seconds / 60:.1f} min",
    ]
    if times is not None:
        lines.append(
            f"- one level of 8 nodes takes {times.draft_level_ms:.2f} ms, one token of the target "
            f"{times.target_token_ms:.2f} ms, a ratio of {times.ratio:.3f}"
        )
    return "\n".join(lines)


def _agreement(judgements: Sequence[Judgement]) -> str:
    tops = " / ".join(map(str, TOPS))
    rows = [
        "Agreement on prompts that were not learned from, along the target's own answers:",
        "",
        f"| temperature | level | Σ min(p, q) | argmax in first {tops} | head covers | positions |",
        "|---|---|---|---|---|---|",
    ]
    for judgement in judgements:
        for number, level in enumerate(judgement.levels, start=1):
            match = " / ".join(f"{level.top_match[k]:.3f}" for k in TOPS)
            rows.append(
                f"| {judgement.temperature:g} | {number} | {level.overlap:.3f} | {match} "
                f"| {level.coverage:.3f} | {level.positions:,} |"
            )
    rows.append(AGREEMENT_NOTE)
    return "\n".join(rows)

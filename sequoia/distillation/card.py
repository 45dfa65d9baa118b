"""What a draft's folder says about itself: acceptance vectors as JSON, and a model card."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sequoia.distillation.evaluate import Agreement

CARD = """\
---
license: apache-2.0
---

# A draft for {target}

A small model that guesses what {target} will say next, for speculative decoding with Sequoia. It is
layers {layers} of its target, trained further on text that the target wrote itself, to give the
target's distribution. The embedding and the head (the rows of {head_tokens} token ids) are the
target's own and are not in this folder. Alone it writes poor text; it is of use with its target
only.

Made with:

    {command}

- corpus: {corpus_tokens:,} tokens written by the target, {corpus_minutes:.0f} min
- training: {trained_tokens:,} tokens read, {train_minutes:.0f} min
- one level of 8 nodes takes {draft:.1f} ms, one token of the target {token:.1f} ms, a ratio of
  {ratio:.2f} (same dtype, same code)

Agreement on prompts that were not trained on, along the target's own continuation:

| temperature | sum of min(p, q) | argmax in top 1 / 2 / 4 / 8 | head covers | positions |
|---|---|---|---|---|
{rows}

At temperature 0 the sum is of the distributions at temperature 1. `acceptance.json` has the
acceptance vectors: 0, then the probability that the k-th child of a node is the accepted one
(k = 1 to 32), then the probability that none is.

Licence: Apache-2.0, like the target's.
"""


@dataclass(frozen=True)
class Making:
    """How a draft was made."""

    target: str
    command: str
    corpus_tokens: int
    """Distinct tokens in the corpus."""
    trained_tokens: int
    """Tokens read in training, repeats included."""
    corpus_minutes: float
    train_minutes: float
    layers: Sequence[int]
    head_tokens: int
    draft_seconds: float
    """One level of 8 nodes."""
    target_seconds: float
    """One token."""


def write_acceptance(folder: Path, agreements: Sequence[Agreement]) -> None:
    """Write `acceptance.json`: acceptance vector and figures by temperature ("greedy" for 0)."""
    found = {
        str(one.temperature) if one.temperature else "greedy": {
            "vector": [round(x, 6) for x in one.vector],
            "overlap": round(one.overlap, 4),
            "top_match": {str(k): round(x, 4) for k, x in one.top_match.items()},
            "coverage": round(one.coverage, 4),
            "positions": one.positions,
        }
        for one in agreements
    }
    (folder / "acceptance.json").write_text(json.dumps(found, indent=2) + "\n")


def write_card(folder: Path, making: Making, agreements: Sequence[Agreement]) -> None:
    """Write `README.md`, the model card."""
    rows = "\n".join(
        f"| {one.temperature:g} | {one.overlap:.3f} |"
        f" {' / '.join(f'{x:.3f}' for x in one.top_match.values())} |"
        f" {one.coverage:.3f} | {one.positions} |"
        for one in agreements
    )
    card = CARD.format(
        target=making.target,
        layers=", ".join(map(str, making.layers)),
        head_tokens=making.head_tokens,
        command=making.command,
        corpus_tokens=making.corpus_tokens,
        corpus_minutes=making.corpus_minutes,
        trained_tokens=making.trained_tokens,
        train_minutes=making.train_minutes,
        draft=making.draft_seconds * 1e3,
        token=making.target_seconds * 1e3,
        ratio=making.draft_seconds / making.target_seconds,
        rows=rows,
    )
    (folder / "README.md").write_text(card)

"""What `sequoia acceptance` found, as one JSON object and as tables for people.

The keys of the object: `vector` (0, the probability that child k of a node is the accepted one for
k = 1..32, that none is), `rejection` (all of k children are rejected, by k), `overlap` (sum of
min(p, q) over the whole vocabulary) and `coverage` (the target's mass on tokens that the draft can
say), both at the temperature measured, or at temperature 1 where that is 0; `top_match` (the
target's argmax is among the draft's first k tokens, by k); `levels` (overlap, top_match and vector
at each measured level of a tree, one entry where all levels are the same); by number of nodes of
the best tree, `tokens_per_step_expected` from the vector and, at temperature 0, `tokens_per_step`
as counted over the texts (else null); `draft_level_over_target_token` with the milliseconds behind
it; `positions`, the tokens that were predicted; and what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

if TYPE_CHECKING:
    from sequoia.acceptance.measure import Agreement
    from sequoia.acceptance.timing import PassTimes


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was measured, and of what.

    Attributes:
        levels: agreement at each level that was measured, the first one always.
        expected: expected tokens per step of the best tree, by its number of nodes.
        walked: tokens per step over the texts, of the best of the trees that the levels' vectors
            ask for; None above temperature 0.
        prompt_count: prompts that the target continued.
        skipped_count: prompts that were too long.
    """

    target: str
    draft: str
    temperature: float
    rule: str
    dtype: str
    device: str
    prompt_count: int
    skipped_count: int
    levels: tuple[Agreement, ...]
    times: PassTimes
    expected: Mapping[int, float]
    walked: Mapping[int, float] | None

    def as_json(self) -> dict[str, object]:
        """What `--json` prints."""
        first = self.levels[0]
        return {
            "target": self.target,
            "draft": self.draft,
            "temperature": self.temperature,
            "rule": self.rule,
            "dtype": self.dtype,
            "device": self.device,
            "prompts": self.prompt_count,
            "skipped_prompts": self.skipped_count,
            "positions": first.positions,
            "overlap": first.overlap,
            "coverage": first.coverage,
            "top_match": _by_text(first.top_match),
            "tokens_per_step": _by_text(self.walked) if self.walked is not None else None,
            "tokens_per_step_expected": _by_text(self.expected),
            "draft_level_over_target_token": self.times.ratio,
            "draft_level_ms": self.times.draft_level_ms,
            "target_token_ms": self.times.target_token_ms,
            "vector": list(first.vector),
            "rejection": {str(k): value for k, value in enumerate(first.rejection, start=1)},
            "levels": [_level(number, found) for number, found in enumerate(self.levels, start=1)],
        }

    def as_tables(self) -> Group:
        """The same for people."""
        return Group(self._summary(), self._by_rank())

    def _summary(self) -> Table:
        first, times = self.levels[0], self.times
        table = Table(title=f"{self.draft} for {self.target}", show_header=False)
        table.add_column("")
        table.add_column("", justify="right")
        table.add_row("temperature, rule", f"{self.temperature:g}, {self.rule}")
        table.add_row("precision, device", f"{self.dtype}, {self.device}")
        table.add_row("texts, tokens", f"{self.prompt_count}, {first.positions}")
        note = "" if self.temperature else " (at temperature 1)"
        for number, found in enumerate(self.levels, start=1):
            level = f", level {number}" if len(self.levels) > 1 else ""
            table.add_row(f"sum of min(p, q){level}{note}", f"{found.overlap:.4f}")
        table.add_row(f"coverage of the draft's tokens{note}", f"{first.coverage:.4f}")
        for size, value in self.expected.items():
            table.add_row(f"expected tokens per step, tree of {size}", f"{value:.3f}")
        for size, value in (self.walked or {}).items():
            table.add_row(f"tokens per step over the texts, tree of {size}", f"{value:.3f}")
        table.add_row("draft, a level of 8 nodes", f"{times.draft_level_ms:.2f} ms")
        table.add_row("target, a token", f"{times.target_token_ms:.2f} ms")
        table.add_row("level over token", f"{times.ratio:.3f}")
        return table

    def _by_rank(self) -> Table:
        table = Table("k", title="child k accepted, all k rejected, argmax in first k")
        several = len(self.levels) > 1
        for number in range(1, len(self.levels) + 1):
            level = f"\nlevel {number}" if several else ""
            for name in ("accepted", "rejected", "argmax"):
                table.add_column(f"{name}{level}", justify="right", no_wrap=True)
        for k in self.levels[0].top_match:
            cells = [cell for found in self.levels for cell in _cells(found, k)]
            table.add_row(str(k), *cells)
        return table


def _cells(found: Agreement, k: int) -> tuple[str, ...]:
    figures = (found.vector[k], found.rejection[k - 1], found.top_match[k])
    return tuple(f"{figure:.3f}" for figure in figures)


def _level(number: int, found: Agreement) -> dict[str, object]:
    return {
        "level": number,
        "overlap": found.overlap,
        "top_match": _by_text(found.top_match),
        "vector": list(found.vector),
    }


def _by_text(values: Mapping[int, float]) -> dict[str, float]:
    """The same with keys as JSON wants them."""
    return {str(key): value for key, value in values.items()}

"""What was measured on both workers, as the curves that the solver takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from planner.latency import Curve, Latency

Times = Mapping[tuple[int, int], float]


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds of a step beside its passes, without a tree and with one.

    Raises:
        ValueError: a time that is none.
    """

    plain_ms: float
    tree_ms: float

    def __post_init__(self) -> None:
        for name in ("plain_ms", "tree_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} {value} is not a finite number >= 0")


NO_OVERHEAD = Overhead(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Measurements:
    """The times of one pair of workers, all in milliseconds.

    Attributes:
        target_ms: one target pass, by (sequences, nodes of each).
        draft_ms: one draft pass, by (sequences, width of the level that each of them reads).
        overheads: what a step takes beside its passes, by (sequences, whether tokens are drawn).
        max_nodes: largest tree that both workers take.
        pass_nodes: most nodes of a target's pass, all sequences together; None for no bound.

    Raises:
        ValueError: no load measured on both workers, no time for one node, or a time that is none.
    """

    target_ms: Times
    draft_ms: Times
    overheads: Mapping[tuple[int, bool], Overhead]
    max_nodes: int
    pass_nodes: int | None = None

    def __post_init__(self) -> None:
        if not self.batch_sizes:
            raise ValueError("no batch size was measured on both workers")
        for batch_size in self.batch_sizes:
            for samples in (False, True):
                self.latency(batch_size, samples)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The loads measured on both workers, rising."""
        on_target, on_draft = ({batch for batch, _ in t} for t in (self.target_ms, self.draft_ms))
        return tuple(sorted(on_target & on_draft))

    def latency(self, batch_size: int, samples: bool) -> Latency:
        """The times of a step while `batch_size` requests, which draw tokens or not, take theirs.

        Raises:
            ValueError: this load was not measured, or not usably.
        """
        overhead = self.overheads[batch_size, samples]
        return Latency(
            _curve(self.draft_ms, batch_size),
            _curve(self.target_ms, batch_size),
            max(overhead.tree_ms - overhead.plain_ms, 0.0),
            overhead.plain_ms,
        )


def _curve(times: Times, batch_size: int) -> Curve:
    return Curve.measured({size: ms for (batch, size), ms in times.items() if batch == batch_size})

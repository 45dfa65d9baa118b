"""What was measured on both workers, as the curves that the solver takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.latency import Curve, Latency

Times = Mapping[tuple[int, int], float]


@dataclass(frozen=True, slots=True)
class Measurements:
    """The times of one pair of workers, all in milliseconds.

    Attributes:
        target_ms: one target pass, by (sequences, nodes of each).
        draft_ms: one draft pass, by (sequences, width of the level that each of them reads).
        call_ms: the calls of so many sequences to one worker, beside the pass.
        max_nodes: largest tree that both workers take.

    Raises:
        ValueError: no load measured on both workers, no time for one node, or a time that is none.
    """

    target_ms: Times
    draft_ms: Times
    call_ms: Mapping[int, float]
    max_nodes: int

    def __post_init__(self) -> None:
        if not self.batch_sizes:
            raise ValueError("no batch size was measured on both workers")
        for batch_size in self.batch_sizes:
            self.latency(batch_size)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The loads measured on both workers, rising."""
        on_target, on_draft = ({batch for batch, _ in t} for t in (self.target_ms, self.draft_ms))
        return tuple(sorted(on_target & on_draft))

    def latency(self, batch_size: int) -> Latency:
        """The times of a step when `batch_size` requests take it together.

        Raises:
            ValueError: this load was not measured, or not usably.
        """
        return Latency(
            _curve(self.draft_ms, batch_size),
            _curve(self.target_ms, batch_size),
            self.call_ms[batch_size],
            self.call_ms[batch_size],
        )


def _curve(times: Times, batch_size: int) -> Curve:
    return Curve.measured({size: ms for (batch, size), ms in times.items() if batch == batch_size})

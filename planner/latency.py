"""What a step costs on measured hardware: draft passes, one target pass, and what is beside them.

Source: Sequoia, arXiv 2402.12374, section 3.3 (hardware-aware optimizer). The paper's draft cost is
one constant per level; here it depends on the level's width, and calls have a price.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planner.relaxation import Floats, Integers


@dataclass(frozen=True, slots=True)
class Curve:
    """Milliseconds against a number of nodes, through measured points.

    Straight lines join the points and the last one goes on with its slope (never falling, never
    clamped). A single point is taken as a cost per node.

    Attributes:
        points: numbers of nodes, rising, the first one 1.
        milliseconds: the time measured at each point.

    Raises:
        ValueError: points that do not rise from 1, or times that are not finite and >= 0.
    """

    points: tuple[int, ...]
    milliseconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.points or self.points[0] != 1:
            raise ValueError("points must begin with 1 node")
        if len(self.points) != len(self.milliseconds):
            raise ValueError(f"{len(self.points)} points, but {len(self.milliseconds)} times")
        if any(left >= right for left, right in zip(self.points, self.points[1:], strict=False)):
            raise ValueError("points must rise")
        for point, time in zip(self.points, self.milliseconds, strict=True):
            if not (math.isfinite(time) and time >= 0):
                raise ValueError(f"{time} ms at {point} nodes is not a finite number >= 0")

    @classmethod
    def constant(cls, milliseconds: float) -> Curve:
        """The same time for any number of nodes."""
        return cls((1, 2), (milliseconds, milliseconds))

    @classmethod
    def measured(cls, table: Mapping[int, float]) -> Curve:
        """The curve through a table of times by number of nodes."""
        points = tuple(sorted(table))
        return cls(points, tuple(float(table[point]) for point in points))

    @property
    def slope(self) -> float:
        """Milliseconds per node beyond the last point."""
        if len(self.points) == 1:
            return self.milliseconds[0]
        rise = self.milliseconds[-1] - self.milliseconds[-2]
        return max(0.0, rise / (self.points[-1] - self.points[-2]))

    def at(self, nodes: Sequence[int] | Integers) -> Floats:
        """Times in milliseconds for numbers of nodes >= 1."""
        counts = np.asarray(nodes, dtype=np.float64)
        beyond = np.maximum(counts - self.points[-1], 0.0)
        return np.interp(counts, self.points, self.milliseconds) + self.slope * beyond


@dataclass(frozen=True, slots=True)
class Latency:
    """The times of one deployment, in milliseconds.

    Attributes:
        draft_ms: one draft pass against the width of the level it reads.
        target_ms: one target pass against the number of nodes it verifies.
        draft_hop_ms: what a tree adds to a step beside its passes, the call to the draft above all.
        target_hop_ms: what every step takes beside its pass, the call to the target above all.
        charge_leaves: charge a draft pass for the deepest level too, which nothing is drawn from.
            The authors' implementation counts so; the service makes one pass fewer.

    Raises:
        ValueError: a target time of zero, or hops that are not finite and >= 0.
    """

    draft_ms: Curve
    target_ms: Curve
    draft_hop_ms: float = 0.0
    target_hop_ms: float = 0.0
    charge_leaves: bool = False

    def __post_init__(self) -> None:
        if min(self.target_ms.milliseconds) <= 0:
            raise ValueError("target_ms must be above 0")
        for name in ("draft_hop_ms", "target_hop_ms"):
            hop = getattr(self, name)
            if not (math.isfinite(hop) and hop >= 0):
                raise ValueError(f"{name} {hop} is not a finite number >= 0")

    def plain_ms(self) -> float:
        """A step without speculation: one target pass over the root, and no call to the draft."""
        return float(self.target_ms.at([1])[0]) + self.target_hop_ms

    def step_ms(self, widths: Sequence[int]) -> float:
        """A step with a tree of these level widths, from the root down."""
        if len(widths) == 1:
            return self.plain_ms()
        drafted = widths if self.charge_leaves else widths[:-1]
        drafting = float(self.draft_ms.at(drafted).sum()) + self.draft_hop_ms
        return drafting + float(self.target_ms.at([sum(widths)])[0]) + self.target_hop_ms

"""Live times against the profile: how much longer passes and calls take than was measured at start.

Of every part of a step (the target's pass, the draft's passes, what is beside them) the ratio of
measured to profiled time is kept per load, with and without a tree, over about the last steps. Ratios
rather than times, because a profile knows how times depend on the tree's size, of which live steps
show only the size in force; what they show on top, longer prefixes, busier machines, streams that
wait for each other, is much the same for trees of other sizes.

A busy machine slows all parts of a step for minutes. Were trees, timed then, compared with steps
without one, timed later, plans would follow the machine's moods. So a load has one ratio of the
target's passes, of whatever steps came last, and all other ratios count relative to that of the target
in the same steps. A common factor then makes all trees slower alike, and moves no plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from planner.measurements import Measurements, Overhead
from sequoia.observations import StepSums
from sequoia.plans import GREEDY, PlannedTree

STEPS_REMEMBERED = 100.0
LEAST_STEPS = 20.0  # seen at a place before it speaks for itself
CORRELATED_STEPS = 4.0  # what delays a step often delays the next ones too
HALF_LIFE_SECONDS = 1800.0  # of what was seen at a load that traffic has left
LEAST_OVERHEAD_MS = 0.05  # where the profile found nothing beside the passes


class Part(StrEnum):
    """What a step's time is made of."""

    TARGET = "target"
    DRAFT = "draft"
    BESIDE = "beside"


@dataclass(frozen=True, slots=True)
class Place:
    """Where steps were timed: at which load, and whether with a tree."""

    batch_size: int
    has_tree: bool


@dataclass(frozen=True, slots=True)
class Ratio:
    """Measured over profiled time, with its standard deviation."""

    mean: float
    deviation: float


UNSEEN = Ratio(1.0, 0.1)  # a profile is believed to be right within a tenth


@dataclass(slots=True)
class _Mean:
    """Sums of ratios over about the last steps."""

    count: float = 0.0
    sum: float = 0.0
    squared: float = 0.0

    def add(self, count: float, ratios: float, squared: float) -> None:
        self.scale(math.exp(-count / STEPS_REMEMBERED))
        self.count += count
        self.sum += ratios
        self.squared += squared
        if self.count > STEPS_REMEMBERED:
            self.scale(STEPS_REMEMBERED / self.count)

    def scale(self, factor: float) -> None:
        self.count *= factor
        self.sum *= factor
        self.squared *= factor

    @property
    def is_known(self) -> bool:
        return self.count >= LEAST_STEPS and self.sum > 0

    def ratio(self) -> Ratio:
        mean = self.sum / self.count
        spread = max(self.squared / self.count - mean**2, 0.0)
        return Ratio(mean, math.sqrt(spread * CORRELATED_STEPS / self.count))


@dataclass(slots=True)
class _Load:
    """What was seen at one load: of the target in all steps, and of all parts in either kind."""

    target: _Mean = field(default_factory=_Mean)
    parts: dict[tuple[Part, bool], _Mean] = field(default_factory=dict)


class Calibration:
    """Ratios of live times to those of one profile."""

    def __init__(self, measurements: Measurements) -> None:
        self._measurements = measurements
        self._loads: dict[int, _Load] = {}

    def observe(self, tree: PlannedTree, steps: StepSums) -> None:
        """Take in steps that went as planned, with the tree planned for them."""
        if steps.count <= 0 or tree.batch_size not in self._measurements.batch_sizes:
            return
        latency = self._measurements.latency(tree.batch_size, tree.request_class != GREEDY)
        widths = [len(level) for level in tree.topology.levels]
        has_tree = len(widths) > 1
        overhead = latency.target_hop_ms + (latency.draft_hop_ms if has_tree else 0.0)
        profiled = {
            Part.TARGET: float(latency.target_ms.at([sum(widths)])[0]),
            Part.DRAFT: float(latency.draft_ms.at(widths[:-1]).sum()) if has_tree else 0.0,
            Part.BESIDE: max(overhead, LEAST_OVERHEAD_MS),
        }
        load = self._loads.setdefault(tree.batch_size, _Load())
        for part, milliseconds in profiled.items():
            if milliseconds > 0:
                unit = milliseconds / 1000
                ratios = getattr(steps, f"{part.value}_seconds") / unit
                squared = getattr(steps, f"{part.value}_squared") / unit**2
                mean = load.parts.setdefault((part, has_tree), _Mean())
                mean.add(steps.count, ratios, squared)
                if part is Part.TARGET:
                    load.target.add(steps.count, ratios, squared)

    def fade(self, seconds: float) -> None:
        """Let time pass: a load that traffic has left is in the end believed to be like the others."""
        factor = 0.5 ** (seconds / HALF_LIFE_SECONDS)
        for load in self._loads.values():
            for mean in (load.target, *load.parts.values()):
                mean.scale(factor)

    def source(self, part: Part, place: Place) -> Place | None:
        """Where a ratio comes from: the place itself, else one without or with a tree, else a load near.

        None: no such step has been timed.
        """

        def distance(other: Place) -> tuple[float, bool]:
            steps = abs(math.log2(other.batch_size / place.batch_size))
            return steps, other.has_tree is not place.has_tree

        known = (
            Place(batch_size, has_tree)
            for batch_size, load in self._loads.items()
            for (of, has_tree), mean in load.parts.items()
            if of is part and mean.is_known and load.parts[Part.TARGET, has_tree].is_known
        )
        return min(known, key=distance, default=None)

    def ratio(self, part: Part, place: Place) -> Ratio:
        """How much longer a part takes now; its deviation is beyond what all parts have in common."""
        source = self.source(part, place)
        if source is None:
            return UNSEEN
        load = self._loads[source.batch_size]
        now = load.target.ratio().mean
        if part is Part.TARGET:
            return Ratio(now, 0.0)
        own = load.parts[part, source.has_tree].ratio()
        factor = now / load.parts[Part.TARGET, source.has_tree].ratio().mean
        return Ratio(own.mean * factor, own.deviation * factor)

    def seen(self) -> dict[tuple[Part, Place], Ratio]:
        """The ratios as they were seen, wherever enough steps were."""
        return {
            (part, Place(batch_size, has_tree)): mean.ratio()
            for batch_size, load in self._loads.items()
            for (part, has_tree), mean in load.parts.items()
            if mean.is_known
        }

    def means(self) -> dict[tuple[Part, Place], float]:
        """The ratio of every part at every load of the profile, with and without a tree."""
        places = [
            Place(batch_size, has_tree)
            for batch_size in self._measurements.batch_sizes
            for has_tree in (False, True)
        ]
        return {(part, place): self.ratio(part, place).mean for part in Part for place in places}

    def calibrated(self) -> Measurements:
        """The profile, with all its times as they would be now."""
        measured, means = self._measurements, self.means()
        loads = set(measured.batch_sizes)
        return replace(
            measured,
            target_ms={
                (batch, nodes): ms * means[Part.TARGET, Place(batch, nodes > 1)]
                for (batch, nodes), ms in measured.target_ms.items()
                if batch in loads
            },
            draft_ms={
                (batch, nodes): ms * means[Part.DRAFT, Place(batch, True)]
                for (batch, nodes), ms in measured.draft_ms.items()
                if batch in loads
            },
            overheads={
                (batch, samples): _overhead(profiled, batch, means)
                for (batch, samples), profiled in measured.overheads.items()
                if batch in loads
            },
        )


def _overhead(
    profiled: Overhead, batch_size: int, means: Mapping[tuple[Part, Place], float]
) -> Overhead:
    plain, tree = (means[Part.BESIDE, Place(batch_size, has_tree)] for has_tree in (False, True))
    tree_ms = max(profiled.tree_ms, profiled.plain_ms)  # as planning takes them
    return Overhead(_beside(profiled.plain_ms, plain), _beside(tree_ms, tree))


def _beside(profiled_ms: float, ratio: float) -> float:
    """Where the profile found nothing, what live steps took is what there is."""
    return profiled_ms if ratio == UNSEEN.mean else max(profiled_ms, LEAST_OVERHEAD_MS) * ratio

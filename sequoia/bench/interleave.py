"""Turns and statistics: what is compared runs alternately, and is told as a median and its spread."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")

ORDER_SEED = 1


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of repeated measurements, in their unit."""

    median: float
    low: float  # first quartile
    high: float  # third quartile

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of at least one value; quartiles are interpolated.

        Raises:
            ValueError: there is no value.
        """
        if not values:
            raise ValueError("no values to take a median of")
        low, median, high = np.percentile(values, (25, 50, 75)).tolist()
        return cls(median, low, high)

    @property
    def interquartile(self) -> float:
        """Third quartile less the first."""
        return self.high - self.low

    def times(self, factor: float) -> Spread:
        """The same in another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def as_json(self) -> dict[str, float]:
        """For reports."""
        return {"median": self.median, "low": self.low, "high": self.high}


def take_turns(
    systems: Mapping[str, Callable[[Item], Result]],
    items: Sequence[Item],
    repetitions: int,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, list[Result]]:
    """Run every system on every item, one after the other, and all of it `repetitions` times.

    Whatever else the machine does meanwhile meets all systems alike. Their order is
    drawn anew for every item, so that none always follows the same other.

    Args:
        systems: what to run, by name.
        items: what to run it on.
        repetitions: how often.
        report: called after each item with the items done and all there are.

    Returns:
        By name, the results repetition by repetition, item by item: the same place is the same item.
    """
    results: dict[str, list[Result]] = {name: [] for name in systems}
    names = list(systems)
    total = repetitions * len(items)
    generator = random.Random(ORDER_SEED)  # noqa: S311 an order is no secret
    for turn in range(total):
        for name in generator.sample(names, len(names)):
            results[name].append(systems[name](items[turn % len(items)]))
        report(turn + 1, total)
    return results

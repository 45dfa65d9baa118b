"""Turns are shared fairly, and medians come with quartiles."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sequoia.bench.interleave import Spread, take_turns


def test_the_order_changes_and_results_keep_their_places() -> None:
    """Every system meets every item as often, and the same place of two lists is the same item."""
    order: list[str] = []

    def system(name: str) -> Callable[[str], str]:
        def run(item: str) -> str:
            order.append(name + item)
            return name + item

        return run

    done: list[tuple[int, int]] = []
    results = take_turns(
        {"a": system("a"), "b": system("b")},
        ["1", "2", "3"],
        2,
        lambda count, total: done.append((count, total)),
    )

    assert results == {
        "a": ["a1", "a2", "a3", "a1", "a2", "a3"],
        "b": ["b1", "b2", "b3", "b1", "b2", "b3"],
    }
    turns = [tuple(name[0] for name in order[i : i + 2]) for i in range(0, 12, 2)]
    assert set(turns) == {("a", "b"), ("b", "a")}
    assert done[-1] == (6, 6)


def test_spread_is_median_and_quartiles() -> None:
    """Quartiles are interpolated; a single value has no spread."""
    spread = Spread.of([4.0, 1.0, 3.0, 2.0])
    assert spread == Spread(2.5, 1.75, 3.25)
    assert spread.interquartile == 1.5
    assert Spread.of([2.0]).interquartile == 0.0
    assert spread.times(10.0) == Spread(25.0, 17.5, 32.5)


def test_no_values_have_no_median() -> None:
    """An empty list is an error and not a NaN."""
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from coordinator.acceptance import Trial
from coordinator.statistics import AcceptanceStatistics, Statistics, StepStatistics
from coordinator.step import Step
from sequoia.messages import GrownTree, Verdict
from sequoia.observations import Circumstance, StepKind, StepsByCircumstance, StepTimes
from sequoia.plans import RANK_LIMIT, AcceptanceCounts
from sequoia.tree import Tree


def counts_of(*trials: Trial) -> AcceptanceCounts:
    """What some trials add up to."""
    statistics = AcceptanceStatistics()
    statistics.record("greedy", trials)
    return statistics.take()["greedy"]


def first(counts: AcceptanceCounts, ranks: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The first ranks of trials and accepts; the others are zero."""
    assert not any((*counts.trials[ranks:], *counts.accepts[ranks:]))
    return counts.trials[:ranks], counts.accepts[:ranks]


class Store:
    """Stands in for Redis, which may be away."""

    def __init__(self, away: int = 0) -> None:
        self.delivered: list[tuple[str, dict[str, AcceptanceCounts]]] = []
        self.steps: list[tuple[str, int, dict[Circumstance, float]]] = []
        self.failures = 0
        self.arrived = asyncio.Event()
        self._away = away

    async def add_counts(self, pair: str, counts: Mapping[str, AcceptanceCounts]) -> None:
        self._answer()
        self.delivered.append((pair, dict(counts)))
        self.arrived.set()

    async def add_steps(self, pair: str, version: int, steps: StepsByCircumstance) -> None:
        self._answer()
        self.steps.append((pair, version, {key: sums.count for key, sums in steps.items()}))
        self.arrived.set()

    def _answer(self) -> None:
        if self.failures < self._away:
            self.failures += 1
            raise RedisConnectionError("nobody listens")


@pytest.mark.parametrize(
    ("trial", "trials", "accepts"),
    [
        (Trial(3, 0), (1, 0, 0), (1, 0, 0)),
        (Trial(3, 1), (1, 1, 0), (0, 1, 0)),
        (Trial(3, 2), (1, 1, 1), (0, 0, 1)),
        (Trial(3, None), (1, 1, 1), (0, 0, 0)),
        (Trial(1, None), (1, 0, 0), (0, 0, 0)),
    ],
)
def test_a_trial_counts_for_every_rank_up_to_the_accepted_one(
    trial: Trial, trials: tuple[int, ...], accepts: tuple[int, ...]
) -> None:
    """Children behind the accepted one were never tried; without acceptance all of them were."""
    assert first(counts_of(trial), 3) == (trials, accepts)


def test_trials_add_up() -> None:
    """Over the nodes of all steps since the last take."""
    statistics = AcceptanceStatistics()
    statistics.record("greedy", [Trial(2, 0), Trial(2, None)])
    statistics.record("greedy", [Trial(2, 1)])
    assert first(statistics.take()["greedy"], 2) == ((3, 2), (1, 1))


def test_classes_are_counted_apart() -> None:
    """Each class of requests has an acceptance vector of its own."""
    statistics = AcceptanceStatistics()
    statistics.record("greedy", [Trial(1, 0)])
    statistics.record("flat", [Trial(1, None)])
    counts = statistics.take()
    assert first(counts["greedy"], 1) == ((1,), (1,))
    assert first(counts["flat"], 1) == ((1,), (0,))


@pytest.mark.parametrize("accepted", [None, RANK_LIMIT, RANK_LIMIT + 3])
def test_ranks_beyond_the_limit_are_not_counted(accepted: int | None) -> None:
    """A node with more children than there are counters fills all of them and no more."""
    counts = counts_of(Trial(RANK_LIMIT + 10, accepted))
    assert counts.trials == (1,) * RANK_LIMIT
    assert not any(counts.accepts)


def test_the_last_rank_is_counted() -> None:
    """The limit is a limit, not one less."""
    assert counts_of(Trial(RANK_LIMIT, RANK_LIMIT - 1)).accepts[-1] == 1


def test_a_step_without_trials_counts_nothing() -> None:
    """A root alone says nothing about acceptance."""
    statistics = AcceptanceStatistics()
    statistics.record("greedy", [])
    assert statistics.take() == {}


def test_counts_are_taken_once() -> None:
    """What was handed over is gone."""
    statistics = AcceptanceStatistics()
    statistics.record("greedy", [Trial(1, 0)])
    assert statistics.take()
    assert statistics.take() == {}


def test_counts_given_back_join_the_new_ones() -> None:
    """Nothing is lost while Redis is away."""
    statistics = AcceptanceStatistics()
    statistics.record("greedy", [Trial(2, 1)])
    taken = statistics.take()
    statistics.record("greedy", [Trial(2, 0)])
    statistics.give_back(taken)
    assert first(statistics.take()["greedy"], 2) == ((2, 1), (1, 1))


PLANNED = Circumstance("greedy", 1, StepKind.PLANNED)


def step(version: int) -> Step:
    """A step under a plan."""
    times = StepTimes(0.03, 0.0, 0.02, 1, 10)
    return Step(GrownTree(Tree.root_only(5)), Verdict((6,)), version, PLANNED, times)


async def delivered(store: Store, statistics: Statistics, calls: int) -> None:
    """Deliver until the store has taken so much."""
    task = asyncio.create_task(statistics.deliver(store, interval_seconds=0))
    async with asyncio.timeout(10):
        while len(store.delivered) + len(store.steps) < calls:
            store.arrived.clear()
            await store.arrived.wait()
    task.cancel()


async def test_everything_is_delivered_under_the_pair_that_it_was_counted_for() -> None:
    """Also when the pair has changed since, Redis being away."""
    store, statistics = Store(away=2), Statistics()
    statistics.record("one", "greedy", [Trial(1, 0)], step(4), 1)
    statistics.record("two", "greedy", [Trial(1, None)], step(4), 1)
    await delivered(store, statistics, 4)
    assert store.failures == 2
    counts = {pair: first(by_class["greedy"], 1) for pair, by_class in store.delivered}
    assert counts == {"one": ((1,), (1,)), "two": ((1,), (0,))}
    assert store.steps == [("one", 4, {PLANNED: 1}), ("two", 4, {PLANNED: 1})]


async def test_nothing_is_lost_or_delivered_twice_while_redis_is_away() -> None:
    """It waits, each plan's steps apart."""
    store, statistics = Store(away=3), Statistics()
    for version in (4, 4, 5):
        statistics.record("pair", "greedy", [Trial(1, 0)], step(version), 1)
    await delivered(store, statistics, 3)
    assert store.failures == 3
    assert [first(counts["greedy"], 1) for _, counts in store.delivered] == [((3,), (3,))]
    assert store.steps == [("pair", 4, {PLANNED: 2}), ("pair", 5, {PLANNED: 1})]


def test_steps_given_back_join_the_new_ones() -> None:
    """Nothing is lost while Redis is away."""
    statistics = StepStatistics()
    statistics.record(step(4), 1)
    taken = statistics.take()
    statistics.record(step(4), 1)
    statistics.give_back(4, taken[4])
    assert statistics.take()[4][PLANNED].count == 2

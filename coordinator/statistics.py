"""What the coordinator counts for the planner, and how it gets to Redis."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Protocol

import structlog
from redis.exceptions import RedisError

from coordinator.acceptance import Trial
from coordinator.step import Step
from sequoia.observations import Circumstance, StepsByCircumstance, StepSums
from sequoia.plans import BUILT_IN_PLAN, RANK_LIMIT, AcceptanceCounts

log = structlog.get_logger(__name__)

FLUSH_SECONDS = 1.0


class Store(Protocol):
    """What is needed of `sequoia.plans.PlanStore`."""

    async def add_counts(self, pair: str, counts: Mapping[str, AcceptanceCounts]) -> None:
        """Add counts by request class."""

    async def add_steps(self, pair: str, version: int, steps: StepsByCircumstance) -> None:
        """Add sums over the steps under a plan's version."""


class AcceptanceStatistics:
    """Trials and accepts per child rank; bounded by nature, a few numbers per class."""

    def __init__(self) -> None:
        self._trials: dict[str, list[int]] = defaultdict(lambda: [0] * RANK_LIMIT)
        self._accepts: dict[str, list[int]] = defaultdict(lambda: [0] * RANK_LIMIT)

    def record(self, request_class: str, trials: Iterable[Trial]) -> None:
        """Count what happened at the visited nodes of one step."""
        for trial in trials:
            rejected = trial.child_count if trial.accepted_rank is None else trial.accepted_rank
            tried = min(rejected + (trial.accepted_rank is not None), RANK_LIMIT)
            for rank in range(tried):
                self._trials[request_class][rank] += 1
            if trial.accepted_rank is not None and trial.accepted_rank < RANK_LIMIT:
                self._accepts[request_class][trial.accepted_rank] += 1

    def take(self) -> dict[str, AcceptanceCounts]:
        """All counts since the last take."""
        counts = {
            name: AcceptanceCounts(tuple(trials), tuple(self._accepts[name]))
            for name, trials in self._trials.items()
        }
        self._trials.clear()
        self._accepts.clear()
        return counts

    def give_back(self, counts: Mapping[str, AcceptanceCounts]) -> None:
        """Keep counts that could not be delivered."""
        for name, count in counts.items():
            for rank in range(RANK_LIMIT):
                self._trials[name][rank] += count.trials[rank]
                self._accepts[name][rank] += count.accepts[rank]

    async def hand_over(self, store: Store, pair: str) -> None:
        """Add the counts to the store's; they stay here when it is away."""
        counts = self.take()
        if not counts:
            return
        try:
            await store.add_counts(pair, counts)
        except (RedisError, OSError):
            self.give_back(counts)
            raise


class StepStatistics:
    """Sums over steps by plan version and circumstance; a version is forgotten once delivered."""

    def __init__(self) -> None:
        self._steps: dict[int, dict[Circumstance, StepSums]] = {}

    def record(self, step: Step, token_count: int) -> None:
        """Add a step that yielded so many tokens, unless no planner had a say in it."""
        if step.circumstance is None or step.plan_version == BUILT_IN_PLAN.version:
            return
        steps = self._steps.setdefault(step.plan_version, {})
        sums = steps.get(step.circumstance)
        if sums is None:
            sums = steps[step.circumstance] = StepSums()
        sums.record(token_count, step.times)

    def take(self) -> dict[int, dict[Circumstance, StepSums]]:
        """All sums since the last take, by plan version."""
        steps, self._steps = self._steps, {}
        return steps

    def give_back(self, version: int, steps: StepsByCircumstance) -> None:
        """Keep sums that could not be delivered."""
        kept = self._steps.setdefault(version, {})
        for circumstance, sums in steps.items():
            kept.setdefault(circumstance, StepSums()).add(sums)

    async def hand_over(self, store: Store, pair: str) -> None:
        """Add the sums to the store's; those that it has not taken stay here when it is away."""
        waiting = self.take()
        try:
            for version in sorted(waiting):
                await store.add_steps(pair, version, waiting[version])
                del waiting[version]
        except (RedisError, OSError):
            for version, steps in waiting.items():
                self.give_back(version, steps)
            raise


class Statistics:
    """Everything that is counted, apart for every pair of models that was in use."""

    def __init__(self) -> None:
        self._of_pairs: dict[str, tuple[AcceptanceStatistics, StepStatistics]] = {}

    def record(
        self, pair: str, request_class: str, trials: Iterable[Trial], step: Step, token_count: int
    ) -> None:
        """Count one step of a request, which yielded so many tokens."""
        if pair not in self._of_pairs:
            self._of_pairs[pair] = AcceptanceStatistics(), StepStatistics()
        acceptance, steps = self._of_pairs[pair]
        acceptance.record(request_class, trials)
        steps.record(step, token_count)

    async def deliver(self, store: Store, interval_seconds: float = FLUSH_SECONDS) -> None:
        """Hand everything to Redis now and then; never ends."""
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                for pair, (acceptance, steps) in tuple(self._of_pairs.items()):
                    await acceptance.hand_over(store, pair)
                    await steps.hand_over(store, pair)
            except (RedisError, OSError) as error:
                log.debug("statistics wait for redis", error=str(error))

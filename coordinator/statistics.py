"""Acceptance statistics on their way to the planner."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable

import structlog
from redis.exceptions import RedisError

from coordinator.acceptance import Trial
from sequoia.plans import RANK_LIMIT, AcceptanceCounts, PlanStore

log = structlog.get_logger(__name__)

FLUSH_SECONDS = 1.0


class AcceptanceStatistics:
    """Counts trials and accepts per child rank, and hands them to Redis now and then.

    While Redis is away the counts wait here; they are bounded by nature, a few numbers per class.
    """

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

    def give_back(self, counts: dict[str, AcceptanceCounts]) -> None:
        """Keep counts that could not be delivered."""
        for name, count in counts.items():
            for rank in range(RANK_LIMIT):
                self._trials[name][rank] += count.trials[rank]
                self._accepts[name][rank] += count.accepts[rank]

    async def deliver(
        self, store: PlanStore, pair: Callable[[], str], interval_seconds: float = FLUSH_SECONDS
    ) -> None:
        """Hand the counts to Redis now and then, under the name of the pair in use; never ends."""
        while True:
            await asyncio.sleep(interval_seconds)
            counts = self.take()
            if not counts:
                continue
            try:
                await store.add_counts(pair(), counts)
            except (RedisError, OSError) as error:
                log.debug("statistics wait for redis", error=str(error))
                self.give_back(counts)

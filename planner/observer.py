"""Brings before the planner's mind what coordinators have counted since the last look."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from planner.accuracy import Accuracy
from planner.deliberation import Deliberation
from planner.ledger import Ledger
from planner.memory import Memory
from sequoia.plan_store import PlanStore
from sequoia.plans import REQUEST_CLASSES, Plan

log = structlog.get_logger(__name__)


class Observer:
    """Reads the statistics of one pair of models; what it counted outlives the workers.

    `clock` (seconds) says how long ago the last look was.
    """

    def __init__(
        self, store: PlanStore, pair: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.pair = pair
        self.memories = {name: Memory() for name in REQUEST_CLASSES}
        self.accuracy = Accuracy()
        self._store = store
        self._ledger = Ledger()
        self._clock = clock
        self._looked = clock()

    async def look(self, deliberation: Deliberation, plan: Plan | None) -> None:
        """Take in what is new; shifts of the traffic and wrong predictions are logged.

        Args:
            deliberation: what learns of it.
            plan: whose steps to read; None leaves steps alone.

        Raises:
            RedisError: Redis is away.
        """
        for name in REQUEST_CLASSES:
            await self._read_counts(deliberation, name)
        if plan is not None:
            await self._read_steps(deliberation, plan)
        looked, self._looked = self._looked, self._clock()
        deliberation.calibration.fade(self._looked - looked)

    async def _read_counts(self, deliberation: Deliberation, name: str) -> None:
        read = await self._store.read_counts(self.pair, name)
        is_first = not self._ledger.knows(name)
        counts = self._ledger.new_counts(name, read)
        if is_first:
            self.memories[name].recall(counts)
        elif deliberation.observe_counts(name, counts):
            vector = [round(chance, 3) for chance in deliberation.estimate(name).vector[:4]]
            log.info("traffic shifted", request_class=name, acceptance=vector)

    async def _read_steps(self, deliberation: Deliberation, plan: Plan) -> None:
        read = await self._store.read_steps(self.pair, plan.version)
        steps = self._ledger.new_steps(plan.version, read)
        deliberation.observe_steps(plan.trees, steps)
        for offence in self.accuracy.observe(steps):
            tree = offence.tree
            log.info(
                "prediction off",
                cause=offence.cause,
                request_class=tree.request_class,
                batch_size=tree.batch_size,
                plan_version=plan.version,
                predicted_tokens_per_step=round(tree.expected_tokens_per_step, 3),
                tokens_per_step=round(offence.tokens_per_step, 3),
                predicted_seconds_per_token=round(tree.predicted_seconds_per_token, 6),
                seconds_per_token=round(offence.seconds_per_token, 6),
            )

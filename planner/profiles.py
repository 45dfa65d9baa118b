"""The measurements that a planner works with: its own, or those of one before it on these very workers.

To measure workers that are busy slows their requests down, and what is found is distorted by these. So
measurements outlive the planner, in Redis.
"""

from __future__ import annotations

import structlog

from planner.found_worker import FoundWorker
from planner.measurements import Measurements
from planner.measurements_codec import BYTES_LIMIT, from_json, to_json
from planner.profiler import profile, tree_limit
from planner.scope import Scope
from planner.wording import tables
from sequoia.measurement_store import MeasurementStore, workers_name

log = structlog.get_logger(__name__)


class Profiles:
    """Measures workers, recalls what was measured, and sees to it that what is in use stays in Redis.

    `were_recalled` says of the measurements in use that another planner has taken them.
    """

    def __init__(self, store: MeasurementStore) -> None:
        self._store = store
        self._workers = ""  # that were measured; empty before any were
        self._text = ""  # what was measured, as it is to be stored
        self._is_stored = False
        self._complaint = ""
        self.were_recalled = False

    async def recall(
        self, draft: FoundWorker, target: FoundWorker, scope: Scope
    ) -> Measurements | None:
        """What was measured on these workers under this scope; None where that is not known.

        Raises:
            RedisError: Redis is away.
        """
        workers = workers_name(draft.info, target.info)
        max_nodes = tree_limit(draft.info, target.info, scope.max_nodes)
        try:
            stored = await self._store.read(workers, BYTES_LIMIT + 1)
            measurements = from_json(stored, scope, max_nodes) if stored else None
        except ValueError as error:
            if str(error) != self._complaint:  # measuring may fail and be begun again
                log.warning("measurements refused", error=str(error))
            self._complaint = str(error)
            return None
        if measurements is not None:
            self._use(workers, measurements, scope, recalled=True)
            log.info("measurements recalled", **tables(measurements))
        return measurements

    async def measure(self, draft: FoundWorker, target: FoundWorker, scope: Scope) -> Measurements:
        """Measure now.

        Raises:
            SequoiaError: a worker was lost, or what it measured is unusable.
        """
        log.info("measuring", draft=draft.info.model, target=target.info.model)
        measurements = await profile(draft, target, scope)
        workers = workers_name(draft.info, target.info)
        self._use(workers, measurements, scope, recalled=False)
        log.info("measured", **tables(measurements))
        return measurements

    def _use(self, workers: str, measurements: Measurements, scope: Scope, recalled: bool) -> None:
        self._workers, self._text = workers, to_json(measurements, scope)
        self._is_stored = self.were_recalled = recalled
        self._complaint = ""

    async def keep(self) -> None:
        """Store what is in use unless it is there, and put off the day when it is forgotten.

        Raises:
            RedisError: Redis is away.
        """
        if self._is_stored and await self._store.renew(self._workers):
            return
        await self._store.write(self._workers, self._text)
        self._is_stored = True

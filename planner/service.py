"""PlannerService, and the loop behind it: look, measure or recall, estimate, solve, publish."""

from __future__ import annotations

import asyncio
import time

import structlog
from redis.exceptions import RedisError

from planner.accuracy import Accuracy
from planner.deliberation import Deliberation
from planner.found_worker import Finder, FoundWorker
from planner.metrics import FAILED, WAITED, PlannerMetrics
from planner.observer import Observer
from planner.profiles import Profiles
from planner.reporting import report
from planner.scope import scope_for
from planner.settings import PlannerSettings
from planner.succession import can_go_on
from planner.wording import summary
from sequoia.errors import NotReadyError, SequoiaError
from sequoia.measurement_store import workers_name
from sequoia.plan_store import PlanStore
from sequoia.planner_report import Report
from sequoia.plans import Plan, PlanError, PlannedTree, pair_name
from sequoia.rpc.planner_codec import GET_PLAN, GET_REPORT, REPLAN
from sequoia.rpc.server import Context, RpcServer
from sequoia.tasks import end_tasks

log = structlog.get_logger(__name__)

WAIT_SECONDS = 0.5  # between looks as long as there is no plan


class PlannerService:
    """Keeps a plan in Redis that fits the workers and what was accepted so far."""

    def __init__(self, server: RpcServer, settings: PlannerSettings) -> None:
        self.settings = settings
        self.plan: Plan | None = None
        self._drafts = Finder(settings.draft_addresses, settings.credentials)
        self._targets = Finder(settings.target_addresses, settings.credentials)
        self._store = PlanStore(settings.redis_url)
        self._profiles = Profiles(self._store.measurements)
        self._workers = ""  # whose measurements are in use
        self._observer: Observer | None = None
        self._deliberation: Deliberation | None = None
        self._planned_by: Deliberation | None = None  # the plan in force
        self._accuracy = Accuracy()  # of that plan
        self._has_plan = asyncio.Event()
        self._lock = asyncio.Lock()  # one measurement at a time
        self._looking: asyncio.Task[None] | None = None
        self._metrics = PlannerMetrics()
        server.registry.register(self._metrics)
        server.add_unary(GET_PLAN, self._get_plan)
        server.add_unary(REPLAN, self._replan)
        server.add_unary(GET_REPORT, self._get_report)

    async def get_ready(self) -> None:
        """Begin to look after the plan; return when one is in force."""
        self._looking = asyncio.create_task(self._look_for_ever())
        await self._has_plan.wait()

    async def stop(self) -> None:
        """End the loop, and let go of workers and Redis."""
        if self._looking:
            await end_tasks([self._looking])
        await self._drafts.close()
        await self._targets.close()
        await self._store.close()

    async def _get_plan(self, _request: None, _context: Context) -> Plan:
        if self.plan is None:
            raise NotReadyError("no plan has been published yet")
        return self.plan

    async def _get_report(self, _request: None, _context: Context) -> Report:
        if (known := self._report()) is None:
            raise NotReadyError("no plan has been published yet")
        return known

    def _report(self) -> Report | None:
        if self.plan is None or self._planned_by is None:
            return None
        return report(self.plan, self._planned_by, self._accuracy)

    async def _replan(self, _request: None, _context: Context) -> Plan:
        try:
            async with self._lock:
                draft, target = await self._drafts.find(), await self._targets.find()
                observer, deliberation = await self._begin(draft, target, may_recall=False)
                await observer.look(deliberation, None)
                trees = await asyncio.to_thread(deliberation.plan)
                return await self._publish(trees, observer, deliberation, "asked for")
        except (RedisError, OSError) as error:
            raise NotReadyError(f"Redis is unavailable: {error}") from error

    async def _look_for_ever(self) -> None:
        """Whatever is away is waited for; each trouble is logged once, not at every look."""
        trouble = ""
        while True:
            started = time.perf_counter()
            try:
                await self._look()
                trouble = ""
                self._metrics.has_looked(started, self._report())
            except (SequoiaError, RedisError, OSError) as error:
                self._metrics.looks.labels(WAITED).inc()
                if str(error) != trouble:
                    log.warning("planning waits", error=str(error))
                trouble = str(error)
            except Exception:  # a defect; the last plan stays in force, and the next look may work
                self._metrics.looks.labels(FAILED).inc()
                log.exception("planning failed")
            await asyncio.sleep(self.settings.replan_seconds if self.plan else WAIT_SECONDS)

    async def _look(self) -> None:
        """Publish a plan if one is due.

        Raises:
            SequoiaError: a worker is away.
            RedisError: Redis is.
        """
        async with self._lock:
            draft, target = await self._drafts.find(), await self._targets.find()
            observer, deliberation = self._observer, self._deliberation
            workers = workers_name(draft.info, target.info)
            if not observer or not deliberation or self._workers != workers:
                observer, deliberation = await self._begin(draft, target, may_recall=True)
            # Steps from before the last measurement say nothing of what was measured.
            is_of_these = self._planned_by is deliberation
            await observer.look(deliberation, self.plan if is_of_these else None)
            if self.plan is None or not is_of_these:
                trees = await asyncio.to_thread(deliberation.plan)
                again = "recalled" if self._profiles.were_recalled else "measured anew"
                cause = again if self.plan else "first plan"
                await self._publish(trees, observer, deliberation, cause)
            elif revision := await asyncio.to_thread(deliberation.revision, self.plan.trees):
                await self._publish(revision.trees, observer, deliberation, revision.cause)
            elif cause := await self._loss():
                await self._publish(self.plan.trees, observer, deliberation, cause)
            # Only now, so that a plan which is found beside measurements is of the same workers.
            await self._profiles.keep()

    async def _begin(
        self, draft: FoundWorker, target: FoundWorker, may_recall: bool
    ) -> tuple[Observer, Deliberation]:
        """Think about these workers afresh, by what is measured or was; counts of the same models are kept.

        A planner that has just begun goes on from the plan that stands, where that fits what it recalls.
        """
        limits = self.settings
        scope = scope_for(target.info, limits.max_nodes, limits.max_levels, limits.max_batch_size)
        recalled = await self._profiles.recall(draft, target, scope) if may_recall else None
        standing = await self._standing() if recalled and not self.plan else None
        measurements = recalled or await self._profiles.measure(draft, target, scope)
        pair = pair_name(draft.info, target.info)
        if self._observer is None or self._observer.pair != pair:
            self._observer = Observer(self._store, pair)
        deliberation = Deliberation(measurements, scope.max_levels, self._observer.memories)
        self._deliberation, self._workers = deliberation, workers_name(draft.info, target.info)
        if standing and can_go_on(standing, measurements, scope.max_levels):
            deliberation.inherit()
            self._put_in_force(standing, self._observer, deliberation)
            log.info("plan taken over", version=standing.version, trees=summary(standing))
        return self._observer, deliberation

    async def _standing(self) -> Plan | None:
        try:
            return await self._store.read()
        except PlanError as error:
            log.warning("plan refused", error=str(error))
            return None

    async def _loss(self) -> str:
        """Why what Redis holds must be replaced; empty while it holds the plan in force."""
        try:
            stored = await self._store.read()
        except PlanError as error:
            log.warning("plan refused", error=str(error))
            return "plan overwritten"
        if stored == self.plan:
            return ""
        return "plan overwritten" if stored else "plan lost"

    async def _publish(
        self,
        trees: tuple[PlannedTree, ...],
        observer: Observer,
        deliberation: Deliberation,
        cause: str,
    ) -> Plan:
        plan = await self._store.publish(trees, after=self.plan.version if self.plan else 0)
        self._put_in_force(plan, observer, deliberation)
        self._metrics.plans.labels(cause).inc()
        log.info("plan published", version=plan.version, cause=cause, trees=summary(plan))
        return plan

    def _put_in_force(self, plan: Plan, observer: Observer, deliberation: Deliberation) -> None:
        self.plan, self._planned_by, self._accuracy = plan, deliberation, observer.accuracy
        self._accuracy.begin(plan.trees)
        self._has_plan.set()

"""PlannerService, and the loop behind it: look, measure, estimate, solve, publish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import structlog
from redis.exceptions import RedisError

from planner.accuracy import Accuracy
from planner.deliberation import Deliberation
from planner.found_worker import Finder, FoundWorker
from planner.measurements import Measurements, Times
from planner.metrics import FAILED, WAITED, PlannerMetrics
from planner.observer import Observer
from planner.profiler import profile
from planner.reporting import report
from planner.scope import scope_for
from sequoia.errors import NotReadyError, SequoiaError
from sequoia.plan_store import PlanStore
from sequoia.planner_report import Report
from sequoia.plans import Plan, PlanError, PlannedTree, pair_name
from sequoia.rpc.planner_codec import GET_PLAN, GET_REPORT, REPLAN
from sequoia.rpc.server import Context, RpcServer
from sequoia.tasks import end_tasks

log = structlog.get_logger(__name__)

WAIT_SECONDS = 0.5  # between looks as long as there is no plan


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """Whom a planner plans for, and within which limits."""

    target_addresses: Sequence[str]  # HOST:PORT of each; one of them is measured
    draft_addresses: Sequence[str]
    redis_url: str = field(repr=False)  # may hold a password
    max_nodes: int | None = None  # None: by the target's placement
    max_levels: int | None = None
    max_batch_size: int | None = None
    replan_seconds: float = 1.0
    credentials: grpc.ChannelCredentials | None = None  # to show to the workers


class PlannerService:
    """Keeps a plan in Redis that fits the workers and what was accepted so far."""

    def __init__(self, server: RpcServer, settings: PlannerSettings) -> None:
        self.settings = settings
        self.plan: Plan | None = None
        self._drafts = Finder(settings.draft_addresses, settings.credentials)
        self._targets = Finder(settings.target_addresses, settings.credentials)
        self._store = PlanStore(settings.redis_url)
        self._instances = ""  # of the workers that were measured
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
        """Begin to look after the plan; return when the first one is published."""
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
                observer, deliberation = await self._measure(draft, target)
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
            if not self._observer or not self._deliberation or self._are_new(draft, target):
                observer, deliberation = await self._measure(draft, target)
            else:
                observer, deliberation = self._observer, self._deliberation
            # Steps from before the last measurement say nothing of what was measured.
            is_of_these = self._planned_by is deliberation
            await observer.look(deliberation, self.plan if is_of_these else None)
            if self.plan is None or self._planned_by is not deliberation:
                trees = await asyncio.to_thread(deliberation.plan)
                cause = "measured anew" if self.plan else "first plan"
                await self._publish(trees, observer, deliberation, cause)
            elif revision := await asyncio.to_thread(deliberation.revision, self.plan.trees):
                await self._publish(revision.trees, observer, deliberation, revision.cause)
            elif cause := await self._loss():
                await self._publish(self.plan.trees, observer, deliberation, cause)

    def _are_new(self, draft: FoundWorker, target: FoundWorker) -> bool:
        return self._instances != _instances(draft, target)

    async def _measure(
        self, draft: FoundWorker, target: FoundWorker
    ) -> tuple[Observer, Deliberation]:
        """Measure the workers, and think about them afresh; counts of the same models are kept."""
        log.info("measuring", draft=draft.info.model, target=target.info.model)
        limits = self.settings
        scope = scope_for(target.info, limits.max_nodes, limits.max_levels, limits.max_batch_size)
        measurements = await profile(draft, target, scope)
        pair = pair_name(draft.info, target.info)
        if self._observer is None or self._observer.pair != pair:
            self._observer = Observer(self._store, pair)
        self._deliberation = Deliberation(measurements, scope.max_levels, self._observer.memories)
        self._instances = _instances(draft, target)
        _log_measurements(measurements)
        return self._observer, self._deliberation

    async def _loss(self) -> str:
        """Why what Redis holds must be replaced; empty while it holds the plan in force."""
        try:
            stored = await self._store.read()
        except PlanError as error:
            log.warning("plan refused", error=str(error))
            return "plan overwritten"
        if stored is None:
            return "plan lost"
        return "" if stored == self.plan else "plan overwritten"

    async def _publish(
        self,
        trees: tuple[PlannedTree, ...],
        observer: Observer,
        deliberation: Deliberation,
        cause: str,
    ) -> Plan:
        plan = await self._store.publish(trees, after=self.plan.version if self.plan else 0)
        self.plan, self._planned_by, self._accuracy = plan, deliberation, observer.accuracy
        self._accuracy.begin(plan.trees)
        self._has_plan.set()
        self._metrics.plans.labels(cause).inc()
        log.info("plan published", version=plan.version, cause=cause, trees=_summary(plan))
        return plan


def _instances(draft: FoundWorker, target: FoundWorker) -> str:
    return f"{draft.info.instance_id} {target.info.instance_id}"


def _log_measurements(measurements: Measurements) -> None:
    log.info(
        "measured",
        target_ms=_table(measurements.target_ms),
        draft_ms=_table(measurements.draft_ms),
        overheads_ms={
            f"{batch} {'sampled' if samples else 'greedy'}": (
                round(overhead.plain_ms, 2),
                round(overhead.tree_ms, 2),
            )
            for (batch, samples), overhead in measurements.overheads.items()
        },
    )


def _table(times: Times) -> dict[int, dict[int, float]]:
    """Milliseconds by batch size and number of nodes, for the log."""
    table: dict[int, dict[int, float]] = {}
    for (batch, nodes), ms in times.items():
        table.setdefault(batch, {})[nodes] = round(ms, 3)
    return table


def _summary(plan: Plan) -> dict[str, dict[int, str]]:
    """Every tree of a plan in a few words, by request class and batch size, for the log."""
    summary: dict[str, dict[int, str]] = {}
    for tree in plan.trees:
        shape = f"{tree.topology.node_count} nodes, {tree.topology.level_count} levels"
        words = f"{shape}, {tree.expected_tokens_per_step:.2f} tokens"
        summary.setdefault(tree.request_class, {})[tree.batch_size] = words
    return summary

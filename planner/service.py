"""PlannerService, and the loop behind it: look, measure, estimate, solve, publish."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
import structlog
from redis.exceptions import RedisError

from planner.estimator import PRIOR, distance, estimate
from planner.found_worker import FoundWorker, find
from planner.measurements import Measurements, Times
from planner.planning import plan_trees
from planner.profiler import profile
from planner.scope import Scope, scope_for
from sequoia.errors import NotReadyError, SequoiaError
from sequoia.plans import REQUEST_CLASSES, Plan, PlanError, PlanStore, pair_name
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.planner_codec import GET_PLAN, REPLAN
from sequoia.rpc.server import Context, RpcServer
from sequoia.tasks import end_tasks

log = structlog.get_logger(__name__)

WAIT_SECONDS = 0.5  # between looks as long as there is no plan
PRIOR_WEIGHT = 50.0  # nodes that the prior stands for at each rank
MOVED = 0.03  # change of a probability that is worth a new plan


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """Whom a planner plans for, and within which limits."""

    target_address: str
    draft_address: str
    redis_url: str = field(repr=False)  # may hold a password
    max_nodes: int | None = None  # None: by the target's placement
    max_levels: int | None = None
    replan_seconds: float = 5.0
    credentials: grpc.ChannelCredentials | None = None  # to show to the workers


@dataclass(frozen=True, slots=True)
class Basis:
    """What a plan rests on."""

    measurements: Measurements
    vectors: Mapping[str, tuple[float, ...]]  # a_1..a_k by request class
    max_levels: int

    def departs_from(self, published: Basis | None) -> str:
        """Why a new plan is due if the last one rests on `published`; empty when none is."""
        if published is None:
            return "first plan"
        if self.measurements is not published.measurements:
            return "measured anew"
        moves = (distance(published.vectors[name], self.vectors[name]) for name in self.vectors)
        return "estimates moved" if max(moves) > MOVED else ""


class PlannerService:
    """Keeps a plan in Redis that fits the workers and what was accepted so far."""

    def __init__(self, server: RpcServer, settings: PlannerSettings) -> None:
        self.settings = settings
        self.plan: Plan | None = None
        self._draft = RpcChannel(settings.draft_address, settings.credentials)
        self._target = RpcChannel(settings.target_address, settings.credentials)
        self._store = PlanStore(settings.redis_url)
        self._measured: tuple[str, Measurements] | None = None  # on which instances
        self._published: Basis | None = None
        self._has_plan = asyncio.Event()
        self._lock = asyncio.Lock()  # one measurement at a time
        self._looking: asyncio.Task[None] | None = None
        server.add_unary(GET_PLAN, self._get_plan)
        server.add_unary(REPLAN, self._replan)

    async def get_ready(self) -> None:
        """Begin to look after the plan; return when the first one is published."""
        self._looking = asyncio.create_task(self._look_for_ever())
        await self._has_plan.wait()

    async def stop(self) -> None:
        """End the loop, and let go of workers and Redis."""
        if self._looking:
            await end_tasks([self._looking])
        await self._draft.close()
        await self._target.close()
        await self._store.close()

    async def _get_plan(self, _request: None, _context: Context) -> Plan:
        if self.plan is None:
            raise NotReadyError("no plan has been published yet")
        return self.plan

    async def _replan(self, _request: None, _context: Context) -> Plan:
        try:
            async with self._lock:
                draft, target = await find(self._draft), await find(self._target)
                measurements = await self._measure(draft, target)
                basis = await self._basis(draft, target, measurements)
                return await self._publish(basis, "asked for")
        except (RedisError, OSError) as error:
            raise NotReadyError(f"Redis is unavailable: {error}") from error

    async def _look_for_ever(self) -> None:
        """Whatever is away is waited for; each trouble is logged once, not at every look."""
        trouble = ""
        while True:
            try:
                await self._look()
                trouble = ""
            except (SequoiaError, RedisError, OSError) as error:
                if str(error) != trouble:
                    log.warning("planning waits", error=str(error))
                trouble = str(error)
            except Exception:  # a defect; the last plan stays in force, and the next look may work
                log.exception("planning failed")
            await asyncio.sleep(self.settings.replan_seconds if self.plan else WAIT_SECONDS)

    async def _look(self) -> None:
        """Publish a plan if one is due.

        Raises:
            SequoiaError: a worker is away.
            RedisError: Redis is.
        """
        async with self._lock:
            draft, target = await find(self._draft), await find(self._target)
            if self._measured and self._measured[0] == _instances(draft, target):
                measurements = self._measured[1]
            else:
                measurements = await self._measure(draft, target)
            basis = await self._basis(draft, target, measurements)
            cause = basis.departs_from(self._published) or await self._loss()
            if cause:
                await self._publish(basis, cause)

    async def _measure(self, draft: FoundWorker, target: FoundWorker) -> Measurements:
        log.info("measuring", draft=draft.info.model, target=target.info.model)
        measurements = await profile(draft, target, self._scope(target))
        self._measured = _instances(draft, target), measurements
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
        return measurements

    async def _basis(
        self, draft: FoundWorker, target: FoundWorker, measurements: Measurements
    ) -> Basis:
        vectors = await self._estimate(draft, target)
        return Basis(measurements, vectors, self._scope(target).max_levels)

    def _scope(self, target: FoundWorker) -> Scope:
        return scope_for(target.info, self.settings.max_nodes, self.settings.max_levels)

    async def _estimate(
        self, draft: FoundWorker, target: FoundWorker
    ) -> dict[str, tuple[float, ...]]:
        pair = pair_name(draft.info, target.info)
        return {
            name: estimate(await self._store.read_counts(pair, name), PRIOR, PRIOR_WEIGHT)
            for name in REQUEST_CLASSES
        }

    async def _loss(self) -> str:
        """Why what Redis holds must be replaced; empty while it holds a plan."""
        try:
            return "" if await self._store.read() else "plan lost"
        except PlanError as error:
            log.warning("plan refused", error=str(error))
            return "plan overwritten"

    async def _publish(self, basis: Basis, cause: str) -> Plan:
        trees = await asyncio.to_thread(
            plan_trees, basis.measurements, basis.vectors, basis.max_levels
        )
        plan = await self._store.publish(trees, after=self.plan.version if self.plan else 0)
        self.plan, self._published = plan, basis
        self._has_plan.set()
        log.info("plan published", version=plan.version, cause=cause, trees=_summary(plan))
        return plan


def _instances(draft: FoundWorker, target: FoundWorker) -> str:
    return f"{draft.info.instance_id} {target.info.instance_id}"


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

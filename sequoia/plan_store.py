"""Plans and statistics in Redis.

Redis holds four things, none irreplaceable: the last plan (`sequoia:plan`, announced on the channel
of the same name), the counts from which the planner estimates acceptance (`sequoia:acceptance:PAIR:CLASS`,
a hash of `trials:RANK` and `accepts:RANK`), sums over steps (`sequoia.step_store`), and what was measured
on the workers (`sequoia.measurement_store`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

import redis.asyncio as redis
import structlog
from redis.exceptions import RedisError, ResponseError

from sequoia.measurement_store import MeasurementStore
from sequoia.observations import Circumstance, StepsByCircumstance, StepSums
from sequoia.plans import RANK_LIMIT, AcceptanceCounts, Plan, PlanError, PlannedTree
from sequoia.step_store import add_steps, execute, read_steps, text_of

log = structlog.get_logger(__name__)

PLAN_KEY = "sequoia:plan"
PLAN_CHANNEL = "sequoia:plan"
VERSION_KEY = "sequoia:plan:version"
COUNT_DIGITS_LIMIT = 18
COUNTS_KEPT_SECONDS = 30 * 86400
POLL_SECONDS = 2.0
RETRY_SECONDS = 0.5


class PlanStore:
    """Plans and statistics in Redis.

    Every method but the iterator raises `RedisError` when Redis is away.
    """

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(
            url, socket_timeout=5.0, socket_connect_timeout=2.0, decode_responses=False
        )
        self.measurements = MeasurementStore(self._redis)

    async def close(self) -> None:
        """End the connections."""
        await self._redis.aclose()

    async def publish(self, trees: tuple[PlannedTree, ...], after: int = 0) -> Plan:
        """Store a plan under the next version and announce it.

        Versions go on rising from `after` when Redis has lost its own count.
        """
        try:
            version = int(await self._redis.incr(VERSION_KEY))
        except ResponseError:  # what is stored there is no count
            version = after
        if version <= after:
            version = after + 1
            await self._redis.set(VERSION_KEY, version)
        plan = Plan(version, time.time(), trees)
        await self._redis.set(PLAN_KEY, plan.to_json())
        await self._redis.publish(PLAN_CHANNEL, str(version))
        return plan

    async def read(self) -> Plan | None:
        """The stored plan; None when there is none.

        Raises:
            PlanError: what is stored is not a plan.
        """
        try:
            text = await self._redis.get(PLAN_KEY)
        except ResponseError as error:
            raise PlanError(f"plan: {error}") from error
        return None if text is None else Plan.from_json(text)

    async def plans(self) -> AsyncIterator[Plan]:
        """Every plan as it is announced, the stored one first; never ends.

        Garbage is logged and left out; a lost Redis is waited for. Besides listening it looks by
        itself every few seconds, for an announcement may be lost with a connection.
        """
        last: tuple[int, float] | None = None
        complaint = ""
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(PLAN_CHANNEL)
                    while True:
                        plan, problem = await self._read_or_complain()
                        if problem and problem != complaint:
                            log.warning("plan refused", error=problem)
                        complaint = problem
                        if plan is not None and (plan.version, plan.created_at) != last:
                            last = plan.version, plan.created_at
                            yield plan
                        await pubsub.get_message(
                            ignore_subscribe_messages=True, timeout=POLL_SECONDS
                        )
            except (RedisError, OSError) as error:
                if str(error) != complaint:
                    log.warning("redis unavailable", error=str(error))
                complaint = str(error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _read_or_complain(self) -> tuple[Plan | None, str]:
        try:
            return await self.read(), ""
        except PlanError as error:
            return None, str(error)

    async def add_counts(self, pair: str, counts: Mapping[str, AcceptanceCounts]) -> None:
        """Add counts per request class to what is stored for a pair of models.

        A pair that nobody has used for a month is forgotten.
        """
        async with self._redis.pipeline(transaction=True) as pipeline:
            for name, added in counts.items():
                key = f"sequoia:acceptance:{pair}:{name}"
                for field in ("trials", "accepts"):
                    for rank, count in enumerate(getattr(added, field), start=1):
                        if count:
                            pipeline.hincrby(key, f"{field}:{rank}", count)
                pipeline.expire(key, COUNTS_KEPT_SECONDS)
            await execute(pipeline)

    async def read_counts(self, pair: str, request_class: str) -> AcceptanceCounts:
        """All counts stored for a pair of models and a class; what is not a count reads as 0."""
        try:
            stored = await self._redis.hgetall(f"sequoia:acceptance:{pair}:{request_class}")
        except ResponseError as error:
            log.warning("statistics refused", request_class=request_class, error=str(error))
            stored = {}
        columns: dict[str, list[int]] = {name: [0] * RANK_LIMIT for name in ("trials", "accepts")}
        for key, value in stored.items():
            name, _, rank = text_of(key).partition(":")
            if name in columns and 1 <= _count(rank) <= RANK_LIMIT:
                columns[name][_count(rank) - 1] = _count(text_of(value))
        possible = (min(both) for both in zip(columns["accepts"], columns["trials"], strict=True))
        return AcceptanceCounts(tuple(columns["trials"]), tuple(possible))

    async def add_steps(self, pair: str, version: int, steps: StepsByCircumstance) -> None:
        """Add sums over the steps under a plan's version to what is stored."""
        await add_steps(self._redis, pair, version, steps)

    async def read_steps(self, pair: str, version: int) -> dict[Circumstance, StepSums]:
        """All sums over the steps under a plan's version; what is none reads as 0."""
        return await read_steps(self._redis, pair, version)


def _count(text: str) -> int:
    """A decimal number, 0 for any other text."""
    return int(text) if text.isdecimal() and len(text) <= COUNT_DIGITS_LIMIT else 0

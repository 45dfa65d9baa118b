"""Sums over steps in Redis: `sequoia:steps:PAIR:VERSION`, a hash of `CLASS:BATCH:KIND:SUM`.

A plan's version has a hash of its own, which is forgotten a while after its last step; so sums belong
to known trees, and what is stored stays bounded.
"""

from __future__ import annotations

import redis.asyncio as redis
import structlog
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError, ResponseError

from sequoia.observations import (
    SUM_NAMES,
    Circumstance,
    StepsByCircumstance,
    StepSums,
    circumstance_of,
    sum_of,
)

log = structlog.get_logger(__name__)

KEPT_SECONDS = 3600


async def add_steps(
    client: redis.Redis, pair: str, version: int, steps: StepsByCircumstance
) -> None:
    """Add to what is stored for a pair of models and a plan's version.

    Raises:
        RedisError: Redis is away.
    """
    key = _key(pair, version)
    async with client.pipeline(transaction=True) as pipeline:
        for circumstance, sums in steps.items():
            prefix = (
                f"{circumstance.request_class}:{circumstance.batch_size}:{circumstance.kind.value}"
            )
            for name in SUM_NAMES:
                pipeline.hincrbyfloat(key, f"{prefix}:{name}", getattr(sums, name))
        pipeline.expire(key, KEPT_SECONDS)
        await execute(pipeline)


async def read_steps(client: redis.Redis, pair: str, version: int) -> dict[Circumstance, StepSums]:
    """All sums of a plan's version.

    What is no number reads as 0, unknown fields are left out, and so is a circumstance whose sums no steps
    can have had.

    Raises:
        RedisError: Redis is away.
    """
    try:
        stored = await client.hgetall(_key(pair, version))
    except ResponseError as error:
        log.warning("steps refused", error=str(error))
        return {}
    found: dict[Circumstance, StepSums] = {}
    for field, value in stored.items():
        prefix, _, name = text_of(field).rpartition(":")
        circumstance = circumstance_of(prefix)
        if circumstance is not None and name in SUM_NAMES:
            setattr(found.setdefault(circumstance, StepSums()), name, sum_of(text_of(value)))
    return {circumstance: sums for circumstance, sums in found.items() if sums.is_plausible}


def _key(pair: str, version: int) -> str:
    return f"sequoia:steps:{pair}:{version}"


async def execute(pipeline: Pipeline) -> None:
    """Send a transaction; what garbage in Redis refuses to be added to is logged and left out.

    Otherwise one bad field would hold up everything else for ever, or let it be counted twice.

    Raises:
        RedisError: Redis is away, or refuses all of it.
    """
    replies = await pipeline.execute(raise_on_error=False)
    refused = [reply for reply in replies if isinstance(reply, RedisError)]
    if refused and len(refused) == len(replies):
        raise refused[0]
    if refused:
        log.warning("statistics refused", count=len(refused), error=str(refused[0]))


def text_of(stored: bytes | str) -> str:
    """What Redis gave, as text."""
    return stored if isinstance(stored, str) else stored.decode(errors="replace")

"""What was measured on a pair of workers, in Redis: `sequoia:measurements:WORKERS`, a text of the planner's.

It is kept under the instances of the workers, which are others whenever a worker begins anew, and is
forgotten a day after the last planner that used it.
"""

from __future__ import annotations

import hashlib

import redis.asyncio as redis
from redis.exceptions import ResponseError

from sequoia.messages import WorkerInfo

KEPT_SECONDS = 86400


def workers_name(draft: WorkerInfo, target: WorkerInfo) -> str:
    """Names two workers, each as it is since it began, whatever characters their identifiers hold."""
    names = f"{draft.instance_id}\n{target.instance_id}"
    return hashlib.sha256(names.encode()).hexdigest()[:32]


class MeasurementStore:
    """Measurements in Redis, as texts; every method raises `RedisError` when Redis is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    async def read(self, workers: str, limit: int) -> bytes | str:
        """What is stored for two workers, of a longer text the first `limit` bytes; empty if nothing is.

        Raises:
            ValueError: what is stored is no text.
        """
        try:
            return await self._redis.getrange(_key(workers), 0, limit - 1)
        except ResponseError as error:
            raise ValueError(f"measurements: {error}") from error

    async def write(self, workers: str, text: str) -> None:
        """Store it in place of whatever is there."""
        await self._redis.set(_key(workers), text, ex=KEPT_SECONDS)

    async def renew(self, workers: str) -> bool:
        """Keep what is stored for another while; False: there is nothing any more."""
        return bool(await self._redis.expire(_key(workers), KEPT_SECONDS))


def _key(workers: str) -> str:
    return f"sequoia:measurements:{workers}"

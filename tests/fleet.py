"""Workers that come and go, for tests of those who call them: no sockets, no models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from coordinator.discovery import Location
from coordinator.placement import prefix_keys
from coordinator.pool import WorkerPool
from coordinator.room import Demand
from coordinator.seat import Seat
from coordinator.worker import Compatibility, Worker
from sequoia.errors import CapacityError, WorkerUnavailableError
from sequoia.messages import Prefilled, WorkerInfo
from sequoia.rpc.channel import Endpoint, RpcChannel
from sequoia.rpc.codec import GET_INFO, PREFILL
from sequoia.rpc.method import Method

ONE, TWO, THREE = "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"
NEEDED = Compatibility("sha")
SMALL = Demand(100, 100, 10)
INFO = WorkerInfo(
    "m", "sha", 10, 4096, "float32", "cpu", 8, 25600, 0, 0, 64, "", kv_bytes_per_token=10
)


class FakeChannel(RpcChannel):
    """Answers for a worker; `info` None is one that is not there."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.info: WorkerInfo | None = replace(INFO, instance_id=address)
        self.is_full = False  # of others' sessions
        self.prefill_count = 0

    async def call(
        self, method: Method[Any, Any], request: Any, timeout: float | None = None
    ) -> Any:
        if self.info is None:
            raise WorkerUnavailableError("gone")
        if method is GET_INFO:
            return self.info
        if method is PREFILL:
            self.prefill_count += 1
            if self.is_full:
                raise CapacityError("all sessions are busy")
            return Prefilled(0.0)
        return None

    async def is_serving(self, timeout: float = 2.0) -> bool:
        return self.info is not None

    async def close(self) -> None:
        self.info = None


class Fleet:
    """Workers that come and go."""

    def __init__(self) -> None:
        self.channels: dict[str, FakeChannel] = {}

    def make(self, location: Location) -> Worker:
        worker = Worker("target", Endpoint(location.address), 1.0)
        channel = self.channels.setdefault(location.address, FakeChannel(location.address))
        worker.channel = channel
        return worker


@asynccontextmanager
async def found(*addresses: str) -> AsyncIterator[tuple[WorkerPool, Fleet]]:
    """A pool that has found its workers."""
    fleet = Fleet()
    pool = WorkerPool("target", addresses, fleet.make)
    assert await pool.find(NEEDED)
    yield pool, fleet
    await pool.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, ten seconds at most."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 any condition
            await asyncio.sleep(0.005)


def seat(pool: WorkerPool, text: Sequence[int] = ()) -> Seat:
    """A seat that has been taken."""
    one = Seat(pool, SMALL, prefix_keys(text))
    one.take()
    return one

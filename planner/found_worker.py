"""Workers that answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import grpc

from sequoia.errors import SequoiaError, WorkerUnavailableError
from sequoia.messages import WorkerInfo
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.codec import GET_INFO
from sequoia.tasks import end_tasks

CALL_SECONDS = 10.0
AHEAD_SECONDS = 0.5  # that a worker named earlier may take longer than the first to answer


@dataclass(frozen=True, slots=True)
class FoundWorker:
    """A worker that answers, and who it says it is."""

    channel: RpcChannel
    info: WorkerInfo

    @property
    def call_seconds(self) -> float:
        """The time to give to a call that takes a pass."""
        return self.seconds_of(1)

    def seconds_of(self, passes: int) -> float:
        """The time to give to a call that takes so many passes."""
        return self.info.call_seconds(CALL_SECONDS, passes)


class Finder:
    """Finds a worker of a role, and stays with it as long as it is there: measurements are of one machine.

    Args:
        addresses: HOST:PORT of each worker.
        credentials: to show to it.
    """

    def __init__(
        self, addresses: Sequence[str], credentials: grpc.ChannelCredentials | None
    ) -> None:
        self._channels = [RpcChannel(address, credentials) for address in addresses]
        self._last: RpcChannel | None = None  # to the worker that was found

    async def find(self) -> FoundWorker:
        """The worker found last, or else the first that answers, in the order of the addresses.

        Raises:
            SequoiaError: none is there, or all are still loading, or the only one was lost just now.
        """
        if self._last is not None and len(self._channels) > 1:
            with suppress(SequoiaError):
                return await find(self._last)
        worker = await self._find_any()
        self._last = worker.channel
        return worker

    async def _find_any(self) -> FoundWorker:
        """Ask all at once: one that hangs holds the others up for a moment only."""
        asked = [asyncio.create_task(find(channel)) for channel in self._channels]
        try:
            await _any_found(asked)
        finally:
            await end_tasks(asked)
        for task in asked:
            if _has_found(task):
                return task.result()
        raise self._failure([task.exception() for task in asked])

    def _failure(self, errors: Sequence[BaseException | None]) -> BaseException:
        """What to say where all have failed: one error, in the order of the addresses."""
        defects = [error for error in errors if error and not isinstance(error, SequoiaError)]
        if defects:
            return defects[0]
        if len(errors) == 1 and errors[0]:
            return errors[0]
        addresses = ", ".join(channel.address for channel in self._channels)
        return WorkerUnavailableError("; ".join(map(str, errors)), address=addresses)

    async def close(self) -> None:
        """Let go of all of them."""
        for channel in self._channels:
            await channel.close()


async def _any_found(asked: Sequence[asyncio.Task[FoundWorker]]) -> None:
    """Wait until one has answered, and a moment longer for those before it; or until all have failed."""
    waiting = set(asked)
    while waiting and not any(map(_has_found, asked)):
        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    ahead = set(itertools.takewhile(lambda task: not _has_found(task), asked)) & waiting
    if ahead:
        await asyncio.wait(ahead, timeout=AHEAD_SECONDS)


def _has_found(task: asyncio.Task[FoundWorker]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


async def find(channel: RpcChannel) -> FoundWorker:
    """Ask a worker who it is.

    Raises:
        WorkerUnavailableError: it is not there, or still loading.
        SequoiaError: it was lost just now.
    """
    if not await channel.is_serving():
        raise WorkerUnavailableError(
            f"the worker at {channel.address} is not serving", address=channel.address
        )
    return FoundWorker(channel, await channel.call(GET_INFO, None, timeout=CALL_SECONDS))

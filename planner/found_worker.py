"""Workers that answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from sequoia.errors import SequoiaError, WorkerUnavailableError
from sequoia.messages import WorkerInfo
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.codec import GET_INFO

CALL_SECONDS = 10.0


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

    async def find(self) -> FoundWorker:
        """The worker found last, or else the first that answers.

        Raises:
            WorkerUnavailableError: none is there, or all are still loading.
            SequoiaError: it was lost just now.
        """
        for channel in tuple(self._channels[:-1]):
            try:
                return await find(channel)
            except SequoiaError:
                self._channels.remove(channel)
                self._channels.append(channel)
        return await find(self._channels[0])

    async def close(self) -> None:
        """Let go of all of them."""
        for channel in self._channels:
            await channel.close()


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

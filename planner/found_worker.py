"""Workers that answer."""

from __future__ import annotations

from dataclasses import dataclass

from sequoia.errors import WorkerUnavailableError
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

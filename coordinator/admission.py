"""Who may generate now: requests wait in line for room on the workers, strictly first come, first served.

The first in line may need more room than a later one; the later one waits behind it all the same, so
that a large request is never overtaken for ever.

What is promised here is this coordinator's own. Others may use the same workers, so these enforce their
limits themselves, and a request that meets one tries again as long as its patience lasts.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import structlog

from sequoia.errors import CapacityError, InvalidArgumentError, NotReadyError
from sequoia.messages import WorkerInfo

log = structlog.get_logger(__name__)

BLOCK_TOKENS = 256  # a session's KV cache grows by so many
NO_LIMIT = sys.maxsize


@dataclass(frozen=True, slots=True)
class Demand:
    """Tokens that a request's session may come to hold on a worker."""

    prompt_tokens: int
    new_tokens: int
    tree_tokens: int  # of the largest tree that it may check

    @property
    def token_count(self) -> int:
        """All of them, in whole blocks."""
        total = self.prompt_tokens + self.new_tokens + self.tree_tokens
        return -(-total // BLOCK_TOKENS) * BLOCK_TOKENS


class Room:
    """What one worker holds at most, and how much of that is promised to requests.

    Args:
        info: what the worker says of itself now; None as long as it has not been found. A worker that
            has not, or does not say what a token takes, has no limits here.
    """

    def __init__(self, info: Callable[[], WorkerInfo | None]) -> None:
        self.session_count = 0
        self.token_count = 0
        self._info = info

    @property
    def token_limit(self) -> int:
        """Tokens of KV cache, over all sessions."""
        info = self._info()
        if info is None or info.kv_bytes_per_token <= 0:
            return NO_LIMIT
        return info.kv_cache_limit_bytes // info.kv_bytes_per_token

    @property
    def session_limit(self) -> int:
        """Sessions."""
        info = self._info()
        return NO_LIMIT if info is None else info.session_limit

    def could_hold(self, demand: Demand) -> bool:
        """Whether the worker could if it held nothing else."""
        return demand.token_count <= self.token_limit

    def can_hold(self, demand: Demand) -> bool:
        """Whether there is room for one more now."""
        return (
            self.session_count < self.session_limit
            and self.token_count + demand.token_count <= self.token_limit
        )

    def take(self, demand: Demand) -> None:
        """Promise the room."""
        self.session_count += 1
        self.token_count += demand.token_count

    def give_back(self, demand: Demand) -> None:
        """Take the promise back."""
        self.session_count -= 1
        self.token_count -= demand.token_count

    def check(self, demand: Demand) -> None:
        """Refuse what could never be held.

        An invalid argument and no lack of resources: whoever tries again meets the same answer, as
        with a prompt beyond the context.

        Raises:
            InvalidArgumentError: naming the field that asks for too much, and what would fit.
        """
        if self.could_hold(demand):
            return
        text_limit = self.token_limit // BLOCK_TOKENS * BLOCK_TOKENS - demand.tree_tokens
        name, limit, value = "max_new_tokens", text_limit - demand.prompt_tokens, demand.new_tokens
        if limit < 1:
            name, limit, value = "prompt", max(text_limit - 1, 0), demand.prompt_tokens
        raise InvalidArgumentError(
            name,
            f"a prompt of {demand.prompt_tokens} and {demand.new_tokens} new tokens take the KV cache "
            f"of {demand.token_count}; the target holds {self.token_limit}",
            limit,
            value,
        )


@dataclass(slots=True, eq=False)
class _Waiter:
    demand: Demand
    rooms: Sequence[Room]
    is_admitted: bool = False
    turn: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Admission:
    """The line, and the requests that were let in.

    Args:
        request_limit: most requests at a time.
        queue_limit: most that wait for that; 0 turns waiting off.
        queue_seconds: longest that one waits.
    """

    def __init__(self, request_limit: int, queue_limit: int, queue_seconds: float) -> None:
        self.active_count = 0
        self._request_limit = request_limit
        self._queue_limit = queue_limit
        self._queue_seconds = queue_seconds
        self._queue: deque[_Waiter] = deque()
        self._is_closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def queued_count(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @asynccontextmanager
    async def admitted(self, demand: Demand, rooms: Sequence[Room]) -> AsyncGenerator[None, None]:
        """Wait for room in all of `rooms`, and keep it while the block runs.

        Raises:
            CapacityError: too many wait already, or the time is over.
            NotReadyError: the coordinator is stopping.
        """
        waiter = self._queued(demand, rooms)
        try:
            await self._turn_of(waiter)
            yield
        finally:
            self._leave(waiter)

    async def close(self, seconds: float) -> None:
        """Refuse whoever waits or comes from now on, and wait for the others to end.

        Args:
            seconds: the longest wait; a client that does not read can hold a request up for ever.
        """
        self._is_closed = True
        for waiter in self._queue:
            if not waiter.turn.done():
                waiter.turn.set_exception(_stopping())
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("requests left running", request_count=self.active_count)

    def _queued(self, demand: Demand, rooms: Sequence[Room]) -> _Waiter:
        if self._is_closed:
            raise _stopping()
        waiter = _Waiter(demand, rooms)
        self._queue.append(waiter)
        self._advance()
        if len(self._queue) > self._queue_limit and not waiter.is_admitted:
            self._queue.remove(waiter)
            raise CapacityError(
                f"{self.active_count} requests are in flight and {len(self._queue)} wait",
                field="queue_limit",
                limit=self._queue_limit,
                value=len(self._queue),
            )
        return waiter

    async def _turn_of(self, waiter: _Waiter) -> None:
        try:
            async with asyncio.timeout(self._queue_seconds):
                await waiter.turn
        except TimeoutError:
            raise CapacityError(
                f"no room after {self._queue_seconds} seconds; {self.active_count} requests are in "
                f"flight and {len(self._queue)} wait",
                field="queue_seconds",
                limit=self._queue_seconds,
                value=self._queue_seconds,
            ) from None

    def _leave(self, waiter: _Waiter) -> None:
        """A request has ended, or gives up its place in the line."""
        if waiter.is_admitted:
            self.active_count -= 1
            for room in waiter.rooms:
                room.give_back(waiter.demand)
        else:
            with suppress(ValueError):
                self._queue.remove(waiter)
        self._advance()
        if not self.active_count:
            self._idle.set()

    def _advance(self) -> None:
        """Let in the first in line as long as there is room for it."""
        while self._queue and not self._is_closed and self._has_room(self._queue[0]):
            waiter = self._queue.popleft()
            waiter.is_admitted = True
            self.active_count += 1
            self._idle.clear()
            for room in waiter.rooms:
                room.take(waiter.demand)
            if not waiter.turn.done():  # else its caller is gone, and is about to leave
                waiter.turn.set_result(None)

    def _has_room(self, waiter: _Waiter) -> bool:
        return self.active_count < self._request_limit and all(
            room.can_hold(waiter.demand) for room in waiter.rooms
        )


def _stopping() -> NotReadyError:
    return NotReadyError("the coordinator is stopping")

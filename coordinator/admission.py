"""Who may generate now: requests wait in line for room on the workers, strictly first come, first served.

The first in line may need more room than a later one; the later one waits behind it all the same, so
that a large request is never overtaken for ever.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from sequoia.errors import CapacityError, NotReadyError


class Place(Protocol):
    """Room that a request needs, such as a seat on a worker."""

    @property
    def is_free(self) -> bool:
        """Whether the request could have it now."""

    def take(self) -> None:
        """The request has it from now on."""

    def leave(self) -> None:
        """The request needs it no more."""


@dataclass(slots=True, eq=False)
class _Waiter:
    places: Sequence[Place]
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
    async def admitted(self, places: Sequence[Place]) -> AsyncGenerator[None, None]:
        """Wait until all of `places` are free, and keep them while the block runs.

        Raises:
            CapacityError: too many wait already, or the time is over.
            NotReadyError: the coordinator is stopping.
        """
        waiter = self._queued(places)
        try:
            await self._turn_of(waiter)
            yield
        finally:
            self._leave(waiter)

    def close(self) -> None:
        """Refuse whoever waits, and whoever comes from now on."""
        self._is_closed = True
        for waiter in self._queue:
            if not waiter.turn.done():
                waiter.turn.set_exception(_stopping())

    async def wait_until_idle(self, seconds: float) -> bool:
        """Wait until every request has ended, so many seconds at most; says whether they have."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _queued(self, places: Sequence[Place]) -> _Waiter:
        if self._is_closed:
            raise _stopping()
        waiter = _Waiter(places)
        self._queue.append(waiter)
        self.advance()
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
            for place in waiter.places:
                place.leave()
        else:
            with suppress(ValueError):
                self._queue.remove(waiter)
        self.advance()
        if not self.active_count:
            self._idle.set()

    def advance(self) -> None:
        """Let in the first in line as long as there is room for it; places that become free call this."""
        while self._queue and not self._is_closed and self._has_room(self._queue[0]):
            waiter = self._queue.popleft()
            waiter.is_admitted = True
            self.active_count += 1
            self._idle.clear()
            for place in waiter.places:
                place.take()
            if not waiter.turn.done():  # else its caller is gone, and is about to leave
                waiter.turn.set_result(None)

    def _has_room(self, waiter: _Waiter) -> bool:
        return self.active_count < self._request_limit and all(
            place.is_free for place in waiter.places
        )


def _stopping() -> NotReadyError:
    return NotReadyError("the coordinator is stopping")

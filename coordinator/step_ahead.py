"""The next step, begun while the outcome of the last one is still on its way to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import structlog

log = structlog.get_logger(__name__)

Outcome = TypeVar("Outcome")

# Of the event loop: one in which the step begins, and two in which gRPC sends its call.
LOOP_TURNS = 3


class StepAhead(Generic[Outcome]):
    """One step at a time, in a task of its own; a context manager that leaves none behind."""

    def __init__(self, step: Callable[[], Coroutine[Any, Any, Outcome]]) -> None:
        self._step = step
        self._task: asyncio.Task[Outcome] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled() and (failure := self._task.exception()):
                log.debug("unwanted step failed", error=str(failure))

    async def begin(self) -> None:
        """Begin the next step, and return when its first call is on the way."""
        self._task = asyncio.create_task(self._step())
        for _ in range(LOOP_TURNS):
            await asyncio.sleep(0)

    async def take(self) -> Outcome:
        """The outcome of the step that was begun, or of one that begins now; raises what it raised."""
        task = self._task or asyncio.create_task(self._step())
        self._task = None
        return await task

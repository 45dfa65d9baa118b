"""The next step, begun while the outcome of the last one is still on its way to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from sequoia.errors import SequoiaError

Outcome = TypeVar("Outcome")


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
            with suppress(asyncio.CancelledError, SequoiaError):
                await self._task

    def begin(self) -> asyncio.Task[Outcome]:
        """Begin the next step."""
        self._task = asyncio.create_task(self._step())
        return self._task

    async def take(self) -> Outcome:
        """The outcome of the step that was begun, or of one that begins now; raises what it raised."""
        task = self._task or self.begin()
        self._task = None
        return await task

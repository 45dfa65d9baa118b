"""Tasks that run as long as their process, and ending tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog

log = structlog.get_logger(__name__)

AGAIN_SECONDS = 0.5
RESTART_SECONDS = 1.0


async def keep_going(
    work: Callable[[], Coroutine[None, None, None]], pause_seconds: float = RESTART_SECONDS
) -> None:
    """Do work that never ends; a defect that ends it all the same is logged, and the work begun again."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("background work failed, beginning it again")
        await asyncio.sleep(pause_seconds)


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended, however they end.

    One cancellation may not do: before Python 3.12 `asyncio.wait_for`, through which redis-py sends
    its commands, loses one that comes just when what it waits for is done.
    """
    tasks = list(tasks)
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)

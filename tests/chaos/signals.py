"""What is done to a process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

PAUSE_SECONDS = 10.0
POLL_SECONDS = 0.05
COMES_BACK_SECONDS = 60.0

ProcessId = Callable[[], int | None]


async def kill(process_id: ProcessId) -> None:
    """SIGKILL, and wait until another process has taken its place."""
    killed = process_id()
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    async with asyncio.timeout(COMES_BACK_SECONDS):
        while process_id() in {killed, None}:  # noqa: ASYNC110 no event tells of it
            await asyncio.sleep(POLL_SECONDS)


async def pause(process_id: ProcessId) -> None:
    """SIGSTOP, and SIGCONT ten seconds later: its connections stay open, and nobody answers."""
    paused = process_id()
    assert paused is not None
    os.kill(paused, signal.SIGSTOP)
    try:
        await asyncio.sleep(PAUSE_SECONDS)
    finally:
        os.kill(paused, signal.SIGCONT)

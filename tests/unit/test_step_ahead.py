from __future__ import annotations

import asyncio

import pytest

from coordinator.step_ahead import StepAhead
from sequoia.errors import SequoiaError


class Steps:
    """Counts steps that begin, end and are cancelled; each waits until it is let go."""

    def __init__(self) -> None:
        self.begun = self.ended = self.cancelled = 0
        self.may_end = asyncio.Event()
        self.failure: Exception | None = None

    async def step(self) -> int:
        """One step; its number."""
        self.begun += 1
        number = self.begun
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure:
            raise self.failure
        self.ended += 1
        return number


async def test_a_step_begins_when_it_is_asked_for_or_before() -> None:
    """What was begun is taken; where nothing was, a step begins at once."""
    steps = Steps()
    steps.may_end.set()
    async with StepAhead(steps.step) as ahead:
        assert await ahead.take() == 1
        await ahead.begin()
        assert steps.begun == 2
        assert await ahead.take() == 2
        assert await ahead.take() == 3
    assert (steps.begun, steps.ended, steps.cancelled) == (3, 3, 0)


async def test_a_step_that_nobody_takes_is_cancelled() -> None:
    """The client has gone while its chunk was written: the step that runs ends before the sessions do."""
    steps = Steps()
    async with StepAhead(steps.step) as ahead:
        await ahead.begin()
    assert (steps.begun, steps.cancelled) == (1, 1)


async def test_a_failure_that_nobody_takes_is_no_failure() -> None:
    """It belongs to a step whose outcome nobody wants."""
    steps = Steps()
    steps.failure = SequoiaError("lost")
    steps.may_end.set()
    async with StepAhead(steps.step) as ahead:
        await ahead.begin()
    with pytest.raises(SequoiaError, match="lost"):
        async with StepAhead(steps.step) as ahead:
            await ahead.take()


async def test_cancelling_the_taker_cancels_the_step() -> None:
    """No step runs on for a request that has ended."""
    steps = Steps()

    async def take() -> None:
        async with StepAhead(steps.step) as ahead:
            await ahead.take()

    taker = asyncio.create_task(take())
    await asyncio.sleep(0.01)
    taker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taker
    assert (steps.begun, steps.cancelled) == (1, 1)

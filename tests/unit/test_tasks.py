"""Ending tasks for certain."""

import asyncio

from sequoia.tasks import end_tasks


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    """Tasks end even when a library swallows the first cancellation."""
    lost = 0

    async def deaf() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if lost:
                    raise
                lost += 1

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end_tasks([task])
    assert task.cancelled()
    assert lost == 1


async def test_tasks_that_have_ended_are_no_trouble() -> None:
    """A finished task, a failed one and no task at all are passed over, failures included."""

    async def fail() -> None:
        raise ValueError("seen")

    tasks = [asyncio.create_task(fail()), asyncio.create_task(asyncio.sleep(0))]
    await asyncio.wait(tasks)
    await end_tasks(tasks)
    await end_tasks([])
    assert [task.done() for task in tasks] == [True, True]

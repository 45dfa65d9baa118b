from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import torch

from sequoia.errors import NotReadyError
from sequoia.runtime.device import DeviceThread

Value = TypeVar("Value")


class Model:
    """Stands in for a model: notes every batch, and what thread it runs on."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.threads: set[str] = set()
        self.begun = threading.Event()
        self.free = threading.Event()

    def double(self, requests: Sequence[Any]) -> list[Any]:
        return self._note(
            [request if isinstance(request, Exception) else 2 * request for request in requests],
            requests,
        )

    def negate(self, requests: Sequence[Any]) -> list[Any]:
        return self._note([-request for request in requests], requests)

    def fail(self, requests: Sequence[Any]) -> list[Any]:
        raise RuntimeError("out of memory")

    def miscount(self, requests: Sequence[Any]) -> list[Any]:
        return []

    def block(self, requests: Sequence[Any]) -> list[Any]:
        self.begun.set()
        assert self.free.wait(10)
        return list(requests)

    def _note(self, replies: list[Any], requests: Sequence[Any]) -> list[Any]:
        self.batches.append(list(requests))
        self.threads.add(threading.current_thread().name)
        return replies


@pytest.fixture
def model() -> Model:
    """A fresh stand-in."""
    return Model()


@pytest.fixture
def device() -> Iterator[DeviceThread]:
    """A device thread that takes up to four requests at a time."""
    thread = DeviceThread("device", batch_limit=4)
    yield thread
    thread.stop()


async def started(work: Coroutine[Any, Any, Value]) -> asyncio.Task[Value]:
    """A task that has run up to its first wait: its request is queued."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


@asynccontextmanager
async def busy(device: DeviceThread, model: Model) -> AsyncIterator[None]:
    """The device is in a pass for as long as the block runs."""
    blocker = await started(device.submit(model.block, "blocker"))
    try:
        yield
    finally:
        model.free.set()
        await blocker


async def test_a_request_is_answered_from_the_device_thread(
    device: DeviceThread, model: Model
) -> None:
    """The model runs on the thread that owns the device, never on the event loop."""
    assert await device.submit(model.double, 21) == 42
    assert model.threads == {"device"}


async def test_requests_that_wait_together_run_together(device: DeviceThread, model: Model) -> None:
    """What arrives while the device is busy is one batch afterwards, each with its own reply."""
    async with busy(device, model):
        tasks = [await started(device.submit(model.double, number)) for number in (1, 2, 3)]
    assert await asyncio.gather(*tasks) == [2, 4, 6]
    assert model.batches == [[1, 2, 3]]


async def test_the_event_loop_goes_on_during_a_pass(device: DeviceThread, model: Model) -> None:
    """Other coroutines run while the device is busy."""
    async with busy(device, model):
        assert await asyncio.wait_for(asyncio.sleep(0, "health"), 1) == "health"


async def test_a_batch_is_never_larger_than_its_limit(device: DeviceThread, model: Model) -> None:
    """What does not fit waits for the next batch, in order of arrival."""
    async with busy(device, model):
        tasks = [await started(device.submit(model.double, number)) for number in range(6)]
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10]
    assert model.batches == [[0, 1, 2, 3], [4, 5]]


async def test_different_operations_never_share_a_batch(device: DeviceThread, model: Model) -> None:
    """The oldest request chooses the operation; others wait their turn."""
    async with busy(device, model):
        tasks = [
            await started(device.submit(model.double, 1)),
            await started(device.submit(model.negate, 2)),
            await started(device.submit(model.double, 3)),
        ]
    assert await asyncio.gather(*tasks) == [2, -2, 6]
    assert model.batches == [[1, 3], [2]]


async def test_an_operation_gives_way_after_its_turn(device: DeviceThread, model: Model) -> None:
    """What waits for another one does not wait for two batches of the same, however many there are."""
    async with busy(device, model):
        tasks = [await started(device.submit(model.double, number)) for number in range(6)]
        tasks.append(await started(device.submit(model.negate, 6)))
    await asyncio.gather(*tasks)
    assert model.batches == [[0, 1, 2, 3], [6], [4, 5]]


async def test_giving_way_does_not_let_a_session_overtake_itself(
    device: DeviceThread, model: Model
) -> None:
    """Its requests keep their order, whichever operation it is whose turn it is."""
    async with busy(device, model):
        tasks = [await started(device.submit(model.double, number)) for number in range(4)]
        for run, number in ((model.double, 4), (model.negate, 5)):
            tasks.append(await started(device.submit(run, number, "a")))
    await asyncio.gather(*tasks)
    assert model.batches == [[0, 1, 2, 3], [4], [5]]


async def test_a_session_is_never_twice_in_a_batch(device: DeviceThread, model: Model) -> None:
    """Requests with the same key run one after the other, in order."""
    async with busy(device, model):
        tasks = [
            await started(device.submit(model.double, number, key))
            for number, key in ((1, "a"), (2, "a"), (3, "b"), (4, "a"))
        ]
    assert await asyncio.gather(*tasks) == [2, 4, 6, 8]
    assert model.batches == [[1, 3], [2], [4]]


async def test_a_session_is_not_overtaken_by_itself(device: DeviceThread, model: Model) -> None:
    """A step does not join a batch ahead of an earlier request of its session."""
    async with busy(device, model):
        tasks = [
            await started(device.submit(model.double, 1, "a")),
            await started(device.submit(model.negate, 2, "b")),
            await started(device.submit(model.double, 3, "b")),
        ]
    await asyncio.gather(*tasks)
    assert model.batches == [[1], [2], [3]]


async def test_a_cancelled_request_is_dropped(device: DeviceThread, model: Model) -> None:
    """Work that nobody waits for any more is not done."""
    async with busy(device, model):
        first, second = [await started(device.submit(model.double, number)) for number in (1, 2)]
        first.cancel()
        await asyncio.sleep(0)
    assert await second == 4
    assert first.cancelled()
    assert model.batches == [[2]]


async def test_a_request_cancelled_during_its_pass_harms_nobody(
    device: DeviceThread, model: Model
) -> None:
    """Its reply is thrown away, and the thread lives on."""
    request = await started(device.submit(model.block, "mine"))
    await asyncio.to_thread(model.begun.wait, 10)
    request.cancel()
    model.free.set()
    assert await device.submit(model.double, 1) == 2


async def test_a_failed_batch_fails_every_caller(device: DeviceThread, model: Model) -> None:
    """Each of them gets the exception, and the thread takes the next batch."""
    async with busy(device, model):
        tasks = [await started(device.submit(model.fail, number)) for number in (1, 2)]
    failures = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(failure) for failure in failures] == ["out of memory"] * 2
    assert await device.submit(model.double, 1) == 2


async def test_a_batch_with_missing_replies_fails_every_caller(
    device: DeviceThread, model: Model
) -> None:
    """An operation that miscounts is a mistake of ours, not the end of the thread."""
    with pytest.raises(ValueError, match="zip"):
        await device.submit(model.miscount, 1)
    assert await device.submit(model.double, 1) == 2


async def test_one_request_can_fail_alone(device: DeviceThread, model: Model) -> None:
    """An exception among the replies goes to its caller only."""
    async with busy(device, model):
        good = await started(device.submit(model.double, 1))
        bad = await started(device.submit(model.double, KeyError("this one")))
    assert await good == 2
    with pytest.raises(KeyError, match="this one"):
        await bad
    assert len(model.batches) == 1


async def test_batches_run_in_inference_mode(device: DeviceThread) -> None:
    """No operation has to remember to switch gradients off."""

    def look(requests: Sequence[None]) -> list[bool]:
        return [torch.is_inference_mode_enabled() for _ in requests]

    assert await device.submit(look, None) is True


async def test_stopping_refuses_what_still_waits(model: Model) -> None:
    """The batch in hand ends; nobody is left waiting for ever, and nothing new is taken."""
    device = DeviceThread("device", batch_limit=4)
    running = await started(device.submit(model.block, "running"))
    await asyncio.to_thread(model.begun.wait, 10)
    waiting = [await started(device.submit(model.double, 1))]
    stopping = await started(asyncio.to_thread(device.stop))
    while not waiting[-1].done():
        waiting.append(await started(device.submit(model.double, 2)))
    model.free.set()
    await stopping
    assert await running == "running"
    refusals = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(refusal) for refusal in refusals} == {NotReadyError}
    assert model.batches == []


async def test_streams_that_took_turns_come_to_share_passes() -> None:
    """Each would arrive during the other's pass for ever; a pass that waits a little has both."""
    device = DeviceThread("device", 8)
    sizes: list[int] = []

    def run(requests: Sequence[int]) -> list[int | Exception]:
        time.sleep(0.03)
        sizes.append(len(requests))
        return list(requests)

    async def stream(key: str, delay: float) -> None:
        await asyncio.sleep(delay)
        for number in range(12):
            await device.submit(run, number, key, gathers=True)
            await asyncio.sleep(0.002)

    await asyncio.gather(stream("a", 0.0), stream("b", 0.015))
    device.stop()
    assert sizes[0] == 1
    assert sizes.count(2) >= 8

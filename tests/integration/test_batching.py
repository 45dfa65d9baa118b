"""Sessions that join and leave while others step, and requests that wait for room."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sequoia.errors import Reason
from sequoia.generation import FinishReason, GenerationRequest
from sequoia.rpc.errors import RemoteError
from sequoia.rpc.generation_codec import GENERATE
from sequoia.runtime.pace import MOST_TOKENS
from sequoia.runtime.worker import WorkerLimits
from sequoia.settings import SamplingSettings
from tests.stack import Generated, Stack, Stream, TargetRole, running_stack
from tests.tiny import byte_pair

CONTEXT = 4096
ROW_BYTES = 2 * 2 * 2 * 8 * 4  # of a token in the KV cache: keys and values, layers, heads, numbers
SHORT = GenerationRequest(
    token_ids=tuple(range(20, 40)),
    sampling=SamplingSettings(temperature=0.0),
    max_new_tokens=12,
    ignore_end_of_text=True,
)
ENDLESS = replace(SHORT, max_new_tokens=2000)
READING_ANEW = WorkerLimits(prefix_cache=False)  # what is read beside steps is to be seen
LONG_PROMPT = replace(SHORT, token_ids=tuple(20 + n % 90 for n in range(3000)))


@pytest.fixture(scope="module")
def long_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target and a draft for long prompts."""
    return byte_pair(tmp_path_factory.mktemp("pair"), max_position_embeddings=CONTEXT)


def noted_passes(role: TargetRole) -> list[tuple[bool, list[int]]]:
    """Every pass of a worker from now on: whether it was of a step, and tokens per session."""
    assert role.worker
    forward, passes = role.worker.model.forward, []

    def note(segments: Sequence[Any], with_logits: bool = True) -> Any:
        passes.append((with_logits, [len(segment.token_ids) for segment in segments]))
        return forward(segments, with_logits)

    role.worker.model.forward = note  # type: ignore[method-assign]
    return passes


@asynccontextmanager
async def held(role: TargetRole) -> AsyncIterator[None]:
    """A worker's device does nothing while the block runs."""
    assert role.worker
    begun, free = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert free.wait(30)

    holding = asyncio.create_task(role.worker.device.run(hold))
    await asyncio.to_thread(begun.wait, 30)
    try:
        yield
    finally:
        free.set()
        await holding


async def come(stack: Stack, *requests: GenerationRequest) -> list[asyncio.Task[Generated]]:
    """Requests that come one after the other."""
    assert stack.coordinator.engine
    admission = stack.coordinator.engine.admission
    tasks = []
    for request in requests:
        there = admission.active_count + admission.queued_count
        tasks.append(asyncio.create_task(stack.generate(request)))
        await stack.until(lambda n=there: admission.active_count + admission.queued_count > n)  # type: ignore[misc]
    return tasks


async def assert_no_session_is_left(stack: Stack) -> None:
    """Both workers say that they hold none, as soon as they have been told."""
    async with asyncio.timeout(10):
        while await stack.session_counts() != (0, 0):  # noqa: ASYNC110 over the wire
            await asyncio.sleep(0.005)


async def test_a_long_prompt_joins_between_the_steps_of_another(
    long_pair: tuple[Path, Path],
) -> None:
    """On both workers the one that streams steps on, between chunks of the one that comes."""
    async with running_stack(*long_pair, limits=READING_ANEW) as stack:
        expected = await stack.generate(replace(ENDLESS, max_new_tokens=200))
        alone = await stack.generate(LONG_PROMPT)
        streaming = Stream(stack, ENDLESS)
        await streaming.read(10)
        passes = [noted_passes(role) for role in (stack.target, stack.draft)]
        joining = Stream(stack, LONG_PROMPT)
        await joining.read(1)
        passes = [list(of_worker) for of_worker in passes]
        await joining.read_to_end()
        await streaming.read(200)
        await streaming.cancel()
        await assert_no_session_is_left(stack)

    for of_worker in passes:
        chunks = [index for index, (is_step, _) in enumerate(of_worker) if not is_step]
        steps = [is_step for is_step, _ in of_worker[chunks[0] : chunks[-1]]].count(True)
        sizes = [sum(of_worker[index][1]) for index in chunks]
        assert sum(sizes) == len(LONG_PROMPT.token_ids or ()) - 1
        assert max(sizes) <= MOST_TOKENS
        assert steps > 3
    assert joining.generated.token_ids == alone.token_ids
    assert streaming.generated.token_ids[:200] == expected.token_ids


async def test_a_request_cancelled_during_its_prefill_leaves_no_session(
    long_pair: tuple[Path, Path],
) -> None:
    """The rest of its prompt is not read."""
    async with running_stack(*long_pair, limits=READING_ANEW) as stack:
        passes = noted_passes(stack.target)
        async with held(stack.target):
            task = asyncio.create_task(stack.generate(LONG_PROMPT))
            assert stack.target.worker
            worker = stack.target.worker
            await stack.until(lambda: len(worker.sessions) == 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await stack.until(lambda: len(worker.sessions) == 0)
        await assert_no_session_is_left(stack)
        assert stack.coordinator.engine
        assert stack.coordinator.engine.active_count == 0
    assert passes == []


async def test_requests_wait_in_line(long_pair: tuple[Path, Path]) -> None:
    """Four at a time in order of arrival, sixteen in the queue; the one too many is refused."""
    ended: list[int] = []
    ended_before: dict[int, int] = {}  # how many had ended when a request got its first tokens

    async def follow(stack: Stack, number: int) -> Generated:
        generated = Generated()
        async for chunk in stack.channel.stream(GENERATE, SHORT, timeout=60):
            ended_before.setdefault(number, len(ended))
            ended.extend([number] if chunk.completion else [])
            generated.chunks.append(chunk)
        return generated

    async with running_stack(*long_pair, request_limit=4, queue_limit=16) as stack:
        assert stack.coordinator.engine
        admission = stack.coordinator.engine.admission
        expected = (await stack.generate(SHORT)).token_ids
        async with held(stack.target):
            following = []
            for number in range(20):
                following.append(asyncio.create_task(follow(stack, number)))
                count = min(number + 1, 4), max(number - 3, 0)
                await stack.until(
                    lambda n=count: (admission.active_count, admission.queued_count) == n  # type: ignore[misc]
                )
            with pytest.raises(RemoteError) as refused:
                await stack.generate(SHORT)
        everything = await asyncio.gather(*following)
        await assert_no_session_is_left(stack)

    assert refused.value.reason is Reason.CAPACITY_EXHAUSTED
    assert refused.value.metadata == {"field": "queue_limit", "limit": "16", "value": "16"}
    assert [generated.token_ids for generated in everything] == [expected] * 20
    assert all(before >= number - 3 for number, before in ended_before.items())
    usages = [generated.completion.usage for generated in everything]
    assert max(u.queued_seconds for u in usages[:4]) < min(u.queued_seconds for u in usages[4:])
    for usage in usages[4:]:
        assert 0 < usage.queued_seconds < usage.seconds_to_first_token < usage.total_seconds


async def test_cancelled_requests_leave_the_queue(long_pair: tuple[Path, Path]) -> None:
    """They make room for others, and those behind them are served."""
    async with running_stack(*long_pair, request_limit=1, queue_limit=3) as stack:
        assert stack.coordinator.engine
        admission = stack.coordinator.engine.admission
        async with held(stack.target):
            first, *waiting = await come(stack, *[SHORT] * 4)
            for task in waiting[:2]:
                task.cancel()
            await stack.until(lambda: admission.queued_count == 1)
            late = await come(stack, SHORT)
        for task in (first, waiting[2], *late):
            assert len((await task).token_ids) == SHORT.max_new_tokens
        await assert_no_session_is_left(stack)
        assert admission.active_count == admission.queued_count == 0


async def test_a_deadline_that_passes_in_the_queue_frees_its_place(
    long_pair: tuple[Path, Path],
) -> None:
    """Nothing of the request is left, neither here nor on the workers."""
    async with running_stack(*long_pair, request_limit=1) as stack:
        assert stack.coordinator.engine
        admission = stack.coordinator.engine.admission
        async with held(stack.target):
            (first,) = await come(stack, SHORT)
            with pytest.raises(RemoteError) as raised:
                await stack.generate(SHORT, timeout=0.1)
            await stack.until(lambda: admission.queued_count == 0)
        await first
        await assert_no_session_is_left(stack)
    assert raised.value.reason is Reason.DEADLINE_EXCEEDED


async def test_waiting_too_long_is_refused(long_pair: tuple[Path, Path]) -> None:
    """With the time that was allowed."""
    async with running_stack(*long_pair, request_limit=1, queue_seconds=0.05) as stack:
        async with held(stack.target):
            (first,) = await come(stack, SHORT)
            with pytest.raises(RemoteError) as raised:
                await stack.generate(SHORT)
        await first
    assert raised.value.reason is Reason.CAPACITY_EXHAUSTED
    assert raised.value.metadata["field"] == "queue_seconds"
    assert raised.value.metadata["limit"] == "0.05"


async def test_shutting_down_refuses_those_who_wait(long_pair: tuple[Path, Path]) -> None:
    """They have got nothing yet and may try elsewhere; who runs is completed as cancelled."""
    async with running_stack(*long_pair, request_limit=1) as stack:
        running = Stream(stack, ENDLESS)
        await running.read(1)
        (waiting,) = await come(stack, SHORT)
        await stack.coordinator.stop()
        with pytest.raises(RemoteError) as raised:
            await waiting
        completion = (await running.read_to_end()).completion
    assert raised.value.reason is Reason.NOT_READY
    assert completion.finish_reason is FinishReason.CANCELLED


async def test_memory_admits_as_many_as_it_holds(long_pair: tuple[Path, Path]) -> None:
    """Workers with room for two requests get two at a time, and never have to drop a session."""
    limits = replace(READING_ANEW, kv_cache_limit_bytes=2 * 256 * ROW_BYTES)
    async with running_stack(*long_pair, limits=limits) as stack:
        assert stack.target.worker
        assert stack.draft.worker
        target, draft = stack.target.worker, stack.draft.worker
        assert target.info().kv_bytes_per_token == ROW_BYTES
        passes = [noted_passes(role) for role in (stack.target, stack.draft)]
        everything = await asyncio.gather(*(stack.generate(SHORT) for _ in range(8)))
        await assert_no_session_is_left(stack)
    prompt = len(SHORT.token_ids or ()) - 1
    for of_worker in passes:
        assert max(len(counts) for _, counts in of_worker) <= 2
        assert sum(sum(counts) for is_step, counts in of_worker if not is_step) == 8 * prompt
    assert len({tuple(generated.token_ids) for generated in everything}) == 1
    assert target.sessions.kv_cache_bytes == draft.sessions.kv_cache_bytes == 0


async def test_what_could_never_fit_is_refused_at_once(long_pair: tuple[Path, Path]) -> None:
    """As an argument out of range: waiting would not help."""
    limits = WorkerLimits(kv_cache_limit_bytes=2 * 256 * ROW_BYTES)
    async with running_stack(*long_pair, limits=limits) as stack:
        with pytest.raises(RemoteError) as too_many:
            await stack.generate(replace(SHORT, max_new_tokens=600))
        with pytest.raises(RemoteError) as too_long:
            await stack.generate(LONG_PROMPT)
    assert too_many.value.reason is too_long.value.reason is Reason.INVALID_ARGUMENT
    assert too_many.value.metadata["field"] == "max_new_tokens"
    assert too_many.value.metadata["value"] == "600"
    assert too_long.value.metadata["field"] == "prompt"

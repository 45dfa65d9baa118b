"""What closed sessions have read saves time and changes no text, in the whole system."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from sequoia.generation import GenerationRequest
from sequoia.runtime.worker import ModelWorker, WorkerLimits
from sequoia.settings import SamplingSettings
from tests.stack import Stack, running_stack
from tests.tiny import byte_pair, feature_draft

PROMPT = tuple(20 + number % 90 for number in range(60))
GREEDY = GenerationRequest(
    token_ids=PROMPT,
    sampling=SamplingSettings(temperature=0.0),
    max_new_tokens=24,
    ignore_end_of_text=True,
)
SEEDED = replace(GREEDY, sampling=SamplingSettings(), seed=7)
ROW_BLOCK_BYTES = (
    256 * 2 * 2 * 2 * 16 * 4
)  # of a block of rows: keys and values, layers, heads, numbers


@pytest.fixture(scope="module", params=["plain draft", "feature-conditioned draft"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A pair that the compiled engine runs where there is one."""
    target, draft = byte_pair(tmp_path_factory.mktemp("pair"), hidden_size=64)
    if request.param == "plain draft":
        return target, draft
    return target, feature_draft(tmp_path_factory.mktemp("draft"), target)


def workers_of(stack: Stack) -> tuple[ModelWorker, ModelWorker]:  # type: ignore[type-arg]
    """Target and draft."""
    assert stack.target.worker
    assert stack.draft.worker
    return stack.target.worker, stack.draft.worker


def reused(stack: Stack) -> list[float]:
    """Tokens of prompts that target and draft had not to read."""
    return [worker.metrics.reused._value.get() for worker in workers_of(stack)]


async def said(stack: Stack, request: GenerationRequest) -> list[int]:
    """The tokens of an answer; the workers know that it is over."""
    answer = (await stack.generate(request)).token_ids
    await stack.until(lambda: not any(len(worker.sessions) for worker in workers_of(stack)))
    return answer


async def conversation(stack: Stack, first: GenerationRequest) -> list[list[int]]:
    """Two turns, the first once more, and another text that begins like it."""
    answer = await said(stack, first)
    second = replace(first, token_ids=(*PROMPT, *answer, *range(30, 50)))
    other = replace(first, token_ids=(*PROMPT[:40], *range(90, 110)))
    return [answer, *[await said(stack, one) for one in (second, first, other)]]


async def test_texts_are_those_of_workers_that_read_everything(pair: tuple[Path, Path]) -> None:
    """The next turn of a conversation, the same prompt again, and one that shares its beginning."""
    async with running_stack(*pair, limits=WorkerLimits(prefix_cache=False)) as stack:
        expected = [await conversation(stack, first) for first in (GREEDY, SEEDED)]
        assert reused(stack) == [0, 0]
    async with running_stack(*pair) as stack:
        texts = [await conversation(stack, GREEDY)]
        # What the last step of a text accepted is read again: a tree's depth at most.
        assert min(reused(stack)) > (60 + 24 - 16) + 59 + 40 - 2
        texts.append(await conversation(stack, SEEDED))
    assert texts == expected


async def test_many_at_once_get_the_same_texts_in_little_memory(pair: tuple[Path, Path]) -> None:
    """What is retained gives way to those that come, and no session is lost for it."""
    limits = WorkerLimits(kv_cache_limit_bytes=2 * ROW_BLOCK_BYTES)
    requests = [replace(GREEDY, token_ids=(*PROMPT, n)) for n in range(30, 34)]
    async with running_stack(*pair, limits=WorkerLimits(prefix_cache=False)) as stack:
        expected = [await said(stack, request) for request in requests]
    async with running_stack(*pair, limits=limits) as stack:
        texts = []
        for _ in range(2):
            answers = await asyncio.gather(*(stack.generate(one) for one in requests))
            texts.append([answer.token_ids for answer in answers])
            await stack.until(lambda: not any(len(one.sessions) for one in workers_of(stack)))
        for worker in workers_of(stack):
            assert 0 < worker.sessions.retained_bytes <= limits.kv_cache_limit_bytes
            assert worker.metrics.opened._value.get() == 2 * len(requests)
            assert worker.metrics.evicted._value.get() == 0
        assert min(reused(stack)) > 0
    assert texts == [expected, expected]

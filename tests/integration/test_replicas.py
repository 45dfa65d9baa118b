"""Several workers of each role behind a coordinator: whoever comes is used, whoever goes loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.placement import PREFIX_BLOCK_TOKENS
from sequoia.errors import Reason
from sequoia.generation import FinishReason
from sequoia.rpc.errors import RemoteError
from sequoia.runtime.worker import WorkerLimits
from tests.integration.test_faults import SEEDED
from tests.scraping import free_port
from tests.stack import DraftRole, Stack, Stream, TargetRole, running_coordinator
from tests.tiny import byte_pair, feature_draft


class Replicas:
    """Two workers of each role; the second of each can be left for later."""

    def __init__(self, target: Path, draft: Path) -> None:
        limits = WorkerLimits()
        self.targets = [TargetRole(target, limits) for _ in range(2)]
        self.drafts = [DraftRole(draft, target, limits) for _ in range(2)]

    @asynccontextmanager
    async def running(self, second: bool = True, **settings: Any) -> AsyncIterator[Stack]:
        """Start them and a coordinator; `second`: both of each role, or for now only the first."""
        async with AsyncExitStack() as cleanup:
            for roles in (self.targets, self.drafts):
                for role in roles:
                    role.port = free_port()
                    cleanup.push_async_callback(role.kill)
                    if second or role is roles[0]:
                        await role.start()
            replicas = [self.targets[1], self.drafts[1]]
            yield await cleanup.enter_async_context(
                running_coordinator(self.targets[0], self.drafts[0], replicas=replicas, **settings)
            )

    def serving(self, roles: list[Any]) -> Any:
        """The one of two workers that has a session."""
        (found,) = (role for role in roles if role.worker and len(role.worker.sessions))
        return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target, and a draft that reads its features: more than tokens has to move with a session."""
    target, _ = byte_pair(tmp_path_factory.mktemp("pair"))
    return target, feature_draft(tmp_path_factory.mktemp("draft"), target)


@pytest.fixture
def replicas(models: tuple[Path, Path]) -> Replicas:
    """Not started."""
    return Replicas(*models)


def session_counts(roles: list[Any]) -> list[int]:
    """Sessions of each worker."""
    return [len(role.worker.sessions) for role in roles]


async def test_sessions_are_spread_over_all_workers(replicas: Replicas) -> None:
    """Of both roles; with the same seed each says the same wherever it is."""
    async with replicas.running() as stack:
        streams = [Stream(stack, SEEDED) for _ in range(4)]
        for stream in streams:
            await stream.read(10)
        assert session_counts(replicas.targets) == session_counts(replicas.drafts) == [2, 2]
        texts = [(await stream.read_to_end()).text for stream in streams]
    assert len(set(texts)) == 1


@pytest.mark.parametrize("end", ["kill", "drain"])
async def test_a_session_of_a_lost_target_goes_on_on_the_other(
    replicas: Replicas, end: str
) -> None:
    """Killed or told to end: its text is the undisturbed one, and it does not wait for the worker."""
    of_targets = {"worker": "target"}
    async with replicas.running() as stack:
        undisturbed = await stack.generate(SEEDED)
        stream = Stream(stack, SEEDED)
        await stream.read(20)
        await getattr(replicas.serving(replicas.targets), end)()
        disturbed = await stream.read_to_end()
        again = await stack.generate(SEEDED)
        counted = [
            stack.server.registry.get_sample_value(f"sequoia_sessions_{what}_total", of_targets)
            for what in ("moved", "rebuilt")
        ]
    assert disturbed.token_ids == undisturbed.token_ids == again.token_ids
    assert counted == [1.0, 1.0]


async def test_a_session_of_a_lost_draft_goes_on_on_the_other(replicas: Replicas) -> None:
    """Trees go on growing: at most the step in which it was lost has none."""
    async with replicas.running() as stack:
        undisturbed = await stack.generate(SEEDED)
        stream = Stream(stack, SEEDED)
        await stream.read(20)
        await replicas.serving(replicas.drafts).kill()
        disturbed = await stream.read_to_end()
    assert disturbed.token_ids == undisturbed.token_ids
    steps = undisturbed.completion.usage.step_count
    assert disturbed.completion.usage.step_count <= steps + 3


async def test_a_worker_that_comes_takes_the_next_sessions(replicas: Replicas) -> None:
    """Nobody has to be told but by its address, which stood in the list already."""
    async with replicas.running(second=False) as stack:
        first = Stream(stack, SEEDED)
        await first.read(10)
        for role in (replicas.targets[1], replicas.drafts[1]):
            await role.start()
        pools = stack.coordinator.target, stack.coordinator.draft
        await stack.until(
            lambda: all(worker.is_available for pool in pools if pool for worker in pool.workers)
        )
        second = Stream(stack, SEEDED)
        await second.read(10)
        assert session_counts(replicas.targets) == session_counts(replicas.drafts) == [1, 1]
        texts = {(await stream.read_to_end()).text for stream in (first, second)}
    assert len(texts) == 1


async def test_the_next_turn_goes_to_the_worker_of_the_last(replicas: Replicas) -> None:
    """It has read most of the text already: the prompt before, and what it answered."""
    prompt = tuple(range(1, 11)) * (PREFIX_BLOCK_TOKENS // 5)
    request = replace(SEEDED, text=None, token_ids=prompt, max_new_tokens=20)
    async with replicas.running() as stack:
        served = []
        for turn in range(4):
            stream = Stream(stack, replace(request, seed=turn, token_ids=prompt))
            await stream.read(5)
            served.append(replicas.serving(replicas.targets))
            answer = await stream.read_to_end()
            prompt = (*prompt, *answer.token_ids, 1, 2, 3)
            await stack.until(lambda: not sum(session_counts(replicas.targets)))
    assert served == [served[0]] * 4


async def test_a_coordinator_that_ends_lets_requests_end_first(replicas: Replicas) -> None:
    """Within the time that it has; new ones are refused, and may try elsewhere."""
    async with replicas.running(second=False, drain_seconds=60.0) as stack:
        undisturbed = await stack.generate(SEEDED)
        stream = Stream(stack, SEEDED)
        await stream.read(10)
        ending = [
            asyncio.create_task(one) for one in (stack.server.stop(), stack.coordinator.stop())
        ]
        await asyncio.sleep(0)
        with pytest.raises(RemoteError) as refused:
            await stack.generate(SEEDED)
        disturbed = await stream.read_to_end()
        await asyncio.gather(*ending)
    assert refused.value.reason is Reason.WORKER_UNAVAILABLE
    assert disturbed.token_ids == undisturbed.token_ids
    assert disturbed.completion.finish_reason is FinishReason.LENGTH

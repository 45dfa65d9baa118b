"""A lost worker is an event, not an outage: the text goes on, and stays the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from sequoia.errors import IncompatibleModelsError, Reason
from sequoia.generation import FinishReason, GenerationRequest
from sequoia.rpc.errors import RemoteError
from sequoia.settings import SamplingSettings
from tests.stack import Stream, running_stack
from tests.tiny import (
    byte_tokenizer,
    nudged,
    save_model,
    tiny_llama,
    word_pair,
    word_tokenizer,
)

SEEDED = GenerationRequest(
    text="the quick brown fox",
    sampling=SamplingSettings(temperature=0.8),
    seed=5,
    max_new_tokens=120,
    ignore_end_of_text=True,
)
GREEDY = replace(SEEDED, sampling=SamplingSettings(temperature=0.0), seed=None)
REQUESTS = pytest.mark.parametrize("request_", [GREEDY, SEEDED], ids=["greedy", "seeded"])


@REQUESTS
async def test_a_killed_draft_worker_does_not_change_the_text(
    pair: tuple[Path, Path], request_: GenerationRequest
) -> None:
    """Killed in the middle, the draft is done without; the text is the undisturbed one."""
    async with running_stack(*pair) as stack:
        undisturbed = await stack.generate(request_)
        stream = Stream(stack, request_)
        await stream.read(20)

        await stack.draft.kill()
        disturbed = await stream.read_to_end()

    assert disturbed.token_ids == undisturbed.token_ids
    assert disturbed.completion.usage.step_count > undisturbed.completion.usage.step_count


@REQUESTS
async def test_a_returning_draft_worker_is_picked_up_again(
    pair: tuple[Path, Path], request_: GenerationRequest
) -> None:
    """Once the draft is back, in the middle of a generation, trees grow again."""
    async with running_stack(*pair) as stack:
        undisturbed = await stack.generate(request_)
        stream = Stream(stack, request_)
        await stream.read(10)
        await stack.draft.kill()
        await stream.read(20)

        await stack.draft.start()
        worker = stack.coordinator.draft
        assert worker
        await stack.until(lambda: worker.is_available)
        after = await stack.generate(request_)
        disturbed = await stream.read_to_end()

    assert disturbed.token_ids == after.token_ids == undisturbed.token_ids
    assert after.completion.usage.step_count == undisturbed.completion.usage.step_count


@REQUESTS
async def test_a_restarted_target_worker_does_not_change_the_text(
    pair: tuple[Path, Path], request_: GenerationRequest
) -> None:
    """Killed and started again in the middle, the target rebuilds the session; nothing is lost."""
    async with running_stack(*pair) as stack:
        undisturbed = await stack.generate(request_)
        stream = Stream(stack, request_)
        await stream.read(20)

        await stack.target.kill()
        rest = asyncio.create_task(stream.read_to_end())
        await stack.target.start()
        disturbed = await rest

    assert disturbed.token_ids == undisturbed.token_ids


async def test_a_target_that_stays_away_fails_the_request(pair: tuple[Path, Path]) -> None:
    """When the engine's patience is over the client gets UNAVAILABLE, and sessions are let go."""
    async with running_stack(*pair, target_patience_seconds=0.3) as stack:
        stream = Stream(stack, SEEDED)
        await stream.read(10)

        await stack.target.kill()
        with pytest.raises(RemoteError) as raised:
            await stream.read_to_end()

        assert raised.value.reason is Reason.WORKER_UNAVAILABLE
        assert stack.draft.worker
        draft = stack.draft.worker
        await stack.until(lambda: len(draft.sessions) == 0)


@pytest.mark.parametrize("folder", ["another folder", "target"])
async def test_a_text_is_not_finished_by_another_model(tmp_path: Path, folder: str) -> None:
    """A target that comes back with other weights ends the request, and not the next one.

    Whatever it is called, the same name included.
    """
    target, draft = word_pair(tmp_path)
    async with running_stack(target, draft) as stack:
        stream = Stream(stack, SEEDED)
        await stream.read(10)
        await stack.target.kill()
        other = nudged(tiny_llama(12, seed=1), 0.3, seed=7)
        stack.target.folder = save_model(tmp_path / folder, other, word_tokenizer(12))
        await stack.target.start()
        with pytest.raises(RemoteError, match="replaced in the middle of a text") as raised:
            await stream.read_to_end()
        again = await stack.generate(SEEDED)
    assert raised.value.reason is Reason.INCOMPATIBLE_MODELS
    assert again.completion.finish_reason is FinishReason.LENGTH


async def test_a_text_is_finished_by_the_same_model_in_another_folder(tmp_path: Path) -> None:
    """What it is called does not matter."""
    target, draft = word_pair(tmp_path)
    async with running_stack(target, draft) as stack:
        undisturbed = await stack.generate(SEEDED)
        stream = Stream(stack, SEEDED)
        await stream.read(10)
        await stack.target.kill()
        stack.target.folder = target.rename(tmp_path / "moved")
        await stack.target.start()
        disturbed = await stream.read_to_end()
    assert disturbed.token_ids == undisturbed.token_ids


async def test_another_tokenizer_is_refused_at_the_start(tmp_path: Path) -> None:
    """A draft with another tokenizer than the target's ends the coordinator's start."""
    target, _ = word_pair(tmp_path)
    stranger = save_model(tmp_path / "stranger", tiny_llama(257, seed=9), byte_tokenizer())

    with pytest.raises(IncompatibleModelsError, match="another tokenizer"):
        async with running_stack(target, stranger):
            pass


async def test_without_a_draft_worker_every_step_is_one_token(pair: tuple[Path, Path]) -> None:
    """A coordinator that finds no draft serves all the same, from the target alone."""
    async with running_stack(*pair) as stack:
        await stack.draft.kill()

        generated = await stack.generate(GREEDY)

    assert generated.completion.usage.tokens_per_step == 1.0


async def test_shutting_down_ends_running_requests_as_cancelled(pair: tuple[Path, Path]) -> None:
    """A coordinator that stops completes its streams: what was generated is not lost."""
    async with running_stack(*pair) as stack:
        stream = Stream(stack, replace(SEEDED, max_new_tokens=400))
        await stream.read(10)

        await stack.coordinator.stop()
        generated = await stream.read_to_end()

    assert generated.completion.finish_reason.value == "cancelled"
    assert generated.completion.usage.completion_token_count == len(generated.token_ids)

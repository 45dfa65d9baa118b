"""Generate, through all roles and real sockets, with tiny models."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sequoia.errors import Reason
from sequoia.generation import ChatMessage, FinishReason, GenerationRequest
from sequoia.plans import BUILT_IN_PLAN, REQUEST_CLASSES, Plan, PlannedTree
from sequoia.rpc.errors import RemoteError
from sequoia.rpc.generation_codec import GENERATE
from sequoia.runtime.worker import WorkerLimits
from sequoia.settings import SamplingSettings
from tests.stack import Stack, running_coordinator, running_stack

GREEDY = SamplingSettings(temperature=0.0)
PROMPT = GenerationRequest(text="Hello, Wörld", sampling=GREEDY, max_new_tokens=48)
SAMPLED = replace(PROMPT, sampling=SamplingSettings(temperature=0.9), seed=11)
OTHER_TREE = (-1, 0, 0, 0, 1, 1, 4, 6)

# One running system for all tests of this file.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(pair: tuple[Path, Path]) -> AsyncIterator[Stack]:
    """A running system."""
    async with running_stack(*pair) as running:
        yield running


def reference(target: Path, text: str, count: int) -> list[int]:
    """Greedy continuation by transformers itself."""
    model: Any = AutoModelForCausalLM.from_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    inputs = tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=count, do_sample=False)
    ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return ids


async def test_greedy_text_is_the_one_of_transformers(
    stack: Stack, pair: tuple[Path, Path]
) -> None:
    """At temperature 0 the tokens are those of `transformers.generate`, in fewer steps."""
    generated = await stack.generate(PROMPT)

    assert generated.token_ids == reference(pair[0], "Hello, Wörld", 48)
    assert generated.completion.usage.tokens_per_step > 1.0


@pytest.mark.parametrize("request_", [PROMPT, SAMPLED], ids=["greedy", "seeded"])
async def test_speculation_does_not_change_the_text(
    stack: Stack, request_: GenerationRequest
) -> None:
    """The same request gives the same tokens with and without speculation."""
    with_speculation = await stack.generate(request_)
    without = await stack.generate(replace(request_, disable_speculation=True))

    assert with_speculation.token_ids == without.token_ids
    assert without.completion.usage.drafted_token_count == 0
    assert with_speculation.completion.usage.step_count < without.completion.usage.step_count


@pytest.mark.parametrize("request_", [PROMPT, SAMPLED], ids=["greedy", "seeded"])
async def test_another_plan_does_not_change_the_text(
    stack: Stack, request_: GenerationRequest
) -> None:
    """A plan that changes in the middle of a generation leaves its tokens alone."""
    before = await stack.generate(request_)
    engine = stack.coordinator.engine
    assert engine

    async def swap_plans() -> None:
        for version in range(1, 200):
            parents = OTHER_TREE if version % 2 else (-1, 0, 1, 2)
            trees = tuple(PlannedTree(name, 64, parents, 0, 0, 0) for name in REQUEST_CLASSES)
            engine.plan = Plan(version, 0.0, trees)
            await asyncio.sleep(0)

    swapping = asyncio.create_task(swap_plans())
    after = await stack.generate(request_)
    await swapping
    engine.plan = BUILT_IN_PLAN

    assert after.token_ids == before.token_ids


@pytest.mark.parametrize("request_", [PROMPT, SAMPLED], ids=["greedy", "seeded"])
async def test_company_does_not_change_the_text(stack: Stack, request_: GenerationRequest) -> None:
    """Eight requests at once give the texts that each gives alone, and share passes."""
    requests = [replace(request_, text=f"prompt number {n}", seed=n) for n in range(8)]
    alone = [(await stack.generate(one)).token_ids for one in requests]
    assert stack.target.worker
    sizes: list[int] = []
    run_steps = stack.target.worker.run_steps

    def run_and_note(steps: Any) -> Any:
        sizes.append(len(steps))
        return run_steps(steps)

    stack.target.worker.run_steps = run_and_note  # type: ignore[method-assign]

    together = await asyncio.gather(*(stack.generate(one) for one in requests))

    assert [generated.token_ids for generated in together] == alone
    assert max(sizes) > 1


async def test_a_small_table_of_sessions_changes_nothing(pair: tuple[Path, Path]) -> None:
    """Workers that hold fewer sessions than two coordinators ask them for, together, lose nothing."""
    requests = [replace(SAMPLED, text=f"prompt number {n}", seed=n) for n in range(6)]
    async with (
        running_stack(*pair, limits=WorkerLimits(session_limit=2)) as stack,
        running_coordinator(stack.target, stack.draft) as other,
    ):
        alone = [(await stack.generate(one)).token_ids for one in requests]
        both = itertools.cycle((stack, other))
        together = await asyncio.gather(*(next(both).generate(one) for one in requests))

    assert [generated.token_ids for generated in together] == alone


async def test_deltas_add_up_to_the_decoded_text(stack: Stack, pair: tuple[Path, Path]) -> None:
    """Streamed text is the decoded text, and no delta breaks a character that the text has whole."""
    generated = await stack.generate(replace(SAMPLED, max_new_tokens=200, ignore_end_of_text=True))
    tokenizer: Any = AutoTokenizer.from_pretrained(pair[0])
    whole: str = tokenizer.decode(generated.token_ids, skip_special_tokens=True)

    assert whole.rstrip("\N{REPLACEMENT CHARACTER}") == generated.text.rstrip(
        "\N{REPLACEMENT CHARACTER}"
    )
    assert len(generated.chunks) > 2


async def test_stop_string_cuts_the_text_before_it(stack: Stack) -> None:
    """Text ends right before the stop string, which the completion names."""
    free = (await stack.generate(PROMPT)).text
    stop = free[5:8]

    generated = await stack.generate(replace(PROMPT, stop_strings=("never", stop)))

    assert generated.text == free[: free.index(stop)]
    assert generated.completion.finish_reason is FinishReason.STOP_STRING
    assert generated.completion.stop_string == stop


async def test_stop_token_inside_an_accepted_block_ends_there(stack: Stack) -> None:
    """The stop token is the last token; nothing that was accepted behind it comes out."""
    free = (await stack.generate(PROMPT)).token_ids
    stop = free[7]

    generated = await stack.generate(replace(PROMPT, stop_token_ids=(stop,)))

    assert generated.token_ids == free[: free.index(stop) + 1]
    assert generated.completion.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("count", [1, 2, 3, 7])
async def test_length_is_exact(stack: Stack, count: int) -> None:
    """max_new_tokens tokens come out, never more, whatever the tree holds."""
    generated = await stack.generate(replace(PROMPT, max_new_tokens=count, ignore_end_of_text=True))

    assert len(generated.token_ids) == count
    assert generated.completion.finish_reason is FinishReason.LENGTH


async def test_logprobs_are_the_targets_own(stack: Stack, pair: tuple[Path, Path]) -> None:
    """Log probabilities are the unmodified target's, for chosen and for most likely tokens."""
    sampled = replace(SAMPLED, seed=None, sampling=SamplingSettings(0.7, top_p=0.9))
    generated = await stack.generate(replace(sampled, logprob_count=3))
    model = AutoModelForCausalLM.from_pretrained(pair[0])
    prompt = AutoTokenizer.from_pretrained(pair[0])("Hello, Wörld").input_ids
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *generated.token_ids]])).logits[0]
    log_probs = torch.log_softmax(logits, -1)[len(prompt) - 1 :]

    for row, token in zip(log_probs, generated.tokens, strict=False):
        assert token.logprob == pytest.approx(float(row[token.token_id]), abs=1e-3)
        best = row.topk(3)
        assert [value for _, value in token.top_logprobs] == pytest.approx(
            best.values.tolist(), abs=1e-3
        )


async def test_usage_counts_what_happened(stack: Stack) -> None:
    """Every step yields the accepted tokens and one more; times are there."""
    generated = await stack.generate(replace(PROMPT, ignore_end_of_text=True))
    usage = generated.completion.usage

    assert usage.completion_token_count == len(generated.token_ids) == 48
    accepted_and_bonus = usage.accepted_token_count + usage.step_count
    assert 48 <= accepted_and_bonus < 48 + 4
    assert usage.drafted_token_count >= usage.accepted_token_count > 0
    assert 0 < usage.target_seconds < usage.total_seconds
    assert 0 < usage.seconds_to_first_token < usage.total_seconds


async def test_prompt_token_ids_are_echoed(stack: Stack) -> None:
    """The first response holds the prompt's tokens, when asked for."""
    generated = await stack.generate(
        GenerationRequest(
            token_ids=(5, 6, 7), sampling=GREEDY, max_new_tokens=2, echo_prompt_token_ids=True
        )
    )

    assert generated.chunks[0].prompt_token_ids == (5, 6, 7)


async def test_chat_uses_the_targets_template(stack: Stack) -> None:
    """A conversation is rendered with the chat template and then generated like its text."""
    chat = replace(PROMPT, text=None, chat=(ChatMessage("user", "hi"),))
    as_text = replace(PROMPT, text="user hi ")

    assert (await stack.generate(chat)).token_ids == (await stack.generate(as_text)).token_ids


@pytest.mark.parametrize("penalties", [(1.3, 0.0, 0.0), (1.0, 0.7, 0.4)], ids=["repeat", "count"])
async def test_penalties_hold_along_every_path(
    stack: Stack, penalties: tuple[float, float, float]
) -> None:
    """Penalised texts are the same with and without a tree, so each node saw its own path."""
    settings = SamplingSettings(0.0, 0, 1.0, 0.0, *penalties)
    request = replace(PROMPT, sampling=settings)

    penalised = await stack.generate(request)
    without = await stack.generate(replace(request, disable_speculation=True))

    assert penalised.token_ids == without.token_ids
    assert penalised.token_ids != (await stack.generate(PROMPT)).token_ids


async def test_cancelling_frees_the_sessions(stack: Stack) -> None:
    """A client that goes away leaves no session on either worker."""
    long = replace(SAMPLED, max_new_tokens=400, ignore_end_of_text=True)
    stream = stack.channel.stream(GENERATE, long)
    await anext(stream)
    assert stack.target.worker
    assert len(stack.target.worker.sessions) == 1

    await stream.aclose()

    assert stack.draft.worker
    workers = (stack.target.worker, stack.draft.worker)
    await stack.until(lambda: not any(len(worker.sessions) for worker in workers))
    assert stack.coordinator.engine
    assert stack.coordinator.engine.active_count == 0


async def test_a_passed_deadline_frees_the_sessions(stack: Stack) -> None:
    """A call whose deadline passes ends with DEADLINE_EXCEEDED and leaves no session."""
    long = replace(SAMPLED, max_new_tokens=400, ignore_end_of_text=True)

    with pytest.raises(RemoteError) as raised:
        await stack.generate(long, timeout=0.2)

    assert raised.value.reason is Reason.DEADLINE_EXCEEDED
    assert stack.target.worker
    assert stack.draft.worker
    workers = (stack.target.worker, stack.draft.worker)
    await stack.until(lambda: not any(len(worker.sessions) for worker in workers))


async def test_requests_over_the_limit_are_refused(pair: tuple[Path, Path]) -> None:
    """Without a queue, one request more than the limit gets RESOURCE_EXHAUSTED; the others go on."""
    long = replace(SAMPLED, max_new_tokens=300, ignore_end_of_text=True)
    async with running_stack(*pair, request_limit=1, queue_limit=0) as stack:
        stream = stack.channel.stream(GENERATE, long)
        await anext(stream)

        with pytest.raises(RemoteError) as raised:
            await stack.generate(PROMPT)
        await stream.aclose()

    assert raised.value.reason is Reason.CAPACITY_EXHAUSTED
    assert raised.value.metadata == {"field": "queue_limit", "limit": "0", "value": "0"}

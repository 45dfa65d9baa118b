"""A draft that reads the target's features, in the whole system."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.engine import Engine
from coordinator.prompt import PreparedRequest
from draft_service.grower import Grower
from sequoia.acceptance.continuations import Continuation, Prompt, write
from sequoia.acceptance.pair import load_pair
from sequoia.acceptance.walk import Walker
from sequoia.generation import GenerationChunk, GenerationRequest
from sequoia.messages import Features, Prefill
from sequoia.plans import BUILT_IN_PLAN, Plan, PlannedTree
from sequoia.runtime.features import pack_features
from sequoia.runtime.worker import WorkerLimits
from sequoia.settings import SamplingSettings
from tests.stack import Stack, running_stack
from tests.tiny import byte_pair, feature_draft

GREEDY = GenerationRequest(
    text="Hello, Wörld",
    sampling=SamplingSettings(temperature=0.0),
    max_new_tokens=60,
    ignore_end_of_text=True,
    echo_prompt_token_ids=True,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target, and a draft that its features lead astray now and then."""
    target, _ = byte_pair(tmp_path_factory.mktemp("pair"))
    return target, feature_draft(tmp_path_factory.mktemp("draft"), target, influence=0.1)


async def test_the_service_takes_the_steps_of_a_draft_that_is_given_all_features(
    pair: tuple[Path, Path],
) -> None:
    """On their way through target, coordinator and draft worker the features stay what they are."""
    async with running_stack(*pair) as stack:
        generated = await stack.generate(GREEDY)
    models = load_pair(str(pair[0]), str(pair[1]), "float32", "cpu")
    prompt = Prompt(generated.chunks[0].prompt_token_ids, 60)
    texts = write(models.target, [prompt], GREEDY.sampling, frozenset())

    def features_of(text: Continuation) -> Features:
        return pack_features(models.target.plain(text.token_ids).features)

    tree = BUILT_IN_PLAN.tree_for("greedy", 1)
    assert tree is not None
    grower = Grower("draft", models.draft, "sha", WorkerLimits())
    size, length = models.target.vocabulary_size, models.draft.context_length
    try:
        walker = Walker(grower, size, length, features_of=features_of)
        walked = await walker.tokens_per_step(texts, tree.topology)
    finally:
        grower.device.stop()
    assert walked == generated.completion.usage.tokens_per_step > 1.0


async def test_steps_without_a_tree_leave_no_gap(pair: tuple[Path, Path]) -> None:
    """A plan of the root alone, for a while: the draft reads on from the features of these steps."""
    async with running_stack(*pair) as stack:
        undisturbed = await stack.generate(GREEDY)
        engine = _engine(stack)
        usual = engine.plan
        alone = PlannedTree("greedy", 1, (-1,), 1.0, 1.0, 1.0)
        tokens = []
        async for chunk in engine.generate(_prepared(stack, GREEDY)):
            tokens += [token.token_id for token in chunk.tokens]
            engine.plan = usual if len(tokens) % 8 < 4 else Plan(1, 0.0, (alone,))
    assert tokens == undisturbed.token_ids


async def test_a_draft_that_comes_late_serves_the_request(pair: tuple[Path, Path]) -> None:
    """The target reads what there is once more, for the features that nobody asked it for."""
    async with running_stack(*pair) as stack:
        assert stack.coordinator.draft
        (draft,) = stack.coordinator.draft.workers
        await stack.draft.kill()
        draft.is_available, draft.info = False, None  # as if it had never been there
        early = _engine(stack).generate(_prepared(stack, GREEDY))
        await anext(early)
        await stack.draft.start()
        await stack.until(lambda: draft.is_available)
        chunks = [chunk async for chunk in early]
        after = await stack.generate(GREEDY)
    assert _tokens_per_step(chunks) > 1.0
    assert [t.token_id for chunk in chunks for t in chunk.tokens] == after.token_ids


async def test_features_are_asked_for_once_trees_are_grown(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without trees no feature travels; a request that sees the plan change gains them by one prefill."""
    alone = Plan(1, 0.0, (PlannedTree("greedy", 1, (-1,), 1.0, 1.0, 1.0),))
    async with running_stack(*pair) as stack:
        undisturbed = await stack.generate(GREEDY)
        engine = _engine(stack)
        usual, engine.plan = engine.plan, alone
        plain = await stack.generate(GREEDY)
        read = _count_feature_reads(stack, monkeypatch)
        chunks = []
        async for chunk in engine.generate(_prepared(stack, GREEDY)):
            chunks.append(chunk)
            if len(chunks) == 10:
                before = read[:]
                engine.plan = usual
    assert plain.completion.usage.tokens_per_step == 1.0
    assert before == [False]
    assert read == [False, True]
    assert _tokens_per_step(chunks) > 1.0
    tokens = [token.token_id for chunk in chunks for token in chunk.tokens]
    assert tokens == plain.token_ids == undisturbed.token_ids


async def test_a_request_that_is_nearly_done_is_not_read_again(pair: tuple[Path, Path]) -> None:
    """To gain features would cost more than the last trees could save."""
    alone = Plan(1, 0.0, (PlannedTree("greedy", 1, (-1,), 1.0, 1.0, 1.0),))
    async with running_stack(*pair) as stack:
        engine = _engine(stack)
        usual, engine.plan = engine.plan, alone
        chunks = []
        async for chunk in engine.generate(_prepared(stack, GREEDY)):
            chunks.append(chunk)
            if len(chunks) == (GREEDY.max_new_tokens or 0) - 5:
                engine.plan = usual
    assert _tokens_per_step(chunks) == 1.0


async def test_a_request_too_long_for_its_features_goes_without_the_draft(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one message could not carry is not asked for; the text is the same."""
    async with running_stack(*pair) as stack:
        usual = await stack.generate(GREEDY)
        monkeypatch.setattr("coordinator.reception.FEATURES_LIMIT_BYTES", 1000)
        alone = await stack.generate(GREEDY)
    assert alone.token_ids == usual.token_ids
    assert alone.completion.usage.tokens_per_step == 1.0


def _engine(stack: Stack) -> Engine:
    engine = stack.coordinator.engine
    assert engine is not None
    return engine


def _tokens_per_step(chunks: list[GenerationChunk]) -> float:
    completion = chunks[-1].completion
    assert completion is not None
    return completion.usage.tokens_per_step


def _count_feature_reads(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every prefill that the target takes from now on: whether it asks for features."""
    worker = stack.target.worker
    assert worker is not None
    reads: list[bool] = []
    check = worker.check_prefill

    def spy(request: Prefill) -> None:
        reads.append(request.settings.with_features)
        check(request)

    monkeypatch.setattr(worker, "check_prefill", spy)
    return reads


def _prepared(stack: Stack, request: GenerationRequest) -> PreparedRequest:
    reader = stack.coordinator._reader
    assert reader is not None
    return reader.read(request)

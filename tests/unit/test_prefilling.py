from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
import torch

from draft_service.grower import Grower
from sequoia.errors import CapacityError, StaleStepError, UnknownSessionError
from sequoia.messages import Prefill, Prefilled, SessionSettings, StepHeader, VerifyTree
from sequoia.runtime.cache import KVCache
from sequoia.runtime.features import pack_features, unpack_features
from sequoia.runtime.forward import PassOutput, TreeModel
from sequoia.runtime.layer_rows import LayerRows
from sequoia.runtime.loading import load_draft
from sequoia.runtime.pace import LEAST_TOKENS, MOST_TOKENS
from sequoia.runtime.segment import Segment
from sequoia.runtime.worker import WorkerLimits
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology, Tree
from target_service.verifier import Verifier
from tests.tiny import feature_draft, save_model, tiny_llama, word_tokenizer

WORDS = 12
POISON = 9
Reply = TypeVar("Reply")
PASS_SECONDS = 1.0
TOKEN_SECONDS = 0.1
SETTINGS = SessionSettings(SamplingSettings(temperature=0), DrawRule.GREEDY, 7, 1, WORDS)
WITH_FEATURES = replace(SETTINGS, with_features=True)
LLAMA = tiny_llama(WORDS, seed=1, max_position_embeddings=4096)
CPU = torch.device("cpu")


class Pass(NamedTuple):
    """What a pass read, and how long it took by the fake clock."""

    is_step: bool
    counts: list[int]
    seconds: float


class TimedModel(TreeModel):
    """A model whose passes take time by a clock of its own: some each, and some per token.

    While `held` each pass says when it has begun, and waits to be let go.
    """

    def __init__(self) -> None:
        super().__init__(LLAMA)
        self.seconds = 0.0
        self.passes: list[Pass] = []
        self.held = False
        self._begun = threading.Semaphore(0)
        self._free = threading.Semaphore(0)

    def forward(self, segments: Sequence[Segment], with_logits: bool = True) -> list[PassOutput]:
        if self.held:
            self._begun.release()
            assert self._free.acquire(timeout=10)
        counts = [len(segment.token_ids) for segment in segments]
        seconds = PASS_SECONDS + TOKEN_SECONDS * sum(counts)
        self.seconds += seconds
        self.passes.append(Pass(with_logits, counts, seconds))
        if any(POISON in segment.token_ids for segment in segments):
            raise RuntimeError("out of memory")
        return super().forward(segments, with_logits)

    async def begun(self) -> None:
        """Wait until the next pass has begun; it stays in hand until `let_go`."""
        assert await asyncio.to_thread(self._begun.acquire, timeout=10)

    def let_go(self, count: int = 1) -> None:
        """Let so many passes run."""
        self._free.release(count)

    def let_all_go(self) -> None:
        """Hold no pass any more."""
        self.held = False
        self._free.release()

    @property
    def chunks(self) -> list[list[int]]:
        """Tokens per prompt in every pass over prompts so far."""
        return [one.counts for one in self.passes if not one.is_step]


@pytest.fixture
def model() -> TimedModel:
    """A fresh model."""
    return TimedModel()


WorkerMaker = Callable[..., Verifier]


@pytest.fixture
async def make_worker(model: TimedModel) -> AsyncIterator[WorkerMaker]:
    """Makes target workers that see the model's clock."""
    workers: list[Verifier] = []

    def make(**limits: Any) -> Verifier:
        workers.append(
            Verifier("tiny", model, "sha", WorkerLimits(**limits), clock=lambda: model.seconds)
        )
        model.passes.clear()
        return workers[-1]

    yield make
    for worker in workers:
        worker.device.stop()


@pytest.fixture
def worker(make_worker: WorkerMaker) -> Verifier:
    """A target worker with ordinary limits."""
    return make_worker()


def prompt(length: int) -> tuple[int, ...]:
    """Some tokens, none of them poison."""
    return tuple(1 + index % 7 for index in range(length))


def prefill(name: str, length: int, settings: SessionSettings = SETTINGS) -> Prefill:
    """What opens a session on a prompt."""
    return Prefill(name, prompt(length), 0, settings)


async def started(work: Coroutine[Any, Any, Reply]) -> asyncio.Task[Reply]:
    """A task that has run up to its first wait."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


@asynccontextmanager
async def stepping(worker: Verifier, nodes: int) -> AsyncIterator[list[int]]:
    """Another session steps all the while, with trees of so many nodes; yields its steps so far."""
    await worker.prefill(Prefill("stepping", (1,), 0, SETTINGS))
    tree = Tree(Topology((-1, *[0] * (nodes - 1))), (1,) * nodes)
    steps: list[int] = []

    async def step_on() -> None:
        while True:
            number = len(steps)
            await worker.step(VerifyTree(StepHeader("stepping", number, 1 + number), tree))
            steps.append(number)

    going = asyncio.create_task(step_on())
    while not steps:  # noqa: ASYNC110 the first step
        await asyncio.sleep(0)
    yield steps
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)


def assert_same_cache(cache: KVCache, other: KVCache) -> None:
    """The same keys and values, up to rounding."""
    assert cache.length == other.length
    rows, others = LayerRows.of(cache), LayerRows.of(other)
    ours, theirs = (*rows.keys, *rows.values), (*others.keys, *others.values)
    for mine, its in zip(ours, theirs, strict=True):
        assert torch.allclose(mine[:, : cache.length], its[:, : cache.length], atol=1e-5)


async def test_a_prompt_alone_is_read_in_the_largest_chunks(
    worker: Verifier, model: TimedModel
) -> None:
    """Nobody steps, so nobody is held up."""
    await worker.prefill(prefill("s", 2 * MOST_TOKENS + 101))
    assert model.chunks == [[MOST_TOKENS], [MOST_TOKENS], [100]]


async def test_chunks_are_no_larger_than_a_pass_may_be(
    make_worker: WorkerMaker, model: TimedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All prompts of a pass together, where memory was set aside for so many tokens."""
    monkeypatch.setattr(model, "placement", "offload")
    worker = make_worker(pass_tokens=100)
    await worker.prefill(prefill("s", 251))
    assert model.chunks == [[100], [100], [50]]
    model.passes.clear()
    model.held = True
    first = await started(worker.prefill(prefill("first", 2)))
    await model.begun()  # the others gather meanwhile
    others = [await started(worker.prefill(prefill(f"s{n}", 81))) for n in range(3)]
    model.let_all_go()
    await asyncio.gather(first, *others)
    # Who gathers in time is the scheduler's to say; what they share is not.
    together = model.chunks[1:]
    assert sum(map(sum, together)) == 3 * 80
    assert max(map(sum, together)) <= 100
    assert max(map(len, together)) > 1


async def test_chunks_leave_what_one_pass_would(worker: Verifier, model: TimedModel) -> None:
    """The same keys and values, the same features, and the same words on the next tree."""
    whole = KVCache()
    features = model.prefill(whole, prompt(60)[:-1])
    model.passes.clear()

    with worker.pace.waiting_step():
        prefilled = await worker.prefill(prefill("s", 60, WITH_FEATURES))

    assert model.chunks == [[LEAST_TOKENS]] * 3 + [[59 - 3 * LEAST_TOKENS]]
    assert prefilled.features is not None
    given = unpack_features(prefilled.features, torch.float32, CPU)
    assert torch.allclose(given, features, atol=1e-2, rtol=1e-2)  # bfloat16
    assert_same_cache(worker.sessions._sessions["s"].cache, whole)
    step = VerifyTree(StepHeader("s", 0, 60), Tree.root_only(prompt(60)[-1]))
    verdict = await worker.step(step)
    assert verdict.token_ids == (int(model.plain(prompt(60)).logits[-1].argmax()),)


async def test_features_are_read_and_gathered_across_chunks(tmp_path: Path) -> None:
    """A draft reads those of the positions before its tokens, wherever a chunk begins."""
    target = save_model(tmp_path / "target", tiny_llama(WORDS, seed=1), word_tokenizer(WORDS))
    draft = load_draft(feature_draft(tmp_path / "draft", target, 0.5), target, torch.float32, CPU)
    torch.manual_seed(5)
    given = pack_features(torch.randn(59, draft.feature_size))
    before = torch.cat(
        [torch.zeros(1, draft.feature_size), unpack_features(given, draft.dtype, CPU)]
    )
    whole = KVCache()
    draft.prefill(whole, prompt(60)[:-1], before[:-1])
    grower = Grower("tiny", draft, "sha", WorkerLimits())

    with grower.pace.waiting_step():
        prefilled = await grower.prefill(Prefill("s", prompt(60), 0, WITH_FEATURES, given))

    assert prefilled.features is None
    assert_same_cache(grower.sessions._sessions["s"].cache, whole)
    grower.device.stop()


async def test_a_prompt_of_one_token_needs_no_pass(worker: Verifier, model: TimedModel) -> None:
    """It is the root of the first tree; there are no features yet."""
    prefilled = await worker.prefill(prefill("s", 1, WITH_FEATURES))
    assert model.passes == []
    assert prefilled.features is not None
    assert prefilled.features.shape == (0, model.feature_size)
    assert prefilled.features.dtype == np.uint16


@pytest.mark.parametrize("idle_first", [False, True], ids=["first prompt", "after an idle time"])
async def test_a_step_waits_for_one_chunk_no_longer_than_a_step(
    worker: Verifier, model: TimedModel, idle_first: bool
) -> None:
    """Steps and chunks take turns, and a chunk takes the time of a step at most."""
    if idle_first:
        await worker.prefill(prefill("first", 2 * MOST_TOKENS))  # its tokens cost the least
    async with stepping(worker, nodes=64):
        model.passes.clear()
        await worker.prefill(prefill("s", 1000))
        passes = list(model.passes)
    begun = next(index for index, one in enumerate(passes) if not one.is_step)
    ended = len(passes) - next(i for i, one in enumerate(passes[::-1]) if not one.is_step)
    turns = passes[begun:ended]
    assert [one.is_step for one in turns] == [bool(index % 2) for index in range(len(turns))]
    step_seconds = PASS_SECONDS + 64 * TOKEN_SECONDS
    slack = 1.15 if idle_first else 1.0  # the first chunk costs what those of idle times did
    assert max(one.seconds for one in turns if not one.is_step) <= slack * step_seconds
    assert max(one.seconds for one in turns[:-2] if not one.is_step) > 0.9 * step_seconds


async def test_a_prompt_gets_on_however_short_the_steps_are(
    worker: Verifier, model: TimedModel
) -> None:
    """There is a least chunk."""
    async with stepping(worker, nodes=1):
        await worker.prefill(prefill("s", 10 * LEAST_TOKENS + 1))
    assert model.chunks == [[LEAST_TOKENS]] * 10


async def test_prompts_share_passes(worker: Verifier, model: TimedModel) -> None:
    """Each gets the same share, and the passes are no larger than for one prompt."""
    model.held = True
    first = await started(worker.prefill(prefill("first", 11)))
    await model.begun()
    others = [await started(worker.prefill(prefill(f"s{n}", 1001))) for n in range(2)]
    short = await started(worker.prefill(prefill("short", 21)))
    model.let_all_go()
    await asyncio.gather(first, *others, short)
    share = MOST_TOKENS // 3
    assert model.chunks[:2] == [[10], [share, share, 20]]  # later ones may miss one another
    assert max(sum(counts) for counts in model.chunks) <= MOST_TOKENS
    assert sum(map(sum, model.chunks)) == 10 + 2 * 1000 + 20


async def test_a_cancelled_prefill_ends_with_the_chunk_in_hand(
    worker: Verifier, model: TimedModel
) -> None:
    """The session is freed as soon as the device lets go of it, and nothing more is read."""
    model.held = True
    task = await started(worker.prefill(prefill("s", 3 * MOST_TOKENS)))
    await model.begun()

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(worker.sessions) == 1  # the chunk in hand still writes to it
    model.let_all_go()
    await worker.prefill(prefill("other", 2))

    assert task.cancelled()
    assert model.chunks == [[MOST_TOKENS], [1]]
    assert list(worker.sessions._sessions) == ["other"]
    worker.close_session("other")
    assert worker.info().session_count == worker.info().kv_cache_bytes == 0


async def test_a_prefill_cancelled_while_it_waits_leaves_nothing(
    worker: Verifier, model: TimedModel
) -> None:
    """No chunk of it was ever read."""
    model.held = True
    first = await started(worker.prefill(prefill("first", 11)))
    await model.begun()
    task = await started(worker.prefill(prefill("s", 11)))
    task.cancel()
    model.let_all_go()
    await asyncio.gather(first, task, return_exceptions=True)
    assert model.chunks == [[10]]
    assert list(worker.sessions._sessions) == ["first"]


async def test_closing_a_session_ends_its_prefill(worker: Verifier, model: TimedModel) -> None:
    """After the chunk in hand; whoever waits for the prefill is told."""
    model.held = True
    task = await started(worker.prefill(prefill("s", 3 * MOST_TOKENS)))
    await model.begun()

    worker.close_session("s")
    model.let_all_go()
    with pytest.raises(UnknownSessionError, match="closed during its prefill"):
        await task

    assert model.chunks == [[MOST_TOKENS]]
    assert len(worker.sessions) == 0


async def test_closing_a_session_ends_a_prefill_that_has_not_begun(
    worker: Verifier, model: TimedModel
) -> None:
    """Its first chunk is still behind others: it must not open the session after its end."""
    model.held = True
    first = await started(worker.prefill(prefill("first", 11)))
    await model.begun()
    task = await started(worker.prefill(prefill("s", 11)))
    worker.close_session("s")
    model.let_all_go()
    await first
    with pytest.raises(UnknownSessionError):
        await task
    assert list(worker.sessions._sessions) == ["first"]


async def test_a_newer_prefill_of_the_same_session_takes_its_place(
    worker: Verifier, model: TimedModel
) -> None:
    """The older one ends after its chunk, and does not take the newer one's session along."""
    model.held = True
    older = await started(worker.prefill(prefill("s", 3 * MOST_TOKENS)))
    await model.begun()
    newer = await started(worker.prefill(prefill("s", 21)))
    model.let_all_go()
    with pytest.raises(UnknownSessionError):
        await older
    await newer
    assert model.chunks == [[MOST_TOKENS], [20]]
    step = VerifyTree(StepHeader("s", 0, 21), Tree.root_only(prompt(21)[-1]))
    verdict = await worker.step(step)
    assert verdict.token_ids == (int(model.plain(prompt(21)).logits[-1].argmax()),)


async def test_a_step_before_the_end_of_the_prefill_is_stale(
    worker: Verifier, model: TimedModel
) -> None:
    """It would read a part of the prompt as if that were all; the prefill goes on."""
    model.held = True
    task = await started(worker.prefill(prefill("s", 2 * MOST_TOKENS + 1)))
    await model.begun()
    early = asyncio.create_task(
        worker.step(VerifyTree(StepHeader("s", 0, 2 * MOST_TOKENS + 1), Tree.root_only(2)))
    )
    await asyncio.sleep(0)
    model.let_all_go()
    with pytest.raises(StaleStepError, match="prefill"):
        await early
    await task
    assert len(worker.sessions) == 1


async def test_a_session_is_busy_between_its_chunks(
    make_worker: WorkerMaker, model: TimedModel
) -> None:
    """It is not evicted for another, however long its prefill takes."""
    worker = make_worker(session_limit=1, idle_seconds=0.0)
    model.held = True
    task = await started(worker.prefill(prefill("s", 3 * MOST_TOKENS)))
    for _ in range(3):
        await model.begun()
        with pytest.raises(CapacityError, match="all 1 sessions are busy"):
            await worker.prefill(prefill("other", 5))
        model.let_go()
    await task
    model.held = False
    await worker.prefill(prefill("other", 5))
    assert list(worker.sessions._sessions) == ["other"]


async def test_the_last_come_gives_way_when_memory_runs_out(
    make_worker: WorkerMaker, model: TimedModel
) -> None:
    """Half-way, with the limit named; those that came before get on."""
    worker = make_worker(kv_cache_limit_bytes=3 * 512 * 256)
    model.held = True
    first = await started(worker.prefill(prefill("first", 1001)))
    await model.begun()
    second = await started(worker.prefill(prefill("second", 1001)))
    model.let_all_go()
    with pytest.raises(CapacityError) as caught:
        await second
    assert caught.value.metadata["field"] == "kv_cache_limit_bytes"
    await first
    assert list(worker.sessions._sessions) == ["first"]
    assert worker.info().kv_cache_bytes <= worker.limits.kv_cache_limit_bytes


async def test_a_prompt_that_fails_takes_no_other_along(
    worker: Verifier, model: TimedModel
) -> None:
    """A pass that fails is repeated prompt by prompt; only whose own pass fails is dropped."""
    model.held = True
    first = await started(worker.prefill(prefill("first", 11)))
    await model.begun()
    good = await started(worker.prefill(prefill("good", 31)))
    bad = await started(worker.prefill(Prefill("bad", (1, POISON, 1), 0, SETTINGS)))
    model.let_all_go()
    with pytest.raises(CapacityError, match="out of memory"):
        await bad
    await asyncio.gather(first, good)
    assert list(worker.sessions._sessions) == ["first", "good"]
    assert worker.sessions._sessions["good"].cache.length == 30


async def test_prefills_that_wait_are_refused_when_the_worker_stops(
    worker: Verifier, model: TimedModel
) -> None:
    """Between two chunks as well as before the first."""
    model.held = True
    task = await started(worker.prefill(prefill("s", 3 * MOST_TOKENS)))
    await model.begun()
    stopping = asyncio.create_task(asyncio.to_thread(worker.device.stop))
    while not worker.device._stopping:  # noqa: ASYNC110 set by another thread
        await asyncio.sleep(0)
    model.let_all_go()
    await stopping
    (failure,) = await asyncio.gather(task, return_exceptions=True)
    assert "stopping" in str(failure)
    assert len(worker.sessions) == 0


async def closed(worker: Verifier, request: Prefill) -> Prefilled:
    """A session that was opened and is over."""
    prefilled = await worker.prefill(request)
    worker.close_session(request.session_id)
    return prefilled


async def test_only_what_no_closed_session_has_read_is_read(
    worker: Verifier, model: TimedModel
) -> None:
    """A longer prompt goes on behind a shorter one; the next tree gets the same words."""
    await closed(worker, prefill("first", 40))
    await worker.prefill(prefill("second", 100))
    assert model.chunks == [[39], [99 - 39]]
    assert worker.metrics.reused._value.get() == 39
    whole = KVCache()
    model.prefill(whole, prompt(100)[:-1])
    assert_same_cache(worker.sessions._sessions["second"].cache, whole)


async def test_a_prompt_that_was_read_whole_takes_no_pass(
    worker: Verifier, model: TimedModel
) -> None:
    """Its features are those that were given before; both prompts are kept apart from then on."""
    first = await closed(worker, prefill("first", 60, WITH_FEATURES))
    again = await worker.prefill(prefill("again", 60, WITH_FEATURES))
    assert model.chunks == [[59]]
    assert first.features is not None
    assert again.features is not None
    assert np.array_equal(first.features, again.features)
    assert again.device_seconds == 0


async def test_features_of_prompt_and_steps_serve_a_longer_prompt(
    worker: Verifier, model: TimedModel
) -> None:
    """Of the tokens that the last session was given, and of those that it went on with."""
    await worker.prefill(prefill("first", 40, WITH_FEATURES))
    tree = Tree(Topology((-1, 0, 0, 1)), (prompt(40)[-1], *prompt(42)[40:], 3))
    await worker.step(VerifyTree(StepHeader("first", 0, 40), tree))
    header = StepHeader("first", 1, 42, (1,))
    root = Tree.root_only(prompt(42)[41])
    await worker.step(VerifyTree(header, root))
    worker.close_session("first")
    model.passes.clear()

    given = (await worker.prefill(prefill("second", 60, WITH_FEATURES))).features

    assert sum(map(sum, model.chunks)) == 59 - 42
    assert given is not None
    features = unpack_features(given, torch.float32, CPU)
    assert torch.allclose(features, model.prefill(KVCache(), prompt(59)), atol=1e-2, rtol=1e-2)


async def test_features_that_were_not_given_are_made_anew(
    worker: Verifier, model: TimedModel
) -> None:
    """What a session without features has read serves only those that want none."""
    await closed(worker, prefill("without", 60))
    await closed(worker, prefill("with", 60, WITH_FEATURES))
    await worker.prefill(prefill("again without", 60))
    assert model.chunks == [[59], [59]]


async def test_a_worker_without_the_prefix_cache_reads_everything(
    make_worker: WorkerMaker, model: TimedModel
) -> None:
    """And keeps neither rows nor features of what is over."""
    worker = make_worker(prefix_cache=False)
    await worker.prefill(prefill("first", 60, WITH_FEATURES))
    assert worker.sessions._sessions["first"].features_given is None
    worker.close_session("first")
    await worker.prefill(prefill("second", 60, WITH_FEATURES))
    assert model.chunks == [[59], [59]]


async def test_retained_sessions_give_way_when_a_pass_has_no_memory(
    worker: Verifier, model: TimedModel
) -> None:
    """All of them, before anything fails."""
    await closed(worker, prefill("first", 60))
    assert worker.sessions.retained_bytes > 0
    with pytest.raises(CapacityError, match="out of memory"):
        await worker.prefill(Prefill("bad", (1, POISON, 1), 0, SETTINGS))
    assert model.chunks == [[59], [2], [2]]
    assert worker.sessions.retained_bytes == 0


async def test_prompts_that_share_a_pass_stay_within_the_memory_limit(
    make_worker: WorkerMaker, model: TimedModel
) -> None:
    """What is retained makes room before the pass, for copies of its beginning and for what is read."""
    block = 256 * 256
    worker = make_worker(kv_cache_limit_bytes=8 * block)
    sessions, limit = worker.sessions, worker.limits.kv_cache_limit_bytes
    for number in range(2, 5):
        token_ids = (1,) * 20 + (number,) * 280
        await closed(worker, Prefill("closed", token_ids, 0, SETTINGS))
    assert sessions.retained_bytes == 6 * block
    model.held = True
    alone = await started(worker.prefill(Prefill("first", (5,) * 10, 0, SETTINGS)))
    await model.begun()
    prompts = [
        await started(worker.prefill(Prefill(f"s{number}", (1,) * 20 + (6,) * 200, 0, SETTINGS)))
        for number in range(4)
    ]
    model.let_go()
    await model.begun()
    assert model.chunks[-1] == [9]
    held = worker.info().kv_cache_bytes + sessions.retained_bytes
    model.let_all_go()
    await asyncio.gather(alone, *prompts)

    assert len(model.chunks[model.chunks.index([9]) + 1]) == 4
    assert held == 7 * block
    assert worker.info().kv_cache_bytes == 5 * block
    assert worker.info().kv_cache_bytes + sessions.retained_bytes <= limit


async def test_a_tree_makes_room_before_its_pass(
    make_worker: WorkerMaker, model: TimedModel
) -> None:
    """Where its rows take another block."""
    worker = make_worker(kv_cache_limit_bytes=2 * 256 * 256)
    await closed(worker, prefill("closed", 100))
    await worker.prefill(Prefill("s", (5,) * 250, 0, SETTINGS))
    assert worker.sessions.retained_bytes > 0
    model.held = True
    tree = Tree(Topology((-1, *range(9))), (5,) * 10)
    step = await started(worker.step(VerifyTree(StepHeader("s", 0, 250), tree)))
    await model.begun()
    assert worker.sessions.retained_bytes == 0
    model.let_all_go()
    await step


async def test_a_feature_conditioned_draft_goes_on_where_another_ended(tmp_path: Path) -> None:
    """With the features before the tokens that are left to be read."""
    target = save_model(tmp_path / "target", tiny_llama(WORDS, seed=1), word_tokenizer(WORDS))
    draft = load_draft(feature_draft(tmp_path / "draft", target, 0.5), target, torch.float32, CPU)
    torch.manual_seed(5)
    given = pack_features(torch.randn(59, draft.feature_size))
    grower = Grower("tiny", draft, "sha", WorkerLimits())
    await grower.prefill(Prefill("whole", prompt(60), 0, WITH_FEATURES, given))
    whole = grower.sessions._sessions["whole"].cache
    await grower.prefill(Prefill("first", prompt(30), 0, WITH_FEATURES, given[:29]))
    grower.close_session("first")

    await grower.prefill(Prefill("second", prompt(60), 0, WITH_FEATURES, given))

    session = grower.sessions._sessions["second"]
    assert session.reused_count == 29
    assert_same_cache(session.cache, whole)
    grower.device.stop()

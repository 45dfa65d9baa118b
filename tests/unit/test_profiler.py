"""Profiling workers that answer as the test wants, over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from planner.found_worker import FoundWorker, find
from planner.measurements import NO_OVERHEAD
from planner.profiler import profile
from planner.scope import Scope, scope_for
from planner.step_time import STEPS
from sequoia.errors import CapacityError, InvalidArgumentError, NotReadyError, Reason, SequoiaError
from sequoia.messages import (
    ForwardTime,
    GrownTree,
    GrowTree,
    Prefill,
    Prefilled,
    ProfileSpec,
    Verdict,
    VerifyTree,
    WorkerInfo,
)
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.codec import CLOSE_SESSION, GET_INFO, GROW_TREE, PREFILL, PROFILE, VERIFY_TREE
from sequoia.rpc.server import RpcServer
from sequoia.tree import Tree

INFO = WorkerInfo("model", "", 100, 4096, "float32", "cpu", 8, 2**20, 0, 0, 1024, "one")
Seconds = Callable[[int, int], float]


class FakeWorker:
    """Measures by formula; refuses batches above a limit, and answers what it is told to."""

    def __init__(self, seconds: Seconds, batch_limit: int = 32) -> None:
        self.seconds = seconds
        self.batch_limit = batch_limit
        self.asked: list[tuple[int, int, int]] = []
        self.sessions: set[str] = set()
        self.steps: list[tuple[int, int]] = []  # node count and number of each
        self.features: list[int] = []  # rows that came with a step
        self.step_seconds = 0.0
        self.reading_seconds: list[float] = []  # that the calls which read a prefix gave
        self.session_limit = 64
        self.failure: SequoiaError | None = None
        self.hangs = False
        self.kill: Callable[[], Awaitable[None]]
        self.is_measuring = asyncio.Event()
        self.was_cancelled = asyncio.Event()

    async def profile(self, spec: ProfileSpec, _: Any) -> list[ForwardTime]:
        (nodes,), (batch,), (prefix,) = spec.node_counts, spec.batch_sizes, spec.prefix_lengths
        self.is_measuring.set()
        if self.failure:
            raise self.failure
        if self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.was_cancelled.set()
        if batch > self.batch_limit:
            raise InvalidArgumentError("batch_sizes", "too large", self.batch_limit, batch)
        self.asked.append((batch, nodes, prefix))
        return [ForwardTime(nodes, batch, prefix, self.seconds(batch, nodes))]

    async def prefill(self, request: Prefill, context: Any) -> Prefilled:
        self.reading_seconds.append(context.time_remaining())
        if len(self.sessions) >= self.session_limit:
            raise CapacityError("no room", limit=self.session_limit)
        self.sessions.add(request.session_id)
        rows = len(request.token_ids) - 1
        return Prefilled(0.0, np.zeros((rows, 4), dtype=np.uint16))

    async def verify(self, request: VerifyTree, _: Any) -> Verdict:
        nodes = request.tree.topology.node_count
        self.steps.append((nodes, request.header.step))
        await asyncio.sleep(self.step_seconds * nodes)
        return Verdict((7,) * nodes, features=np.zeros((nodes, 4), dtype=np.uint16))

    async def grow(self, request: GrowTree, _: Any) -> GrownTree:
        self.steps.append((request.topology.node_count, request.header.step))
        self.features.append(0 if request.features is None else len(request.features))
        await asyncio.sleep(self.step_seconds)
        return GrownTree(Tree(request.topology, (7,) * request.topology.node_count))

    async def close(self, session_id: str, _: Any) -> None:
        self.sessions.discard(session_id)

    async def get_info(self, _request: None, _: Any) -> WorkerInfo:
        return INFO


@asynccontextmanager
async def served(worker: FakeWorker, info: WorkerInfo = INFO) -> AsyncIterator[FoundWorker]:
    """Serve a fake and find it."""
    server = RpcServer()
    server.add_unary(PROFILE, worker.profile)
    server.add_unary(GET_INFO, worker.get_info)
    server.add_unary(PREFILL, worker.prefill)
    server.add_steps(VERIFY_TREE, worker.verify)
    server.add_steps(GROW_TREE, worker.grow)
    server.add_unary(CLOSE_SESSION, worker.close)
    channel = RpcChannel(f"127.0.0.1:{await server.start('127.0.0.1', 0)}")
    await server.set_serving(True)
    worker.kill = server.kill
    try:
        yield FoundWorker(channel, info)
    finally:
        await channel.close()
        await server.kill()


async def test_tables_cover_every_size_and_load() -> None:
    """Times come back in milliseconds by load and size, and round trips take some time."""
    fake_target = FakeWorker(lambda batch, nodes: 0.03 * batch + 0.001 * nodes)
    async with (
        served(FakeWorker(lambda batch, nodes: 0.001 * batch + 0.0001 * nodes)) as draft,
        served(fake_target) as target,
    ):
        measured = await profile(draft, target, Scope(48, 8))
    assert measured.batch_sizes == (1, 2, 4, 8, 16)
    sizes = (1, 2, 4, 8, 16, 32, 48)
    assert set(measured.target_ms) == {(b, n) for b in (1, 2, 4, 8, 16) for n in sizes}
    assert set(measured.draft_ms) == {
        (b, w) for b in (1, 2, 4, 8, 16) for w in (1, 2, 4, 8, 16, 24)
    }
    assert measured.target_ms[4, 8] == pytest.approx(128.0)
    assert measured.draft_ms[2, 16] == pytest.approx(3.6)
    assert set(measured.overheads) == {(b, drawn) for b in (1, 2, 4, 8, 16) for drawn in (0, 1)}
    assert not fake_target.sessions
    assert measured.max_nodes == 48


async def test_steps_are_measured_with_a_tree_and_without() -> None:
    """What real steps take beyond the passes is the overhead, that of drafting in the tree's."""
    fast: Seconds = lambda batch, nodes: 0.0001  # noqa: E731 a formula
    target, draft = FakeWorker(fast), FakeWorker(fast)
    target.step_seconds, draft.step_seconds = 0.004, 0.02
    reading = replace(INFO, feature_size=4)
    async with served(draft, reading) as at_draft, served(target) as at_target:
        measured = await profile(at_draft, at_target, Scope(16, 4))
    for overhead in measured.overheads.values():
        assert overhead.plain_ms > 4
        assert overhead.tree_ms > 9 * 4 + 20
    alone = [step for nodes, step in target.steps if nodes == 1]
    with_tree = [step for nodes, step in target.steps if nodes == 9]
    assert sorted(alone) == sorted(with_tree) == sorted([*range(STEPS + 1)] * 2 * 31)
    assert sorted(draft.steps) == sorted((9, step) for step in with_tree)
    assert set(draft.features) == {1}
    assert not draft.sessions


async def test_sizes_that_cannot_pay_are_not_measured() -> None:
    """A pass that takes as long as a step's tokens would without it ends the measuring."""
    target = FakeWorker(lambda batch, nodes: 0.01 * nodes)
    draft = FakeWorker(lambda batch, nodes: 0.015 * nodes)
    async with served(draft) as at_draft, served(target) as at_target:
        await profile(at_draft, at_target, Scope(64, 3))
    assert [nodes for batch, nodes, _ in target.asked if batch == 1] == [1, 2, 4]
    assert [width for batch, width, _ in draft.asked if batch == 1] == [1, 2, 4]


async def test_a_load_for_which_a_worker_has_no_sessions_is_left_out() -> None:
    """Where only two sessions fit, plans for one and two streams still come about."""
    flat: Seconds = lambda batch, nodes: 0.001  # noqa: E731 a formula
    full = FakeWorker(flat)
    full.session_limit = 2
    async with served(FakeWorker(flat)) as draft, served(full) as target:
        measured = await profile(draft, target, Scope(4, 3))
    assert measured.batch_sizes == (1, 2)
    assert not full.sessions


async def test_a_load_that_a_worker_refuses_is_left_out() -> None:
    """A worker with a small batch limit is planned for up to that limit."""
    flat: Seconds = lambda batch, nodes: 0.01  # noqa: E731 a formula
    async with served(FakeWorker(flat, 2)) as draft, served(FakeWorker(flat)) as target:
        measured = await profile(draft, target, Scope(4, 3))
    assert measured.batch_sizes == (1, 2)


async def test_the_workers_limits_bound_tree_and_prefix() -> None:
    """Trees stay within both workers' limits, and prefix and tree within the context."""
    flat: Seconds = lambda batch, nodes: 0.01  # noqa: E731 a formula
    worker = FakeWorker(flat)
    small = WorkerInfo("m", "", 100, 40, "float32", "cpu", 8, 1, 0, 0, 24, "two")
    async with served(FakeWorker(flat), small) as draft, served(worker) as target:
        measured = await profile(draft, target, Scope(64, 8))
    assert measured.max_nodes == 24
    assert {prefix for _, _, prefix in worker.asked} == {16}


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (NotReadyError("gone"), Reason.NOT_READY),
        (InvalidArgumentError("node_counts", "refused"), Reason.INVALID_ARGUMENT),
    ],
)
async def test_a_worker_that_fails_ends_the_measurement(
    failure: SequoiaError, reason: Reason
) -> None:
    """The worker's own reason comes through."""
    worker = FakeWorker(lambda batch, nodes: 0.01)
    worker.failure = failure
    async with served(FakeWorker(lambda batch, nodes: 0.01)) as draft, served(worker) as target:
        with pytest.raises(SequoiaError) as caught:
            await profile(draft, target, Scope(4, 3))
    assert caught.value.reason is reason


async def test_a_measurement_can_be_cancelled() -> None:
    """Nobody waits for a measurement that is no longer wanted, the worker included."""
    worker = FakeWorker(lambda batch, nodes: 0.01)
    worker.hangs = True
    async with served(FakeWorker(lambda batch, nodes: 0.01)) as draft, served(worker) as target:
        measuring = asyncio.create_task(profile(draft, target, Scope(4, 3)))
        async with asyncio.timeout(10):
            await worker.is_measuring.wait()
            measuring.cancel()
            with pytest.raises(asyncio.CancelledError):
                await measuring
            await worker.was_cancelled.wait()


async def test_a_worker_lost_while_it_measures_ends_the_measurement() -> None:
    """A connection that breaks is an unavailable worker, at once."""
    worker = FakeWorker(lambda batch, nodes: 0.01)
    worker.hangs = True
    async with served(FakeWorker(lambda batch, nodes: 0.01)) as draft, served(worker) as target:
        measuring = asyncio.create_task(profile(draft, target, Scope(4, 3)))
        async with asyncio.timeout(10):
            await worker.is_measuring.wait()
            await worker.kill()
            with pytest.raises(SequoiaError) as caught:
                await measuring
    assert caught.value.reason is Reason.WORKER_UNAVAILABLE


async def test_times_that_are_none_are_refused() -> None:
    """A worker that claims to need no time cannot be planned for."""
    async with (
        served(FakeWorker(lambda batch, nodes: 0.001)) as draft,
        served(FakeWorker(lambda batch, nodes: 0.0)) as target,
    ):
        with pytest.raises(SequoiaError, match="unusable measurements"):
            await profile(draft, target, Scope(4, 3))


async def test_a_worker_that_is_not_there_is_reported() -> None:
    """Nobody at the address is a worker that is unavailable, named by its address."""
    channel = RpcChannel("127.0.0.1:1")
    with pytest.raises(SequoiaError, match=r"127\.0\.0\.1:1 is not serving"):
        await find(channel)
    await channel.close()


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (64, (1, 2, 4, 8, 16, 32, 64)),
        (48, (1, 2, 4, 8, 16, 32, 48)),
    ],
)
def test_sizes_double_up_to_the_limit(largest: int, sizes: tuple[int, ...]) -> None:
    """The largest size is always measured, whether it is a power of two or not."""
    assert Scope(64, 8).node_counts(largest) == sizes


def test_a_streamed_target_is_measured_up_to_large_trees_with_few_passes() -> None:
    """Seconds a pass: a handful of sizes and two loads, so that a plan is there in minutes."""
    streamed = replace(INFO, placement="offload", pass_seconds=9.0)
    scope = scope_for(streamed, None, None, None)
    assert (scope.max_nodes, scope.max_levels) == (1024, 24)
    assert scope.node_counts(1024) == (1, 16, 64, 256, 1024)
    assert scope.batch_sizes == (1, 4)


def test_a_target_on_its_device_is_measured_as_finely_as_before() -> None:
    """Also where the operator's limits stand."""
    assert scope_for(INFO, None, None, None) == Scope(64, 8)
    long_passes = scope_for(replace(INFO, pass_seconds=0.2), None, None, None)
    assert long_passes == Scope(64, 8, times_steps=False)
    limited = scope_for(replace(INFO, placement="offload", node_limit=300), 32, 4, 2)
    assert limited == Scope(32, 4, (1, 2), pass_nodes=300)


@pytest.mark.parametrize(
    ("most", "short", "long"),
    [
        (1, (1,), (1,)),
        (3, (1, 2, 3), (1, 3)),
        (4, (1, 2, 4), (1, 4)),
        (None, (1, 2, 4, 8, 16), (1, 4)),
        (50, (1, 2, 4, 8, 16, 32, 50), (1, 4, 16, 50)),
    ],
)
def test_loads_end_at_the_operators_limit(
    most: int | None, short: tuple[int, ...], long: tuple[int, ...]
) -> None:
    """The limit itself is measured, and no load beyond it."""
    assert scope_for(INFO, None, None, most).batch_sizes == short
    assert scope_for(replace(INFO, pass_seconds=9.0), None, None, most).batch_sizes == long


async def test_slow_workers_get_the_time_that_their_passes_take() -> None:
    """A call that waits for passes of nine seconds is not given up after ten."""
    slow = replace(INFO, pass_seconds=9.0)
    async with served(FakeWorker(lambda batch, nodes: 9.0)) as at:
        assert FoundWorker(at.channel, slow).call_seconds == pytest.approx(10 + 8 * 9.0)
        assert FoundWorker(at.channel, slow).seconds_of(24) == pytest.approx(10 + 24 * 8 * 9.0)
        assert at.call_seconds == pytest.approx(10.0)


async def test_prefixes_get_the_time_to_be_read_between_the_steps_of_others() -> None:
    """Sixteen at a time, on workers that serve: each token may wait for a step of clients' texts."""
    target = FakeWorker(lambda batch, nodes: 0.001)
    async with served(FakeWorker(lambda batch, nodes: 0.001)) as draft, served(target) as at_target:
        await profile(draft, at_target, Scope(4, 2, (1, 16)))
    assert min(target.reading_seconds) > 10 + 0.1 * 128 - 5
    assert max(target.reading_seconds) > 10 + 0.1 * 128 * 16 - 5


async def test_slow_passes_are_measured_within_the_memory_of_one() -> None:
    """More sequences share a pass with fewer nodes each, and calls cost nothing beside it."""
    slow = replace(INFO, placement="offload", pass_seconds=9.0, node_limit=300)
    target = FakeWorker(lambda batch, nodes: 9.0 + 0.01 * batch * nodes)
    async with (
        served(FakeWorker(lambda batch, nodes: 0.002)) as draft,
        served(target, slow) as at_target,
    ):
        measured = await profile(draft, at_target, scope_for(slow, None, None, None))
    assert set(measured.target_ms) == {(1, 1), (1, 16), (1, 64), (1, 256), (1, 300)} | {
        (4, 1),
        (4, 16),
        (4, 64),
        (4, 75),
    }
    assert set(measured.overheads.values()) == {NO_OVERHEAD}
    assert target.steps == []
    assert (measured.max_nodes, measured.pass_nodes) == (300, 300)

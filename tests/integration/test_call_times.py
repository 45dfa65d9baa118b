"""How long a coordinator waits for a worker, by what the worker says of its passes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.worker import Compatibility, Worker
from draft_service.grower import Grower
from draft_service.growth import Growth
from sequoia.generation import GenerationRequest
from sequoia.messages import PASSES_PER_CALL, WorkerInfo
from sequoia.plans import REQUEST_CLASSES, Plan, PlannedTree
from sequoia.rpc.channel import Endpoint
from sequoia.rpc.codec import GET_INFO
from sequoia.rpc.server import Context, RpcServer
from sequoia.runtime import pairing
from sequoia.settings import SamplingSettings
from tests.stack import Stream, running_stack

GREEDY = GenerationRequest(
    text="abc",
    sampling=SamplingSettings(temperature=0.0),
    max_new_tokens=25,
    ignore_end_of_text=True,
)
INFO = WorkerInfo("m", "sha", 12, 512, "float32", "cpu", 1, 1, 0, 0, 64, "one")


@pytest.mark.parametrize("pass_seconds", [0.0, 9.0])
async def test_calls_to_a_worker_with_long_passes_get_the_time(pass_seconds: float) -> None:
    """So many passes may stand before a call, on top of what the operator gives."""
    info = replace(INFO, placement="offload", pass_seconds=pass_seconds)

    async def answer(_request: None, _context: Context) -> WorkerInfo:
        return info

    server = RpcServer()
    server.add_unary(GET_INFO, answer)
    worker = Worker("target", Endpoint(f"127.0.0.1:{await server.start('127.0.0.1', 0)}"), 30.0)
    await server.set_serving(True)
    found = await worker.find(Compatibility("sha").misfit)
    await worker.close()
    await server.kill()

    assert found == info
    assert worker.call_seconds() == pytest.approx(30.0 + PASSES_PER_CALL * pass_seconds)
    assert worker.call_seconds(24) == pytest.approx(30.0 + 24 * PASSES_PER_CALL * pass_seconds)


@pytest.mark.parametrize(
    ("token_count", "node_limit", "passes"),
    [(1, 64, 1), (64, 64, 1), (65, 64, 2), (1024, 64, 16), (1024, 4096, 2), (1025, 1024, 3)],
)
def test_a_prompt_takes_a_pass_per_chunk(token_count: int, node_limit: int, passes: int) -> None:
    """Chunks are as large as a pass may be, which holds the largest tree."""
    assert replace(INFO, node_limit=node_limit).prefill_passes(token_count) == passes


def passes_take(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers say that."""
    monkeypatch.setattr(pairing, "check_tree_attention", lambda *_: seconds)


async def test_a_slow_draft_has_the_time_to_grow_a_deep_tree(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass per level: many times what a call is given that takes one."""
    seconds, least = 0.03, 0.05
    passes_take(seconds, monkeypatch)
    grow_level = Grower._grow_level

    def slow(grower: Grower, growths: Sequence[Growth]) -> None:
        time.sleep(seconds)
        grow_level(grower, growths)

    monkeypatch.setattr(Grower, "_grow_level", slow)
    deep = tuple(range(-1, 23))
    trees = tuple(PlannedTree(name, 4096, deep, 0.0, 0.0, 0.0) for name in REQUEST_CLASSES)
    async with running_stack(*pair, draft_call_seconds=least) as stack:
        assert stack.coordinator.engine
        stack.coordinator.engine.plan = Plan(1, 0.0, trees)
        generated = await stack.generate(GREEDY)
    assert generated.completion.usage.largest_node_count == 24
    assert 23 * seconds > 2 * (least + PASSES_PER_CALL * seconds)


async def test_a_target_with_long_passes_is_waited_for_that_much_longer(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it takes to begin again is passes as well."""
    passes_take(0.5, monkeypatch)
    async with running_stack(*pair, target_patience_seconds=0.1) as stack:
        undisturbed = await stack.generate(GREEDY)
        stream = Stream(stack, GREEDY)
        await stream.read(4)
        await stack.target.kill()
        rest = asyncio.create_task(stream.read_to_end())
        await asyncio.sleep(1.0)
        await stack.target.start()
        disturbed = await rest
    assert disturbed.token_ids == undisturbed.token_ids

"""A target that is streamed, behind real sockets and as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.service import CoordinatorService, CoordinatorSettings
from sequoia.generation import GenerationRequest
from sequoia.messages import Prefill, SessionSettings, StepHeader, VerifyTree
from sequoia.plans import REQUEST_CLASSES, Plan, PlannedTree
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.codec import GET_INFO, PREFILL, VERIFY_TREE
from sequoia.rpc.generation_codec import GENERATE
from sequoia.rpc.server import RpcServer
from sequoia.runtime.offload import placement
from sequoia.runtime.offload.budget import Division, Sizes, divide
from sequoia.runtime.offload.host_rows import HostRows
from sequoia.runtime.offload.placement import PlacementOptions
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology, Tree, level_order
from tests.stack import HOST, Generated, Stream, running_stack
from tests.tiny import byte_pair, byte_tokenizer, feature_draft, save_model, tiny_llama

MIB = 2**20
ROOT = Path(__file__).parents[2]
SEEDED = GenerationRequest(
    text="the quick brown fox",
    sampling=SamplingSettings(temperature=0.8),
    seed=5,
    max_new_tokens=60,
    ignore_end_of_text=True,
)
SAMPLED = replace(SEEDED, seed=None)
GREEDY = replace(SEEDED, sampling=SamplingSettings(temperature=0.0), seed=None)
# 24 layers of 16 MiB: several times what the budget leaves for them.
LAYERS = 24
LARGE = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "initializer_range": 0.05,
}
ROW_BLOCK = 256 * 2 * 3 * 2 * 8 * 4  # of the tiny target's KV cache
BUDGET = 780 * MIB
KV_CACHE = 48 * MIB


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny target of three layers and its draft."""
    return byte_pair(tmp_path_factory.mktemp("pair"), layers=3)


@pytest.fixture(scope="module")
def wide_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same with room for large trees, and a draft that reads features."""
    target, _ = byte_pair(tmp_path_factory.mktemp("wide"), layers=3, max_position_embeddings=2048)
    return target, feature_draft(tmp_path_factory.mktemp("draft"), target, influence=0.01)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target of 400 MiB."""
    folder = tmp_path_factory.mktemp("large") / "target"
    return save_model(folder, tiny_llama(257, 3, LAYERS, **LARGE), byte_tokenizer())


def keep_nothing(sizes: Sizes, budget: int) -> Division:
    """A division in which every layer is streamed, however much would fit."""
    every = tuple(range(len(sizes.layer_bytes)))
    return replace(divide(sizes, budget), resident=(), streamed=every)


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> PlacementOptions:
    """Options with which even a tiny target is streamed."""
    monkeypatch.setattr(placement, "divide", keep_nothing)
    return PlacementOptions("offload", 2 * 2**30, kv_cache_limit_bytes=64 * MIB)


class WorkerProcess:
    """A target worker as `python -m target_service` runs it."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        self._arguments = ["--target", str(folder), "--dtype", "float32", *options]
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, on the port that it had."""
        command = [
            sys.executable,
            "-m",
            "target_service",
            *self._arguments,
            "--port",
            str(self.port),
        ]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
        )
        assert self.process.stdout
        self.port = int(self.process.stdout.readline().decode().rpartition(":")[2])

    def end(self, number: int) -> float:
        """Send a signal and wait; seconds until it was gone."""
        assert self.process
        assert self.process.stdout
        started = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(30)
        self.process.stdout.close()
        return time.monotonic() - started

    @property
    def peak_bytes(self) -> int:
        """The most memory that the process has held."""
        assert self.process
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


@contextmanager
def running(worker: WorkerProcess) -> Iterator[WorkerProcess]:
    """Start a worker, and see that it is gone in the end."""
    worker.start()
    try:
        yield worker
    finally:
        if worker.process and worker.process.poll() is None:
            worker.end(signal.SIGKILL)


def small_budget(*more: str) -> tuple[str, ...]:
    """The options of a worker that cannot hold the large target."""
    sizes = ("--device-memory", str(BUDGET), "--kv-cache-limit-bytes", str(KV_CACHE))
    return ("--placement", "offload", *sizes, "--node-limit", "1024", "--threads", "1", *more)


async def serving(channel: RpcChannel) -> None:
    """Wait until a worker has loaded its model."""
    async with asyncio.timeout(60):
        while not await channel.is_serving():  # noqa: ASYNC110 over the wire
            await asyncio.sleep(0.05)


async def opened(channel: RpcChannel, name: str, prompt: tuple[int, ...]) -> None:
    """Open a greedy session."""
    settings = SessionSettings(SamplingSettings(temperature=0.0), DrawRule.GREEDY, 0, 1, 257)
    await channel.call(PREFILL, Prefill(name, prompt, 0, settings), timeout=60)


def ternary_tree(nodes: int) -> Tree:
    """Three children a node, all of the same token."""
    return Tree(Topology((-1, *(node // 3 for node in range(nodes - 1)))), (7,) * nodes)


@asynccontextmanager
async def coordinating(worker: WorkerProcess, folder: Path) -> AsyncIterator[RpcChannel]:
    """A coordinator on that worker alone; yields a client's channel."""
    server = RpcServer()
    settings = CoordinatorSettings([f"{HOST}:{worker.port}"], [], None)
    coordinator = CoordinatorService(server, folder, settings, lambda: 1)
    channel = RpcChannel(f"{HOST}:{await server.start(HOST, 0)}")
    await coordinator.get_ready()
    await server.set_serving(True)
    try:
        yield channel
    finally:
        await channel.close()
        await coordinator.stop()
        await server.kill()


async def test_a_streamed_target_writes_the_same_texts(
    pair: tuple[Path, Path], streamed: PlacementOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at a time, with trees, greedy and seeded, as a target that stays on its device."""
    monkeypatch.setattr("sequoia.runtime.pairing.pack_linear_layers", lambda _: None)
    async with running_stack(*pair) as stack:
        expected = [await stack.generate(request) for request in (GREEDY, SEEDED)]
    async with running_stack(*pair, placement=streamed) as stack:
        info = await stack.coordinator.target.workers[0].channel.call(GET_INFO, None, timeout=10)
        both = await asyncio.gather(*(stack.generate(request) for request in (GREEDY, SEEDED)))
    assert info.placement == "offload"
    assert info.pass_seconds > 0
    assert [text.token_ids for text in both] == [text.token_ids for text in expected]
    assert all(text.completion.usage.tokens_per_step > 1 for text in both)


@pytest.mark.parametrize("device_kv_bytes", [0, ROW_BLOCK], ids=["host", "both"])
async def test_rows_in_the_hosts_memory_do_not_change_the_texts(
    pair: tuple[Path, Path],
    streamed: PlacementOptions,
    device_kv_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two at a time, with trees; one that outgrows the device on its way goes on where it is."""
    long = replace(SEEDED, max_new_tokens=300)
    async with running_stack(*pair, placement=streamed) as stack:
        expected = [await stack.generate(request) for request in (GREEDY, long)]

    def in_host(sizes: Sizes, budget: int) -> Division:
        return replace(keep_nothing(sizes, budget), device_kv_bytes=device_kv_bytes)

    monkeypatch.setattr(placement, "divide", in_host)
    async with running_stack(*pair, placement=streamed) as stack:
        stream = Stream(stack, long)
        await stream.read(4)
        other = asyncio.create_task(stack.generate(GREEDY))
        await stream.read(290)
        assert stack.target.worker
        held = [s.cache.rows for s in stack.target.worker.sessions._sessions.values()]
        assert any(isinstance(rows, HostRows) for rows in held)
        both = [await other, await stream.read_to_end()]
    assert [text.token_ids for text in both] == [text.token_ids for text in expected]


@pytest.mark.parametrize("request_", [GREEDY, SEEDED, SAMPLED], ids=["greedy", "seeded", "sampled"])
async def test_trees_of_1024_nodes_go_all_the_way(
    wide_pair: tuple[Path, Path], streamed: PlacementOptions, request_: GenerationRequest
) -> None:
    """Grown, sent with their distributions and features, checked and accepted; the text stays."""
    request_ = replace(request_, max_new_tokens=24)
    parents = level_order((-1, *(node // 4 for node in range(1023))))
    trees = tuple(PlannedTree(name, 4096, parents, 0.0, 0.0, 0.0) for name in REQUEST_CLASSES)
    async with running_stack(*wide_pair, placement=streamed) as stack:
        assert stack.coordinator.engine
        alone = await stack.generate(replace(request_, disable_speculation=True))
        stack.coordinator.engine.plan = Plan(1, 0.0, trees)
        together = await stack.generate(request_)
    usage = together.completion.usage
    assert usage.largest_node_count == 1024
    assert usage.tokens_per_step > 1.3
    if request_.seed is not None or not request_.sampling.temperature:
        assert together.token_ids == alone.token_ids


async def test_a_restarted_streamed_target_does_not_change_the_text(
    pair: tuple[Path, Path], streamed: PlacementOptions
) -> None:
    """Gone in the middle and back again, it rebuilds the session."""
    async with running_stack(*pair, placement=streamed) as stack:
        undisturbed = await stack.generate(SEEDED)
        stream = Stream(stack, SEEDED)
        await stream.read(10)
        await stack.target.kill()
        rest = asyncio.create_task(stream.read_to_end())
        await stack.target.start()
        disturbed = await rest
    assert disturbed.token_ids == undisturbed.token_ids


async def test_thirty_passes_stay_within_the_budget(large: Path) -> None:
    """The largest tree that is allowed, and then smaller ones: the peak is in the budget, and stays."""
    with running(WorkerProcess(large, *small_budget())) as worker:
        channel = RpcChannel(f"{HOST}:{worker.port}")
        await serving(channel)
        info = await channel.call(GET_INFO, None, timeout=10)
        await opened(channel, "one", (7,))
        peaks = []
        for step in range(30):
            tree = ternary_tree(16 if step else info.node_limit)
            header = StepHeader("one", step, step + 1)
            await channel.call(VERIFY_TREE, VerifyTree(header, tree), timeout=60)
            peaks.append(worker.peak_bytes)
        await channel.close()
    assert info.node_limit == 1024
    assert peaks[-1] < BUDGET * 1.1
    assert peaks[-1] < peaks[4] + 16 * MIB


async def test_a_target_killed_in_a_pass_resumes_with_the_same_text(large: Path) -> None:
    """Killed as an operating system kills, and started again: not a token is lost."""
    request = replace(GREEDY, max_new_tokens=12)
    with running(WorkerProcess(large, *small_budget())) as worker:
        channel = RpcChannel(f"{HOST}:{worker.port}")
        await serving(channel)
        await channel.close()
        async with coordinating(worker, large) as client:
            undisturbed = Generated()
            async for chunk in client.stream(GENERATE, request, timeout=90):
                undisturbed.chunks.append(chunk)
            disturbed = Generated()
            async for chunk in client.stream(GENERATE, request, timeout=90):
                disturbed.chunks.append(chunk)
                if len(disturbed.token_ids) == 4:
                    worker.end(signal.SIGKILL)
                    worker.start()
    assert len(disturbed.token_ids) == 12
    assert disturbed.token_ids == undisturbed.token_ids


async def test_health_answers_and_a_signal_ends_the_process_during_passes(large: Path) -> None:
    """Neither waits for the passes that are queued."""
    with running(WorkerProcess(large, *small_budget())) as worker:
        channel = RpcChannel(f"{HOST}:{worker.port}")
        await serving(channel)
        prompt = tuple(20 + n % 90 for n in range(400))
        busy = [asyncio.create_task(opened(channel, f"s{n}", prompt)) for n in range(8)]
        await asyncio.sleep(0.3)
        started = time.monotonic()
        assert await channel.is_serving()
        answered = time.monotonic() - started
        for task in busy:
            task.cancel()
        ended = await asyncio.to_thread(worker.end, signal.SIGTERM)
        await asyncio.gather(*busy, return_exceptions=True)
        await channel.close()
    assert answered < 1.0
    assert ended < 8.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--placement", "offload", "--device-memory", "10MiB"),
            "--device-memory is 10485760 bytes",
        ),
        (("--device-memory", "900000GiB"), "--device-memory is 966367641600000 bytes, but cpu has"),
        (("--host-memory", "1GiB"), "--host-memory is for a target on a GPU"),
    ],
    ids=["too small", "too large", "no GPU"],
)
def test_a_worker_with_an_impossible_budget_ends_at_once(
    pair: tuple[Path, Path], options: tuple[str, ...], message: str
) -> None:
    """With status 1 and one line that names the option."""
    command = [sys.executable, "-m", "target_service", "--target", str(pair[0]), *options]
    done = subprocess.run(
        [*command, "--port", "0", "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert message in error

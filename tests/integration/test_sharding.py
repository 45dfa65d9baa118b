"""A target that two processes share, behind real sockets and under a real torchrun."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sequoia.generation import GenerationRequest
from sequoia.rpc.codec import GET_INFO
from sequoia.runtime.worker import WorkerLimits
from sequoia.settings import SamplingSettings
from tests.scraping import free_port
from tests.sharding import ROOT, SIZE, Nursery, until_written
from tests.stack import DraftRole, Stream, TargetRole, running_coordinator, running_stack
from tests.tiny import byte_pair, feature_draft

SEEDED = GenerationRequest(
    text="the quick brown fox",
    sampling=SamplingSettings(temperature=0.8),
    seed=5,
    max_new_tokens=40,
    ignore_end_of_text=True,
)
GREEDY = replace(SEEDED, sampling=SamplingSettings(temperature=0.0), seed=None)
REQUESTS = (GREEDY, SEEDED, replace(GREEDY, text="a lazy dog"), replace(SEEDED, seed=6))
OPTIONS = ("--tensor-parallel", "--dtype", "float32", "--threads", "1")
ACCURACY = 1e-4  # of logits between about -6 and 6, in fp32


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny target, and a draft that reads its features."""
    target, _ = byte_pair(tmp_path_factory.mktemp("pair"))
    return target, feature_draft(tmp_path_factory.mktemp("draft"), target)


class Torchrun:
    """`torchrun -m target_service`, and its ranks."""

    def __init__(self, target: Path, folder: Path) -> None:
        self.log, self.target = folder / "log", target
        command = ["-m", "torch.distributed.run", "--nproc-per-node", str(SIZE)]
        command += ["-m", "target_service", "--target", str(target), "--port", "0", *OPTIONS]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command], stdout=subprocess.PIPE, stderr=log, cwd=ROOT
            )

    def role(self) -> TargetRole:
        """Wait until it serves; the worker as a coordinator wants it."""
        until_written(self.log, '"ready"')
        assert self.process.stdout
        role = TargetRole(self.target, WorkerLimits())
        role.port = int(self.process.stdout.readline().decode().rpartition(":")[2])
        return role

    def stop_ranks(self) -> int:
        """Send SIGTERM to every rank; the status of torchrun, which is 0 if all of theirs are."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in children.read_text(encoding="ascii").split():
            os.kill(int(pid), signal.SIGTERM)
        status = self.process.wait(60)
        assert self.process.stdout
        self.process.stdout.close()
        return status


@pytest.fixture(scope="module")
def processes(
    pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Torchrun, Nursery]]:
    """A worker under torchrun, and where ranks come from at once; both start at the same time."""
    torchrun = Torchrun(pair[0], tmp_path_factory.mktemp("torchrun"))
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield torchrun, nursery
    nursery.close()
    assert torchrun.stop_ranks() == 0, "SIGTERM ends every rank with status 0"


@pytest.fixture
def nursery(processes: tuple[Torchrun, Nursery]) -> Nursery:
    """Where ranks come from."""
    return processes[1]


@pytest.fixture(scope="module")
def sharded(processes: tuple[Torchrun, Nursery]) -> TargetRole:
    """The worker under torchrun."""
    return processes[0].role()


async def texts_of(
    target: TargetRole, draft: DraftRole, requests: Sequence[GenerationRequest]
) -> list[list[int]]:
    """The tokens of requests that run side by side."""
    async with running_coordinator(target, draft) as stack:
        answers = await asyncio.gather(*(stack.generate(request) for request in requests))
        assert any(answer.completion.usage.step_count < 40 for answer in answers)
        return [answer.token_ids for answer in answers]


async def test_it_writes_what_a_target_in_one_process_writes(
    sharded: TargetRole, pair: tuple[Path, Path]
) -> None:
    """Token for token, greedily and with seeds, several sessions at a time, features and all."""
    async with running_stack(*pair) as stack:
        expected = await texts_of(stack.target, stack.draft, REQUESTS)
        assert await texts_of(sharded, stack.draft, REQUESTS) == expected


async def test_it_says_what_a_target_in_one_process_says_of_itself(
    sharded: TargetRole, pair: tuple[Path, Path]
) -> None:
    """But for the KV cache of a token, of which every process has its heads."""
    async with running_stack(*pair) as stack, running_coordinator(sharded, stack.draft) as other:
        whole, shards = [
            await one.coordinator.target.workers[0].channel.call(GET_INFO, None, timeout=10)
            for one in (stack, other)
        ]
    assert shards.kv_bytes_per_token == whole.kv_bytes_per_token // SIZE
    assert shards.pass_seconds > 0
    for name in ("model", "vocabulary_size", "context_length", "dtype", "device", "feature_size"):
        assert getattr(shards, name) == getattr(whole, name), name


def test_passes_agree_with_those_of_the_whole_model(
    nursery: Nursery, pair: tuple[Path, Path]
) -> None:
    """Over prompts, trees, accepted paths and copies, and after more idling than a pass may take."""
    output = nursery.start("compare", str(pair[0]))
    assert nursery.statuses() == [0, 0], output.read_text(encoding="utf-8")
    lines = output.read_text(encoding="utf-8").splitlines()
    found = {
        key: value for line in lines if line[:1] == "{" for key, value in json.loads(line).items()
    }
    assert found["ends"] < ACCURACY
    assert max(found["passes"]) < ACCURACY
    assert len(found["passes"]) == 16
    assert found["pass_seconds"] > 0
    sharded, whole = found["kv_bytes_per_token"]
    assert sharded * SIZE == whole
    # Plain sequences, two sessions, two copies, one that is left; the checks', each alone; none at the end.
    assert found["cache_counts"] == [0, 1, 2, 2, 2, 3, 4, 1, 0, 1, 1, 1, 1, 0]


async def test_no_rank_outlives_another(nursery: Nursery, pair: tuple[Path, Path]) -> None:
    """Whichever is killed, all end; once they are started again, a text goes on where it was."""
    target = TargetRole(pair[0], WorkerLimits())
    target.port = free_port()
    arguments = ("serve", "--target", str(pair[0]), "--port", str(target.port), *OPTIONS)
    until_written(nursery.start(*arguments), '"ready"')
    async with running_stack(*pair) as stack:
        expected = await stack.generate(SEEDED)
        async with running_coordinator(target, stack.draft) as other:
            stream = Stream(other, SEEDED)
            await stream.read(5)
            os.kill(nursery.pids[1], signal.SIGKILL)
            assert await asyncio.to_thread(nursery.statuses) == [1, -signal.SIGKILL]
            output = await asyncio.to_thread(nursery.start, *arguments)
            assert (await stream.read_to_end()).token_ids == expected.token_ids
    started = time.monotonic()
    os.kill(nursery.pids[0], signal.SIGKILL)
    assert nursery.statuses() == [-signal.SIGKILL, 1]
    assert time.monotonic() - started < 15.0
    assert "error: rank 1: rank 0 is gone" in output.read_text(encoding="utf-8")


def test_a_pass_that_fails_on_one_rank_ends_all(nursery: Nursery, pair: tuple[Path, Path]) -> None:
    """None goes on out of step with the others."""
    output = nursery.start("fail", str(pair[0]))
    assert nursery.statuses() == [1, 1]
    written = output.read_text(encoding="utf-8")
    assert "RuntimeError: out of memory" in written
    assert "ranks are out of step" in written

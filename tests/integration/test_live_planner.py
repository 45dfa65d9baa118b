"""A planner beside real traffic: shifts, lost statistics, and a report that clients can confirm."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from sequoia.embedded_valkey import EmbeddedValkey
from sequoia.errors import Reason, SequoiaError
from sequoia.messages import GrownTree
from sequoia.plan_store import PlanStore
from sequoia.planner_report import Report
from sequoia.plans import pair_name
from sequoia.rpc.planner_codec import GET_REPORT
from sequoia.runtime.worker import WorkerLimits
from sequoia.tree import Tree
from tests.integration.test_planner import (
    SECONDS,
    WORDS,
    RunningPlanner,
    in_force,
    one_load,
    pair,
    request,
    running_planner,
    until,
    valkey,
)
from tests.stack import DraftRole, Stack, TargetRole, running_stack

__all__ = ["one_load", "pair", "valkey"]

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("one_load")]


@asynccontextmanager
async def running_system(
    pair: tuple[Path, Path], redis_url: str
) -> AsyncIterator[tuple[Stack, RunningPlanner]]:
    """Everything, with the planner's first plan in force."""
    async with (
        running_stack(*pair, redis_url=redis_url) as stack,
        running_planner(stack.target, stack.draft, redis_url) as planner,
    ):
        await until(planner.channel.is_serving)
        await in_force(stack, (await planner.plan()).version)
        yield stack, planner


async def report_of(planner: RunningPlanner) -> Report:
    """What the planner says of itself."""
    return await planner.channel.call(GET_REPORT, None, timeout=SECONDS)


@contextmanager
def distracted(draft: DraftRole) -> Iterator[None]:
    """The draft says other words than it means, and hardly ever agrees with the target."""
    worker: Any = draft.worker
    run_steps = worker.run_steps

    def run(steps: Sequence[Any]) -> list[tuple[Tree, GrownTree]]:
        changed = []
        for _, grown in run_steps(steps):
            root, *others = grown.tree.token_ids
            tokens = (root, *((token + 1) % WORDS for token in others))
            tree = Tree(grown.tree.topology, tokens)
            changed.append((tree, GrownTree(tree, (), grown.device_seconds)))
        return changed

    worker.run_steps = run
    try:
        yield
    finally:
        worker.run_steps = run_steps


async def settled(stack: Stack, planner: RunningPlanner) -> int:
    """Generate until the plan rests on what was seen; returns its version."""
    first = (await planner.plan()).version
    async with asyncio.timeout(SECONDS):
        while not await planner.version_is_above(first):
            await stack.generate(request(300))
    version = (await planner.plan()).version
    await in_force(stack, version)
    return version


async def test_a_plan_follows_traffic_that_shifts(
    pair: tuple[Path, Path], valkey: EmbeddedValkey
) -> None:
    """When the draft no longer agrees its tree becomes shallower, and the text stays what it was."""
    async with running_system(pair, valkey.url) as (stack, planner):
        version = await settled(stack, planner)
        large = (await planner.plan()).tree_for("greedy", 1)
        expected = await stack.generate(request(300))
        with capture_logs() as logs, distracted(stack.draft):
            async with asyncio.timeout(SECONDS):
                while not await planner.version_is_above(version):
                    generated = await stack.generate(request(300))
                    assert generated.token_ids == expected.token_ids
        small = (await planner.plan()).tree_for("greedy", 1)
        (greedy, *_) = (await report_of(planner)).classes
    assert large
    assert small
    assert small.expected_tokens_per_step < 0.7 * large.expected_tokens_per_step
    assert small.topology.level_count < large.topology.level_count
    assert [entry["event"] for entry in logs].count("traffic shifted") >= 1
    assert greedy.shift_count >= 1


async def test_the_report_agrees_with_what_clients_saw(
    pair: tuple[Path, Path], valkey: EmbeddedValkey
) -> None:
    """Every step is accounted for, and tokens and times are those of the streams."""
    async with running_system(pair, valkey.url) as (stack, planner):
        for _ in range(3):  # a plan that changes meanwhile begins to count anew
            if not await planner.version_is_above(1):
                await settled(stack, planner)
            await asyncio.sleep(2.5)  # what was generated before is delivered by then
            before = await report_of(planner)
            usages = [(await stack.generate(request(300))).completion.usage for _ in range(3)]
            steps = sum(usage.step_count for usage in usages)

            async def all_arrived(steps: int = steps, before: Report = before) -> bool:
                after = await report_of(planner)
                return (
                    after.plan.version > before.plan.version
                    or _steps(after) >= _steps(before) + steps
                )

            await until(all_arrived)
            after = await report_of(planner)
            if after.plan.version == before.plan.version:
                break
    assert after.plan.version == before.plan.version
    assert _steps(after) == _steps(before) + steps
    row = after.trees[0]
    assert (row.tree.request_class, row.tree.batch_size) == ("greedy", 1)
    tokens = sum(usage.completion_token_count for usage in usages)
    assert row.tokens_per_step == pytest.approx(tokens / steps, rel=0.1)
    streamed = sum(usage.total_seconds - usage.seconds_to_first_token for usage in usages) / tokens
    assert 0.3 * streamed < row.seconds_per_token < 1.2 * streamed
    assert row.sessions_per_pass == pytest.approx(1.0)
    assert 3 < row.prefix_length < 303


def _steps(report: Report) -> int:
    """All steps of greedy requests that ran alone."""
    return report.trees[0].step_count + report.trees[0].other_step_count


async def test_statistics_wait_for_redis_and_begin_anew(
    pair: tuple[Path, Path], valkey: EmbeddedValkey
) -> None:
    """What was generated while Redis was away, and had lost everything, is counted when it is back."""
    async with running_system(pair, valkey.url) as (stack, planner):
        await stack.generate(request(100))
        version = (await planner.plan()).version
        valkey.stop()
        usage = (await stack.generate(request(200))).completion.usage
        assert usage.completion_token_count == 200
        valkey.start()
        await until(lambda: planner.version_is_above(version))
        assert stack.coordinator.draft
        names = pair_name(stack.coordinator.draft.info, stack.coordinator.target.info)
        store = PlanStore(valkey.url)

        async def counted() -> bool:
            counts = await store.read_counts(names, "greedy")
            return counts.trials[0] >= usage.step_count - 1

        await until(counted)
        await store.close()
        await in_force(stack, (await planner.plan()).version)
        await stack.generate(request(100))

        async def reported() -> bool:
            report = await report_of(planner)
            return report.trees[0].step_count > 0 and report.classes[0].node_count > 0

        await until(reported)


async def test_without_a_plan_there_is_no_report(
    pair: tuple[Path, Path], valkey: EmbeddedValkey
) -> None:
    """The refusal says what is missing, on the wire and on the command line; to watch waits for it."""
    target = TargetRole(pair[0], WorkerLimits())
    draft = DraftRole(pair[1], pair[0], WorkerLimits())
    target.port = draft.port = 1
    async with running_planner(target, draft, valkey.url) as planner:
        with pytest.raises(SequoiaError) as refused:
            await report_of(planner)
        status, out, errors = await command("show", "--address", planner.channel.address)
        watching = await _started(
            "watch", "--address", planner.channel.address, "--interval", "0.1"
        )
        assert watching.stderr
        async with asyncio.timeout(SECONDS):
            waits = await watching.stderr.readline()
        await asyncio.sleep(0.5)  # several looks
        watching.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(watching.communicate(), SECONDS) == (b"", b"")
        assert watching.returncode == 130
    assert b"is still measuring" in waits
    assert refused.value.reason is Reason.NOT_READY
    assert (status, out) == (1, "")
    assert "NOT_READY" in errors
    assert "is still measuring: no plan has been published yet" in errors


async def command(*arguments: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of `sequoia planner ARGUMENTS`."""
    process = await _started(*arguments)
    out, errors = await asyncio.wait_for(process.communicate(), SECONDS)
    return process.returncode or 0, out.decode(), errors.decode()


async def _started(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "sequoia", "planner", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"},
    )


async def test_the_command_shows_and_watches(
    pair: tuple[Path, Path], valkey: EmbeddedValkey
) -> None:
    """As tables, as JSON, and one report after the other into a pipe until it is interrupted."""
    async with running_system(pair, valkey.url) as (stack, planner):
        await stack.generate(request(100))
        address = planner.channel.address
        status, out, errors = await command("show", "--address", address)
        assert (status, errors) == (0, "")
        assert f"plan {(await planner.plan()).version}, made" in out
        assert "greedy" in out
        status, out, _ = await command("show", "--address", address, "--json")
        content = json.loads(out)
        assert status == 0
        assert content["plan"]["version"] == (await planner.plan()).version
        assert len(content["trees"]) == len((await planner.plan()).trees)
        watching = await _started("watch", "--address", address, "--interval", "0.2")
        assert watching.stdout
        seen = 0
        async with asyncio.timeout(SECONDS):
            while seen < 3:
                seen += (await watching.stdout.readline()).startswith(b"plan ")
        watching.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(watching.wait(), SECONDS) == 130


@pytest.mark.parametrize("subcommand", ["show", "watch"])
async def test_a_planner_that_is_not_there_is_named(subcommand: str) -> None:
    """One line with the address, and status 1; an address that is none is status 2."""
    status, out, errors = await command(subcommand, "--address", "127.0.0.1:1")
    assert (status, out) == (1, "")
    assert "no report from the planner at 127.0.0.1:1" in errors
    assert "Traceback" not in errors
    status, _, errors = await command(subcommand, "--address", "nowhere")
    assert status == 2
    assert "is not HOST:PORT" in errors


async def test_another_role_is_no_planner(pair: tuple[Path, Path]) -> None:
    """The command says so when it is pointed at a coordinator."""
    async with running_stack(*pair) as stack:
        status, _, errors = await command("show", "--address", stack.channel.address)
    assert status == 1
    assert "no report from the planner" in errors
    assert "is no planner" in errors
    assert "Traceback" not in errors

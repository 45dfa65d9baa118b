"""Two of a role: one is lost, one is added, one is taken away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import IO

import pytest

from sequoia.launcher import LocalSystem, RoleProcess
from tests.chaos.journal import Journal
from tests.chaos.load import Load, Tokens
from tests.chaos.marks import CHAOS
from tests.chaos.observation import observe
from tests.chaos.requests import REQUESTS
from tests.chaos.signals import kill
from tests.chaos.system import (
    OPTIONS,
    Processes,
    get_ready,
    info_of,
    running_system,
    start,
    until_ended,
    until_serving,
)
from tests.scraping import free_port

pytestmark = CHAOS

TRAFFIC_SECONDS = 10.0  # within which an added worker has sessions
POLL_SECONDS = 0.1


@pytest.fixture(scope="module")
def pairs(errors: IO[bytes]) -> Iterator[LocalSystem]:
    """Two workers of each kind, as `sequoia up` runs them."""
    with running_system(replace(OPTIONS, target_replicas=2, draft_replicas=2), errors) as running:
        yield running


@pytest.mark.parametrize(
    ("fault", "module"),
    [
        ("one_of_two_targets_killed", "target_service"),
        ("one_of_two_drafts_killed", "draft_service"),
    ],
)
async def test_the_other_worker_takes_over(
    pairs: LocalSystem, undisturbed: list[Tokens], journal: Journal, fault: str, module: str
) -> None:
    """Requests of the killed worker go on at the other one, and say the same."""
    await get_ready(pairs)
    worker = pairs.roles(module)[1]
    load = Load([pairs.address], REQUESTS, undisturbed)

    async def disturb() -> str:
        await kill(lambda: worker.pid)
        seconds = await until_serving(worker)
        return f"serves again {seconds:.1f} s after it was started again"

    figures = journal.add(await observe(fault, load, disturb))

    figures.require_nothing_lost()
    assert figures.back_seconds is not None


async def test_an_added_target_takes_traffic(
    system: LocalSystem, extra: Processes, undisturbed: list[Tokens], journal: Journal
) -> None:
    """A target that a coordinator was told of and that starts later has sessions within seconds."""
    await get_ready(system)
    target = extra.worker("target_service", port=free_port())
    load = Load([await _coordinator(system, extra, target)], REQUESTS, undisturbed)

    async def add() -> str:
        await asyncio.to_thread(start, target)
        began = time.monotonic()
        while not (await info_of(target.address)).session_count:
            assert time.monotonic() - began < TRAFFIC_SECONDS, "no session on the added target"
            await asyncio.sleep(POLL_SECONDS)
        return f"its first session {time.monotonic() - began:.1f} s after it served"

    figures = journal.add(await observe("target_added", load, add))

    figures.require_nothing_lost()
    assert figures.back_seconds is not None


async def test_a_drained_target_loses_nothing(
    system: LocalSystem, extra: Processes, undisturbed: list[Tokens], journal: Journal
) -> None:
    """SIGTERM ends it with status 0, and its requests go on at the other target."""
    await get_ready(system)
    target = extra.worker("target_service")
    await asyncio.to_thread(start, target)
    load = Load([await _coordinator(system, extra, target)], REQUESTS, undisturbed)
    held = 0

    async def drain() -> str:
        nonlocal held
        held = (await info_of(target.address)).session_count
        target.terminate()
        seconds = await until_ended(target)
        return f"it held {held} sessions, and ended with status {target.status} in {seconds:.1f} s"

    figures = journal.add(await observe("target_drained", load, drain))

    figures.require_nothing_lost()
    assert figures.back_seconds is not None
    assert held > 0
    assert target.status == 0


async def _coordinator(system: LocalSystem, extra: Processes, target: RoleProcess) -> str:
    """A coordinator on the system's workers and one more target; its address."""
    targets = [system.role("target_service").address, target.address]
    coordinator = extra.coordinator(targets, [system.role("draft_service").address])
    await asyncio.to_thread(start, coordinator)
    return coordinator.address

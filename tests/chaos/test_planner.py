"""A planner that is killed, and measures the workers again while they serve."""

from __future__ import annotations

import asyncio
import os
import signal

from sequoia.launcher import LocalSystem
from tests.chaos.journal import Journal
from tests.chaos.load import Load, Tokens
from tests.chaos.marks import CHAOS
from tests.chaos.observation import observe
from tests.chaos.requests import REQUESTS
from tests.chaos.system import Processes, get_ready, start, until_ended, until_serving

pytestmark = CHAOS

PLANNED_LOAD = (
    4  # for more than four at a time its plan has no trees either; to measure sixteen takes minutes
)


async def test_without_the_planner_the_last_plan_stays_in_force(
    system: LocalSystem, alone: Processes, undisturbed: list[Tokens], journal: Journal
) -> None:
    """With plans of the planner's own, as it makes them when nobody holds one, nothing is lost."""
    await get_ready(system)
    workers = [system.role("target_service").address], [system.role("draft_service").address]
    planner = alone.planner(*workers, "--max-batch-size", str(PLANNED_LOAD))
    coordinator = alone.coordinator(*workers)
    await asyncio.to_thread(start, planner, coordinator)
    load = Load([coordinator.address], REQUESTS, undisturbed)

    async def disturb() -> str:
        assert planner.pid is not None
        os.kill(planner.pid, signal.SIGKILL)
        await until_ended(planner)
        await asyncio.to_thread(planner.start)
        await asyncio.to_thread(planner.wait_until_listening)
        seconds = await until_serving(planner)
        return (
            "here the planner's own plan is in force, which leaves the draft idle; started again, it "
            f"recalled what was measured, and went on from that plan after {seconds:.1f} s"
        )

    figures = journal.add(await observe("planner_killed", load, disturb))

    figures.require_nothing_lost()
    assert figures.back_seconds is not None

"""Workers that are far away."""

from __future__ import annotations

import asyncio

from sequoia.launcher import LocalSystem
from tests.chaos.journal import Journal
from tests.chaos.load import Load, Tokens
from tests.chaos.marks import CHAOS
from tests.chaos.observation import observe
from tests.chaos.relay import Relay
from tests.chaos.requests import REQUESTS
from tests.chaos.system import Processes, get_ready, start

pytestmark = CHAOS

ONE_WAY_SECONDS = 0.1
SLOW_SECONDS = 10.0


async def test_a_slow_network_slows_streams_and_loses_none(
    system: LocalSystem, extra: Processes, undisturbed: list[Tokens], journal: Journal
) -> None:
    """With 200 ms on every round trip to both workers texts stay the same; then all is as before."""
    await get_ready(system)
    workers = system.role("target_service"), system.role("draft_service")
    async with Relay(workers[0].port) as to_target, Relay(workers[1].port) as to_draft:
        coordinator = extra.coordinator([to_target.address], [to_draft.address])
        await asyncio.to_thread(start, coordinator)
        load = Load([coordinator.address], REQUESTS, undisturbed)

        async def slow_down() -> str:
            for relay in (to_target, to_draft):
                relay.delay_seconds = ONE_WAY_SECONDS
            await asyncio.sleep(SLOW_SECONDS)
            for relay in (to_target, to_draft):
                relay.delay_seconds = 0.0
            return "100 ms in each direction"

        figures = journal.add(await observe("slow_network", load, slow_down))

    figures.require_nothing_lost()
    assert figures.back_seconds is not None

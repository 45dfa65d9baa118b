"""SIGTERM to one role after another, under load."""

from __future__ import annotations

import asyncio
import time

from sequoia.errors import SequoiaError
from sequoia.launcher import RoleProcess
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.generation_codec import GENERATE
from tests.chaos.journal import Journal
from tests.chaos.load import UNAVAILABLE, Load, Tokens
from tests.chaos.marks import CHAOS
from tests.chaos.observation import SETTLE_SECONDS, observe, summary
from tests.chaos.requests import REQUESTS
from tests.chaos.system import LOOKS_ONCE, Processes, hold_plan, start, until_ended

pytestmark = CHAOS

DRAIN_SECONDS = 60.0
WORKER_GRACE_SECONDS = 10.0


def started(processes: Processes, count: int) -> dict[str, list[RoleProcess]]:
    """So many workers of each kind and coordinators, and a planner; all of them serve."""
    targets = [processes.worker("target_service") for _ in range(count)]
    drafts = [processes.worker("draft_service") for _ in range(count)]
    start(*targets, *drafts)
    addresses = [one.address for one in targets], [one.address for one in drafts]
    planner = processes.planner(*addresses, *LOOKS_ONCE)
    drain = ["--drain-seconds", str(DRAIN_SECONDS)]
    coordinators = [processes.coordinator(*addresses, *drain) for _ in range(count)]
    start(planner, *coordinators)
    return {
        "coordinator": coordinators,
        "target worker": targets,
        "draft worker": drafts,
        "planner": [planner],
    }


async def test_a_rolling_restart_loses_nothing(
    alone: Processes, undisturbed: list[Tokens], journal: Journal
) -> None:
    """Two of everything, restarted one after another; clients ask the other coordinator when refused."""
    roles = await asyncio.to_thread(started, alone, 2)
    await hold_plan(alone.redis_url)
    addresses = [one.address for one in roles["coordinator"]]
    load = Load(addresses, REQUESTS, undisturbed, repeated=UNAVAILABLE)

    async def restart_all() -> str:
        began = time.monotonic()
        longest = dict.fromkeys(roles, 0.0)
        for name, processes in roles.items():
            for one in processes:
                longest[name] = max(longest[name], await ended_in_order(one))
                await asyncio.to_thread(start, one)
        ends = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in longest.items())
        return f"took {time.monotonic() - began:.0f} s; to end took at most: {ends}"

    figures = journal.add(
        await observe("rolling_restart", load, restart_all, back_from_the_end=True)
    )

    figures.require_nothing_lost()
    assert figures.back_seconds is not None


async def test_every_role_ends_in_order(
    alone: Processes, undisturbed: list[Tokens], journal: Journal
) -> None:
    """After SIGTERM running texts are finished, new requests refused, and every role ends with 0."""
    roles = await asyncio.to_thread(started, alone, 1)
    await hold_plan(alone.redis_url)
    coordinator = roles["coordinator"][0]
    load = Load([coordinator.address], REQUESTS, undisturbed)

    async with load.running():
        await load.until_all_have_text()
        await asyncio.sleep(SETTLE_SECONDS)
        load.ask_no_more()
        began = time.monotonic()
        coordinator.terminate()
        refusal = await refused(coordinator.address)
    ends = {"coordinator": time.monotonic() - began + await until_ended(coordinator)}
    statuses = [coordinator.status]
    for name in ("target worker", "draft worker", "planner"):
        ends[name] = await ended_in_order(roles[name][0])
    told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in ends.items())
    figures = journal.add(summary("graceful_shutdown", load, note=f"to end took: {told}"))

    figures.require_nothing_lost()
    assert refusal in UNAVAILABLE
    assert statuses == [0]
    assert ends.pop("coordinator") < DRAIN_SECONDS
    assert max(ends.values()) < WORKER_GRACE_SECONDS


async def ended_in_order(role: RoleProcess) -> float:
    """SIGTERM; returns the seconds that it took to end with status 0."""
    role.terminate()
    seconds = await until_ended(role)
    assert role.status == 0, role.module
    return seconds


async def refused(address: str) -> object:
    """The reason for which a new request is refused."""
    channel = RpcChannel(address)
    try:
        while True:
            async for _ in channel.stream(GENERATE, REQUESTS[0]):
                pass
    except SequoiaError as error:
        return error.reason
    finally:
        await channel.close()

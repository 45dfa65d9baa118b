"""More than fits: requests beyond the KV cache, clients beyond the limit, plan after plan."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

from sequoia.errors import Reason
from sequoia.launcher import LocalSystem
from tests.chaos.holdings import Holdings
from tests.chaos.journal import Journal
from tests.chaos.load import FULL, Load, Tokens
from tests.chaos.marks import CHAOS
from tests.chaos.observation import observe, summary
from tests.chaos.requests import REQUESTS, shortened
from tests.chaos.system import Processes, get_ready, hold_plan, info_of, start

pytestmark = CHAOS

BLOCK_TOKENS = 256  # KV cache is reserved in whole blocks; each of these requests takes one
ROOM_FOR = 6
FLOOD_CLIENTS = 200
FLOOD_TOKENS = 24
REQUEST_LIMIT = 32
PUSH_SECONDS = 10.0
PUSH_EVERY_SECONDS = 0.05
SHAPES = ((-1,), (-1, 0, 1, 2), (-1, 0, 0, 0), (-1, 0, 0, 1, 1, 3))


async def test_requests_that_do_not_fit_the_kv_cache_wait(
    system: LocalSystem, extra: Processes, undisturbed: list[Tokens], journal: Journal
) -> None:
    """Sixteen at a time at a target with room for six: none fails, and six are held at most."""
    await get_ready(system)
    per_token = (await info_of(system.role("target_service").address)).kv_bytes_per_token
    limit = ROOM_FOR * BLOCK_TOKENS * per_token
    target = extra.worker("target_service", "--kv-cache-limit-bytes", str(limit))
    await asyncio.to_thread(start, target)
    coordinator = extra.coordinator([target.address], [system.role("draft_service").address])
    await asyncio.to_thread(start, coordinator)

    load = Load([coordinator.address], REQUESTS, undisturbed, rounds=1)
    async with Holdings(target.address) as held, load.running():
        pass
    note = (
        f"room for {ROOM_FOR} requests; the target held {held.most_sessions} sessions and "
        f"{held.most_bytes / 2**20:.1f} of {limit / 2**20:.1f} MiB at most"
    )
    figures = journal.add(summary("full_kv_cache", load, note=note))

    figures.require_nothing_lost()
    assert 1 < held.most_sessions <= ROOM_FOR
    assert held.most_bytes <= limit


async def test_a_flood_of_clients_is_served_or_refused_and_goes_by(
    system: LocalSystem, extra: Processes, undisturbed: list[Tokens], journal: Journal
) -> None:
    """Of 200 clients at once each gets its text or RESOURCE_EXHAUSTED; then all is as before."""
    await get_ready(system)
    coordinator = extra.coordinator(
        [system.role("target_service").address],
        [system.role("draft_service").address],
        "--request-limit",
        str(REQUEST_LIMIT),
    )
    await asyncio.to_thread(start, coordinator)
    address = [coordinator.address]
    short = [shortened(request, FLOOD_TOKENS) for request in REQUESTS]
    flood = Load(address, short, undisturbed, FLOOD_CLIENTS, rounds=1)

    async def pour() -> str:
        began = time.monotonic()
        async with flood.running():
            pass
        return _told_of_flood(flood, time.monotonic() - began)

    load = Load(address, REQUESTS, undisturbed, repeated=FULL)
    seen = await observe("flood_of_clients", load, pour, back_from_the_end=True)
    refused = [one for one in flood.asked if one.reason is Reason.CAPACITY_EXHAUSTED]
    of_flood = summary("flood_of_clients", flood)
    figures = journal.add(
        replace(
            seen,
            clients=seen.clients + FLOOD_CLIENTS,
            request_count=seen.request_count + of_flood.request_count,
            lost_count=seen.lost_count + of_flood.lost_count - len(refused),
            differing_count=seen.differing_count + of_flood.differing_count,
            longest_silence=max(seen.longest_silence, of_flood.longest_silence),
            longest_first=max(seen.longest_first, of_flood.longest_first),
            problems=seen.problems + of_flood.problems,
        )
    )

    figures.require_nothing_lost()
    assert figures.back_seconds is not None


def _told_of_flood(flood: Load, seconds: float) -> str:
    ends = Counter(str(one.reason) if one.reason else "served" for one in flood.asked)
    told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    return f"of {FLOOD_CLIENTS} clients with {FLOOD_TOKENS} tokens each: {told}, in {seconds:.0f} s"


async def test_plan_after_plan_changes_no_text(
    system: LocalSystem, undisturbed: list[Tokens], journal: Journal
) -> None:
    """With another tree in force every 50 ms, none at all among them, texts stay the same."""
    await get_ready(system)
    load = Load([system.address], REQUESTS, undisturbed)

    async def push() -> str:
        pushed = await _push(system.redis_url, SHAPES)
        await hold_plan(system.redis_url)
        return f"{pushed} plans of {len(SHAPES)} shapes"

    figures = journal.add(await observe("plans_pushed", load, push))

    figures.require_nothing_lost()
    assert figures.back_seconds is not None


async def _push(redis_url: str, shapes: Sequence[tuple[int, ...]]) -> int:
    """Publish one shape after another for a while; returns how many times."""
    began = time.monotonic()
    for count, parents in enumerate(cycle(shapes)):
        due = began + count * PUSH_EVERY_SECONDS
        if due >= began + PUSH_SECONDS:
            return count
        await asyncio.sleep(max(due - time.monotonic(), 0.0))
        await hold_plan(redis_url, parents)
    raise AssertionError("there are no shapes")

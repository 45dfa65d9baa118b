"""The plan of a benchmark: made after the warm-up, and held, so that every turn meets the same trees."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sequoia.bench.errors import BenchmarkError
from sequoia.cli.session import say
from sequoia.launcher import LocalSystem
from sequoia.plans import Plan
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.planner_codec import REPLAN

HELD_SECONDS = 10.0**6  # for `LaunchOptions.replan_seconds`: the planner looks no more by itself
DELIVERY_SECONDS = 2.0  # counts reach Redis within them, from where the planner takes them
REPLAN_SECONDS = 600.0


def planned_after(system: LocalSystem, warm_up: Callable[[], None]) -> Plan:
    """Warm up under the first plan, then have it made again from what was accepted.

    Raises:
        BenchmarkError: the planner is not running.
        SequoiaError: it could not plan.
    """
    if system.planner is None:
        raise BenchmarkError("the planner is not running")
    say("the planner measures the workers")
    system.planner.wait_until_serving()
    warm_up()
    say("the planner plans again, with what was accepted")
    return asyncio.run(_replan(system.planner.address))


async def _replan(address: str) -> Plan:
    await asyncio.sleep(DELIVERY_SECONDS)
    channel = RpcChannel(address)
    try:
        return await channel.call(REPLAN, None, timeout=REPLAN_SECONDS)
    finally:
        await channel.close()

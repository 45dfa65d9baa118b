"""The plan of a benchmark: made after the warm-up, and held, so that every turn meets the same trees."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sequoia.bench.errors import BenchmarkError
from sequoia.cli.session import say
from sequoia.launcher import LocalSystem
from sequoia.plans import Plan
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.planner_codec import GET_PLAN, REPLAN

HELD_SECONDS = 10.0**6  # for `LaunchOptions.replan_seconds`: the planner looks no more by itself
DELIVERY_SECONDS = 2.0  # counts reach Redis within them, from where the planner takes them
REPLAN_SECONDS = 600.0
LOOK_SECONDS = 2.0  # for `LaunchOptions.replan_seconds`, where the planner looks until it is held
SETTLING_SECONDS = 20.0  # from the last counts to a plan that rests on them


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


@contextmanager
def held_after(system: LocalSystem, warm_up: Callable[[], None]) -> Iterator[Plan]:
    """The same without measuring twice: the planner plans all through the warm-up, then stands still.

    Its process is stopped, and goes on afterwards; without it the last plan stays in force.

    Raises:
        BenchmarkError: the planner is not running.
        SequoiaError: it could not plan.
    """
    planner = system.planner
    if planner is None or planner.pid is None:
        raise BenchmarkError("the planner is not running")
    say("the planner measures the workers")
    planner.wait_until_serving()
    say("warming up, the planner plans with what was accepted")
    warm_up()
    time.sleep(SETTLING_SECONDS)
    plan = asyncio.run(_plan(planner.address))
    os.kill(planner.pid, signal.SIGSTOP)
    try:
        yield plan
    finally:
        os.kill(planner.pid, signal.SIGCONT)


async def _plan(address: str) -> Plan:
    channel = RpcChannel(address)
    try:
        return await channel.call(GET_PLAN, None, timeout=REPLAN_SECONDS)
    finally:
        await channel.close()


async def _replan(address: str) -> Plan:
    await asyncio.sleep(DELIVERY_SECONDS)
    channel = RpcChannel(address)
    try:
        return await channel.call(REPLAN, None, timeout=REPLAN_SECONDS)
    finally:
        await channel.close()

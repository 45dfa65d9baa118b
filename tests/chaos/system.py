"""The system under test: what `sequoia up` starts, and more role processes beside it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Self

from sequoia.config import DEFAULT_TARGET
from sequoia.launcher import LOCALHOST, REDIS_VARIABLE, LaunchOptions, LocalSystem, RoleProcess
from sequoia.messages import WorkerInfo
from sequoia.plan_store import PlanStore
from sequoia.plans import REQUEST_CLASSES, PlannedTree
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.codec import GET_INFO
from sequoia.rpc.health import is_serving

DTYPE = os.environ.get("CHAOS_DTYPE", "bfloat16")
HELD_SECONDS = 10.0**6  # between the planner's looks: the plan stays as it is
# A small tree under every load: at 16 requests in flight the planner would leave the draft idle.
HELD_PARENTS = (-1, 0, 0, 1)
LARGEST_LOAD = 4096
POLL_SECONDS = 0.1
HEALTH_SECONDS = 1.0
INFO_SECONDS = 30.0
END_SECONDS = 180.0
ROLES = ("target_service", "draft_service", "planner", "coordinator")
TARGET_OPTIONS = ["--target", DEFAULT_TARGET]
MODEL_OPTIONS = [*TARGET_OPTIONS, "--dtype", DTYPE]


LOOKS_ONCE = ("--max-batch-size", "1", "--replan-interval", str(HELD_SECONDS))
OPTIONS = LaunchOptions(DEFAULT_TARGET, dtype=DTYPE, max_batch_size=1, replan_seconds=HELD_SECONDS)


@contextmanager
def running_system(options: LaunchOptions, errors: IO[bytes]) -> Iterator[LocalSystem]:
    """As `sequoia up` runs it, with the built-in pair and a planner that looks once."""
    with LocalSystem(options, errors) as system:
        if system.planner:
            system.planner.wait_until_serving()
        yield system


async def hold_plan(redis_url: str, parents: tuple[int, ...] = HELD_PARENTS) -> None:
    """Put one tree in force for every kind of request and load."""
    store = PlanStore(redis_url)
    try:
        await store.publish(
            tuple(
                PlannedTree(name, LARGEST_LOAD, parents, 1.0, 1.0, 1.0) for name in REQUEST_CLASSES
            )
        )
    finally:
        await store.close()


async def until_serving(role: RoleProcess) -> float:
    """Wait until a role serves again; returns the seconds that it took."""
    began = time.monotonic()
    await asyncio.to_thread(_wait_until_serving, role)
    return time.monotonic() - began


def _wait_until_serving(role: RoleProcess) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not is_serving(role.address, HEALTH_SECONDS):
        assert time.monotonic() < deadline, f"{role.module} does not serve"
        time.sleep(POLL_SECONDS)


async def until_ended(role: RoleProcess) -> float:
    """Wait until a process has ended; returns the seconds that it took."""
    began = time.monotonic()
    while not role.has_ended:
        assert time.monotonic() - began < END_SECONDS, f"{role.module} does not end"
        await asyncio.sleep(POLL_SECONDS)
    return time.monotonic() - began


async def info_of(address: str) -> WorkerInfo:
    """What a worker says of itself."""
    channel = RpcChannel(address)
    try:
        return await channel.call(GET_INFO, None, timeout=INFO_SECONDS)
    finally:
        await channel.close()


class Processes:
    """Role processes beside a system, which nobody starts again; they end with the block."""

    def __init__(self, redis_url: str, errors: IO[bytes]) -> None:
        self.redis_url = redis_url
        self._errors = errors
        self._roles: list[RoleProcess] = []

    def worker(self, module: str, *options: str, port: int = 0) -> RoleProcess:
        """A target or draft worker with the system's models; it does not run yet."""
        return self._add(module, [*MODEL_OPTIONS, *options], port)

    def planner(self, targets: Sequence[str], drafts: Sequence[str], *options: str) -> RoleProcess:
        """A planner for these workers."""
        return self._add("planner", [*_addresses(targets, drafts), *options])

    def coordinator(
        self, targets: Sequence[str], drafts: Sequence[str], *options: str
    ) -> RoleProcess:
        """A coordinator on these workers."""
        return self._add("coordinator", [*_addresses(targets, drafts), *TARGET_OPTIONS, *options])

    def _add(self, module: str, arguments: list[str], port: int = 0) -> RoleProcess:
        variables = {REDIS_VARIABLE: self.redis_url} if module in {"planner", "coordinator"} else {}
        role = RoleProcess(module, arguments, self._errors, LOCALHOST, port, variables, None)
        self._roles.append(role)
        return role

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for role in reversed(self._roles):
            role.terminate()
        for role in reversed(self._roles):
            role.wait(END_SECONDS)


def _addresses(targets: Sequence[str], drafts: Sequence[str]) -> list[str]:
    return ["--target-address", ",".join(targets), "--draft-address", ",".join(drafts)]


def start(*roles: RoleProcess) -> None:
    """Start processes side by side, and wait until all of them serve."""
    for role in roles:
        role.start()
    for role in roles:
        role.wait_until_listening()
    for role in roles:
        role.wait_until_serving()


async def get_ready(system: LocalSystem) -> None:
    """Wait until every role serves, and put the plan in force."""
    for module in ROLES:
        await until_serving(system.role(module))
    await hold_plan(system.redis_url)

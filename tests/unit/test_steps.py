"""Calls that carry one step after another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sequoia.errors import InvalidArgumentError, Reason, UnknownSessionError
from sequoia.messages import StepHeader, Verdict, VerifyTree
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.codec import VERIFY_TREE
from sequoia.rpc.errors import RemoteError
from sequoia.rpc.server import STOP_GRACE_SECONDS, RpcServer
from sequoia.rpc.steps import Steps
from sequoia.tree import Tree

HOST = "127.0.0.1"


def step(number: int, session_id: str = "s") -> VerifyTree:
    """A step without a tree."""
    return VerifyTree(StepHeader(session_id, number, number + 1), Tree.root_only(7))


class Answers:
    """Answers a step with its number; says what became of the calls."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.released = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, request: VerifyTree, _: Any) -> Verdict:
        if request.header.session_id == "unknown":
            raise UnknownSessionError("no such session", session_id="unknown")
        if request.header.session_id == "slow":
            self.started.set()
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return Verdict((request.header.step,))


@asynccontextmanager
async def served(answers: Answers) -> AsyncIterator[tuple[RpcServer, Steps[VerifyTree, Verdict]]]:
    """A server, and a call of steps to it."""
    server = RpcServer()
    server.add_steps(VERIFY_TREE, answers)
    channel = RpcChannel(f"{HOST}:{await server.start(HOST, 0)}")
    try:
        yield server, channel.steps(VERIFY_TREE)
    finally:
        await channel.close()
        await server.kill()


async def test_every_step_gets_its_reply() -> None:
    """One call carries many steps, each answered before the next is sent."""
    async with served(Answers()) as (_, steps):
        for number in range(20):
            assert (await steps.take(step(number), 5)).token_ids == (number,)


async def test_a_failure_comes_with_its_reason_and_ends_the_call() -> None:
    """The step that fails says why, and so do all that are taken after it."""
    async with served(Answers()) as (_, steps):
        await steps.take(step(0), 5)
        for _ in range(2):
            with pytest.raises(RemoteError) as raised:
                await steps.take(step(1, "unknown"), 5)
            assert raised.value.reason is Reason.UNKNOWN_SESSION
            assert raised.value.metadata == {"session_id": "unknown"}


async def test_a_number_that_does_not_fit_is_refused_before_it_is_sent() -> None:
    """The failure is the caller's own, and the call goes on."""
    async with served(Answers()) as (_, steps):
        with pytest.raises(InvalidArgumentError):
            await steps.take(step(2**40), 5)
        assert (await steps.take(step(3), 5)).token_ids == (3,)


async def test_a_step_that_takes_too_long_is_given_up() -> None:
    """DEADLINE_EXCEEDED after the time that was given, and the worker stops to work on it."""
    answers = Answers()
    async with served(answers) as (_, steps):
        started = time.monotonic()
        with pytest.raises(RemoteError) as raised:
            await steps.take(step(0, "slow"), 0.2)
        assert raised.value.reason is Reason.DEADLINE_EXCEEDED
        assert time.monotonic() - started < 2
        async with asyncio.timeout(5):
            await answers.cancelled.wait()


async def test_a_server_that_is_gone_is_unavailable() -> None:
    """Killed between two steps, a worker is a lost worker."""
    async with served(Answers()) as (server, steps):
        await steps.take(step(0), 5)
        await server.kill()
        with pytest.raises(RemoteError) as raised:
            await steps.take(step(1), 5)
        assert raised.value.reason is Reason.WORKER_UNAVAILABLE


async def test_a_server_stops_between_two_steps() -> None:
    """A call that waits for its next step keeps no server from stopping; the caller learns why."""
    async with served(Answers()) as (server, steps):
        await steps.take(step(0), 5)
        started = time.monotonic()
        await server.stop()
        assert time.monotonic() - started < STOP_GRACE_SECONDS / 2
        with pytest.raises(RemoteError) as raised:
            await steps.take(step(1), 5)
        assert raised.value.reason is Reason.NOT_READY


async def test_a_server_that_stops_answers_the_step_in_hand() -> None:
    """A step that has begun gets its reply; the one after it is refused."""
    answers = Answers()
    async with served(answers) as (server, steps):
        taken = asyncio.create_task(steps.take(step(5, "slow"), 5))
        await answers.started.wait()
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0.05)
        answers.released.set()
        assert (await taken).token_ids == (5,)
        await stopping
        with pytest.raises(RemoteError) as raised:
            await steps.take(step(6), 5)
        assert raised.value.reason is Reason.NOT_READY


async def test_closed_steps_leave_nothing_behind() -> None:
    """A call that is closed ends on the server too, which then stops at once."""
    async with served(Answers()) as (server, steps):
        await steps.take(step(0), 5)
        steps.close()
        await asyncio.sleep(0.1)
        assert not server._reading

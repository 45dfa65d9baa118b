"""Requests over real sockets to every role: they are answered, refused, and nothing stays behind."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from planner.service import PlannerService
from planner.settings import PlannerSettings
from sequoia.generation import GenerationRequest
from sequoia.rpc.codec import PROFILE
from sequoia.rpc.generation_codec import GENERATE
from sequoia.rpc.server import RpcServer
from sequoia.runtime.worker import WorkerLimits
from sequoia.settings import SamplingSettings
from tests.fuzz.inputs import Rpc, messages, rpcs
from tests.fuzz.tally import Tally
from tests.stack import HOST, Stack, running_stack

CALL_SECONDS = 120.0
CALLERS = 4
NEW_TOKENS = 3
PROFILE_SHARE = 0.1  # of the calls that fall to it: each may run a thousand passes
LIMITS = WorkerLimits(8, 32 * 2**20, 32, 4, 0.0)
GOOD = GenerationRequest(
    text="good", sampling=SamplingSettings(temperature=0.0), max_new_tokens=NEW_TOKENS
)
DEAD_ADDRESS = f"{HOST}:9"
# What a request may come to; anything else is the server's fault.
ANSWERS = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
# The planner's workers are away.
PLANNER_ANSWERS = ANSWERS | {grpc.StatusCode.UNAVAILABLE}


@dataclass(frozen=True, slots=True)
class Called:
    """An RPC at a running role."""

    rpc: Rpc
    channel: grpc.aio.Channel
    inputs: Iterator[bytes]
    answers: frozenset[grpc.StatusCode]

    async def call(self, data: bytes) -> grpc.StatusCode:
        """Send bytes as they are; how the call ended."""
        path = self.rpc.method.path
        try:
            if path == GENERATE.path:
                async for _ in self.channel.unary_stream(path, None, None)(
                    data, timeout=CALL_SECONDS
                ):
                    pass
            elif self.rpc.method.name in ("GrowTree", "VerifyTree"):
                steps = self.channel.stream_stream(path, None, None)
                async for _ in steps(iter([data]), timeout=CALL_SECONDS):
                    pass
            else:
                await self.channel.unary_unary(path, None, None)(data, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


async def call_all(folders: tuple[Path, Path], redis_url: str, count: int, seed: int) -> Tally:
    """Call every RPC of a running system; a good request has the same answer before and after."""
    tally = Tally("calls")
    generator = random.Random(seed)
    async with _running(folders, redis_url) as (stack, planner):
        called = _called(stack, planner, generator)
        before = await stack.generate(GOOD)
        numbers = iter(range(count))

        async def caller() -> None:
            for number in numbers:
                one = called[number % len(called)]
                if one.rpc.method is PROFILE and generator.random() > PROFILE_SHARE:
                    one = called[0]
                data = next(one.inputs)
                started = time.perf_counter()
                code = await one.call(data)
                tally.took(time.perf_counter() - started, one.rpc.method.name, data)
                tally.outcomes[code.name] += 1
                if code not in one.answers:
                    tally.fail(one.rpc.method.name, data, code.name)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        after = await stack.generate(GOOD)
        if after.token_ids != before.token_ids:
            tally.fail("Generate", b"", "a good request has another answer than before")
        await _nothing_left(stack, tally)
        for one in {id(each.channel): each for each in called}.values():
            await one.channel.close(None)
    return tally


async def _nothing_left(stack: Stack, tally: Tally) -> None:
    """No request is in flight, and workers hold no more sessions than they may."""
    assert stack.coordinator.engine
    if stack.coordinator.engine.active_count:
        tally.fail("Generate", b"", "a request is still in flight")
    for role, held in zip(("target", "draft"), await stack.session_counts(), strict=True):
        if held > LIMITS.session_limit:
            tally.fail(role, b"", f"{held} sessions are held")


def _called(stack: Stack, planner: int, generator: random.Random) -> list[Called]:
    """Every RPC at every role that serves it."""
    ports = {
        "GenerationService": [int(stack.channel.address.rpartition(":")[2])],
        "DraftService": [stack.draft.port],
        "TargetService": [stack.target.port],
        "WorkerService": [stack.draft.port, stack.target.port],
        "PlannerService": [planner],
    }
    channels = {
        port: grpc.aio.insecure_channel(f"{HOST}:{port}")
        for port in {port for some in ports.values() for port in some}
    }
    others = [data for rpc in rpcs() for data in rpc.requests]
    return [
        Called(
            rpc,
            channels[port],
            messages(rpc.request_type, rpc.requests, others, generator),
            PLANNER_ANSWERS if service == "PlannerService" else ANSWERS,
        )
        for rpc in rpcs()
        for service in (rpc.method.service.rpartition(".")[2],)
        for port in ports[service]
    ]


@asynccontextmanager
async def _running(folders: tuple[Path, Path], redis_url: str) -> AsyncIterator[tuple[Stack, int]]:
    """A whole system, and the port of a planner whose workers are away."""
    async with AsyncExitStack() as cleanup:
        stack = await cleanup.enter_async_context(
            running_stack(*folders, LIMITS, max_new_tokens=NEW_TOKENS)
        )
        server = RpcServer()
        planner = PlannerService(server, PlannerSettings([DEAD_ADDRESS], [DEAD_ADDRESS], redis_url))
        port = await server.start(HOST, 0)
        cleanup.push_async_callback(planner.stop)
        cleanup.push_async_callback(server.kill)
        yield stack, port

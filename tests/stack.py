"""The whole system inside a test: real roles behind real sockets, in this process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coordinator.clients import Clients
from coordinator.prompt import MAX_NEW_TOKENS
from coordinator.service import CoordinatorService, CoordinatorSettings
from draft_service.grower import Grower
from sequoia.generation import Completion, GeneratedToken, GenerationChunk, GenerationRequest
from sequoia.messages import GrownTree, GrowTree, Verdict, VerifyTree
from sequoia.rpc.channel import Endpoint, RpcChannel
from sequoia.rpc.codec import GET_INFO, GROW_TREE, VERIFY_TREE
from sequoia.rpc.generation_codec import GENERATE
from sequoia.rpc.method import Method
from sequoia.rpc.server import RpcServer
from sequoia.runtime.offload.placement import PlacementOptions
from sequoia.runtime.pairing import load_draft_worker, load_target_worker
from sequoia.runtime.service import WorkerService
from sequoia.runtime.worker import WorkerLimits
from sequoia.security import RoleCredentials
from target_service.verifier import Verifier

HOST = "127.0.0.1"


@dataclass
class Generated:
    """All chunks of one call, put together."""

    chunks: list[GenerationChunk] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def tokens(self) -> list[GeneratedToken]:
        return [token for chunk in self.chunks for token in chunk.tokens]

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]

    @property
    def completion(self) -> Completion:
        completion = self.chunks[-1].completion
        assert completion is not None
        return completion


class TargetRole:
    """A target worker that can be stopped and started again on its port."""

    def __init__(
        self, folder: Path, limits: WorkerLimits, placement: PlacementOptions | None = None
    ) -> None:
        self.folder, self.limits, self.port = folder, limits, 0
        self.placement = placement
        self.make_credentials: Callable[[], RoleCredentials] = (
            RoleCredentials  # anew at every start
        )
        self.worker: Verifier | None = None
        self.server: RpcServer | None = None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{HOST}:{self.port}"

    async def start(self) -> None:
        parts = load_target_worker(str(self.folder), "float32", "cpu", self.placement)
        self.worker = Verifier(
            parts.name,
            parts.model,
            parts.tokenizer_sha256,
            self.limits,
            model_sha256=parts.model_sha256,
        )
        self.server = RpcServer(self.make_credentials().server)
        service: WorkerService[VerifyTree, Verdict] = WorkerService(self.server, VERIFY_TREE)
        service.set_worker(self.worker)
        self.port = await self.server.start(HOST, self.port)
        await self.server.set_serving(True)

    async def drain(self) -> None:
        """Told to end, as by SIGTERM."""
        assert self.server
        await self.server.stop()
        await self.kill()

    async def kill(self) -> None:
        """Gone at once, sessions and all."""
        if self.server is None or self.worker is None:
            return
        await self.server.kill()
        self.worker.device.stop()
        self.server = self.worker = None


class DraftRole(TargetRole):
    """The same for a draft worker."""

    def __init__(self, folder: Path, target: Path, limits: WorkerLimits) -> None:
        super().__init__(folder, limits)
        self.target = target

    async def start(self) -> None:
        parts = load_draft_worker(str(self.folder), str(self.target), "float32", "cpu")
        self.worker = Grower(  # type: ignore[assignment]
            parts.name,
            parts.model,
            parts.tokenizer_sha256,
            self.limits,
            model_sha256=parts.model_sha256,
        )
        self.server = RpcServer(self.make_credentials().server)
        service: WorkerService[GrowTree, GrownTree] = WorkerService(self.server, GROW_TREE)
        service.set_worker(self.worker)  # type: ignore[arg-type]
        self.port = await self.server.start(HOST, self.port)
        await self.server.set_serving(True)


@dataclass
class Stack:
    """A running system and a client's channel to it."""

    target: TargetRole
    draft: DraftRole
    coordinator: CoordinatorService
    channel: RpcChannel
    server: RpcServer  # the coordinator's

    async def generate(self, request: GenerationRequest, timeout: float = 60) -> Generated:
        """Call `Generate` and collect everything."""
        generated = Generated()
        async for chunk in self.channel.stream(GENERATE, request, timeout=timeout):
            generated.chunks.append(chunk)
        return generated

    async def session_counts(self) -> tuple[int, int]:
        """What target and draft worker say of themselves over the wire."""
        target, draft = [
            await pool.workers[0].channel.call(GET_INFO, None, timeout=10)
            for pool in (self.coordinator.target, self.coordinator.draft)
            if pool
        ]
        return target.session_count, draft.session_count

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait until a condition holds."""
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 any condition
                await asyncio.sleep(0.005)


class Stream:
    """A generation that a test can look into while it runs."""

    def __init__(self, stack: Stack, request: GenerationRequest) -> None:
        self.generated = Generated()
        self._chunks = stack.channel.stream(GENERATE, request, timeout=90)

    async def read(self, tokens: int) -> None:
        """Read on until so many tokens have come."""
        while len(self.generated.token_ids) < tokens:
            self.generated.chunks.append(await anext(self._chunks))

    async def read_to_end(self) -> Generated:
        """Read the rest."""
        async for chunk in self._chunks:
            self.generated.chunks.append(chunk)
        return self.generated

    async def cancel(self) -> None:
        """Go away."""
        await self._chunks.aclose()


async def take_step(channel: RpcChannel, method: Method[Any, Any], request: object) -> Any:
    """One step in a call of its own."""
    steps = channel.steps(method)
    try:
        return await steps.take(request, 10.0)
    finally:
        steps.close()


@asynccontextmanager
async def running_coordinator(
    target: TargetRole,
    draft: DraftRole,
    redis_url: str | None = None,
    request_limit: int = 64,
    seeds: itertools.count[int] | None = None,
    target_patience_seconds: float = 60.0,
    queue_limit: int = 256,
    queue_seconds: float = 60.0,
    draft_call_seconds: float = 5.0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    clients: Clients | None = None,
    credentials: RoleCredentials | None = None,
    endpoint: Endpoint | None = None,
    drain_seconds: float = 0.0,
    replicas: Sequence[TargetRole] = (),
) -> AsyncIterator[Stack]:
    """Start a coordinator on running workers, and stop it again; `endpoint` says how to call it.

    `replicas` are further workers of both roles, running or to be started on the ports that they have.
    """
    own, called = credentials or RoleCredentials(), endpoint or Endpoint("")
    async with AsyncExitStack() as cleanup:
        server = RpcServer(own.server, drain_seconds=drain_seconds)
        settings = CoordinatorSettings(
            [one.address for one in (target, *replicas) if not isinstance(one, DraftRole)],
            [one.address for one in (draft, *replicas) if isinstance(one, DraftRole)],
            redis_url,
            request_limit,
            max_new_tokens,
            target_patience_seconds=target_patience_seconds,
            queue_limit=queue_limit,
            queue_seconds=queue_seconds,
            draft_call_seconds=draft_call_seconds,
            drain_seconds=drain_seconds,
            credentials=own.channel,
        )
        fresh = seeds or itertools.count(1)
        coordinator = CoordinatorService(
            server, target.folder, settings, lambda: next(fresh), clients
        )
        port = await server.start(HOST, 0)
        cleanup.push_async_callback(server.kill)
        cleanup.push_async_callback(coordinator.stop)
        await coordinator.get_ready()
        await server.set_serving(True)
        channel = replace(called, address=f"{HOST}:{port}").open()
        cleanup.push_async_callback(channel.close)
        yield Stack(target, draft, coordinator, channel, server)


@asynccontextmanager
async def running_stack(
    target_folder: Path,
    draft_folder: Path,
    limits: WorkerLimits | None = None,
    placement: PlacementOptions | None = None,
    workers: Callable[[], RoleCredentials] = RoleCredentials,
    **settings: Any,
) -> AsyncIterator[Stack]:
    """Start all roles, yield them, and stop them again; settings as of `running_coordinator`."""
    limits = limits or WorkerLimits()
    target = TargetRole(target_folder, limits, placement)
    draft = DraftRole(draft_folder, target_folder, limits)
    async with AsyncExitStack() as cleanup:
        for role in (target, draft):
            role.make_credentials = workers
            await role.start()
            cleanup.push_async_callback(role.kill)
        yield await cleanup.enter_async_context(running_coordinator(target, draft, **settings))

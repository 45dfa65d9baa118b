"""Ours without gRPC: the coordinator's engine and both workers in one process, as a peer of the service.

Under `cli`, since no other shared code may know the roles.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from coordinator.admission import Admission
from coordinator.engine import Engine
from coordinator.metrics import CoordinatorMetrics
from coordinator.pool import WorkerPool
from coordinator.prompt import PromptReader, RequestLimits
from coordinator.worker import Compatibility, Worker
from draft_service.grower import Grower
from sequoia.bench.peers.runs import Prompt, Run
from sequoia.errors import NotReadyError
from sequoia.generation import GenerationRequest
from sequoia.plans import Plan
from sequoia.rpc.channel import Endpoint, RpcChannel
from sequoia.rpc.codec import CLOSE_SESSION, GET_INFO, PREFILL
from sequoia.rpc.method import Method
from sequoia.rpc.steps import Steps
from sequoia.runtime.catalogue import resolve
from sequoia.runtime.device import DeviceThread
from sequoia.runtime.pairing import load_draft_worker, load_target_worker
from sequoia.runtime.service import leave_threads_to_engine
from sequoia.runtime.tokenization import end_of_text_ids, load_tokenizer
from sequoia.runtime.worker import ModelWorker, WorkerLimits
from sequoia.settings import SamplingSettings
from target_service.verifier import Verifier

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Loaded = TypeVar("Loaded", bound=ModelWorker[Any, Any])

CALL_SECONDS = 600.0
ADDRESS = "127.0.0.1:0"  # never called


class InProcessSteps:
    """Steps that are handed to a worker as they are."""

    def __init__(self, worker: ModelWorker[Any, Any]) -> None:
        self._worker = worker

    async def take(self, request: Any, timeout: float) -> Any:
        """See `Steps.take`; errors come as the worker raises them."""
        async with asyncio.timeout(timeout):
            return await self._worker.step(request)

    def close(self) -> None:
        """Nothing is open."""


class InProcessChannel(RpcChannel):
    """Calls a worker's methods directly: values are handed over as they are, nothing is encoded."""

    def __init__(self, worker: ModelWorker[Any, Any]) -> None:
        async def close_session(session_id: str) -> None:
            worker.close_session(session_id)

        async def info(_: None) -> object:
            return worker.info()

        self.address = "in this process"
        self._worker = worker
        self._handlers: dict[str, Callable[[Any], Awaitable[Any]]] = {
            PREFILL.path: worker.prefill,
            CLOSE_SESSION.path: close_session,
            GET_INFO.path: info,
        }

    async def call(
        self, method: Method[Request, Reply], request: Request, timeout: float | None = None
    ) -> Reply:
        """See `RpcChannel.call`; errors come as the worker raises them."""
        async with asyncio.timeout(timeout):
            reply: Reply = await self._handlers[method.path](request)
        return reply

    def steps(self, method: Method[Request, Reply]) -> Steps[Request, Reply]:
        """See `RpcChannel.steps`; a worker has but one method for them."""
        return InProcessSteps(self._worker)

    async def is_serving(self, timeout: float = 2.0) -> bool:
        """A worker that is here is ready."""
        return True

    async def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class MakeInProcessPeer:
    """How to make the peer in its process."""

    target: str
    draft: str | None
    dtype: str
    device: str
    threads: int
    temperature: float

    def __call__(self) -> InProcessPeer:
        """Load both models."""
        return InProcessPeer(self)


class InProcessPeer:
    """An engine with both workers, each with a device thread of its own, as in the service."""

    def __init__(self, settings: MakeInProcessPeer) -> None:
        self._settings = settings
        self._runner = asyncio.Runner()
        self._engine, self._reader = self._runner.run(_assemble(settings))

    def generate(self, plan: str, prompt: Prompt) -> Run:
        """Continue a prompt under a plan, which is given as JSON."""
        self._engine.plan = Plan.from_json(plan)
        return self._runner.run(self._generate(prompt))

    async def _generate(self, prompt: Prompt) -> Run:
        request = GenerationRequest(
            token_ids=prompt.token_ids,
            sampling=SamplingSettings(temperature=self._settings.temperature),
            max_new_tokens=prompt.max_new_tokens,
        )
        token_ids: list[int] = []
        step_count = 0
        started = time.perf_counter()
        async for chunk in self._engine.generate(self._reader.read(request)):
            token_ids += [token.token_id for token in chunk.tokens]
            if chunk.completion:
                step_count = chunk.completion.usage.step_count
        return Run(tuple(token_ids), time.perf_counter() - started, step_count)


async def _assemble(settings: MakeInProcessPeer) -> tuple[Engine, PromptReader]:
    """What the roles' processes put together, in one."""
    limits = WorkerLimits(prefix_cache=False)  # as its peers, it reads every prompt anew
    place = settings.dtype, settings.device

    def load_target(device: DeviceThread) -> Verifier:
        parts = load_target_worker(settings.target, *place)
        return Verifier(parts.name, parts.model, parts.tokenizer_sha256, limits, device)

    def load_draft(device: DeviceThread) -> Grower:
        parts = load_draft_worker(settings.draft, settings.target, *place)
        return Grower(parts.name, parts.model, parts.tokenizer_sha256, limits, device)

    verifier = await _on_device(load_target, settings.threads, limits)
    grower = await _on_device(load_draft, settings.threads, limits)
    target = await _pool("target", InProcessChannel(verifier), verifier)
    draft = await _pool("draft", InProcessChannel(grower), verifier)
    folder = resolve(settings.target)
    tokenizer = load_tokenizer(folder)
    reader = PromptReader(
        tokenizer,
        end_of_text_ids(folder, tokenizer),
        RequestLimits(verifier.model.context_length, verifier.model.vocabulary_size),
        lambda: secrets.randbits(64),
    )
    metrics = CoordinatorMetrics(lambda: settings.target)
    return Engine(draft, target, reader.decode, Admission(1, 0, 0.0), 0.0, metrics), reader


async def _on_device(
    load: Callable[[DeviceThread], Loaded], threads: int, limits: WorkerLimits
) -> Loaded:
    """Load a model on a device thread of its own, which computes with so many threads."""
    device = DeviceThread("device", limits.batch_limit)

    def load_there() -> Loaded:
        # Of the thread that calls, once it has computed: loading does that.
        torch.set_num_threads(threads)
        worker = load(device)
        leave_threads_to_engine(worker)
        return worker

    return await device.run(load_there)


async def _pool(role: str, channel: RpcChannel, target: Verifier) -> WorkerPool:
    """The coordinator's view of a worker that is in this process.

    Raises:
        IncompatibleModelsError: its model does not fit the target.
    """
    worker = Worker(role, Endpoint(ADDRESS), CALL_SECONDS)
    await worker.channel.close()
    worker.channel = channel
    pool = WorkerPool(role, [ADDRESS], lambda _: worker)
    if await pool.find(Compatibility(target.tokenizer_sha256, target.feature_size)) is None:
        raise NotReadyError(f"the {role} in this process does not answer")
    return pool

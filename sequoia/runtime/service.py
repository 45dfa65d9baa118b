"""What draft and target workers serve alike, on a model that may still be loading."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Generic

import grpc
import torch

from sequoia.errors import NotReadyError
from sequoia.messages import ForwardTime, Prefill, Prefilled, ProfileSpec, WorkerInfo
from sequoia.rpc.codec import CLOSE_SESSION, GET_INFO, PREFILL, PROFILE
from sequoia.rpc.method import Method
from sequoia.rpc.role import serve
from sequoia.rpc.server import Context, RpcServer
from sequoia.runtime.device import DeviceThread
from sequoia.runtime.worker import ModelWorker, Reply, Request
from sequoia.tracing import spans
from sequoia.tracing.spans import Tracer

END_SECONDS = 10.0  # for the pass in hand


class WorkerService(Generic[Request, Reply]):
    """Hands calls to the worker once there is one."""

    def __init__(self, server: RpcServer, step: Method[Request, Reply]) -> None:
        self._worker: ModelWorker[Request, Reply] | None = None
        self._registry = server.registry
        server.add_steps(step, self._step)
        server.add_unary(PREFILL, self._prefill)
        server.add_unary(CLOSE_SESSION, self._close_session)
        server.add_unary(PROFILE, self._profile)
        server.add_unary(GET_INFO, self._get_info)

    def set_worker(self, worker: ModelWorker[Request, Reply]) -> None:
        """Take calls from now on."""
        self._worker = worker
        self._registry.register(worker.metrics)

    @property
    def worker(self) -> ModelWorker[Request, Reply]:
        """The worker.

        Raises:
            NotReadyError: its model is still loading.
        """
        if self._worker is None:
            raise NotReadyError("the model is still loading")
        return self._worker

    async def end(self, device: DeviceThread) -> None:
        """Let other processes that share the model end, behind the pass in hand."""
        if self._worker and self._worker.model.shard_count > 1:
            with suppress(TimeoutError):
                await asyncio.wait_for(device.run(self._worker.model.end), END_SECONDS)

    async def _step(self, request: Request, _: Context) -> Reply:
        with spans.step_span(request.header.step):
            return await self.worker.step(request)

    async def _prefill(self, request: Prefill, _: Context) -> Prefilled:
        spans.note({"sequoia.token_count": len(request.token_ids)})
        return await self.worker.prefill(request)

    async def _close_session(self, session_id: str, _: Context) -> None:
        self.worker.close_session(session_id)

    async def _profile(self, spec: ProfileSpec, _: Context) -> list[ForwardTime]:
        return await self.worker.profile(spec)

    async def _get_info(self, _request: None, _: Context) -> WorkerInfo:
        return self.worker.info()


async def serve_worker(
    step: Method[Request, Reply],
    load: Callable[[DeviceThread], ModelWorker[Request, Reply]],
    host: str,
    port: int,
    threads: int,
    batch_limit: int,
    credentials: grpc.ServerCredentials | None = None,
    reflection: bool = False,
    metrics_port: int = 0,
    tracer: Tracer | None = None,
) -> None:
    """Run a worker's process: listen, load the model, serve until stopped.

    Raises:
        ModelError: the model cannot be loaded.
        OSError: the address cannot be bound.
    """
    if threads:
        torch.set_num_threads(threads)
    server = RpcServer(credentials, reflection=reflection, tracer=tracer)
    service = WorkerService(server, step)
    device = DeviceThread("device", batch_limit)

    def load_on_device_thread() -> ModelWorker[Request, Reply]:
        worker = load(device)
        leave_threads_to_engine(worker)
        return worker

    async def get_ready() -> None:
        service.set_worker(await device.run(load_on_device_thread))

    try:
        await serve(server, host, port, get_ready, metrics_port=metrics_port)
    finally:
        await service.end(device)


def leave_threads_to_engine(worker: ModelWorker[Request, Reply]) -> None:
    """Keep torch to one thread beside an engine that has its own; called on the device thread.

    What is left for torch is small, and a second thread for it costs milliseconds whenever the other
    cores are busy.
    """
    if worker.model.engine == "native":
        torch.set_num_threads(1)

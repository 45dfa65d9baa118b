"""GenerationService: a request in, a stream of chunks out."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
import structlog

from coordinator.admission import Admission
from coordinator.clients import Clients
from coordinator.discovery import Location
from coordinator.engine import Engine
from coordinator.gauges import show_state
from coordinator.metrics import CoordinatorMetrics
from coordinator.pool import WorkerPool
from coordinator.prompt import MAX_NEW_TOKENS, PromptReader, RequestLimits
from coordinator.quota import NO_LIMITS, Client
from coordinator.tracing import note_request
from coordinator.worker import Compatibility, Worker
from sequoia.errors import NotReadyError
from sequoia.generation import GenerationChunk, GenerationRequest
from sequoia.plan_store import PlanStore
from sequoia.rpc.call import request_id
from sequoia.rpc.channel import Endpoint
from sequoia.rpc.generation_codec import GENERATE
from sequoia.rpc.server import Context, RpcServer
from sequoia.runtime.tokenization import end_of_text_ids, load_tokenizer, tokenizer_sha256
from sequoia.tasks import end_tasks, keep_going

log = structlog.get_logger(__name__)

FIND_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class CoordinatorSettings:
    """How a coordinator treats requests and workers; `credentials` are those to show to workers.

    Addresses are HOST:PORT; a name may stand for several workers. No draft's: no speculation.
    """

    target_addresses: Sequence[str]
    draft_addresses: Sequence[str]
    redis_url: str | None = field(repr=False)  # may hold a password
    request_limit: int = 64
    max_new_tokens: int = MAX_NEW_TOKENS
    call_seconds: float = 30.0
    draft_call_seconds: float = 5.0
    target_patience_seconds: float = 60.0
    queue_limit: int = 256
    queue_seconds: float = 60.0
    drain_seconds: float = 0.0
    credentials: grpc.ChannelCredentials | None = None


def fresh_seed() -> int:
    """Randomness for a request that brought none."""
    return secrets.randbits(64)


class CoordinatorService:
    """Serves `Generate` once the target has been found.

    Args:
        server: to serve it on.
        target_folder: where the target's tokenizer is.
        settings: how requests and workers are treated.
        make_seed: randomness for requests that bring none.
        clients: who may call; None lets anyone.
    """

    def __init__(
        self,
        server: RpcServer,
        target_folder: Path,
        settings: CoordinatorSettings,
        make_seed: Callable[[], int] = fresh_seed,
        clients: Clients | None = None,
    ) -> None:
        self.settings = settings
        self.target = self._pool("target", settings.target_addresses, settings.call_seconds)
        self.draft = (
            self._pool("draft", settings.draft_addresses, settings.draft_call_seconds)
            if settings.draft_addresses
            else None
        )
        self.engine: Engine | None = None
        self._server = server
        self._target_folder = target_folder
        self._make_seed = make_seed
        self._reader: PromptReader | None = None
        self._store = PlanStore(settings.redis_url) if settings.redis_url else None
        self._background: list[asyncio.Task[None]] = []
        self._clients = clients
        self._anyone = Client("anyone", NO_LIMITS, time.monotonic)
        self._metrics = CoordinatorMetrics(
            lambda: self.target.info.model if self.target.info else ""
        )
        server.registry.register(self._metrics)
        server.add_stream(GENERATE, self._generate, admit=self._client)

    @property
    def _pools(self) -> list[WorkerPool]:
        return [pool for pool in (self.target, self.draft) if pool]

    def _pool(self, role: str, addresses: Sequence[str], call_seconds: float) -> WorkerPool:
        def make_worker(location: Location) -> Worker:
            credentials, name = self.settings.credentials, location.server_name
            endpoint = Endpoint(location.address, credentials, server_name=name)
            return Worker(role, endpoint, call_seconds)

        return WorkerPool(role, addresses, make_worker)

    async def get_ready(self) -> None:
        """Load the tokenizer, find the workers, follow the plans.

        Raises:
            ModelError: the target's folder has no tokenizer.
            IncompatibleModelsError: a worker's model does not fit the others.
        """
        tokenizer = await asyncio.to_thread(load_tokenizer, self._target_folder)
        fingerprint = await asyncio.to_thread(tokenizer_sha256, tokenizer)
        info = await self.target.find(Compatibility(fingerprint))
        while info is None:
            await asyncio.sleep(FIND_SECONDS)
            info = await self.target.find(Compatibility(fingerprint))
        needed = Compatibility(fingerprint, info.feature_size)
        if self.draft:
            await self.draft.find(needed)
        limits = RequestLimits(
            info.context_length, info.vocabulary_size, self.settings.max_new_tokens
        )
        stops = end_of_text_ids(self._target_folder, tokenizer)
        self._reader = PromptReader(tokenizer, stops, limits, self._make_seed)
        self.engine = Engine(
            self.draft,
            self.target,
            self._reader.decode,
            Admission(
                self.settings.request_limit,
                self.settings.queue_limit,
                self.settings.queue_seconds,
            ),
            self.settings.target_patience_seconds,
            self._metrics,
            self.settings.drain_seconds,
        )
        limits_shown = self.settings.request_limit, self.settings.queue_limit
        show_state(self._metrics.registry, self.engine, self._pools, *limits_shown)
        for pool in self._pools:
            self._start(partial(pool.watch, needed, self.engine.admission.advance))
        if self._store:
            self._start(partial(self.engine.follow_plans, self._store))
            self._start(partial(self.engine.deliver_statistics, self._store))

    async def _generate(
        self, request: GenerationRequest, context: Context
    ) -> AsyncGenerator[GenerationChunk, None]:
        if self.engine is None or self._reader is None:
            raise NotReadyError("the target worker has not been found yet")
        if not request_id(context):
            structlog.contextvars.bind_contextvars(request_id=secrets.token_hex(8))
        client = self._client(context)
        structlog.contextvars.bind_contextvars(client=client.name)
        note_request(request, self._metrics.model())
        with self._metrics.request(request, client.name) as one, client.request() as spending:
            prepared = await asyncio.to_thread(self._reader.read, request)
            spending.prompt(len(prepared.prompt_token_ids))
            one.prompt(len(prepared.prompt_token_ids))
            async with aclosing(self.engine.generate(prepared)) as chunks:
                async for chunk in chunks:
                    spending.generated(len(chunk.tokens))
                    one.generated(chunk)
                    yield chunk

    def _client(self, context: Context) -> Client:
        """Whose call it is.

        Raises:
            UnauthenticatedError: it carries no token, or an unknown one.
        """
        return self._clients.authenticate(context) if self._clients else self._anyone

    async def stop(self) -> None:
        """Let running requests end, then let go of workers and Redis."""
        if self.engine:
            await self.engine.drain()
        await end_tasks(self._background)
        for pool in self._pools:
            await pool.close()
        if self._store:
            await self._store.close()

    def _start(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        self._background.append(asyncio.create_task(keep_going(work)))

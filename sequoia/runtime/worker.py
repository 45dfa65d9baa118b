"""What draft and target workers share: sessions, the device thread, prefill, profile."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from typing import ClassVar, Generic, Protocol, TypeVar

import structlog
from torch import Tensor

from sequoia.errors import (
    CapacityError,
    InvalidArgumentError,
    MalformedTreeError,
    PromptTooLongError,
    SequoiaError,
)
from sequoia.messages import (
    ForwardTime,
    Prefill,
    Prefilled,
    ProfileSpec,
    StepHeader,
    WorkerInfo,
)
from sequoia.runtime.cache import KVCache
from sequoia.runtime.device import DeviceThread, finish
from sequoia.runtime.footprint import kv_bytes_per_token
from sequoia.runtime.forward import PassOutput, TreeModel
from sequoia.runtime.metrics import WorkerMetrics
from sequoia.runtime.pace import LEAST_TOKENS, MOST_TOKENS, Pace
from sequoia.runtime.prefilling import Prefiller
from sequoia.runtime.segment import Segment
from sequoia.runtime.session import Session
from sequoia.runtime.sessions import SessionTable
from sequoia.tree import Topology, Tree

log = structlog.get_logger(__name__)


class StepRequest(Protocol):
    """What every step of every worker carries."""

    @property
    def header(self) -> StepHeader:
        """Which step of which session."""

    @property
    def root_token_id(self) -> int:
        """The last committed token."""

    @property
    def topology(self) -> Topology:
        """Of the tree that the step grows or checks."""


Request = TypeVar("Request", bound=StepRequest)
Reply = TypeVar("Reply")

PROFILE_COMBINATION_LIMIT = 64
PROFILE_REPETITION_LIMIT = 20
TREE_SHARE = 4  # a quarter at most of a small KV cache is for a tree; text has to fit as well
LONG_PASS_SECONDS = 1.0  # where the model's small passes take longer, all are measured once


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """How much a worker holds and does at a time."""

    session_limit: int = 64
    kv_cache_limit_bytes: int = 2 * 2**30
    node_limit: int = 1024
    batch_limit: int = 32
    idle_seconds: float = 1.0  # a session unused for so long may be evicted
    # Tokens of one pass, for which memory was set aside; None for no bound.
    pass_tokens: int | None = None
    prefix_cache: bool = True  # closed sessions are retained for prompts that begin alike


class ModelWorker(ABC, Generic[Request, Reply]):
    """A model, its sessions and its device thread; the roles add the step that they are for.

    `clock` (seconds) measures passes.
    """

    role: ClassVar[str]
    # Whether sessions that ask for the model's features get them.
    gives_features: ClassVar[bool]

    def __init__(
        self,
        name: str,
        model: TreeModel,
        tokenizer_sha256: str,
        limits: WorkerLimits,
        device: DeviceThread | None = None,
        clock: Callable[[], float] = time.perf_counter,
        model_sha256: str = "",
    ) -> None:
        self.name = name
        self.model = model
        self.tokenizer_sha256 = tokenizer_sha256
        self.model_sha256 = model_sha256
        self.limits = limits
        self.instance_id = uuid.uuid4().hex
        self.metrics = WorkerMetrics(self.role)
        self._scratch = KVCache()
        self._kv_bytes_per_token = kv_bytes_per_token(model)
        self.sessions: SessionTable[Reply] = SessionTable(
            limits.session_limit,
            limits.kv_cache_limit_bytes,
            limits.idle_seconds,
            on_evicted=self.metrics.evicted.inc,
            retained_limit=limits.session_limit if limits.prefix_cache else 0,
            token_bytes=self._kv_bytes_per_token,
        )
        model.homes.spare = self.sessions.evict_retained
        self.device = device or DeviceThread("device", limits.batch_limit)
        # Where all weights have to come by, a pass over a few tokens takes as long as one over many.
        least_tokens = LEAST_TOKENS if model.placement == "on-chip" else MOST_TOKENS
        most_tokens = min(MOST_TOKENS, limits.pass_tokens or MOST_TOKENS)
        self.pace = Pace(clock, least_tokens, most_tokens)
        if limits.pass_tokens is not None:
            tree_tokens = limits.kv_cache_limit_bytes // self._kv_bytes_per_token // TREE_SHARE
            most = max(min(limits.node_limit, limits.pass_tokens, tree_tokens), 1)
            self.limits = replace(limits, node_limit=most)
        self._prefiller: Prefiller[Reply] = Prefiller(
            model,
            self.sessions,
            self.device,
            self.pace,
            self.features_read,
            self.gives_features,
            self.metrics,
        )
        self.metrics.show(
            self.info, lambda: self.device.queued_count, lambda: self.sessions.retained_bytes
        )

    def info(self) -> WorkerInfo:
        """Who this worker is and what it holds now."""
        session_count, active_session_count = self.sessions.counts()
        return WorkerInfo(
            model=self.name,
            tokenizer_sha256=self.tokenizer_sha256,
            vocabulary_size=self.model.vocabulary_size,
            context_length=self.model.context_length,
            dtype=self._dtype,
            device=str(self.model.device),
            session_limit=self.limits.session_limit,
            kv_cache_limit_bytes=self.limits.kv_cache_limit_bytes,
            session_count=session_count,
            kv_cache_bytes=self.sessions.kv_cache_bytes,
            node_limit=self.limits.node_limit,
            instance_id=self.instance_id,
            feature_size=self.feature_size,
            kv_bytes_per_token=self._kv_bytes_per_token,
            placement=self.model.placement,
            pass_seconds=self.model.pass_seconds,
            model_sha256=self.model_sha256,
            active_session_count=active_session_count,
        )

    @property
    def _dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    @abstractmethod
    def feature_size(self) -> int:
        """Elements of the features that a target gives, or that a draft reads."""

    async def prefill(self, request: Prefill) -> Prefilled:
        """Open or rebuild a session; cancelled, it ends after the chunk in hand.

        Raises:
            InvalidArgumentError: no tokens, or others than the model can read.
            PromptTooLongError: more tokens than the context holds.
            CapacityError: no room for the session.
            UnknownSessionError: the session was closed meanwhile.
        """
        self.check_prefill(request)
        prefilled = await self._prefiller.prefill(request)
        return replace(prefilled, model_sha256=self.model_sha256, dtype=self._dtype)

    def check_prefill(self, request: Prefill) -> None:
        """Raise a `SequoiaError` for a prefill that no session could be opened with."""
        if not request.token_ids:
            raise InvalidArgumentError("token_ids", "at least one token is needed", 1, 0)
        if len(request.token_ids) > self.model.context_length:
            raise PromptTooLongError(
                f"token_ids: {len(request.token_ids)} tokens exceed the context of "
                f"{self.model.context_length}",
                field="token_ids",
                limit=self.model.context_length,
                value=len(request.token_ids),
            )

    def features_read(self, request: Prefill, start: int, end: int) -> Tensor | None:
        """What the model reads beside the tokens `[start, end)`, `[tokens, hidden]`; None: nothing."""
        return None

    async def step(self, request: Request) -> Reply:
        """Run one step in the next batch, or answer a repeated one from the session's last reply.

        Raises:
            UnknownSessionError: there is no such session.
            StaleStepError: the step is not the one that the session expects.
            MalformedTreeError: the request contradicts itself or the session.
        """
        self.check(request)
        with self.pace.waiting_step():
            return await self.device.submit(
                self._step_batch, request, request.header.session_id, gathers=True
            )

    @abstractmethod
    def check(self, request: Request) -> None:
        """Raise a `SequoiaError` for a request that no session could serve."""

    def check_topology(self, header: StepHeader, topology: Topology, field: str) -> None:
        """Check that a tree fits the limits and the context.

        Raises:
            MalformedTreeError: too many nodes.
            InvalidArgumentError: the deepest node would stand outside the context.
        """
        if topology.node_count > self.limits.node_limit:
            raise MalformedTreeError(
                f"{topology.node_count} nodes exceed the limit of {self.limits.node_limit}",
                field=field,
                limit=self.limits.node_limit,
            )
        deepest = header.base_length + topology.level_count - 1
        if deepest > self.model.context_length:
            raise InvalidArgumentError(
                field,
                f"the deepest node would stand at position {deepest}, outside the context",
                self.model.context_length,
                deepest,
            )

    @abstractmethod
    def look_at(self, outputs: Sequence[PassOutput]) -> None:
        """Do with a pass's outputs what every step does, for the clock."""

    def check_in_session(self, session: Session[Reply], request: Request) -> None:
        """Raise a `SequoiaError` for a request that contradicts its session's settings."""

    @abstractmethod
    def run_steps(
        self, steps: Sequence[tuple[Session[Reply], Request]]
    ) -> list[tuple[Tree, Reply]]:
        """Run one step of several sessions in one batch; they have been advanced already.

        Returns:
            The tree that each session now holds, and the reply.
        """

    def _step_batch(self, requests: Sequence[Request]) -> list[Reply | Exception]:
        replies: dict[int, Reply | Exception] = {}
        steps: dict[int, tuple[Session[Reply], Request]] = {}
        with ExitStack() as in_use:
            for index, request in enumerate(requests):
                try:
                    session = in_use.enter_context(self.sessions.using(request.header.session_id))
                    repeated = session.repeated(request.header)
                    if repeated is None:
                        self.check_in_session(session, request)
                        session.advance(request.header, request.root_token_id)
                        steps[index] = session, request
                    else:
                        replies[index] = repeated
                except SequoiaError as error:
                    replies[index] = error
            if steps:
                replies.update(zip(steps, self._run_steps(list(steps.values())), strict=True))
        return [replies[index] for index in range(len(requests))]

    def _run_steps(
        self, steps: list[tuple[Session[Reply], Request]]
    ) -> Sequence[Reply | Exception]:
        """Run advanced sessions; if that fails they are worth nothing, and are dropped."""
        self.sessions.make_room(
            (session.cache, len(session.token_ids) + request.topology.node_count)
            for session, request in steps
        )
        started = self.pace.clock()
        try:
            results = self.run_steps(steps)
            for (session, request), (tree, reply) in zip(steps, results, strict=True):
                session.finish_step(request.header, tree, reply, len(steps))
            seconds = self.pace.clock() - started
            self.pace.has_stepped(seconds)
            self.metrics.has_stepped(seconds, [tree.topology.node_count for tree, _ in results])
        except Exception as error:
            for session, _ in steps:
                self.sessions.drop(session)
            self.sessions.free_retained()  # it may have been memory that was missing
            log.exception("step failed", sessions=[s.session_id for s, _ in steps])
            return [SequoiaError(f"step failed: {error}")] * len(steps)
        try:
            self.sessions.enforce_memory_limit()
        except CapacityError as error:
            # The steps are done and their replies stand; what does not fit is rebuilt when it does.
            largest = max(steps, key=lambda step: step[0].cache.memory_bytes)[0]
            log.warning("session dropped", session_id=largest.session_id, error=error.message)
            self.sessions.drop(largest)
        return [reply for _, reply in results]

    def close_session(self, session_id: str) -> None:
        """End a session; an unknown one is not an error."""
        self.sessions.close(session_id)
        self.device.forget(session_id)

    async def profile(self, spec: ProfileSpec) -> list[ForwardTime]:
        """Measure passes on scratch sessions.

        Raises:
            InvalidArgumentError: a list is empty, too long, or holds a number out of range.
        """
        combinations = [
            (nodes, batch, prefix)
            for nodes in spec.node_counts
            for batch in spec.batch_sizes
            for prefix in spec.prefix_lengths
        ]
        _require("node_counts", spec.node_counts, self.limits.node_limit)
        _require("batch_sizes", spec.batch_sizes, self.limits.batch_limit)
        _require("prefix_lengths", spec.prefix_lengths, self.model.context_length)
        if len(combinations) > PROFILE_COMBINATION_LIMIT:
            raise InvalidArgumentError(
                "node_counts",
                f"{len(combinations)} combinations exceed {PROFILE_COMBINATION_LIMIT}",
                PROFILE_COMBINATION_LIMIT,
                len(combinations),
            )
        if spec.repetition_count > PROFILE_REPETITION_LIMIT:
            raise InvalidArgumentError(
                "repetition_count",
                f"{spec.repetition_count} exceeds {PROFILE_REPETITION_LIMIT}",
                PROFILE_REPETITION_LIMIT,
                spec.repetition_count,
            )
        # One pass at a time, so that requests for text get in between; the first is a warm-up.
        is_long = self.model.pass_seconds > LONG_PASS_SECONDS
        pass_count = 1 if is_long else spec.repetition_count + 1
        times = []
        for combination in combinations:
            seconds = [
                await self.device.submit(self._time_passes, combination) for _ in range(pass_count)
            ]
            times.append(ForwardTime(*combination, median(seconds[1:] or seconds)))
        return times

    def _time_passes(self, passes: Sequence[tuple[int, int, int]]) -> list[float | Exception]:
        return [self._time_pass(*one) for one in passes]

    def _time_pass(self, nodes: int, batch: int, prefix: int) -> float:
        """Seconds of one pass over `nodes` tokens behind `prefix` cached ones, for `batch` sessions."""
        if not self._scratch.length:
            self.model.prefill(self._scratch, [1])
        caches = [self._scratch.repeated(prefix) for _ in range(batch)]
        finish(self.model.device)
        started = time.perf_counter()
        for share in shared_passes([nodes] * batch, self.limits.pass_tokens):
            chains = [Segment.chain(cache, [1] * nodes) for cache in caches[share]]
            self.look_at(self.model.forward(chains))
        finish(self.model.device)
        return time.perf_counter() - started


def shared_passes(node_counts: Sequence[int], most: int | None) -> list[slice]:
    """Neighbours that share a pass, such that none has more than `most` nodes, or is one alone."""
    passes, start, total = [], 0, 0
    for index, count in enumerate(node_counts):
        if most is not None and index > start and total + count > most:
            passes.append(slice(start, index))
            start, total = index, 0
        total += count
    return [*passes, slice(start, len(node_counts))]


def _require(field: str, values: Sequence[int], limit: int) -> None:
    if not values:
        raise InvalidArgumentError(field, "at least one number is needed", 1, 0)
    for value in values:
        if not 1 <= value <= limit:
            raise InvalidArgumentError(field, f"{value} is outside [1, {limit}]", limit, value)

"""The coordinator's side of the workers: sessions that heal themselves.

A worker's session is soft state. Whatever it has lost, the coordinator has the tokens: it opens the
session again and repeats the step, and since every draw is a function of seed and place, the
answer is the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import grpc
import structlog

from sequoia.errors import (
    IncompatibleModelsError,
    Reason,
    SequoiaError,
)
from sequoia.messages import (
    Features,
    Prefill,
    Prefilled,
    SessionSettings,
    StepHeader,
    WorkerInfo,
)
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.codec import CLOSE_SESSION, GET_INFO, PREFILL
from sequoia.rpc.method import Method
from sequoia.rpc.steps import Steps

log = structlog.get_logger(__name__)

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Result = TypeVar("Result")

WATCH_SECONDS = 0.5
CLOSE_TIMEOUT_SECONDS = 5.0
RETRY_SECONDS = 0.2
SESSION_LOSS_LIMIT = 5
# What a prompt's token may add to the time of a call: prompts are read between other sessions' steps.
PREFILL_SECONDS_PER_TOKEN = 0.1
NO_STEP = -1
SESSION_LOST = frozenset({Reason.UNKNOWN_SESSION, Reason.STALE_STEP})
WORKER_LOST = frozenset({Reason.WORKER_UNAVAILABLE, Reason.NOT_READY, Reason.DEADLINE_EXCEEDED})
TRANSIENT = WORKER_LOST | {Reason.CAPACITY_EXHAUSTED, Reason.INTERNAL}


@dataclass(frozen=True, slots=True)
class Compatibility:
    """What a worker's model must have in common with the others."""

    tokenizer_sha256: str
    feature_size: int | None = None  # of the target; None: whatever it is

    def misfit(self, info: WorkerInfo) -> str:
        """What is wrong with a model; empty where it fits."""
        if info.tokenizer_sha256 != self.tokenizer_sha256:
            return "has another tokenizer than the target"
        if self.feature_size is not None and info.feature_size not in (0, self.feature_size):
            return f"has features of {info.feature_size} elements, not of {self.feature_size}"
        return ""


class Worker:
    """One worker: its channel, whether it is there, and who it says it is."""

    def __init__(
        self,
        role: str,
        address: str,
        call_seconds: float,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.role = role
        self.channel = RpcChannel(address, credentials)
        self._least_seconds = call_seconds
        self.info: WorkerInfo | None = None
        self.is_available = False
        self._look_from = 0.0
        self._closing: set[asyncio.Task[None]] = set()

    def call_seconds(self, passes: int = 1) -> float:
        """The time to give to a call that takes so many passes."""
        return self.with_passes(self._least_seconds, passes)

    def with_passes(self, seconds: float, passes: int = 1) -> float:
        """A time, and that of passes once it is known."""
        return self.info.call_seconds(seconds, passes) if self.info else seconds

    def lost(self, error: SequoiaError) -> None:
        """Take the worker out of use until `watch` finds it again."""
        if self.is_available:
            log.warning("worker lost", worker=self.role, error=error.message)
        self.is_available = False
        if error.reason is Reason.DEADLINE_EXCEEDED:
            # It answers health checks and yet is too slow: not to be tried again at once.
            self._look_from = time.monotonic() + self.call_seconds()

    async def find(self, needed: Compatibility) -> WorkerInfo | None:
        """Look whether the worker is there, and take it into use; None if it is not.

        Raises:
            IncompatibleModelsError: its model does not fit the coordinator's or the target's.
        """
        if not await self.channel.is_serving():
            return None
        try:
            info = await self.channel.call(GET_INFO, None, timeout=self.call_seconds())
        except SequoiaError:
            return None
        if misfit := needed.misfit(info):
            raise IncompatibleModelsError(
                f"the {self.role} worker's model {info.model} {misfit}",
                role=self.role,
                model=info.model,
            )
        if self.info is None or self.info.instance_id != info.instance_id:
            log.info("worker found", worker=self.role, model=info.model, dtype=info.dtype)
        self.info = info
        self.is_available = True
        return info

    async def watch(self, needed: Compatibility) -> None:
        """Find the worker again whenever it is lost; never ends."""
        refused = ""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self.is_available or time.monotonic() < self._look_from:
                continue
            try:
                await self.find(needed)
            except IncompatibleModelsError as error:
                if refused != error.message:
                    log.error("worker refused", worker=self.role, error=error.message)
                refused = error.message

    def close_session(self, session_id: str) -> None:
        """Free a session without waiting for it."""

        async def close() -> None:
            try:
                await self.channel.call(CLOSE_SESSION, session_id, timeout=CLOSE_TIMEOUT_SECONDS)
            except SequoiaError as error:
                log.debug("session not closed", worker=self.role, error=error.message)

        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Wait for sessions that are being freed, then end the connection."""
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self.channel.close()


@dataclass(frozen=True, slots=True)
class StepState:
    """Where a request stands at the beginning of a step."""

    step: int
    token_ids: tuple[int, ...]  # committed; the last one is the root
    accepted: tuple[int, ...]  # nodes of the last step's tree
    features: Features | None = None  # of all committed tokens but the last, for the draft


class WorkerSession(Generic[Request, Reply]):
    """One request's session on one worker."""

    def __init__(
        self,
        worker: Worker,
        method: Method[Request, Reply],
        session_id: str,
        settings: SessionSettings,
        on_opened: Callable[[Prefilled], None] = lambda _: None,
    ) -> None:
        self.worker = worker
        self.waited_seconds = 0.0
        self.disturbance_count = 0  # prefills and repeated calls, which make a step longer
        self._on_opened = on_opened
        self._method = method
        self._session_id = session_id
        self._settings = settings
        self._was_opened = False
        self._steps: Steps[Request, Reply] | None = None
        self._next_step = NO_STEP  # the step that the worker's session expects
        self._fresh_step = NO_STEP  # the step that the last prefill was for

    def ask_for_features(self) -> None:
        """From the next step on; the session is opened anew for those of the tokens before it."""
        self._settings = replace(self._settings, with_features=True)
        self._end_steps()
        self._next_step = self._fresh_step = NO_STEP

    async def step(
        self, state: StepState, make: Callable[[StepHeader], Request], passes: int = 1
    ) -> Reply:
        """One step of so many passes; the session is opened first if there is none or it missed a step.

        Raises:
            SequoiaError: as the worker or the transport reported it. The step can be repeated.
        """
        started = time.perf_counter()
        try:
            accepted = () if await self._opened(state) else state.accepted
            header = StepHeader(self._session_id, state.step, len(state.token_ids), accepted)
            if self._steps is None:
                self._steps = self.worker.channel.steps(self._method)
            reply = await self._steps.take(make(header), self.worker.call_seconds(passes))
        except BaseException as error:
            self._end_steps()
            if isinstance(error, SequoiaError) and error.reason in SESSION_LOST:
                self._next_step = self._fresh_step = NO_STEP
            raise
        finally:
            self.waited_seconds += time.perf_counter() - started
        self._next_step = state.step + 1
        return reply

    async def step_patiently(
        self,
        state: StepState,
        make: Callable[[StepHeader], Request],
        patience: float,
        passes: int = 1,
    ) -> Reply:
        """One step of so many passes, repeated through losses of the session and outages of the worker.

        Raises:
            SequoiaError: it failed for `patience` seconds, or in a way that no repetition mends.
        """
        return await self._patiently(lambda: self.step(state, make, passes), patience)

    async def open_patiently(self, state: StepState, patience: float) -> None:
        """Open the session ahead of its first step, as patiently.

        Raises:
            SequoiaError: it failed for `patience` seconds, or in a way that no repetition mends.
        """
        await self._patiently(lambda: self._opened(state), patience)

    async def _patiently(self, attempt: Callable[[], Awaitable[Result]], patience: float) -> Result:
        deadline = time.monotonic() + patience
        losses = 0
        while True:
            try:
                return await attempt()
            except SequoiaError as error:
                self.disturbance_count += 1
                if error.reason in SESSION_LOST and losses < SESSION_LOSS_LIMIT:
                    losses += 1
                    continue
                if error.reason in WORKER_LOST:
                    self.worker.lost(error)
                if error.reason not in TRANSIENT | SESSION_LOST or time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    async def _opened(self, state: StepState) -> bool:
        """Open the session if it does not expect this step; says if it is fresh from its prefill."""
        if self._next_step != state.step:
            if self._was_opened:
                log.info("session rebuilt", worker=self.worker.role, step=state.step)
            self._was_opened = True
            self.disturbance_count += 1
            prefill = Prefill(
                self._session_id, state.token_ids, state.step, self._settings, state.features
            )
            count = len(state.token_ids)
            passes = self.worker.info.prefill_passes(count) if self.worker.info else 1
            seconds = self.worker.call_seconds(passes) + PREFILL_SECONDS_PER_TOKEN * count
            prefilled = await self.worker.channel.call(PREFILL, prefill, timeout=seconds)
            self._on_opened(prefilled)
            self._next_step = self._fresh_step = state.step
        return self._fresh_step == state.step

    def _end_steps(self) -> None:
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def close(self) -> None:
        """Free the session on the worker, if it ever had one."""
        self._end_steps()
        if self._was_opened:
            self.worker.close_session(self._session_id)

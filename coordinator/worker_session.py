"""One request's session on a worker: it heals itself, and moves where it has to.

A worker's session is soft state. Whatever a worker has lost, the coordinator has the tokens: it opens the
session again, there or on another worker, and repeats the step; since every draw is a function of seed
and place, the answer is the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import structlog

from coordinator.seat import Seat
from coordinator.step import StepState
from coordinator.worker import Worker
from sequoia.errors import Reason, SequoiaError
from sequoia.messages import Prefill, Prefilled, SessionSettings, StepHeader
from sequoia.rpc.codec import PREFILL
from sequoia.rpc.method import Method
from sequoia.rpc.steps import Steps

log = structlog.get_logger(__name__)

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Result = TypeVar("Result")

RETRY_SECONDS = 0.2
FULL_SECONDS = 1.0  # for which a full worker is not asked again by those who can do without
SESSION_LOSS_LIMIT = 5
# What a prompt's token may add to the time of a call: prompts are read between other sessions' steps.
PREFILL_SECONDS_PER_TOKEN = 0.1
NO_STEP = -1
SESSION_LOST = frozenset({Reason.UNKNOWN_SESSION, Reason.STALE_STEP})
WORKER_LOST = frozenset({Reason.WORKER_UNAVAILABLE, Reason.NOT_READY, Reason.DEADLINE_EXCEEDED})
TRANSIENT = WORKER_LOST | {Reason.CAPACITY_EXHAUSTED, Reason.INTERNAL}


class WorkerSession(Generic[Request, Reply]):
    """One request's session on one worker."""

    def __init__(
        self,
        seat: Seat,
        method: Method[Request, Reply],
        session_id: str,
        settings: SessionSettings,
        on_opened: Callable[[Prefilled], None] = lambda _: None,
    ) -> None:
        self.seat = seat
        self.waited_seconds = 0.0
        self.disturbance_count = 0  # prefills and repeated calls, which make a step longer
        self.rebuilt_count = 0  # prefills of what had been read before, and was lost
        self.moved_count = 0
        self._on_opened = on_opened
        self._method = method
        self._session_id = session_id
        self._settings = settings
        self._was_opened = False  # there may be something to close
        self._has_read = False  # a prefill has succeeded, and its session was not given up
        self._is_full = False  # the worker had no room when it was last asked
        self._full_until = 0.0
        self._steps: Steps[Request, Reply] | None = None
        self._next_step = NO_STEP  # the step that the worker's session expects
        self._fresh_step = NO_STEP  # the step that the last prefill was for

    @property
    def worker(self) -> Worker:
        """Where the session is."""
        return self.seat.worker

    @property
    def is_worth_trying(self) -> bool:
        """Whether a step without patience may succeed: a worker is in use, and was not full just now."""
        return self.seat.pool.is_available and (
            time.monotonic() >= self._full_until or self.seat.should_move(is_full=True)
        )

    def ask_for_features(self) -> None:
        """From the next step on; the session is opened anew for those of the tokens before it."""
        self._settings = replace(self._settings, with_features=True)
        self._has_read = False
        self._forget()

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
                self._forget()
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
        """Attempt something until it succeeds, before each attempt on the worker that is best then."""
        deadline = time.monotonic() + patience
        losses = 0
        while True:
            if self.seat.should_move(is_full=self._is_full):
                self._move()
            try:
                result = await attempt()
            except SequoiaError as error:
                self.disturbance_count += 1
                if error.reason in SESSION_LOST and losses < SESSION_LOSS_LIMIT:
                    losses += 1
                    continue
                self._note(error)
                if error.reason not in TRANSIENT | SESSION_LOST or time.monotonic() >= deadline:
                    raise
                # From a full worker to the next, which may be full as well, in no haste.
                if self._is_full or not self.seat.should_move():
                    await asyncio.sleep(RETRY_SECONDS)
            else:
                self._is_full = False
                return result

    def _note(self, error: SequoiaError) -> None:
        """What a failure says of the worker."""
        if error.reason in WORKER_LOST:
            self.worker.lost(error)
        self._is_full = error.reason is Reason.CAPACITY_EXHAUSTED
        if self._is_full:
            self._full_until = time.monotonic() + FULL_SECONDS

    def _move(self) -> None:
        """Go to another worker; the session is opened there from the tokens."""
        before = self.worker.address
        self.close()
        self._forget()
        self.seat.move()
        self.moved_count += 1
        self._is_full, self._full_until = False, 0.0
        log.info("session moved", worker=self.worker.role, before=before, to=self.worker.address)

    async def _opened(self, state: StepState) -> bool:
        """Open the session if it does not expect this step; says if it is fresh from its prefill."""
        if self._next_step != state.step:
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
            if self._has_read:
                self._note_rebuilt(state.step)
            self._has_read = True
            self._next_step = self._fresh_step = state.step
        return self._fresh_step == state.step

    def _note_rebuilt(self, step: int) -> None:
        self.rebuilt_count += 1
        worker = self.worker
        log.info("session rebuilt", worker=worker.role, address=worker.address, step=step)

    def _forget(self) -> None:
        """There is no such session any more: the next step opens it anew."""
        self._end_steps()
        self._next_step = self._fresh_step = NO_STEP

    def _end_steps(self) -> None:
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def close(self) -> None:
        """Free the session on the worker, if it ever had one."""
        self._end_steps()
        if self._was_opened:
            self.worker.close_session(self._session_id)

    def finish(self, keys: Sequence[int]) -> None:
        """The request is over, with a text of these `prefix_keys`, which the worker may know from now on."""
        if self._was_opened:
            self.seat.has_read(keys)
        self.close()

"""One worker as the coordinator sees it: whether it is there, who it says it is, and what it has to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from coordinator.placement import PrefixMemory
from coordinator.room import Room
from sequoia.errors import (
    IncompatibleModelsError,
    Reason,
    SequoiaError,
    WorkerUnavailableError,
)
from sequoia.messages import WorkerInfo
from sequoia.rpc.channel import Endpoint
from sequoia.rpc.codec import CLOSE_SESSION, GET_INFO

log = structlog.get_logger(__name__)

WATCH_SECONDS = 0.5  # between looks for a worker that is not in use
LOOK_SECONDS = 2.0  # between looks at one that is
SHARED_LOOK_SECONDS = 0.5  # the same while others have sessions there
REFUSED_SECONDS = 5.0  # before a worker that does not fit is looked at again
CLOSE_TIMEOUT_SECONDS = 5.0

Misfit = Callable[[WorkerInfo], str]
"""What is wrong with a worker, as the end of a sentence about its model; empty where it fits."""


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
    """One worker: its channel, its room, and what is known of it.

    Args:
        role: draft or target.
        endpoint: where it is.
        call_seconds: the least time to give to a call.
    """

    def __init__(self, role: str, endpoint: Endpoint, call_seconds: float) -> None:
        self.role = role
        self.channel = endpoint.open()
        self.info: WorkerInfo | None = None
        self.is_available = False
        self.is_leaving = False  # its name stands for it no more: it gets no further sessions
        self.is_alias = False  # another address of a worker that is in use
        self.room = Room(lambda: self.info)
        self.prefixes = PrefixMemory()
        self.placed_count = 0
        self._foreign_counts = (0, 0)  # sessions of others, at the last two looks
        self._least_seconds = call_seconds
        self._look_from = 0.0
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self.channel.address

    @property
    def session_count(self) -> int:
        """Sessions that it has to serve, those of others included as of the last look."""
        return self.room.session_count + self.foreign_count

    @property
    def foreign_count(self) -> int:
        """Sessions of others, coordinators or a planner that measures.

        Of the last two looks the lesser: sessions of our own that are just being closed are not foreign.
        """
        return min(self._foreign_counts)

    def call_seconds(self, passes: int = 1) -> float:
        """The time to give to a call that takes so many passes."""
        least = self._least_seconds
        return self.info.call_seconds(least, passes) if self.info else least

    def lost(self, error: SequoiaError) -> None:
        """Take the worker out of use until it is found again."""
        if self.is_available:
            log.warning("worker lost", worker=self.role, address=self.address, error=error.message)
        self.is_available = False
        if error.reason is Reason.DEADLINE_EXCEEDED:
            # It answers health checks and yet is too slow: not to be tried again at once.
            self._look_from = time.monotonic() + self.call_seconds()

    async def find(self, misfit: Misfit) -> WorkerInfo | None:
        """Look whether the worker is there, and take it into use; None if it is not.

        Raises:
            IncompatibleModelsError: it does not fit.
        """
        if not await self.channel.is_serving():
            return None
        try:
            info = await self.channel.call(GET_INFO, None, timeout=self.call_seconds())
        except SequoiaError:
            return None
        if wrong := misfit(info):
            raise IncompatibleModelsError(
                f"the {self.role} worker's model {info.model} {wrong}",
                role=self.role,
                model=info.model,
            )
        if self.info is None or self.info.instance_id != info.instance_id:
            log.info(
                "worker found",
                worker=self.role,
                address=self.address,
                model=info.model,
                dtype=info.dtype,
            )
            self.prefixes.clear()
        self._take_note(info)
        self.is_available = True
        return info

    async def watch(self, misfit: Misfit, on_found: Callable[[], None]) -> None:
        """Find the worker whenever it is not in use, and look at it while it is; never ends."""
        refused = ""
        while True:
            if self.is_available:
                is_shared = any(self._foreign_counts)
                await asyncio.sleep(SHARED_LOOK_SECONDS if is_shared else LOOK_SECONDS)
                await self._look()
                continue
            await asyncio.sleep(WATCH_SECONDS)
            if time.monotonic() < self._look_from:
                continue
            try:
                if await self.find(misfit):
                    on_found()
            except IncompatibleModelsError as error:
                if refused != error.message:
                    tell = log.info if self.is_alias else log.error
                    tell("worker refused", address=self.address, error=error.message)
                refused = error.message
                await asyncio.sleep(REFUSED_SECONDS)

    async def _look(self) -> None:
        """Ask how much it has to do; if it does not answer it is lost."""
        try:
            info = await self.channel.call(GET_INFO, None, timeout=self.call_seconds())
        except SequoiaError as error:
            self.lost(error)
            return
        if self.info and self.info.instance_id != info.instance_id:
            # Whoever is there now has to be looked at as anybody who comes.
            self.lost(WorkerUnavailableError("it has started anew", worker=self.role))
        else:
            self._take_note(info)

    def _take_note(self, info: WorkerInfo) -> None:
        self.info = info
        foreign = max(info.active_session_count - self.room.session_count, 0)
        self._foreign_counts = (self._foreign_counts[1], foreign)

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

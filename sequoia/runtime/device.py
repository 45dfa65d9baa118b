"""The one thread that owns a device, and the queue in front of it.

Everything that waits for the same operation when the device becomes free is run in one batch. The
event loop never runs a model, so health checks and cancellations are answered during a pass.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any, TypeVar

import structlog
import torch

from sequoia.errors import NotReadyError
from sequoia.runtime.rendezvous import Rendezvous

log = structlog.get_logger(__name__)

STOPPED = "the worker is stopping"

Request = TypeVar("Request")
Reply = TypeVar("Reply")

# A batch function answers every request, with a reply or with the error of that request alone.
BatchFunction = Callable[[Sequence[Request]], Sequence[Reply | Exception]]


@dataclass(slots=True, eq=False)
class _Job:
    run: BatchFunction[Any, Any]
    key: str
    request: Any
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    gathers: bool = False


class DeviceThread:
    """Runs batch functions on a thread of its own, in order of arrival.

    A function that has just run gives way to others that wait: no step waits for two passes over
    prompts, however many prompts there are.
    """

    def __init__(self, name: str, batch_limit: int) -> None:
        self.batch_limit = batch_limit
        self._jobs: deque[_Job] = deque()
        self._last_run: BatchFunction[Any, Any] | None = None
        self._condition = Condition()
        self._rendezvous = Rendezvous()
        self._stopping = False
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def submit(
        self,
        run: BatchFunction[Request, Reply],
        request: Request,
        key: str = "",
        gathers: bool = False,
    ) -> Reply:
        """Queue a request and wait for its reply.

        Requests with the same `run` may share a batch. Those with the same key never do, and keep
        their order. A request whose caller was cancelled before its turn is dropped. Requests that
        gather wait a moment for others whose keys were answered just now (see `Rendezvous`).

        Raises:
            NotReadyError: the thread has been stopped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        with self._condition:
            if self._stopping:
                raise NotReadyError(STOPPED)
            if gathers:
                self._rendezvous.arrived(key)
            self._jobs.append(_Job(run, key, request, future, loop, gathers))
            self._condition.notify()
        return await future

    def forget(self, key: str) -> None:
        """No longer wait for requests with a key."""
        with self._condition:
            self._rendezvous.forget(key)
            self._condition.notify()

    async def run(self, function: Callable[[], Reply]) -> Reply:
        """Run a function on the thread, such as loading what the thread is to own.

        Matrix libraries keep a pool of workers for every thread that has called them, and are slow
        once there are more workers than cores; so whatever computes belongs here.
        """

        def run_one(_: Sequence[None]) -> list[Reply | Exception]:
            try:
                return [function()]
            except Exception as error:
                return [error]

        return await self.submit(run_one, None)

    @property
    def queued_count(self) -> int:
        """Requests that wait for the thread."""
        return len(self._jobs)

    def stop(self) -> None:
        """End the thread after the batch in hand; requests that still wait are refused."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join()
        for job in self._jobs:
            job.loop.call_soon_threadsafe(_resolve, job.future, NotReadyError(STOPPED))

    def _run(self) -> None:
        while batch := self._next_batch():
            started = self._rendezvous.clock()
            try:
                with torch.inference_mode():
                    replies = batch[0].run([job.request for job in batch])
                answers = list(zip(batch, replies, strict=True))
            except Exception as error:
                log.exception("batch failed", operation=str(batch[0].run), size=len(batch))
                answers = [(job, error) for job in batch]
            with self._condition:
                seconds = self._rendezvous.clock() - started
                self._rendezvous.answered([job.key for job in batch if job.gathers], seconds)
            for job, reply in answers:
                job.loop.call_soon_threadsafe(_resolve, job.future, reply)

    def _next_batch(self) -> list[_Job]:
        with self._condition:
            while True:
                while not self._jobs and not self._stopping:
                    self._condition.wait()
                self._gather()
                if self._stopping:
                    return []
                if batch := self._take():
                    return batch

    def _gather(self) -> None:
        """Let requests that gather, where no others wait, wait for company."""
        since = self._rendezvous.clock()
        while (
            not self._stopping
            and len(self._jobs) < self.batch_limit
            and all(job.gathers for job in self._jobs)
            and (seconds := self._rendezvous.patience(len(self._jobs), since)) > 0
        ):
            self._condition.wait(seconds)

    def _take(self) -> list[_Job]:
        """The next job and all that may run with it; the rest keeps its order."""
        waiting = [job for job in self._jobs if not job.future.cancelled()]
        free = _first_of_their_keys(waiting)
        others = (job for job in free if job.run != self._last_run)
        first = next(others, free[0] if free else None)
        batch = [job for job in free if first and job.run == first.run][: self.batch_limit]
        self._last_run = first.run if first else None
        taken = set(batch)
        self._jobs = deque(job for job in waiting if job not in taken)
        return batch


def _first_of_their_keys(jobs: Sequence[_Job]) -> list[_Job]:
    """Jobs that no earlier one holds up."""
    seen: set[str] = set()
    free = []
    for job in jobs:
        if not job.key or job.key not in seen:
            free.append(job)
        seen.add(job.key)
    return free


def finish(device: torch.device) -> None:
    """Wait for what a GPU still computes for this thread; a CPU has finished when a call returns.

    Copies on streams of their own go on: those of the next pass's weights.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _resolve(future: asyncio.Future[Any], reply: Any) -> None:
    if future.cancelled():
        return
    if isinstance(reply, Exception):
        future.set_exception(reply)
    else:
        future.set_result(reply)

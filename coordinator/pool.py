"""All workers of one role: where they are, which of them are in use, and which one a session goes to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from coordinator.discovery import Directory, Location
from coordinator.placement import Candidate, choose
from coordinator.room import Demand
from coordinator.worker import Compatibility, Worker
from sequoia.errors import IncompatibleModelsError
from sequoia.messages import WorkerInfo
from sequoia.tasks import end_tasks

log = structlog.get_logger(__name__)

LOOK_UP_SECONDS = 1.0


class WorkerPool:
    """The workers of a role: they come and go, and say the same, since they have the same model.

    Args:
        role: draft or target.
        addresses: HOST:PORT of each; a name may stand for several, and for others as time goes by.
        make_worker: the coordinator's side of the worker at a location.
    """

    def __init__(
        self, role: str, addresses: Sequence[str], make_worker: Callable[[Location], Worker]
    ) -> None:
        self.role = role
        self._directory = Directory(addresses)
        self._make_worker = make_worker
        self._workers: dict[str, Worker] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._on_found: Callable[[], None] = lambda: None

    @property
    def workers(self) -> list[Worker]:
        """All that are known, whether in use or not."""
        return list(self._workers.values())

    @property
    def is_available(self) -> bool:
        """Whether any of them is in use."""
        return any(worker.is_available for worker in self._workers.values())

    @property
    def info(self) -> WorkerInfo | None:
        """What one of them says of itself, if possible one in use; None before one has been found."""
        known: WorkerInfo | None = None
        for worker in self._workers.values():
            if worker.is_available:
                return worker.info
            known = known or worker.info
        return known

    @property
    def feature_size(self) -> int:
        """Elements of the features that targets give, or that drafts read; 0: none, or not known yet."""
        return info.feature_size if (info := self.info) else 0

    def with_passes(self, seconds: float) -> float:
        """A time, and that of a call's passes once one of the workers is known."""
        return info.call_seconds(seconds) if (info := self.info) else seconds

    async def find(self, needed: Compatibility) -> WorkerInfo | None:
        """Look for all workers; what one of them says of itself, or None if none is there.

        Raises:
            IncompatibleModelsError: all of them are there, and none fits.
        """
        await self._look_up()
        await self._forget()
        workers = self.workers
        answers = await asyncio.gather(
            *(worker.find(partial(self._misfit, worker, needed)) for worker in workers),
            return_exceptions=True,
        )
        refusals = [answer for answer in answers if isinstance(answer, BaseException)]
        for refusal in refusals:
            if not isinstance(refusal, IncompatibleModelsError):
                raise refusal
        if len(refusals) == len(workers):
            raise refusals[0]
        return self.info if self.is_available else None

    async def watch(self, needed: Compatibility, on_found: Callable[[], None]) -> None:
        """Take in whoever comes, and let go of whoever has gone; never ends.

        Args:
            needed: what a worker's model must have in common with the others.
            on_found: called whenever there may be room that was not there before.
        """
        self._on_found = on_found
        try:
            while True:
                await self._look_up()
                await self._forget()
                for worker in self.workers:
                    self._keep_watching(worker, needed)
                await asyncio.sleep(LOOK_UP_SECONDS)
        finally:
            await end_tasks(self._watching.values())
            self._watching.clear()

    def _keep_watching(self, worker: Worker, needed: Compatibility) -> None:
        task = self._watching.get(worker.address)
        if task and not task.done():
            return
        if task and not task.cancelled() and (defect := task.exception()):
            log.error("watching a worker failed", address=worker.address, exc_info=defect)
        misfit = partial(self._misfit, worker, needed)
        self._watching[worker.address] = asyncio.create_task(worker.watch(misfit, self._on_found))

    async def _look_up(self) -> None:
        locations = {location.address: location for location in await self._directory.look_up()}
        for address, location in locations.items():
            if address not in self._workers:
                self._workers[address] = self._make_worker(location)
        for address, worker in self._workers.items():
            was_leaving, worker.is_leaving = worker.is_leaving, address not in locations
            if was_leaving and not worker.is_leaving:
                self._on_found()

    async def _forget(self) -> None:
        """Let go of workers that are leaving and have no session of ours any more."""
        for worker in self.workers:
            if worker.is_leaving and not worker.room.session_count:
                log.info("worker left", worker=self.role, address=worker.address)
                del self._workers[worker.address]
                if task := self._watching.pop(worker.address, None):
                    await end_tasks([task])
                # One that is gone for good may take its time; nobody waits for it but the end.
                closing = asyncio.create_task(worker.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    def _misfit(self, worker: Worker, needed: Compatibility, info: WorkerInfo) -> str:
        """What is wrong with a worker beside the others; they must say the same."""
        worker.is_alias = False
        for other in self.workers:
            is_used = other.is_available and not other.is_leaving
            if other is worker or not is_used or other.info is None:
                continue
            worker.is_alias = other.info.instance_id == info.instance_id
            if worker.is_alias:
                return f"is reached at {other.address} already"
            if (other.info.model_sha256, other.info.dtype) != (info.model_sha256, info.dtype):
                theirs = f"{other.info.model} in {other.info.dtype}"
                return f"in {info.dtype} is not that of the worker at {other.address}, {theirs}"
        return needed.misfit(info)

    def check(self, demand: Demand) -> None:
        """Refuse what no worker could ever hold.

        Raises:
            InvalidArgumentError: naming the field that asks for too much, and what would fit.
        """
        largest = max(self._usable(), key=lambda worker: worker.room.token_limit)
        largest.room.check(demand)

    def could_hold(self, demand: Demand) -> bool:
        """Whether a worker could if it held nothing else."""
        return any(worker.room.could_hold(demand) for worker in self._usable())

    def can_hold(self, demand: Demand) -> bool:
        """Whether a worker has room for one more now."""
        return any(worker.room.can_hold(demand) for worker in self._usable())

    def place(self, demand: Demand, keys: Sequence[int], but: Worker | None = None) -> Worker:
        """The worker for a session whose text has these `prefix_keys`; `but` only if there is no other.

        There is always one: before a name has been looked up it stands for itself.
        """
        usable = [worker for worker in self._usable() if worker is not but] or self.workers
        candidates = [
            Candidate(
                worker.session_count,
                worker.prefixes.shared_tokens(keys),
                worker.room.can_hold(demand),
                worker.placed_count,
            )
            for worker in usable
        ]
        return usable[choose(candidates)]

    def has_other(self, but: Worker, demand: Demand | None = None) -> bool:
        """Whether another worker is in use; with `demand`, whether one has room for it."""
        return any(
            worker.is_available
            and not worker.is_leaving
            and (demand is None or worker.room.can_hold(demand))
            for worker in self.workers
            if worker is not but
        )

    def _usable(self) -> list[Worker]:
        """Those that new sessions may go to: in use and staying, or else the best there is."""
        workers = self.workers
        staying = [worker for worker in workers if not worker.is_leaving]
        return (
            [worker for worker in staying if worker.is_available]
            or [worker for worker in workers if worker.is_available]
            or staying
            or workers
        )

    async def close(self) -> None:
        """Let go of all workers."""
        await asyncio.gather(*self._closing, *(worker.close() for worker in self.workers))

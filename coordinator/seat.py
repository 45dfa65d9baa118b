"""A request's place on a worker."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.pool import WorkerPool
from coordinator.room import Demand
from coordinator.worker import Worker


class Seat:
    """A place on one worker of a pool; room is promised there as long as it is taken.

    Args:
        pool: on whose workers.
        demand: how much room.
        keys: the prompt's `prefix_keys`.
    """

    def __init__(self, pool: WorkerPool, demand: Demand, keys: Sequence[int]) -> None:
        self.pool = pool
        self._demand = demand
        self._keys = keys
        self._worker: Worker | None = None

    @property
    def is_free(self) -> bool:
        """Whether a worker has room for it."""
        return self.pool.can_hold(self._demand)

    @property
    def worker(self) -> Worker:
        """The worker that it is on.

        Raises:
            RuntimeError: it has not been taken.
        """
        if self._worker is None:
            raise RuntimeError(f"no seat has been taken on a {self.pool.role} worker")
        return self._worker

    def take(self) -> None:
        """Sit down on the worker that suits best."""
        self._sit(self.pool.place(self._demand, self._keys))

    def leave(self) -> None:
        """Give the room back."""
        self.worker.room.give_back(self._demand)

    def should_move(self, *, is_full: bool = False) -> bool:
        """Whether the worker is away, or full, and another can take the session."""
        if is_full and self.pool.has_other(self.worker, self._demand):
            return True
        return not self.worker.is_available and self.pool.has_other(self.worker)

    def move(self) -> None:
        """Go to another worker."""
        self.leave()
        self._sit(self.pool.place(self._demand, self._keys, but=self.worker))

    def has_read(self, keys: Sequence[int]) -> None:
        """The worker has read a text with these `prefix_keys`, and may know it when it comes again."""
        self._keys = keys
        self.worker.prefixes.add(self._keys)

    def _sit(self, worker: Worker) -> None:
        worker.room.take(self._demand)
        worker.placed_count += 1
        worker.prefixes.add(self._keys)
        self._worker = worker

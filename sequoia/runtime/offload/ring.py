"""Layers on their way: a few buffers that a thread fills ahead of the passes, in cyclic order.

The thread goes on between passes: while the last tokens are accepted and the next tree grows, the
first layers of the next pass arrive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition, Thread
from typing import Generic, TypeVar

Slot = TypeVar("Slot")


class Ring(Generic[Slot]):
    """Buffers filled by a thread and taken in turn by another.

    Args:
        slots: the buffers, at least two.
        order: the layers in the order of a pass, which begins again at its end.
        fill: brings a layer into a buffer; what it raises is raised where the layer is taken.
    """

    def __init__(
        self, slots: Sequence[Slot], order: Sequence[int], fill: Callable[[int, Slot], None]
    ) -> None:
        self._order = tuple(order)
        self._fill = fill
        self._free = deque(slots)
        self._filled: deque[tuple[Slot, Exception | None]] = deque()
        self._fill_at = 0  # in the order: what is filled next
        self._take_at = 0  # and what the oldest filled buffer holds, or will
        self._turn = 0  # counts the restarts; what was begun before one is worth nothing
        self._is_closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name="layers", daemon=True)
        self._thread.start()

    def take(self, layer: int) -> Slot:
        """Wait for a layer; the buffer is the caller's until it is given back.

        Out of turn, as after a pass that failed half-way, the reading starts again from there.

        Raises:
            Exception: whatever filling it raised.
            RuntimeError: the ring was closed.
        """
        with self._changed:
            if self._order[self._take_at] != layer:
                self._restart(self._order.index(layer))
            while not self._filled and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                raise RuntimeError("the layers are no longer read")
            slot, error = self._filled.popleft()
            self._take_at = self._after(self._take_at)
        if error is not None:
            self.give_back(slot)
            raise error
        return slot

    def give_back(self, slot: Slot) -> None:
        """Let a buffer be filled again."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread after the read in hand."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _after(self, at: int) -> int:
        return (at + 1) % len(self._order)

    def _restart(self, at: int) -> None:
        self._turn += 1
        self._take_at = self._fill_at = at
        self._free.extend(slot for slot, _ in self._filled)
        self._filled.clear()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._free and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                slot, turn, at = self._free.popleft(), self._turn, self._fill_at
                self._fill_at = self._after(at)
            error: Exception | None = None
            try:
                self._fill(self._order[at], slot)
            except Exception as caught:
                error = caught
            with self._changed:
                if turn == self._turn:
                    self._filled.append((slot, error))
                else:
                    self._free.append(slot)
                self._changed.notify_all()

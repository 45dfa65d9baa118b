"""The KV cache of a session, whatever engine fills it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

GROWTH_ROWS = 256


class Rows(Protocol):
    """The memory of a cache, in whatever layout the engine that fills it reads best."""

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated."""

    def move(self, start: int, rows: Sequence[int]) -> None:
        """Let `rows`, which rise, become rows start, start + 1, ..."""

    def repeated(self, length: int) -> Rows:
        """Memory of `length` rows that all repeat the first."""

    @property
    def is_retainable(self) -> bool:
        """Whether they may stay when their session is closed."""

    def copied(self, length: int) -> Rows | None:
        """Memory of its own with the first `length` rows; None where there is no room for it."""


class KVCache:
    """Keys and values of one session, written in place, grown in blocks of rows.

    Rows below `length` are valid. A pass writes its rows behind them; they become valid when the
    pass is over and `length` is raised. The engine that runs the first pass brings the memory.
    """

    def __init__(self) -> None:
        self.length = 0
        self.rows: Rows | None = None

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated."""
        return self.rows.memory_bytes if self.rows else 0

    def free(self) -> None:
        """Give the memory back at once, whoever still knows this cache."""
        self.rows, self.length = None, 0

    @property
    def is_retainable(self) -> bool:
        """Whether there are rows that may stay when their session is closed."""
        return self.rows is not None and self.rows.is_retainable

    def copied(self, length: int) -> KVCache | None:
        """A cache with the first `length` rows in memory of its own; None where there is no room."""
        rows = self.rows  # looked at once, since whoever needs the room may free them meanwhile
        rows = rows.copied(length) if rows else None
        if rows is None:
            return None
        other = KVCache()
        other.rows, other.length = rows, length
        return other

    def repeated(self, length: int) -> KVCache:
        """A cache of `length` rows that all repeat the first: like any other, to a clock."""
        other = KVCache()
        if self.rows:
            other.rows = self.rows.repeated(length)
        other.length = length
        return other

    def keep(self, start: int, rows: Sequence[int]) -> None:
        """Drop every row from `start` on but the given ones, which move up in their order."""
        length = start + len(rows)
        if self.rows and list(rows) != list(range(start, length)):
            self.rows.move(start, rows)
        self.length = length


def grown_capacity(capacity: int, needed: int) -> int:
    """Rows to allocate for `needed` ones; an eighth more than before, to copy long texts seldom."""
    rows = max(needed, capacity + capacity // 8)
    return -(-rows // GROWTH_ROWS) * GROWTH_ROWS

"""The bytes of KV cache that sessions may take: open ones first, closed ones what these leave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sequoia.runtime.cache import KVCache, grown_capacity
from sequoia.runtime.retained import LEAST_SHARED_TOKENS, RetainedSession, RetainedSessions


class Beginning(NamedTuple):
    """The first tokens of a prompt, as a closed session has read them."""

    retained: RetainedSession
    token_count: int
    is_copied: bool  # otherwise the rows are handed over, and the session is no longer retained

    def cache(self) -> KVCache | None:
        """A cache with their rows; None where there is no memory for a copy."""
        if self.is_copied:
            return self.retained.copied(self.token_count)
        return self.retained.handed_over(self.token_count)


class KVBudget:
    """How much of a limit open sessions hold, and the closed ones that are retained beside them.

    Whoever calls it sees to it that nobody else does meanwhile, and that `held_bytes` is true.

    Args:
        limit_bytes: most bytes of both.
        token_bytes: what a token's rows take.
        retained_limit: most closed sessions.
    """

    def __init__(self, limit_bytes: int, token_bytes: int, retained_limit: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.retained = RetainedSessions(retained_limit)
        self._token_bytes = token_bytes

    @property
    def is_exceeded(self) -> bool:
        """Whether both together take more than they may."""
        return self.held_bytes + self.retained.memory_bytes > self.limit_bytes

    def make_room_for_rows(self, growing: Iterable[tuple[KVCache, int]]) -> None:
        """Evict retained sessions as far as caches need their room to come to hold so many rows."""
        self._make_room(sum(self._growth(cache, row_count) for cache, row_count in growing))

    def beginning(self, token_ids: Sequence[int], with_features: bool) -> Beginning | None:
        """What a prompt shares with a retained session, if it is worth it.

        Rows are handed over where hardly any are lost thereby, and otherwise copied, so that a
        conversation is not given up for the few words with which all of them begin. Where there is no
        room for a copy, rows are handed over if half of them at least are of use: a session that held
        much more than it needs would have others evicted.
        """
        if (found := self.retained.find(token_ids, with_features)) is None:
            return None
        retained, count = found
        wasted = retained.wasted(count)
        needed = self._token_bytes * grown_capacity(0, count)
        if wasted >= LEAST_SHARED_TOKENS and self._make_room(needed, retained):
            return Beginning(retained, count, is_copied=True)
        if wasted > count:
            return None
        self.retained.remove(retained)
        return Beginning(retained, count, is_copied=False)

    def _growth(self, cache: KVCache, row_count: int) -> int:
        """Bytes that a cache takes beyond its own when it comes to hold so many rows."""
        held = cache.memory_bytes
        capacity = held // max(self._token_bytes, 1)
        if row_count <= capacity:
            return 0
        return max(self._token_bytes * grown_capacity(capacity, row_count) - held, 0)

    def _make_room(self, byte_count: int, kept: RetainedSession | None = None) -> bool:
        """Evict retained sessions until so many bytes are free; whether they are now.

        `kept` is not evicted, and where it alone leaves too little room no other is.
        """
        free = self.limit_bytes - self.held_bytes - byte_count
        if kept is not None and kept.memory_bytes > free:
            return False
        while self.retained.memory_bytes > free:
            if not self.retained.evict(kept):
                return False
        return True

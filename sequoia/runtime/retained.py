"""What closed sessions have read, kept for prompts that begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray

from sequoia.messages import Features
from sequoia.runtime.cache import KVCache

log = structlog.get_logger(__name__)

LEAST_SHARED_TOKENS = 16  # fewer are not worth it: a pass over so few more takes hardly longer


@dataclass(frozen=True, slots=True, eq=False)
class RetainedSession:
    """The rows of a closed session's committed tokens, and the features that were given for them.

    Attributes:
        token_ids: of the cache's rows.
        features: of the same tokens, in parts; None where none were asked for.
    """

    token_ids: NDArray[np.int64]
    cache: KVCache
    features: Sequence[Features] | None = None

    @classmethod
    def of(
        cls, token_ids: Sequence[int], cache: KVCache, features: Sequence[Features] | None
    ) -> RetainedSession:
        """That of a session whose cache holds rows of the first of its tokens alone."""
        return cls(np.array(token_ids[: cache.length], dtype=np.int64), cache, features)

    @property
    def memory_bytes(self) -> int:
        """Bytes of keys and values, and of features."""
        return self.cache.memory_bytes + sum(part.nbytes for part in self.features or ())

    def shared(self, token_ids: NDArray[np.int64], with_features: bool) -> int:
        """How many tokens a prompt begins with that are here as well, with features if those are wanted."""
        most = min(len(self.token_ids), len(token_ids))
        if with_features:
            most = min(most, sum(map(len, self.features or ())))
        differs = self.token_ids[:most] != token_ids[:most]
        return int(differs.argmax()) if differs.any() else most

    def wasted(self, count: int) -> int:
        """Rows that are lost if a session that shares so many takes these over."""
        return len(self.token_ids) - count

    def handed_over(self, count: int) -> KVCache:
        """The cache, cut to the first rows, which ends this session."""
        self.cache.keep(count, [])
        return self.cache

    def copied(self, count: int) -> KVCache | None:
        """A cache of its own with the first rows; None where there is no memory for them."""
        try:
            return self.cache.copied(count)
        except (MemoryError, RuntimeError) as error:  # torch's own is the latter
            log.warning("prefix not copied", token_count=count, error=str(error))
            return None

    def features_of(self, count: int) -> Features:
        """Those of the first tokens, `[tokens, hidden]`."""
        return np.concatenate(self.features or ())[:count]


class RetainedSessions:
    """Retained sessions, of which the least recently used goes first.

    Args:
        limit: most of them; 0 keeps none.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.memory_bytes = 0
        self._sessions: list[RetainedSession] = []  # the least recently used first

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: RetainedSession) -> None:
        """Keep a session if it is worth it, as the most recently used one."""
        if len(session.token_ids) < LEAST_SHARED_TOKENS or not self.limit:
            return
        self._sessions.append(session)
        self.memory_bytes += session.memory_bytes
        while len(self._sessions) > self.limit:
            self.evict()

    def evict(self, but: RetainedSession | None = None) -> bool:
        """Free the least recently used one, if there is one `but` this."""
        for oldest in self._sessions:
            if oldest is not but:
                self.remove(oldest)
                oldest.cache.free()
                return True
        return False

    def clear(self) -> bool:
        """Free all; says whether there were any."""
        had_any = bool(self._sessions)
        while self.evict():
            pass
        return had_any

    def find(
        self, token_ids: Sequence[int], with_features: bool
    ) -> tuple[RetainedSession, int] | None:
        """The session that shares most of the first tokens, and how many.

        Of several the one with the fewest other rows; of these the most recently used.
        """
        if len(token_ids) < LEAST_SHARED_TOKENS or not self._sessions:
            return None
        wanted = np.array(token_ids, dtype=np.int64)
        counted = [(one.shared(wanted, with_features), one) for one in reversed(self._sessions)]
        count, best = max(counted, key=lambda pair: (pair[0], -pair[1].wasted(pair[0])))
        return (best, count) if count >= LEAST_SHARED_TOKENS else None

    def use(self, session: RetainedSession) -> None:
        """It is the most recently used one now, if it is still here."""
        if session in self._sessions:
            self._sessions.remove(session)
            self._sessions.append(session)

    def remove(self, session: RetainedSession) -> None:
        """Take a session out; it is the caller's now."""
        self._sessions.remove(session)
        self.memory_bytes -= session.memory_bytes

"""The sessions of a worker, bounded in number and memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Generic, TypeVar

import structlog

from sequoia.errors import CapacityError, UnknownSessionError
from sequoia.messages import Prefill
from sequoia.runtime.cache import KVCache
from sequoia.runtime.kv_budget import KVBudget
from sequoia.runtime.retained import RetainedSession
from sequoia.runtime.session import Session

log = structlog.get_logger(__name__)

Reply = TypeVar("Reply")

ACTIVE_SECONDS = 10.0  # a session that was used so lately is counted as at work
EXPIRY_SECONDS = 600.0  # of a session that nobody uses for so long nobody will close it either


class SessionTable(Generic[Reply]):
    """All sessions of a worker, bounded in number and bytes; the least recently used goes first.

    Closed ones are retained as long as there is room beside the others (ADR 0015), at most
    `retained_limit`. Those that count here are the others. One whose coordinator died is never closed; it
    expires, which whoever opens another one or asks for `counts` sees to.

    Called from the event loop and from the device thread. A session's bytes are counted while it is
    in use and when that ends: nothing else can change them. Rows to come take `token_bytes` each.
    """

    def __init__(
        self,
        session_limit: int,
        kv_cache_limit_bytes: int,
        idle_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        on_evicted: Callable[[], None] = lambda: None,
        retained_limit: int = 0,
        token_bytes: int = 0,
    ) -> None:
        self.session_limit = session_limit
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._on_evicted = on_evicted
        self._sessions: OrderedDict[str, Session[Reply]] = OrderedDict()
        self._budget = KVBudget(kv_cache_limit_bytes, token_bytes, retained_limit)
        self._in_use: set[Session[Reply]] = set()
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._sessions)

    def counts(self) -> tuple[int, int]:
        """How many sessions there are, and how many of them are in use or were so a moment ago."""
        with self._lock:
            self._expire()
            latest = self._clock() - ACTIVE_SECONDS
            active = [s for s in self._sessions.values() if s.user_count or s.last_used > latest]
            return len(self._sessions), len(active)

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of KV cache that all sessions hold."""
        return self._budget.held_bytes

    @property
    def retained_bytes(self) -> int:
        """Bytes of what is kept of closed ones; never beside more of the others than the limit allows."""
        return self._budget.retained.memory_bytes

    @property
    def retains(self) -> bool:
        """Whether closed sessions are retained."""
        return self._budget.retained.limit > 0

    def open(self, prefill: Prefill) -> Session[Reply]:
        """Make a session, replacing one of the same name and evicting an idle one if needed.

        Raises:
            CapacityError: the table is full and every session in it is busy.
        """
        session: Session[Reply] = Session(
            prefill.session_id, prefill.settings, list(prefill.token_ids), prefill.next_step
        )
        with self._lock:
            self._expire()
            if replaced := self._sessions.get(prefill.session_id):
                self.drop(replaced)
            while len(self._sessions) >= self.session_limit:
                if not self._evict():
                    raise CapacityError(
                        f"all {self.session_limit} sessions are busy",
                        field="session_limit",
                        limit=self.session_limit,
                    )
            session.last_used = self._clock()
            self._sessions[prefill.session_id] = session
        return session

    @contextmanager
    def opening(self, prefill: Prefill) -> Iterator[Session[Reply]]:
        """A new session while its prompt is read: safe from eviction, and freed if that fails.

        Raises:
            CapacityError: the table is full and every session in it is busy.
        """
        with self._lock:
            session = self.open(prefill)
            session.is_prefilling = True
            self._hold(session)
        try:
            yield session
            session.is_prefilling = False
        except BaseException:
            session.is_closing = True
            raise
        finally:
            self._release(session)

    @contextmanager
    def using(self, session_id: str) -> Iterator[Session[Reply]]:
        """A session in use, safe from eviction.

        Raises:
            UnknownSessionError: there is no such session.
        """
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None:
                raise UnknownSessionError(f"no session {session_id}", session_id=session_id)
            self._sessions.move_to_end(session_id)
            self._hold(session)
        try:
            yield session
        finally:
            self._release(session)

    @contextmanager
    def holding(self, session: Session[Reply]) -> Iterator[None]:
        """The same for a session in hand, which may have been closed or replaced meanwhile."""
        with self._lock:
            self._hold(session)
        try:
            yield
        finally:
            self._release(session)

    def close(self, session_id: str) -> None:
        """End a session, at once or as soon as nobody uses it; what it has read may be retained."""
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None or session.is_closing:
                return
            session.is_closing = session.is_finished = True
            if not session.user_count:
                self._end(session)
        log.info(
            "session closed",
            session_id=session_id,
            step_count=session.step_count,
            largest_batch=session.largest_batch,
            reused_token_count=session.reused_count,
        )

    def drop(self, session: Session[Reply]) -> None:
        """Free a session at once; whoever uses it has to notice that it `is_closing`."""
        with self._lock:
            session.is_closing = True
            if self._holds(session):
                del self._sessions[session.session_id]
                self._budget.held_bytes -= session.counted_bytes

    def reuse(self, session: Session[Reply], with_features: bool) -> None:
        """Let a session that has read nothing yet begin with what a retained one has in common with it.

        Called on the device's thread alone, which is where rows are copied. Of its tokens the last one
        is not to be read.

        Args:
            session: which is in use.
            with_features: whether the tokens' features are wanted as well.
        """
        with self._lock:
            self._count_all()
            beginning = self._budget.beginning(session.token_ids[:-1], with_features)
        if beginning is None or (cache := beginning.cache()) is None:
            return
        with self._lock:
            self._budget.retained.use(beginning.retained)
        session.cache, session.reused_count = cache, beginning.token_count
        if with_features:
            session.features_given = [beginning.retained.features_of(beginning.token_count)]

    def make_room(self, growing: Iterable[tuple[KVCache, int]]) -> None:
        """Evict retained sessions before a pass, as far as it takes more memory than they leave.

        Args:
            growing: caches of sessions in use, and how many rows they may come to have.
        """
        with self._lock:
            self._count_all()
            self._budget.make_room_for_rows(growing)

    def evict_retained(self) -> bool:
        """Free the least recently used of the retained sessions, if there is one."""
        with self._lock:
            return self._budget.retained.evict()

    def free_retained(self) -> bool:
        """Free all retained sessions; says whether there were any."""
        with self._lock:
            return self._budget.retained.clear()

    def enforce_memory_limit(self) -> None:
        """Evict retained sessions, then idle ones, until the KV cache fits its limit again.

        Raises:
            CapacityError: what is in use alone is over the limit.
        """
        with self._lock:
            self._count_all()
            while self._budget.is_exceeded:
                if not (self._budget.retained.evict() or self._evict()):
                    raise CapacityError(
                        f"the KV cache needs {self._budget.held_bytes} bytes, over the limit of "
                        f"{self._budget.limit_bytes}",
                        field="kv_cache_limit_bytes",
                        limit=self._budget.limit_bytes,
                        value=self._budget.held_bytes,
                    )

    def _evict(self) -> bool:
        """Drop the least recently used session that nobody has used for a while, if there is one.

        A request between two of its steps is not idle: evicting it would only make it come back.
        """
        for session in self._unused_for(self._idle_seconds):
            self._free(session, "session evicted")
            return True
        return False

    def _expire(self) -> None:
        """Free the sessions that nobody will use or close any more."""
        for session in list(self._unused_for(EXPIRY_SECONDS)):
            self._free(session, "session expired")

    def _unused_for(self, seconds: float) -> Iterator[Session[Reply]]:
        """The sessions that nobody has used for so long, the least recently used first."""
        latest = self._clock() - seconds
        return (s for s in self._sessions.values() if not s.user_count and s.last_used <= latest)

    def _free(self, session: Session[Reply], event: str) -> None:
        self.drop(session)
        self._on_evicted()
        log.info(event, session_id=session.session_id, kv_cache_bytes=session.counted_bytes)

    def _hold(self, session: Session[Reply]) -> None:
        session.user_count += 1
        self._in_use.add(session)

    def _release(self, session: Session[Reply]) -> None:
        with self._lock:
            self._count(session)
            session.last_used = self._clock()
            session.user_count -= 1
            if session.user_count:
                return
            self._in_use.discard(session)
            if session.is_closing:
                self._end(session)

    def _end(self, session: Session[Reply]) -> None:
        """Free a session that nobody uses, and retain one that was closed and has not failed before."""
        is_whole = session.is_finished and not session.is_prefilling
        if self._holds(session) and is_whole and session.cache.is_retainable:
            session.drop_tree()
            tokens, features = session.token_ids, session.features_given
            self._budget.retained.add(RetainedSession.of(tokens, session.cache, features))
        self.drop(session)
        while (
            self._budget.is_exceeded and self._budget.retained.evict()
        ):  # its features count from now on
            pass

    def _holds(self, session: Session[Reply]) -> bool:
        return self._sessions.get(session.session_id) is session

    def _count_all(self) -> None:
        for session in self._in_use:
            self._count(session)

    def _count(self, session: Session[Reply]) -> None:
        """Bring the sum of bytes up to date with one session."""
        if self._holds(session):
            counted, session.counted_bytes = session.counted_bytes, session.cache.memory_bytes
            self._budget.held_bytes += session.counted_bytes - counted

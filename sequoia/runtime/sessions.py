"""Sessions of a worker: soft state that can be rebuilt anywhere from its tokens."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Generic, TypeVar

import structlog
from torch import Tensor

from sequoia.errors import CapacityError, MalformedTreeError, StaleStepError, UnknownSessionError
from sequoia.messages import Prefill, SessionSettings, StepHeader
from sequoia.runtime.cache import KVCache
from sequoia.tree import ROOT_ONLY, Tree, TreeError

log = structlog.get_logger(__name__)

Reply = TypeVar("Reply")


@dataclass(slots=True, eq=False)
class Session(Generic[Reply]):
    """One request's state on a worker.

    `token_ids` are the committed tokens. The cache holds rows for a prefix of them and, behind
    that, the rows of the last tree: node i in row `node_rows[i]`, where it was forwarded at all.
    """

    session_id: str
    settings: SessionSettings
    token_ids: list[int]
    next_step: int
    # What a feature-conditioned draft reads at the committed tokens that are not cached yet.
    features: Tensor | None = None  # [uncached tokens, hidden]
    cache: KVCache = field(default_factory=KVCache)
    tree: Tree | None = None
    node_rows: dict[int, int] = field(default_factory=dict)
    last_reply: Reply | None = None
    step_count: int = 0
    largest_batch: int = 0
    is_prefilling: bool = False  # not all of the prompt has been read
    # The table's notes; nobody else writes them.
    user_count: int = 0
    is_closing: bool = False  # to be freed as soon as nobody uses it
    last_used: float = 0.0
    counted_bytes: int = 0

    def repeated(self, header: StepHeader) -> Reply | None:
        """The reply of the last step if this call repeats it.

        Raises:
            StaleStepError: the step is neither the last one nor the next, or comes before the end
                of the prefill.
        """
        if self.is_prefilling:
            raise StaleStepError(
                f"step {header.step} of session {self.session_id}: its prefill is not over",
                field="header.step",
            )
        if header.step == self.next_step - 1 and self.last_reply is not None:
            return self.last_reply
        if header.step != self.next_step:
            raise StaleStepError(
                f"step {header.step} of session {self.session_id}: expected {self.next_step}",
                field="header.step",
                limit=self.next_step,
                value=header.step,
            )
        return None

    def advance(self, header: StepHeader, root_token_id: int) -> None:
        """Commit what the last step accepted and the new root; keep only the rows of what stays.

        Raises:
            StaleStepError: the base length contradicts what the session holds.
            MalformedTreeError: the accepted nodes are not a path of the last tree.
        """
        expected = len(self.token_ids) + (len(header.accepted_nodes) + 1 if self.tree else 0)
        if header.base_length != expected:
            raise StaleStepError(
                f"base length {header.base_length} of session {self.session_id}: "
                f"the session is at {expected}",
                field="header.base_length",
                limit=expected,
                value=header.base_length,
            )
        topology = self.tree.topology if self.tree else ROOT_ONLY
        try:
            topology.require_path(header.accepted_nodes)
        except TreeError as error:
            raise MalformedTreeError(str(error), field="header.accepted_node_indices") from error
        if self.tree is None:
            if self.token_ids[-1] != root_token_id:
                raise StaleStepError(
                    f"root token {root_token_id}: the session ends with {self.token_ids[-1]}",
                    field="root_token_id",
                    limit=self.token_ids[-1],
                )
            return
        self._keep_rows(header.accepted_nodes)
        self.token_ids.extend(self.tree.token_ids[node] for node in header.accepted_nodes)
        self.token_ids.append(root_token_id)
        self.tree, self.node_rows = None, {}

    def _keep_rows(self, accepted: tuple[int, ...]) -> None:
        # Roots of trees that had no other node may not have been read by a draft.
        start = min(len(self.token_ids) - 1, self.cache.length)
        path = (0, *accepted)
        self.cache.keep(start, [self.node_rows[node] for node in path if node in self.node_rows])

    def finish_step(self, header: StepHeader, tree: Tree, reply: Reply, batch_size: int) -> None:
        """Remember the tree and the reply until the next step; `batch_size` sessions shared it."""
        self.step_count += 1
        self.largest_batch = max(self.largest_batch, batch_size)
        self.tree = tree
        self.last_reply = reply
        self.next_step = header.step + 1


class SessionTable(Generic[Reply]):
    """All sessions of a worker, bounded in number and bytes; the least recently used goes first.

    Called from the event loop and from the device thread. A session's bytes are counted while it is
    in use and when that ends: nothing else can change them.
    """

    def __init__(
        self,
        session_limit: int,
        kv_cache_limit_bytes: int,
        idle_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        on_evicted: Callable[[], None] = lambda: None,
    ) -> None:
        self.session_limit = session_limit
        self.kv_cache_limit_bytes = kv_cache_limit_bytes
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._on_evicted = on_evicted
        self._sessions: OrderedDict[str, Session[Reply]] = OrderedDict()
        self._in_use: set[Session[Reply]] = set()
        self._held_bytes = 0
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of KV cache that all sessions hold."""
        return self._held_bytes

    def open(self, prefill: Prefill) -> Session[Reply]:
        """Make a session, replacing one of the same name and evicting an idle one if needed.

        Raises:
            CapacityError: the table is full and every session in it is busy.
        """
        session: Session[Reply] = Session(
            prefill.session_id, prefill.settings, list(prefill.token_ids), prefill.next_step
        )
        with self._lock:
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
        """Free a session, at once or as soon as nobody uses it."""
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None or session.is_closing:
                return
            session.is_closing = True
            if not session.user_count:
                self.drop(session)
        log.info(
            "session closed",
            session_id=session_id,
            step_count=session.step_count,
            largest_batch=session.largest_batch,
        )

    def drop(self, session: Session[Reply]) -> None:
        """Free a session at once; whoever uses it has to notice that it `is_closing`."""
        with self._lock:
            session.is_closing = True
            if self._holds(session):
                del self._sessions[session.session_id]
                self._held_bytes -= session.counted_bytes

    def enforce_memory_limit(self) -> None:
        """Evict idle sessions until the KV cache fits its limit again.

        Raises:
            CapacityError: what is in use alone is over the limit.
        """
        with self._lock:
            for session in self._in_use:
                self._count(session)
            while self._held_bytes > self.kv_cache_limit_bytes:
                if not self._evict():
                    raise CapacityError(
                        f"the KV cache needs {self._held_bytes} bytes, over the limit of "
                        f"{self.kv_cache_limit_bytes}",
                        field="kv_cache_limit_bytes",
                        limit=self.kv_cache_limit_bytes,
                        value=self._held_bytes,
                    )

    def _evict(self) -> bool:
        """Drop the least recently used session that nobody has used for a while, if there is one.

        A request between two of its steps is not idle: evicting it would only make it come back.
        """
        latest = self._clock() - self._idle_seconds
        for name, session in self._sessions.items():
            if not session.user_count and session.last_used <= latest:
                self.drop(session)
                self._on_evicted()
                log.info("session evicted", session_id=name, kv_cache_bytes=session.counted_bytes)
                return True
        return False

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
                self.drop(session)

    def _holds(self, session: Session[Reply]) -> bool:
        return self._sessions.get(session.session_id) is session

    def _count(self, session: Session[Reply]) -> None:
        """Bring the sum of bytes up to date with one session."""
        if self._holds(session):
            counted, session.counted_bytes = session.counted_bytes, session.cache.memory_bytes
            self._held_bytes += session.counted_bytes - counted

"""Waiting for company: whether a pass should begin now or a moment later, with more sessions.

Two streams that take turns cost two passes where one would do, and they keep taking turns: while the one
is in a pass the other's next step arrives. A session that has just been answered comes back after a
round trip, so a pass that waits for it has both, and has both from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

PATIENCE = 1.5  # times as long as sessions usually take to come back
NEWEST_WEIGHT = 0.2  # of the newest gap in the running estimate
LONG_PASS = 20  # times as long as the wait: then the last one to miss it would lose more


class Rendezvous:
    """Who was answered and will be back, and when."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.gap_seconds: float | None = None  # from an answer to the session's next step
        self._pass_seconds = 0.0
        self._answered_at: dict[str, float] = {}

    def arrived(self, session_id: str) -> None:
        """A session has asked for a step."""
        answered_at = self._answered_at.pop(session_id, None)
        if answered_at is None:
            return
        gap, known = self.clock() - answered_at, self.gap_seconds
        if known is None:
            self.gap_seconds = gap
        else:  # a client that pauses was not on its way
            self.gap_seconds = known + NEWEST_WEIGHT * (min(gap, 2 * known) - known)

    def answered(self, session_ids: Sequence[str], pass_seconds: float) -> None:
        """A pass over these sessions has ended; they will be back unless they are done."""
        now = self.clock()
        self._pass_seconds = pass_seconds
        self._answered_at.update(dict.fromkeys(session_ids, now))

    def forget(self, session_id: str) -> None:
        """A session has ended."""
        self._answered_at.pop(session_id, None)

    def patience(self, waiting_count: int, waiting_since: float) -> float:
        """Seconds that so many steps, the first of them here since then, should still wait for others.

        Not once most are here: those who wait would lose more than the rest gains; unless a pass is
        so long that the wait is little to anybody. And no longer than a pass takes: a second pass would
        be over by then.
        """
        if self.gap_seconds is None:
            return 0.0
        now, longest = self.clock(), PATIENCE * self.gap_seconds
        self._answered_at = {
            session_id: at for session_id, at in self._answered_at.items() if at + longest > now
        }
        if len(self._answered_at) < waiting_count and self._pass_seconds < LONG_PASS * longest:
            return 0.0
        latest = max(self._answered_at.values(), default=now - longest)
        return max(min(latest + longest, waiting_since + self._pass_seconds) - now, 0.0)

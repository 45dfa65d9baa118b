"""How fast a device is just now, and so how much of a prompt a pass may read between two steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sequoia.messages import PREFILL_CHUNK

LEAST_TOKENS = 16
MOST_TOKENS = PREFILL_CHUNK
RECENT_SECONDS = 1.0
RECENT_STEPS = 4.0
NEWEST_WEIGHT = 0.5  # of the newest measurement in a running estimate


class Pace:
    """Running estimates of the time of a step and of a prompt's token, both in seconds.

    The device thread reports and asks; the event loop says which steps wait. A pass over fewer than
    `least_tokens` takes hardly less time; one over more than `most_tokens` is too large for the device.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        least_tokens: int = LEAST_TOKENS,
        most_tokens: int = MOST_TOKENS,
    ) -> None:
        self.clock = clock
        self.least_tokens = min(least_tokens, most_tokens)
        self.most_tokens = most_tokens
        self.step_seconds: float | None = None
        self.token_seconds: float | None = None
        self._last_step = float("-inf")
        self._waiting_count = 0

    @contextmanager
    def waiting_step(self) -> Iterator[None]:
        """A step that has been asked for, until it is answered."""
        self._waiting_count += 1
        try:
            yield
        finally:
            self._waiting_count -= 1

    def has_stepped(self, seconds: float) -> None:
        """A batch of steps took so long."""
        self.step_seconds = _updated(self.step_seconds, seconds)
        self._last_step = self.clock()

    def has_read(self, token_count: int, seconds: float) -> None:
        """A pass over prompts took so long; short ones tell little of what a token costs."""
        if token_count >= self.least_tokens:
            self.token_seconds = _updated(self.token_seconds, seconds / token_count)

    def token_budget(self) -> int:
        """Tokens that the next pass over prompts may read.

        As many as take no longer than a step while sessions are stepping, and as many as fit a pass
        when none does. What a token costs falls with the size of the pass, so the estimate settles at
        the size where both times meet.
        """
        if not self._is_stepping():
            return self.most_tokens
        if self.step_seconds is None or not self.token_seconds:
            return self.least_tokens
        affordable = int(self.step_seconds / self.token_seconds)
        return min(max(affordable, self.least_tokens), self.most_tokens)

    def _is_stepping(self) -> bool:
        recent = max(RECENT_SECONDS, RECENT_STEPS * (self.step_seconds or 0.0))
        return self._waiting_count > 0 or self.clock() - self._last_step < recent


def _updated(estimate: float | None, newest: float) -> float:
    return newest if estimate is None else estimate + NEWEST_WEIGHT * (newest - estimate)

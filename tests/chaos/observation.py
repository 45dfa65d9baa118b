"""One fault under load, from the undisturbed minute before it until throughput is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.chaos.figures import Recovery, recovery
from tests.chaos.load import Load

SETTLE_SECONDS = 3.0  # after the first tokens of all; prompts are read in a rush at the beginning
BEFORE_SECONDS = 6.0
AFTER_SECONDS = 8.0  # at least, after the disturbance
LIMIT_SECONDS = 60.0  # for throughput to come back
POLL_SECONDS = 0.25

Disturb = Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a fault did; times in seconds, None where a figure has no sense.

    Attributes:
        fault: its name.
        clients: requests in flight.
        request_count: requests that were asked, from the beginning of the load to its end.
        lost_count: those of them that never came to their end.
        repeated_count: attempts that were refused or cut off, and made again by the client.
        differing_count: requests with a token that is not in the undisturbed text.
        before: tokens per second before the fault.
        lowest_share: of that, in the worst window after it.
        back_seconds: until throughput was back.
        longest_silence: between two messages of a request.
        longest_first: from a request to its first tokens, time in the queue included.
        note: what else was measured, in words.
    """

    fault: str
    clients: int
    request_count: int
    lost_count: int
    repeated_count: int
    differing_count: int
    before: float | None
    lowest_share: float | None
    back_seconds: float | None
    longest_silence: float
    longest_first: float
    note: str = ""
    problems: tuple[str, ...] = ()

    def require_nothing_lost(self) -> None:
        """Fail the test where a request is lost or says something else."""
        assert self.lost_count == 0, self.problems
        assert self.differing_count == 0


async def observe(
    fault: str, load: Load, disturb: Disturb, *, back_from_the_end: bool = False
) -> Figures:
    """Load, disturb, and go on until throughput is back.

    Args:
        fault: its name.
        load: that has not begun.
        disturb: does it, returns when it is over, and may tell something.
        back_from_the_end: whether throughput is looked at from the end of the disturbance on.

    Raises:
        AssertionError: throughput was not back within its time.
    """
    async with load.running():
        await load.until_all_have_text()
        await asyncio.sleep(SETTLE_SECONDS + BEFORE_SECONDS)
        began = time.monotonic()
        before = load.arrivals.rate(began - BEFORE_SECONDS, began)
        note = await disturb()
        ended = time.monotonic()
        found = await _recovered(load, before, ended if back_from_the_end else began, ended)
    return summary(fault, load, before, found, note)


async def _recovered(load: Load, before: float, since: float, ended: float) -> Recovery | None:
    """Look until throughput is back, or the time for that is over."""
    while True:
        await asyncio.sleep(POLL_SECONDS)
        now = time.monotonic()
        found = recovery(load.arrivals, before, since, now)
        is_back = found is not None and found.seconds is not None
        if (is_back and now - ended >= AFTER_SECONDS) or now - ended >= LIMIT_SECONDS:
            return found


def summary(
    fault: str,
    load: Load,
    before: float | None = None,
    found: Recovery | None = None,
    note: str = "",
) -> Figures:
    """The figures of a load that has ended."""
    return Figures(
        fault,
        load.clients,
        len(load.asked),
        sum(not one.is_complete for one in load.asked),
        sum(one.attempts_refused for one in load.asked),
        sum(one.differs for one in load.asked),
        before,
        found.lowest_share if found else None,
        found.seconds if found else None,
        max(one.longest_silence for one in load.asked),
        max(one.first_token or 0.0 for one in load.asked),
        note,
        tuple(sorted({one.problem for one in load.asked if one.problem})),
    )

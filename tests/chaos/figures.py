"""From the times at which tokens came to what a fault did: how deep, how long, how silent."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from sequoia.errors import Reason

WINDOW_SECONDS = 2.0
STRIDE_SECONDS = 0.1
BACK_SHARE = 0.8


@dataclass(slots=True)
class Arrivals:
    """When tokens came, of all streams together; times never go back."""

    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, time: float, count: int) -> None:
        """One message with so many tokens."""
        self.times.append(time)
        self.counts.append(count)

    def rate(self, start: float, end: float) -> float:
        """Tokens per second that came in [start, end)."""
        first, last = bisect_left(self.times, start), bisect_left(self.times, end)
        return sum(self.counts[first:last]) / (end - start)

    def rates(self, start: float, end: float) -> list[float]:
        """Tokens per second in every window that lies in [start, end], one each stride."""
        sums = [0, *accumulate(self.counts)]
        windows = int((end - start - WINDOW_SECONDS) / STRIDE_SECONDS + 1e-6) + 1
        begins = (start + number * STRIDE_SECONDS for number in range(max(windows, 0)))
        return [
            (
                sums[bisect_left(self.times, begin + WINDOW_SECONDS)]
                - sums[bisect_left(self.times, begin)]
            )
            / WINDOW_SECONDS
            for begin in begins
        ]


@dataclass(frozen=True, slots=True)
class Recovery:
    """What became of throughput after a fault.

    Attributes:
        lowest_share: of the throughput before, in the worst window.
        seconds: from the fault to the beginning of the first window, from the worst one on, with at least
            `BACK_SHARE` of the throughput before; 0 where it never fell below; None: not yet.
    """

    lowest_share: float
    seconds: float | None


def recovery(arrivals: Arrivals, before: float, fault_at: float, until: float) -> Recovery | None:
    """How throughput came back; None while no whole window has passed since the fault."""
    shares = [rate / before for rate in arrivals.rates(fault_at, until)]
    if not shares:
        return None
    lowest = min(range(len(shares)), key=lambda number: shares[number])
    if shares[lowest] >= BACK_SHARE:
        return Recovery(shares[lowest], 0.0)
    back = (n for n in range(lowest, len(shares)) if shares[n] >= BACK_SHARE)
    first = next(back, None)
    return Recovery(shares[lowest], None if first is None else first * STRIDE_SECONDS)


@dataclass(slots=True)
class Asked:
    """One request as its client saw it, over all attempts; times in seconds.

    Attributes:
        number: of the request in the list of requests.
        tokens: of the last attempt.
        differs: whether a token of any attempt was another than in the undisturbed text.
        attempts_refused: attempts that ended in a way that a client may repeat.
        longest_silence: between two messages, over a repeated attempt as well.
        first_token: from the first attempt to the first tokens; None: there were none.
        problem: why it was lost; empty where it was not. `reason` is that in one word.
    """

    number: int
    began_at: float
    tokens: list[int] = field(default_factory=list)
    differs: bool = False
    attempts_refused: int = 0
    longest_silence: float = 0.0
    first_token: float | None = None
    is_complete: bool = False
    problem: str = ""
    reason: Reason | None = None
    _heard_at: float = 0.0

    def hear(self, now: float, tokens: Sequence[int], undisturbed: Sequence[int]) -> None:
        """A message with tokens."""
        if self.first_token is None:
            self.first_token = now - self.began_at
        else:
            self.longest_silence = max(self.longest_silence, now - self._heard_at)
        self._heard_at = now
        expected = undisturbed[len(self.tokens) : len(self.tokens) + len(tokens)]
        self.differs |= list(tokens) != list(expected)
        self.tokens += tokens

    def complete(self, undisturbed: Sequence[int]) -> None:
        """The stream ended as it should."""
        self.is_complete = True
        self.differs |= len(self.tokens) != len(undisturbed)

"""What fault tests make of the times at which tokens came."""

from __future__ import annotations

import pytest

from tests.chaos.figures import Arrivals, Asked, Recovery, recovery


def steady(*parts: tuple[float, float, int]) -> Arrivals:
    """Ten messages a second of so many tokens, from one time to another."""
    arrivals = Arrivals()
    for start, end, tokens in parts:
        for tick in range(round(start * 10), round(end * 10)):
            arrivals.add(tick / 10 + 0.05, tokens)  # clear of the windows' edges
    return arrivals


def test_a_rate_counts_what_came_from_the_start_up_to_the_end() -> None:
    """The end itself belongs to the next window."""
    assert steady((0, 10, 3)).rate(2.0, 4.0) == 30.0


def test_a_steady_stream_was_never_gone() -> None:
    """Where no window falls below the limit throughput was back at once."""
    assert recovery(steady((0, 20, 10)), 100.0, 10.0, 20.0) == Recovery(1.0, 0.0)


def test_a_gap_lasts_from_the_fault_to_the_next_full_window() -> None:
    """Five silent seconds: the first window with four fifths begins 0.4 s before they end."""
    found = recovery(steady((0, 10, 10), (15, 25, 10)), 100.0, 10.0, 25.0)
    assert found is not None
    assert found.lowest_share == 0.0
    assert found.seconds == pytest.approx(4.6)


def test_a_late_dip_counts_from_the_fault_as_well() -> None:
    """A fault that shows only after three good seconds is not over before it has begun."""
    found = recovery(steady((0, 13, 10), (16, 25, 10)), 100.0, 10.0, 25.0)
    assert found is not None
    assert found.seconds == pytest.approx(5.6)


def test_throughput_that_stays_low_is_not_back() -> None:
    """There are no seconds to tell, but the lowest share is known."""
    found = recovery(steady((0, 10, 10), (10, 20, 5)), 100.0, 10.0, 20.0)
    assert found == Recovery(0.5, None)


def test_before_a_whole_window_there_is_nothing_to_tell() -> None:
    """A part of a window would be taken for a gap."""
    assert recovery(steady((0, 11, 10)), 100.0, 10.0, 11.0) is None


def test_a_silence_spans_a_repeated_attempt() -> None:
    """A client waits for the text, whichever attempt brings it."""
    asked = Asked(0, began_at=1.0)
    asked.hear(1.5, [7], (7, 8))
    asked.tokens.clear()
    asked.hear(4.5, [7], (7, 8))
    asked.hear(4.6, [8], (7, 8))
    asked.complete((7, 8))

    assert asked.first_token == 0.5
    assert asked.longest_silence == 3.0
    assert asked.is_complete
    assert not asked.differs


@pytest.mark.parametrize("tokens", [[7, 9], [7], [7, 8, 9]], ids=["other", "fewer", "more"])
def test_a_text_that_is_not_the_undisturbed_one_differs(tokens: list[int]) -> None:
    """In a token, or in its length."""
    asked = Asked(0, began_at=0.0)
    asked.hear(1.0, tokens, (7, 8))
    asked.complete((7, 8))
    assert asked.differs


def test_an_attempt_that_was_cut_off_is_compared_as_well() -> None:
    """What a client has read is not taken back by the attempt that follows."""
    asked = Asked(0, began_at=0.0)
    asked.hear(1.0, [9], (7, 8))
    asked.tokens.clear()
    asked.hear(2.0, [7, 8], (7, 8))
    asked.complete((7, 8))
    assert asked.differs

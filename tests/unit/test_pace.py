from __future__ import annotations

from dataclasses import dataclass

import pytest

from sequoia.runtime.pace import LEAST_TOKENS, MOST_TOKENS, Pace


@dataclass
class Clock:
    """Stands still until it is set."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    """A fresh clock."""
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    """A device on which a token takes 10 ms, and a step has just taken 1 s."""
    pace = Pace(clock)
    pace.has_read(100, 1.0)
    pace.has_stepped(1.0)
    return pace


def test_a_device_without_steps_reads_as_much_as_a_pass_holds() -> None:
    """Nobody waits."""
    assert Pace().token_budget() == MOST_TOKENS


def test_between_steps_a_pass_takes_no_longer_than_one(pace: Pace) -> None:
    """As many tokens as take the time of a step."""
    assert pace.token_budget() == 100


def test_steps_that_are_over_for_long_do_not_count(pace: Pace, clock: Clock) -> None:
    """Long is measured in steps, and is a second at least."""
    clock.seconds = 3.9
    assert pace.token_budget() == 100
    clock.seconds = 4.1
    assert pace.token_budget() == MOST_TOKENS
    pace.has_stepped(0.001)
    pace.has_stepped(0.001)
    clock.seconds += 0.9
    assert pace.token_budget() < 100


def test_a_step_that_waits_counts(pace: Pace, clock: Clock) -> None:
    """However long ago the last one was."""
    clock.seconds = 100.0
    with pace.waiting_step():
        assert pace.token_budget() == 100
    assert pace.token_budget() == MOST_TOKENS


def test_an_unknown_device_is_tried_with_little(clock: Clock) -> None:
    """No step and no prompt has been measured; the first of either must not be held up for long."""
    pace = Pace(clock)
    with pace.waiting_step():
        assert pace.token_budget() == LEAST_TOKENS
        pace.has_read(100, 1.0)
        assert pace.token_budget() == LEAST_TOKENS


@pytest.mark.parametrize(("seconds", "tokens"), [(1e-6, LEAST_TOKENS), (1e6, MOST_TOKENS)])
def test_the_budget_has_bounds(clock: Clock, seconds: float, tokens: int) -> None:
    """Prompts get on whatever a step takes, and a pass stays within its memory."""
    pace = Pace(clock)
    pace.has_read(100, 1.0)
    pace.has_stepped(seconds)
    assert pace.token_budget() == tokens


def test_estimates_follow_what_is_measured(pace: Pace) -> None:
    """The newest measurement weighs most, one outlier is not everything."""
    pace.has_stepped(2.0)
    assert pace.token_budget() == 150
    for _ in range(20):
        pace.has_read(100, 2.0)
    assert pace.token_budget() == 75


def test_short_passes_say_nothing_of_a_token(pace: Pace) -> None:
    """What they take is the time of any pass."""
    pace.has_read(LEAST_TOKENS - 1, 1.0)
    assert pace.token_budget() == 100


def test_where_every_pass_streams_the_weights_chunks_are_large(clock: Clock) -> None:
    """A pass over a few tokens costs as much, so nothing is gained by reading few of them."""
    pace = Pace(clock, least_tokens=MOST_TOKENS)
    pace.has_stepped(9.0)
    with pace.waiting_step():
        assert pace.token_budget() == MOST_TOKENS
        pace.has_read(MOST_TOKENS, 18.0)
        assert pace.token_budget() == MOST_TOKENS


@pytest.mark.parametrize("least_tokens", [LEAST_TOKENS, MOST_TOKENS])
def test_no_pass_has_more_tokens_than_memory_was_set_aside_for(
    clock: Clock, least_tokens: int
) -> None:
    """Beside steps and alone, however much would be affordable."""
    pace = Pace(clock, least_tokens, most_tokens=100)
    assert pace.token_budget() == 100
    pace.has_read(100, 0.1)
    pace.has_stepped(9.0)
    assert pace.token_budget() == 100

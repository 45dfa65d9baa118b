from __future__ import annotations

from sequoia.runtime.rendezvous import PATIENCE, Rendezvous


class Clock:
    """Time that passes when the test says so; seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def after_one_round(clock: Clock, gap: float = 0.002, pass_seconds: float = 0.01) -> Rendezvous:
    """Both sessions were answered once, and came back after `gap`."""
    rendezvous = Rendezvous(clock)
    rendezvous.answered(["a", "b"], pass_seconds)
    clock.now += gap
    rendezvous.arrived("a")
    rendezvous.arrived("b")
    return rendezvous


def test_nobody_is_waited_for_before_anybody_came_back() -> None:
    """How long it takes is not known yet."""
    clock = Clock()
    rendezvous = Rendezvous(clock)
    rendezvous.answered(["a"], 0.01)
    assert rendezvous.patience(1, clock.now) == 0.0


def test_a_session_that_was_just_answered_is_waited_for() -> None:
    """For somewhat longer than the round trip, and then no more."""
    clock = Clock()
    rendezvous = after_one_round(clock)
    rendezvous.answered(["a"], 0.01)  # while b came
    assert abs(rendezvous.patience(1, clock.now) - PATIENCE * 0.002) < 1e-9
    clock.now += 0.0021
    assert rendezvous.patience(1, clock.now - 0.0021) > 0
    clock.now += 0.001
    assert rendezvous.patience(1, clock.now - 0.0031) == 0.0
    assert rendezvous.patience(1, clock.now) == 0.0


def test_those_who_are_here_or_have_ended_are_not_waited_for() -> None:
    """A stream alone never waits."""
    clock = Clock()
    rendezvous = after_one_round(clock)
    assert rendezvous.patience(1, clock.now) == 0.0
    rendezvous.answered(["a", "b"], 0.01)
    rendezvous.arrived("a")
    rendezvous.forget("b")
    assert rendezvous.patience(1, clock.now) == 0.0


def test_no_wait_is_longer_than_a_pass() -> None:
    """A draft's passes are short beside the target's, which its sessions come back from."""
    clock = Clock()
    rendezvous = after_one_round(clock, gap=0.02, pass_seconds=0.003)
    rendezvous.answered(["a"], 0.003)
    since = clock.now
    assert abs(rendezvous.patience(1, since) - 0.003) < 1e-9
    clock.now += 0.003
    assert rendezvous.patience(1, since) == 0.0


def test_most_do_not_wait_for_the_rest() -> None:
    """Two wait for two, three do not wait for one."""
    clock = Clock()
    rendezvous = after_one_round(clock)
    rendezvous.answered(["a", "b", "c", "d"], 0.01)
    assert rendezvous.patience(4, clock.now) > 0
    rendezvous.arrived("a")
    rendezvous.arrived("b")
    assert rendezvous.patience(2, clock.now) > 0
    rendezvous.arrived("c")
    assert rendezvous.patience(3, clock.now) == 0.0


def test_the_gap_follows_what_is_seen() -> None:
    """Slowly, and a client that paused does not make all others wait."""
    clock = Clock()
    rendezvous = after_one_round(clock)
    rendezvous.answered(["a"], 0.01)
    clock.now += 1000.0
    rendezvous.arrived("a")
    assert rendezvous.gap_seconds is not None
    assert 0.002 < rendezvous.gap_seconds < 0.003


def test_before_a_long_pass_the_last_one_is_waited_for_too() -> None:
    """Whoever misses it waits for all of it; the others lose a round trip."""
    clock = Clock()
    rendezvous = after_one_round(clock, pass_seconds=9.0)
    rendezvous.answered(["a", "b", "c"], 9.0)
    rendezvous.arrived("a")
    rendezvous.arrived("b")
    assert rendezvous.patience(2, clock.now) > 0
    rendezvous.answered([], 0.01)
    assert rendezvous.patience(2, clock.now) == 0.0

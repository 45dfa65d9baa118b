"""The page that fault tests write."""

from __future__ import annotations

from dataclasses import replace

from sequoia.bench.environment import Environment
from tests.chaos.faults import FAULTS
from tests.chaos.journal import Journal, merged
from tests.chaos.observation import Figures
from tests.chaos.page import page

EARLIER = Environment(
    "monday", "Linux", "CPU", 2, (), 2**30, "", "3.11", {}, "abc", (0.0, 0.0, 0.0)
)
NOW = replace(EARLIER, started_at="tuesday", commit="def")


def found(fault: str, back_seconds: float | None = 1.25) -> Figures:
    """What a test might find."""
    return Figures(fault, 16, 40, 0, 0, 0, 120.0, 0.5, back_seconds, 2.0, 1.0, "a note")


def test_a_whole_run_says_where_it_ran_and_nothing_else_of_runs() -> None:
    """Every fault has a row and is from the run whose commit stands on the page."""
    body = merged({}, NOW, [found(name) for name in FAULTS])
    text = page(NOW, body["faults"])
    for words in FAULTS.values():
        assert f"| {words} | 40 | 0 | 0 | 0 | 120 | 50% | 1.2 | 2.0 | 1.0 |" in text
    assert "def" in text
    assert "Not from the run" not in text


def test_a_part_keeps_the_others_figures_and_says_so() -> None:
    """An earlier run's faults name their run; those that nobody has measured are named."""
    first = merged({}, EARLIER, [found("draft_killed"), found("redis_killed", None)])
    second = merged(first, NOW, [found("redis_killed")])
    text = page(NOW, second["faults"])
    assert f"- {FAULTS['draft_killed']}: measured monday at abc." in text
    assert f"- {FAULTS['redis_killed']}: measured" not in text
    assert f"- {FAULTS['target_paused']}: not measured yet." in text


def test_the_figures_of_a_failed_test_do_not_reach_the_page() -> None:
    """They are shown, and what was known before stays."""
    journal = Journal(NOW)
    journal.add(found("draft_killed"))
    journal.close_test(has_passed=True)
    journal.add(found("redis_killed"))
    journal.close_test(has_passed=False)
    assert [one.fault for one in journal.passed] == ["draft_killed"]
    assert [one.fault for one in journal.failed] == ["redis_killed"]

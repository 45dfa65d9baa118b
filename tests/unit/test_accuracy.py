"""Predictions against what was measured, and who is to blame."""

from dataclasses import replace

import pytest

from planner.accuracy import Accuracy
from sequoia.observations import Circumstance, StepKind, StepSums, StepTimes
from sequoia.plans import PlannedTree

# 2 tokens a step, 40 ms a step.
TREE = PlannedTree("greedy", 1, (-1, 0, 0, 1), 2.0, 0.020, 0.030)
PLANNED = Circumstance("greedy", 1, StepKind.PLANNED)


def steps(count: int, tokens: int = 2, seconds: float = 0.040) -> StepSums:
    """So many steps that all yielded and took the same."""
    sums = StepSums()
    for _ in range(count):
        sums.record(tokens, StepTimes(seconds, 0.004, 0.030, 1, 80))
    return sums


def begun() -> Accuracy:
    """Measures the tree from now on."""
    accuracy = Accuracy()
    accuracy.begin((TREE,))
    return accuracy


@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        (steps(200), ""),
        (steps(200, seconds=0.043), ""),
        (steps(200, seconds=0.046), "latency"),
        (steps(200, seconds=0.034), "latency"),
        (steps(200, tokens=1), "acceptance"),
        (steps(200, tokens=3, seconds=0.046), "acceptance"),
        (steps(200, tokens=3, seconds=0.080), "latency"),
        (steps(50, tokens=1), ""),
    ],
)
def test_a_prediction_that_is_off_by_a_tenth_has_a_cause(seen: StepSums, cause: str) -> None:
    """Tokens per step are acceptance's, the time of a step is latency's; few steps say nothing."""
    offences = begun().observe({PLANNED: seen})
    assert [offence.cause for offence in offences] == [cause] * bool(cause)


def test_steps_without_tokens_are_no_measurement() -> None:
    """There are none; sums may say so when they were added up in part."""
    assert begun().observe({PLANNED: replace(steps(200), tokens=0.0)}) == []


def test_chance_is_no_cause() -> None:
    """150 steps of 1 or 4 tokens are off by an eighth, and may be so by luck."""
    accuracy, seen = begun(), steps(88, tokens=1)
    seen.add(steps(62, tokens=4))
    assert accuracy.observe({PLANNED: seen}) == []
    assert accuracy.records["greedy", 1].tokens_per_step == pytest.approx(2.24)


def test_a_cause_is_named_once() -> None:
    """Not at every look, and again only once the prediction was right in between."""
    accuracy = begun()
    assert len(accuracy.observe({PLANNED: steps(200, seconds=0.060)})) == 1
    assert accuracy.observe({PLANNED: steps(200, seconds=0.060)}) == []
    assert accuracy.observe({PLANNED: steps(20_000)}) == []
    assert accuracy.records["greedy", 1].cause == ""
    assert len(accuracy.observe({PLANNED: steps(2000, seconds=0.060)})) == 1


def test_a_new_plan_is_measured_from_its_own_steps() -> None:
    """What was seen of the tree before it says nothing about the new one."""
    accuracy = begun()
    accuracy.observe({PLANNED: steps(200, seconds=0.060)})
    accuracy.begin((TREE,))
    record = accuracy.records["greedy", 1]
    assert (record.step_count, record.cause, record.seconds_per_token) == (0, "", 0.0)


def test_only_steps_as_planned_are_measured() -> None:
    """The others are counted, so that their share can be seen."""
    accuracy = begun()
    cut = Circumstance("greedy", 1, StepKind.CUT)
    unknown = Circumstance("flat", 16, StepKind.PLANNED)
    accuracy.observe({PLANNED: steps(30), cut: steps(5, tokens=1), unknown: steps(9)})
    record = accuracy.records["greedy", 1]
    assert (record.step_count, record.other_count) == (30, 5)
    assert record.tokens_per_step == pytest.approx(2.0)
    assert record.seconds_per_token == pytest.approx(0.020)


def test_old_steps_fade() -> None:
    """What is measured is the last thousand steps or so."""
    accuracy = begun()
    accuracy.observe({PLANNED: steps(5000, seconds=0.080)})
    for _ in range(50):
        accuracy.observe({PLANNED: steps(100)})
    assert accuracy.records["greedy", 1].seconds_per_token == pytest.approx(0.020, rel=0.02)
    assert accuracy.records["greedy", 1].step_count == 10_000

"""Sums over steps: adding up, differences, and what is read of garbage."""

import statistics
import time

import pytest

from coordinator.acceptance import Trial
from coordinator.probing import REQUESTS_PER_PROBE, Probing
from coordinator.statistics import AcceptanceStatistics, StepStatistics
from coordinator.step import Step, circumstance
from planner.ledger import Ledger
from sequoia.messages import GrownTree, Verdict
from sequoia.observations import (
    Circumstance,
    StepKind,
    StepSums,
    StepTimes,
    circumstance_of,
    sum_of,
)
from sequoia.plans import BUILT_IN_PLAN, AcceptanceCounts, Plan, PlannedTree
from sequoia.tree import Tree

TREE = PlannedTree("greedy", 2, (-1, 0, 0, 1), 1.9, 0.012, 0.02)
ALONE = PlannedTree("greedy", 2, (-1,), 1.0, 0.02, 0.02)
PLANNED = Circumstance("greedy", 2, StepKind.PLANNED)
TIMES = StepTimes(0.040, 0.004, 0.030, 3, 150)


def one_step(version: int = 7, happened: Circumstance | None = PLANNED) -> Step:
    """A step of 40 ms."""
    return Step(GrownTree(Tree.root_only(5)), Verdict((6,)), version, happened, TIMES)


def test_a_step_is_recorded_with_its_parts_and_their_squares() -> None:
    """What is beside the passes is the rest of the step."""
    sums = StepSums()
    sums.record(3, TIMES)
    assert (sums.count, sums.tokens, sums.tokens_squared) == (1, 3, 9)
    assert sums.beside_seconds == pytest.approx(0.006)
    assert sums.target_squared == pytest.approx(0.0009)
    assert sums.seconds == pytest.approx(0.040)
    assert (sums.sessions, sums.prefix_tokens) == (3, 150)


def test_passes_longer_than_the_step_leave_nothing_beside() -> None:
    """Clocks of two machines differ; time does not run backwards."""
    sums = StepSums()
    sums.record(1, StepTimes(0.010, 0.006, 0.006, 1, 1))
    assert sums.beside_seconds == 0.0


@pytest.mark.parametrize(
    ("planned", "node_count", "was_disturbed", "kind"),
    [
        (TREE, 4, False, StepKind.PLANNED),
        (ALONE, 1, False, StepKind.PLANNED),
        (TREE, 3, False, StepKind.CUT),
        (TREE, 1, False, StepKind.ALONE),
        (TREE, 4, True, StepKind.OPENING),
        (ALONE, 6, False, StepKind.PROBE),
    ],
)
def test_steps_that_say_nothing_of_the_plan_are_told_apart(
    planned: PlannedTree, node_count: int, was_disturbed: bool, kind: StepKind
) -> None:
    """By what became of the planned tree."""
    found = circumstance(planned, "greedy", node_count, was_disturbed)
    assert found == Circumstance("greedy", 2, kind)


def test_a_class_without_a_plan_has_no_circumstance() -> None:
    """Nothing was predicted, so nothing is compared."""
    assert circumstance(None, "greedy", 1, was_disturbed=False) is None


def test_steps_are_summed_by_version_and_circumstance() -> None:
    """Those of the built-in plan, or of a class that the plan leaves out, are not kept."""
    recorded = StepStatistics()
    for step in (one_step(), one_step(), one_step(8), one_step(BUILT_IN_PLAN.version)):
        recorded.record(step, 2)
    recorded.record(one_step(happened=None), 2)
    taken = recorded.take()
    assert {version: steps[PLANNED].count for version, steps in taken.items()} == {7: 2, 8: 1}
    assert recorded.take() == {}


def test_recording_a_step_costs_far_less_than_fifty_microseconds() -> None:
    """Counts and sums of a step with four visited nodes, as the engine records them."""
    accepted, recorded = AcceptanceStatistics(), StepStatistics()
    trials = (Trial(4, 0), Trial(3, 1), Trial(2, 0), Trial(2, None))
    seconds = []
    for _ in range(2000):
        started = time.perf_counter()
        happened = circumstance(TREE, "greedy", 4, was_disturbed=False)
        step = Step(GrownTree(Tree.root_only(5)), Verdict((6,)), 7, happened, TIMES)
        accepted.record("greedy", trials)
        recorded.record(step, 4)
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 50e-6


@pytest.mark.parametrize("field", ["request_class", "batch_size"])
def test_impossible_circumstances_are_refused(field: str) -> None:
    """The field is named."""
    values = {"request_class": "greedy", "batch_size": 1} | {
        field: {"request_class": "nobody", "batch_size": 4097}[field]
    }
    with pytest.raises(ValueError, match=field):
        Circumstance(**values, kind=StepKind.PLANNED)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "greedy",
        "greedy:2",
        "greedy:2:",
        "greedy:two:planned",
        "greedy:0:planned",
        "greedy:²:planned",
        "greedy:-1:planned",
        "nobody:2:planned",
        "greedy:2:maybe",
        "greedy:" + "1" * 5000 + ":planned",
        "greedy:2:planned:more",
    ],
)
def test_what_is_no_circumstance_reads_as_none(text: str) -> None:
    """Whatever lies in Redis."""
    assert circumstance_of(text) is None


def test_a_circumstance_reads_back() -> None:
    """As it was stored."""
    assert circumstance_of("flat-seeded:16:cut") == Circumstance("flat-seeded", 16, StepKind.CUT)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.25", 0.25),
        ("7", 7.0),
        ("-1", 0.0),
        ("nan", 0.0),
        ("inf", 0.0),
        ("many", 0.0),
        ("1e300", 0.0),
        ("9" * 5000, 0.0),
    ],
)
def test_what_is_no_sum_reads_as_nothing(text: str, value: float) -> None:
    """Negative, endless and huge numbers are no sums over steps."""
    assert sum_of(text) == value


def counts(trials: int, accepts: int) -> AcceptanceCounts:
    """Counts at rank 1."""
    rest = (0,) * 63
    return AcceptanceCounts((trials, *rest), (accepts, *rest))


def test_the_ledger_gives_what_is_new() -> None:
    """Counts only grow; when they fell, Redis had lost them, and all are new again."""
    ledger = Ledger()
    assert not ledger.knows("greedy")
    assert ledger.new_counts("greedy", counts(10, 4)) == counts(10, 4)
    assert ledger.knows("greedy")
    assert ledger.new_counts("greedy", counts(25, 9)) == counts(15, 5)
    assert ledger.new_counts("greedy", counts(25, 9)) == counts(0, 0)
    assert ledger.new_counts("greedy", counts(3, 1)) == counts(3, 1)


def test_the_ledger_believes_no_impossible_shares() -> None:
    """Somebody wrote to Redis: never more accepts than trials, never fewer than none."""
    ledger = Ledger()
    ledger.new_counts("greedy", counts(10, 4))
    assert ledger.new_counts("greedy", counts(12, 12)) == counts(2, 2)
    assert ledger.new_counts("greedy", counts(20, 3)) == counts(8, 0)


def test_the_ledger_keeps_versions_apart() -> None:
    """A new plan's sums begin at zero, whatever the last one's were."""
    ledger, sums = Ledger(), StepSums()
    sums.record(2, TIMES)
    assert ledger.new_steps(1, {PLANNED: sums})[PLANNED].count == 1
    assert ledger.new_steps(1, {PLANNED: sums}) == {}
    more = sums.scaled(5.0)
    assert ledger.new_steps(1, {PLANNED: more})[PLANNED].count == 4
    assert ledger.new_steps(2, {PLANNED: sums})[PLANNED].count == 1
    assert ledger.new_steps(2, {PLANNED: sums.scaled(0.5)})[PLANNED].count == 0.5


def test_a_request_in_many_is_a_probe_where_no_tree_is_planned() -> None:
    """Counted per class; where trees are planned, or nothing yet, there is nothing to find out."""
    probing = Probing()
    alone, speculating = Plan(3, 0.0, (ALONE,)), Plan(4, 0.0, (TREE,))
    begun = [probing.begins(alone, "greedy", 2) for _ in range(3 * REQUESTS_PER_PROBE)]
    assert sum(begun) == 3
    assert begun[REQUESTS_PER_PROBE - 1]
    assert not any(probing.begins(speculating, "greedy", 2) for _ in range(100))
    assert not any(probing.begins(alone, "flat", 2) for _ in range(100))
    assert not any(probing.begins(BUILT_IN_PLAN, "greedy", 9) for _ in range(100))

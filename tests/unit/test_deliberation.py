"""When a plan is changed: for clear gains where there is traffic, and for nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.deliberation import Deliberation
from planner.measurements import Measurements, Overhead
from planner.prediction import expected_tokens
from planner.solver import solve
from sequoia.observations import Circumstance, StepKind, StepSums, StepTimes
from sequoia.plans import RANK_LIMIT, REQUEST_CLASSES, AcceptanceCounts, PlannedTree
from sequoia.tree import Topology

LOADS = (1, 4)
SIZES = (1, 2, 4, 8, 16, 32)
MEASUREMENTS = Measurements(
    {(b, n): 30.0 + 0.5 * b * n for b in LOADS for n in SIZES},
    {(b, w): 2.0 + 0.1 * b * w for b in LOADS for w in SIZES[:-1]},
    {(b, samples): Overhead(1.0, 2.0) for b in LOADS for samples in (False, True)},
    max_nodes=32,
)
NONE: tuple[float, ...] = (0.02, 0.01, 0.01)
MUCH: tuple[float, ...] = (0.85, 0.3, 0.2)


def counts(hazards: tuple[float, ...], nodes: int) -> AcceptanceCounts:
    """Counts with exactly these shares accepted at the first ranks."""
    at_risk, trials, accepts = nodes, [], []
    for hazard in hazards:
        trials.append(at_risk)
        accepts.append(round(at_risk * hazard))
        at_risk -= accepts[-1]
    rest = (0,) * (RANK_LIMIT - len(hazards))
    return AcceptanceCounts((*trials, *rest), (*accepts, *rest))


def saw_steps(
    mind: Deliberation, trees: tuple[PlannedTree, ...], name: str, load: int, slowness: float = 1.0
) -> None:
    """A hundred steps with the planned tree, as long as the profile has it, or slower."""
    (tree,) = (one for one in trees if (one.request_class, one.batch_size) == (name, load))
    latency = MEASUREMENTS.latency(load, samples=name != "greedy")
    widths = [len(level) for level in tree.topology.levels]
    draft = float(latency.draft_ms.at(widths[:-1]).sum()) if len(widths) > 1 else 0.0
    times = StepTimes(
        slowness * latency.step_ms(widths) / 1000,
        slowness * draft / 1000,
        slowness * float(latency.target_ms.at([sum(widths)])[0]) / 1000,
        load,
        100,
    )
    sums = StepSums()
    for _ in range(100):
        sums.record(2, times)
    mind.observe_steps(trees, {Circumstance(name, load, StepKind.PLANNED): sums})


def parents(trees: tuple[PlannedTree, ...], name: str, load: int) -> tuple[int, ...]:
    """The tree of a class and a load."""
    return next(t.parents for t in trees if (t.request_class, t.batch_size) == (name, load))


@pytest.fixture
def mind() -> Deliberation:
    """Without any observation."""
    return Deliberation(MEASUREMENTS, max_levels=6)


def test_a_plan_has_a_tree_for_every_class_and_load(mind: Deliberation) -> None:
    """Once each."""
    found = [(tree.request_class, tree.batch_size) for tree in mind.plan()]
    assert sorted(found) == sorted((name, load) for name in REQUEST_CLASSES for load in LOADS)


def test_without_traffic_nothing_is_due(mind: Deliberation) -> None:
    """Neither at once nor after a class was used that is as it was assumed to be."""
    trees = mind.plan()
    assert mind.revision(trees) is None
    saw_steps(mind, trees, "greedy", 1)
    assert mind.revision(trees) is None


def test_a_class_that_accepts_nothing_loses_its_trees(mind: Deliberation) -> None:
    """At the load that is used and, on this occasion, at the others; other classes keep theirs."""
    trees = mind.plan()
    assert len(parents(trees, "greedy", 4)) > 1
    mind.observe_counts("greedy", counts(NONE, 3000))
    saw_steps(mind, trees, "greedy", 1)
    revision = mind.revision(trees)
    assert revision
    revised = revision.trees
    assert parents(revised, "greedy", 1) == parents(revised, "greedy", 4) == (-1,)
    assert parents(revised, "flat", 1) == parents(trees, "flat", 1)


def test_few_observations_do_not_swing_the_plan(mind: Deliberation) -> None:
    """Forty nodes that accept nothing are bad luck."""
    trees = mind.plan()
    mind.observe_counts("greedy", counts(NONE, 40))
    saw_steps(mind, trees, "greedy", 1)
    assert mind.revision(trees) is None


def test_a_load_that_nobody_uses_makes_no_plan_due(mind: Deliberation) -> None:
    """Its tree is judged when traffic gets there."""
    trees = mind.plan()
    mind.observe_counts("greedy", counts(NONE, 3000))
    saw_steps(mind, trees, "flat", 1)
    assert mind.revision(trees) is None
    saw_steps(mind, trees, "greedy", 4)
    assert mind.revision(trees)


def test_a_revised_plan_stands(mind: Deliberation) -> None:
    """More of the same traffic is no reason for another one."""
    trees = mind.plan()
    mind.observe_counts("greedy", counts(MUCH, 3000))
    saw_steps(mind, trees, "greedy", 1)
    revision = mind.revision(trees)
    assert revision
    revised = revision.trees
    for _ in range(5):
        mind.observe_counts("greedy", counts(MUCH, 200))
        saw_steps(mind, revised, "greedy", 1)
        assert mind.revision(revised) is None


def test_a_plan_taken_over_is_judged_by_what_is_seen_since(mind: Deliberation) -> None:
    """Earlier times alone, of which the planner before knew more, do not change it; they do count."""
    trees = mind.plan()
    mind.inherit()
    mind.memories["greedy"].recall(counts(NONE, 4000))
    saw_steps(mind, trees, "greedy", 1)
    assert mind.revision(trees) is None
    mind.observe_counts("greedy", counts(NONE, 350))
    saw_steps(mind, trees, "greedy", 1)
    revision = mind.revision(trees)
    assert revision
    assert parents(revision.trees, "greedy", 1) == (-1,)


def test_a_plan_taken_over_is_not_judged_by_traffic_of_other_times(mind: Deliberation) -> None:
    """What is counted in Redis never fades, so that it may be unlike what the plan was made for."""
    mind.observe_counts("greedy", counts(MUCH, 3000))
    trees = mind.plan()
    heir = Deliberation(MEASUREMENTS, max_levels=6)
    heir.memories["greedy"].recall(counts(NONE, 4000))
    heir.inherit()
    for _ in range(10):
        heir.observe_counts("greedy", counts(MUCH, 400))
        saw_steps(heir, trees, "greedy", 1)
        revision = heir.revision(trees)
        assert revision is None or parents(revision.trees, "greedy", 1) != (-1,)
    assert heir.memories["greedy"].shift_count == 1


@pytest.mark.parametrize(("factor", "is_due"), [(1.5, True), (0.6, True), (1.1, False)])
def test_a_plan_that_is_far_off_is_predicted_anew(
    mind: Deliberation, factor: float, is_due: bool
) -> None:
    """Where the tree stays the best, and a thousand nodes say that it yields more or less."""
    mind.observe_counts("greedy", counts(MUCH, 3000))
    right = mind.plan()
    wrong = tuple(
        replace(tree, expected_tokens_per_step=factor * tree.expected_tokens_per_step)
        for tree in right
    )
    saw_steps(mind, wrong, "greedy", 1)
    revision = mind.revision(wrong)
    assert (revision is not None) == is_due
    if revision:
        assert revision.cause == "predictions renewed"
        assert parents(revision.trees, "greedy", 1) == parents(right, "greedy", 1)
        tokens = [plan[0].expected_tokens_per_step for plan in (right, revision.trees)]
        assert tokens[0] == pytest.approx(tokens[1])


def test_a_machine_that_is_slower_in_all_parts_needs_no_other_trees(mind: Deliberation) -> None:
    """All trees then take that much longer; predictions of the next plan say so."""
    trees = mind.plan()
    mind.observe_counts("greedy", counts((0.6, 0.27, 0.2), 400))
    saw_steps(mind, trees, "greedy", 1, slowness=3.0)
    assert mind.revision(trees) is None
    after = next(t for t in mind.plan() if (t.request_class, t.batch_size) == ("greedy", 1))
    before = next(t for t in trees if (t.request_class, t.batch_size) == ("greedy", 1))
    longer = after.predicted_seconds_per_token / before.predicted_seconds_per_token
    assert longer == pytest.approx(3.0, rel=0.1)


def test_trees_that_stay_are_predicted_anew(mind: Deliberation) -> None:
    """A new plan's predictions all rest on the same beliefs, also where the shape is the old one."""
    trees = mind.plan()
    mind.observe_counts("greedy", counts(NONE, 3000))
    saw_steps(mind, trees, "flat", 1, slowness=2.0)
    saw_steps(mind, trees, "greedy", 1, slowness=2.0)
    revision = mind.revision(trees)
    assert revision
    revised = revision.trees
    before, after = (
        next(t for t in plan if (t.request_class, t.batch_size) == ("flat", 1))
        for plan in (trees, revised)
    )
    assert after.parents == before.parents
    assert after.predicted_seconds_per_token == pytest.approx(
        2 * before.predicted_seconds_per_token
    )


def test_expected_tokens_are_the_solvers() -> None:
    """For the tree that the solver found; ranks that the vector lacks yield nothing."""
    vector = (0.5, 0.2, 0.1)
    solved = solve(vector, 20, 5)
    assert expected_tokens(Topology(solved.parents), vector) == pytest.approx(
        solved.expected_tokens
    )
    assert expected_tokens(Topology((-1, 0, 0, 0, 0)), (0.5,)) == pytest.approx(1.5)

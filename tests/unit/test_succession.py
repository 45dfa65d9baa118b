"""Which plans a planner that has just begun goes on from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.deliberation import Deliberation
from planner.measurements import Measurements, Overhead
from planner.succession import can_go_on
from sequoia.plans import VERSION_LIMIT, Plan, PlannedTree

LOADS = (1, 4)
MEASUREMENTS = Measurements(
    {(load, nodes): 30.0 + 0.1 * load * nodes for load in LOADS for nodes in (1, 2, 4, 8)},
    {(load, width): 2.0 for load in LOADS for width in (1, 2, 4)},
    {(load, drawn): Overhead(1.0, 2.0) for load in LOADS for drawn in (False, True)},
    max_nodes=8,
)
MAX_LEVELS = 4
TREES = Deliberation(MEASUREMENTS, MAX_LEVELS).plan()
FIRST = TREES[0]
PLAN = Plan(7, 1_700_000_000.0, TREES)


def with_first(tree: PlannedTree) -> Plan:
    """The plan with another first tree."""
    return replace(PLAN, trees=(tree, *TREES[1:]))


def test_a_plan_that_rests_on_the_measurements_is_gone_on_from() -> None:
    """With trees and without; in whatever order."""
    assert any(tree.topology.node_count > 1 for tree in TREES)
    assert can_go_on(PLAN, MEASUREMENTS, MAX_LEVELS)
    assert can_go_on(replace(PLAN, trees=TREES[::-1]), MEASUREMENTS, MAX_LEVELS)
    alone = replace(FIRST, parents=(-1,), expected_tokens_per_step=1.0)
    assert can_go_on(with_first(alone), MEASUREMENTS, MAX_LEVELS)


@pytest.mark.parametrize(
    "plan",
    [
        replace(PLAN, trees=TREES[1:]),
        with_first(replace(FIRST, batch_size=2)),
        with_first(
            replace(FIRST, parents=(-1, *[0] * 8)),
        ),
        with_first(replace(FIRST, parents=(-1, 0, 1, 2, 3))),
        with_first(replace(FIRST, expected_tokens_per_step=0.0)),
        with_first(replace(FIRST, expected_tokens_per_step=9.0)),
        with_first(replace(FIRST, predicted_seconds_per_token=0.0)),
        with_first(replace(FIRST, predicted_seconds_per_token=1e300)),
        with_first(replace(FIRST, predicted_seconds_per_token_without_speculation=5e-324)),
        replace(PLAN, version=VERSION_LIMIT - 1),
    ],
    ids=[
        "a tree is missing",
        "another load",
        "too many nodes",
        "too many levels",
        "no tokens",
        "more tokens than nodes",
        "no time",
        "endless",
        "no time without speculation",
        "the last version",
    ],
)
def test_another_plan_is_not(plan: Plan) -> None:
    """It is replaced by the planner's own."""
    assert not can_go_on(plan, MEASUREMENTS, MAX_LEVELS)


def test_nodes_are_limited_per_pass() -> None:
    """Where memory bounds a pass, a tree for many requests has its share."""
    bounded = replace(MEASUREMENTS, pass_nodes=4)
    trees = tuple(replace(t, parents=(-1,), expected_tokens_per_step=1.0) for t in TREES)
    plan = replace(PLAN, trees=trees)
    assert can_go_on(plan, bounded, MAX_LEVELS)
    assert trees[1].batch_size == 4
    two = replace(trees[1], parents=(-1, 0))
    assert not can_go_on(replace(plan, trees=(trees[0], two, *trees[2:])), bounded, MAX_LEVELS)

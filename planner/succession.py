"""Whether a plan that stands can be gone on from by a planner that has just begun; pure."""

from __future__ import annotations

from planner.measurements import Measurements
from planner.scope import largest_tree
from sequoia.plans import REQUEST_CLASSES, VERSION_LIMIT, Plan, PlannedTree

ROUNDING = 1e-6  # of tokens that were added up
LEAST_SECONDS, MOST_SECONDS = 1e-9, 1e6  # of a token


def can_go_on(plan: Plan, measurements: Measurements, max_levels: int) -> bool:
    """Whether the plan is one that could rest on the measurements.

    It has a tree for every class and load and no other, within the limits, with predictions that can be
    compared; and versions are left after it. Another planner made it, or whoever writes to Redis.
    """
    wanted = {(name, batch) for name in REQUEST_CLASSES for batch in measurements.batch_sizes}
    return (
        plan.version < VERSION_LIMIT // 2
        and {(tree.request_class, tree.batch_size) for tree in plan.trees} == wanted
        and all(_is_possible(tree, measurements, max_levels) for tree in plan.trees)
    )


def _is_possible(tree: PlannedTree, measurements: Measurements, max_levels: int) -> bool:
    nodes = tree.topology.node_count
    seconds = (
        tree.predicted_seconds_per_token,
        tree.predicted_seconds_per_token_without_speculation,
    )
    return (
        nodes <= largest_tree(measurements.max_nodes, measurements.pass_nodes, tree.batch_size)
        and tree.topology.level_count <= max_levels
        and 1 - ROUNDING <= tree.expected_tokens_per_step <= nodes * (1 + ROUNDING)
        and all(LEAST_SECONDS <= value <= MOST_SECONDS for value in seconds)
    )

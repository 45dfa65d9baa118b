"""From measurements and acceptance to the trees of a plan; pure.

For every class of requests and every load the tree of least predicted seconds per token,

    (sum over levels of t_draft(width) + t_target(nodes) + hops) / expected tokens,

with the times measured at that load (Sequoia, arXiv 2402.12374, section 3.3). The root alone, no
speculation, stays wherever no tree is predicted clearly faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.measurements import Measurements
from planner.scope import largest_tree
from planner.solver import choose
from sequoia.plans import GREEDY, PlannedTree

# Acceptance is an estimate, and so are times: a smaller predicted gain may be a loss.
LEAST_SPEEDUP = 1.1


def plan_trees(
    measurements: Measurements, vectors: Mapping[str, Sequence[float]], max_levels: int
) -> tuple[PlannedTree, ...]:
    """One tree per class of requests and measured load.

    Args:
        measurements: times of the workers, and the largest tree that they take.
        vectors: acceptance probabilities a_1..a_k by request class, of those to plan for.
        max_levels: most levels of a tree, root included.

    Raises:
        ValueError: a bad vector, or limits out of range.
    """
    return tuple(
        plan_tree(measurements, name, vector, batch_size, max_levels)
        for name, vector in vectors.items()
        for batch_size in measurements.batch_sizes
    )


def plan_tree(
    measurements: Measurements,
    name: str,
    vector: Sequence[float],
    batch_size: int,
    max_levels: int,
) -> PlannedTree:
    """The tree for one class of requests at one measured load; arguments as of `plan_trees`."""
    latency = measurements.latency(batch_size, samples=name != GREEDY)
    largest = largest_tree(measurements.max_nodes, measurements.pass_nodes, batch_size)
    choice = choose(vector, latency, largest, max_levels)
    if choice.speedup < LEAST_SPEEDUP:
        choice = choose(vector, latency, 1, max_levels)
    return PlannedTree(
        request_class=name,
        batch_size=batch_size,
        parents=choice.tree.parents,
        expected_tokens_per_step=choice.tree.expected_tokens,
        predicted_seconds_per_token=choice.ms_per_token / 1000,
        predicted_seconds_per_token_without_speculation=latency.plain_ms() / 1000,
    )

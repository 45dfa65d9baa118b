"""The tree to speculate with: the best one of a size, and the best size for the hardware.

A node is worth the product of the acceptance vector over the ranks on its path; a tree's expected
tokens per step are the sum of its nodes' worths (Sequoia, arXiv 2402.12374, section 3.1). Its size
and depth follow from measured times (section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from planner.best_first import best_first
from planner.frontier import Frontier, SolvedTree
from planner.latency import Latency
from planner.relaxation import ROUNDING, Floats, Integers
from planner.vector import is_monotone, require_vector
from sequoia.tree import MAX_NODES

__all__ = ["Choice", "Frontier", "SolvedTree", "choose", "frontier", "solve"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A tree together with what it is predicted to cost.

    Attributes:
        tree: the tree; the root alone means no speculation.
        ms_per_token: predicted milliseconds per token with it.
        speedup: predicted speed-up over no speculation; 1 without speculation.
    """

    tree: SolvedTree
    ms_per_token: float
    speedup: float


def solve(vector: Sequence[float], max_nodes: int, max_levels: int) -> SolvedTree:
    """The best tree of at most `max_nodes` nodes on at most `max_levels` levels, for any vector.

    The heap for vectors that never increase, the dynamic programme for the others.

    Raises:
        ValueError: a bad vector, or limits out of range.
    """
    _require_limits(max_nodes, max_levels)
    vector = require_vector(vector)
    if is_monotone(vector):
        return best_first(vector, max_nodes, max_levels).tree(max_nodes)
    return Frontier(vector, max_nodes, max_levels).tree(max_nodes, max_levels)


def frontier(vector: Sequence[float], max_nodes: int, max_levels: int) -> Frontier:
    """The best trees of every size 1..`max_nodes` under every level limit, for any vector.

    Raises:
        ValueError: a bad vector, or limits out of range.
    """
    _require_limits(max_nodes, max_levels)
    return _frontier(require_vector(vector), max_nodes, max_levels)


@lru_cache(maxsize=4)  # every load of a class is planned for from the same one
def _frontier(vector: tuple[float, ...], max_nodes: int, max_levels: int) -> Frontier:
    return Frontier(vector, max_nodes, max_levels)


def choose(
    vector: Sequence[float],
    latency: Latency,
    max_nodes: int,
    max_levels: int,
    sizes: Iterable[int] | None = None,
) -> Choice:
    """The tree of least predicted time per token, among the best trees of all sizes and depths.

    Candidates are visited from the least lower bound on until the bound passes the best one found.
    No speculation wins wherever it is predicted at least as fast; otherwise fewer nodes, then fewer
    levels decide between equals.

    Args:
        vector: acceptance probabilities a_1..a_k.
        latency: measured times.
        max_nodes: largest tree, root included.
        max_levels: most levels, root included.
        sizes: tree sizes to consider, say the measured ones; every size when not given.

    Raises:
        ValueError: a bad vector, or limits out of range.
    """
    trees = frontier(vector, max_nodes, max_levels)
    wanted = range(2, max_nodes + 1) if sizes is None else sorted(set(sizes))
    counts = np.array([size for size in wanted if 2 <= size <= max_nodes], dtype=np.int64)
    plain = latency.plain_ms()
    chosen, best = (1, 1), (plain, 1, 1)
    bounds = _lower_bounds(trees, latency, counts)
    for index in np.argsort(bounds, axis=None, kind="stable"):
        row, column = divmod(int(index), len(counts))
        if bounds[row, column] > best[0]:
            break
        nodes, levels = int(counts[column]), row + 2
        widths = trees.widths(nodes, levels)
        cost = latency.step_ms(widths) / trees.expected_tokens(nodes, levels)
        if cost < plain and (key := (cost, sum(widths), len(widths))) < best:
            chosen, best = (nodes, levels), key
    return Choice(trees.tree(*chosen), best[0], plain / best[0])


def _lower_bounds(trees: Frontier, latency: Latency, counts: Integers) -> Floats:
    """Least milliseconds per token a tree can cost, `[level limits from 2, counts]`.

    Each level below the root is charged as if it had the cheapest width.
    """
    table = trees.table()
    cheapest = latency.draft_ms.at(range(1, trees.max_nodes + 1)).min()
    below_root = np.arange(len(table) - 1) + latency.charge_leaves
    drafting = latency.draft_ms.at([1]) + cheapest * below_root + latency.draft_hop_ms
    bounds = np.empty((len(table) - 1, len(counts)))
    for row, tokens in enumerate(table[1:]):
        used = trees.sizes_used(counts, row + 2)
        step = drafting[row] + latency.target_ms.at(used) + latency.target_hop_ms
        bounds[row] = step / tokens[counts - 1]
    return bounds * (1.0 - ROUNDING)


def _require_limits(max_nodes: int, max_levels: int) -> None:
    if not 1 <= max_nodes <= MAX_NODES:
        raise ValueError(f"max_nodes is {max_nodes}, must be 1..{MAX_NODES}")
    if max_levels < 1:
        raise ValueError(f"max_levels is {max_levels}, must be at least 1")

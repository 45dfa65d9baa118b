"""Best-first search: one run gives the best tree of every size, for non-increasing vectors."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from planner.frontier import SolvedTree
from planner.vector import is_monotone
from sequoia.tree import level_order


@dataclass(frozen=True, slots=True)
class Growth:
    """The nodes in the order in which the heap gave them; every prefix is a best tree of its size.

    Attributes:
        parents: for each node, the position of its parent in this order; -1 for the root.
        worths: for each node, the probability that it is accepted; the root's is 1.
    """

    parents: tuple[int, ...]
    worths: tuple[float, ...]

    def tree(self, nodes: int) -> SolvedTree:
        """The best tree of at most `nodes` nodes."""
        parents = self.parents[:nodes]
        depths = [0]
        for parent in parents[1:]:
            depths.append(depths[parent] + 1)
        return SolvedTree(level_order(parents), math.fsum(self.worths[:nodes]), max(depths) + 1)


def best_first(vector: Sequence[float], max_nodes: int, max_levels: int) -> Growth:
    """Take the open node of most worth, again and again; O(N log N).

    A node's first child and its next sibling open when it is taken. In a non-increasing vector
    neither is worth more than the node itself, so nothing better can hide behind an open node and
    every prefix is optimal. Nodes worth nothing are left out.

    Args:
        vector: valid, non-increasing acceptance probabilities a_1..a_k.
        max_nodes: largest size, root included.
        max_levels: most levels, root included.

    Raises:
        ValueError: the vector increases somewhere.
    """
    if not is_monotone(vector):
        raise ValueError("best-first search needs a vector that never increases")
    serial = itertools.count()
    parents: list[int] = []
    worths: list[float] = []
    open_nodes = [(-1.0, 0, next(serial), -1, 0)]  # shallow before deep where worths are equal
    while open_nodes and len(parents) < max_nodes:
        cost, depth, _, parent, rank = heapq.heappop(open_nodes)
        node = len(parents)
        parents.append(parent)
        worths.append(-cost)
        if node and rank + 1 < len(vector) and (worth := worths[parent] * vector[rank + 1]) > 0:
            heapq.heappush(open_nodes, (-worth, depth, next(serial), parent, rank + 1))
        if depth + 1 < max_levels and (worth := worths[node] * vector[0]) > 0:
            heapq.heappush(open_nodes, (-worth, depth + 1, next(serial), node, 0))
    return Growth(tuple(parents), tuple(worths))

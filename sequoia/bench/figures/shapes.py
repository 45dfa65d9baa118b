"""Tree shapes that the best trees are compared with, and what acceptance vectors predict for a tree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sequoia.tree import ROOT_PARENT, Topology

Vectors = Sequence[Sequence[float]]
"""Acceptance probabilities a_1, a_2, ... of a node's children, by the node's depth.

Below the last one given, that one holds; ranks beyond its end are never accepted.
"""

LONGEST_BRANCH = 32


def chain(nodes: int) -> Topology:
    """One child to every node but the last."""
    return Topology(tuple(range(ROOT_PARENT, nodes - 1)))


def binary(nodes: int) -> Topology:
    """Two children to every node, as far as they go, level by level."""
    return Topology((ROOT_PARENT, *((node - 1) // 2 for node in range(1, nodes))))


def branches(count: int, length: int) -> Topology:
    """`count` chains of `length` nodes each, side by side below the root."""
    first = [0] * count
    others = range(1, count * (length - 1) + 1)
    return Topology((ROOT_PARENT, *first, *others))


def best_branches(vectors: Vectors, nodes: int) -> Topology:
    """Of all numbers of equally long chains in at most `nodes` nodes, those that promise most tokens."""
    if nodes == 1:
        return chain(1)
    lengths = range(1, min(nodes - 1, LONGEST_BRANCH) + 1)
    shapes = [branches((nodes - 1) // length, length) for length in lengths]
    return max(shapes, key=lambda shape: expected_tokens(shape, vectors))


def best_tree(
    vectors: Vectors, nodes: int, solve: Callable[[Sequence[float], int], Topology]
) -> Topology:
    """Of the trees that are best for one level's vector, the one that promises most by all of them.

    Args:
        vectors: by depth.
        nodes: of the tree at most, root included.
        solve: the best tree where one vector holds at every depth.
    """
    shapes = [solve(vector, nodes) for vector in vectors]
    return max(shapes, key=lambda shape: expected_tokens(shape, vectors))


def expected_tokens(topology: Topology, vectors: Vectors) -> float:
    """Tokens that a step with this tree is expected to give, the bonus token included.

    A node is worth the product of the probabilities of the ranks on its path; a tree the sum of its
    nodes (Sequoia, arXiv 2402.12374, section 3.1).
    """
    worths = [1.0] * topology.node_count
    for node, children in enumerate(topology.children):
        vector = vectors[min(topology.depths[node], len(vectors) - 1)]
        for rank, child in enumerate(children):
            worths[child] = worths[node] * vector[rank] if rank < len(vector) else 0.0
    return math.fsum(worths)

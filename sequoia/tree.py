"""Token trees: an immutable topology, the tokens on it, and the views that the roles need of it.

A tree is stored as parallel arrays in level order: the root is node 0 with parent -1, parents stand
before their children, nodes of one depth stand together, and siblings stand in the order in which
the draft drew them (Sequoia, arXiv 2402.12374, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

ROOT_PARENT = -1
MAX_NODES = 4096


class TreeError(ValueError):
    """A topology or tree that breaks the rules above; the message names the node and the rule."""


@dataclass(frozen=True)
class Topology:
    """The shape of a tree: one parent index per node, in level order.

    Raises:
        TreeError: empty, too large, a first parent other than -1, or a parent that does not stand
            before its child in level order.
    """

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.parents:
            raise TreeError("a tree needs at least its root")
        if len(self.parents) > MAX_NODES:
            raise TreeError(f"{len(self.parents)} nodes exceed the limit of {MAX_NODES}")
        if self.parents[0] != ROOT_PARENT:
            raise TreeError(f"the root's parent must be {ROOT_PARENT}, not {self.parents[0]}")
        previous = 0
        for node, parent in enumerate(self.parents[1:], start=1):
            if not 0 <= parent < node:
                raise TreeError(f"node {node}: parent {parent} does not stand before it")
            if parent < previous:
                raise TreeError(f"node {node}: parent {parent} breaks the level order")
            previous = parent

    @property
    def node_count(self) -> int:
        """Number of nodes, the root included."""
        return len(self.parents)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Depth of every node; the root has depth 0."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Child nodes of every node, in drawn order."""
        children: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents[1:], start=1):
            children[parent].append(node)
        return tuple(tuple(nodes) for nodes in children)

    @property
    def level_count(self) -> int:
        """Number of levels; a tree that is only its root has one."""
        return self.depths[-1] + 1

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """The nodes of every level, from the root downwards."""
        levels: list[list[int]] = [[] for _ in range(self.level_count)]
        for node, depth in enumerate(self.depths):
            levels[depth].append(node)
        return tuple(tuple(nodes) for nodes in levels)

    @cached_property
    def inner_nodes(self) -> tuple[int, ...]:
        """The nodes that have children, in level order."""
        return tuple(node for node, children in enumerate(self.children) if children)

    @cached_property
    def ancestry(self) -> NDArray[np.bool_]:
        """The tree mask `[nodes, nodes]`: row i is true at i and at every ancestor of i."""
        mask = np.eye(self.node_count, dtype=np.bool_)
        for node, parent in enumerate(self.parents[1:], start=1):
            mask[node] |= mask[parent]
        return mask

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from just below the root down to `node`; empty for the root."""
        path: list[int] = []
        while node > 0:
            path.append(node)
            node = self.parents[node]
        return tuple(reversed(path))

    def truncated(self, level_count: int) -> Topology:
        """The part of the tree in its first `level_count` levels, at least the root."""
        if self.level_count <= level_count:
            return self
        return Topology(
            tuple(
                p for p, d in zip(self.parents, self.depths, strict=True) if d < max(level_count, 1)
            )
        )

    def require_path(self, nodes: Sequence[int]) -> None:
        """Check that `nodes` leads from just below the root downwards without a gap.

        Raises:
            TreeError: a node is out of range or not a child of the one before it.
        """
        parent = 0
        for node in nodes:
            if not 0 < node < self.node_count or self.parents[node] != parent:
                raise TreeError(f"accepted node {node} is not a child of node {parent}")
            parent = node


ROOT_ONLY = Topology((ROOT_PARENT,))


def level_order(parents: Sequence[int]) -> tuple[int, ...]:
    """Renumber a parents-before-children array into level order; siblings keep their order."""
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(node)
    order, ordered_parents = [0], [ROOT_PARENT]
    for position, node in enumerate(order):
        order.extend(children[node])
        ordered_parents.extend([position] * len(children[node]))
    return tuple(ordered_parents)


@dataclass(frozen=True)
class Tree:
    """A topology with one token per node; the root's token is the last committed one.

    Raises:
        TreeError: the number of tokens differs from the number of nodes.
    """

    topology: Topology
    token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.token_ids) != self.topology.node_count:
            raise TreeError(f"{len(self.token_ids)} token ids for {self.topology.node_count} nodes")

    @classmethod
    def root_only(cls, token_id: int) -> Tree:
        """The tree of a step without speculation."""
        return cls(ROOT_ONLY, (token_id,))

    def path_tokens(self, node: int) -> tuple[int, ...]:
        """The tokens from just below the root down to `node`."""
        return tuple(self.token_ids[index] for index in self.topology.path(node))

    def child_with_token(self, node: int, token_id: int) -> int | None:
        """The first child of `node` that carries `token_id`, if there is one."""
        return next(
            (c for c in self.topology.children[node] if self.token_ids[c] == token_id), None
        )

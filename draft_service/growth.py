"""One tree while it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sequoia.messages import DraftDistribution, GrownTree
from sequoia.runtime.session import Session
from sequoia.tree import ROOT_PARENT, Topology, Tree


@dataclass(slots=True)
class Growth:
    """One tree while it grows: the nodes so far, and the planned node behind each of them.

    Where the draft has fewer tokens than the plan has children, planned nodes have no counterpart.
    """

    session: Session[GrownTree]
    planned: Topology
    parents: list[int] = field(default_factory=lambda: [ROOT_PARENT])
    token_ids: list[int] = field(default_factory=list)
    planned_nodes: list[int] = field(default_factory=lambda: [0])
    distributions: list[DraftDistribution] = field(default_factory=list)
    level: list[int] = field(default_factory=lambda: [0])  # nodes of the deepest level so far
    row_depths: list[int] = field(default_factory=list)  # of the cache rows behind the root's
    features: dict[int, Tensor] = field(default_factory=dict)  # [hidden] the draft's own, by node

    @property
    def root_position(self) -> int:
        """Absolute position of the root."""
        return len(self.session.token_ids) - 1

    def child_counts(self, nodes: Sequence[int]) -> list[int]:
        """How many children the plan gives each node."""
        return [len(self.planned.children[self.planned_nodes[node]]) for node in nodes]

    def most_children(self, nodes: Sequence[int]) -> int:
        """The most that one of these nodes can get."""
        return max(self.child_counts(nodes))

    def share_children(self, nodes: Sequence[int], chances: NDArray[np.float64]) -> list[int]:
        """How many children each node gets, which `add_children` follows for: those of the plan.

        Args:
            nodes: of one depth.
            chances: that the child of each rank is accepted, `[nodes, ranks]`.
        """
        available = (chances > 0).sum(axis=1).tolist()
        return [min(pair) for pair in zip(self.child_counts(nodes), available, strict=True)]

    def next_inner_nodes(self) -> list[int]:
        """Nodes of the deepest level that shall have children."""
        counts = self.child_counts(self.level)
        return [node for node, count in zip(self.level, counts, strict=True) if count]

    def path(self, node: int) -> list[int]:
        """Nodes from just below the root down to `node`."""
        nodes: list[int] = []
        while node > 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def add_children(self, node: int, token_ids: Sequence[int]) -> None:
        """Append drawn children in their order."""
        planned = self.planned.children[self.planned_nodes[node]]
        for token_id, planned_node in zip(token_ids, planned, strict=False):
            self.parents.append(node)
            self.token_ids.append(int(token_id))
            self.planned_nodes.append(planned_node)

    def tree(self) -> Tree:
        """The tree as it stands."""
        return Tree(Topology(tuple(self.parents)), tuple(self.token_ids))

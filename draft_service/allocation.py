"""Who gets the children of a level: the nodes that are likely to be accepted, where the draft is sure.

A plan says how many nodes a level has and how many of them get children; it rests on averages. Here its
children go where this tree needs them (ADR 0011). Where the target's word is compared with the children,
greedy or coupled, any tree is exact; of trees that are drawn from q `test_lossless_enumeration.py` shows
that they would stay so, but they did not gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from draft_service.growth import Growth


@dataclass(slots=True)
class AllocatedGrowth(Growth):
    """A tree whose levels are no wider than planned, and whose shape follows from the draft's scores."""

    worths: list[float] = field(default_factory=lambda: [1.0])  # chance that a node is reached
    depth: int = 0  # of the deepest level so far

    def next_inner_nodes(self) -> list[int]:
        """See `Growth.next_inner_nodes`: the likeliest, as many as planned."""
        if not self._next_width:
            return []
        children = self.planned.children
        count = sum(bool(children[node]) for node in self.planned.levels[self.depth])
        places = likeliest([self.worths[node] for node in self.level], count)
        return [self.level[place] for place in places]

    def most_children(self, nodes: Sequence[int]) -> int:
        """See `Growth.most_children`."""
        return self._next_width

    def share_children(self, nodes: Sequence[int], chances: NDArray[np.float64]) -> list[int]:
        """See `Growth.share_children`: those that are most likely to be reached."""
        shares = allocate([self.worths[node] for node in nodes], chances, self._next_width)
        for share in shares:
            self.worths.extend(share.tolist())
        self.depth += 1
        return [len(share) for share in shares]

    def add_children(self, node: int, token_ids: Sequence[int]) -> None:
        """See `Growth.add_children`."""
        self.parents.extend([node] * len(token_ids))
        self.token_ids.extend(token_ids)

    @property
    def _next_width(self) -> int:
        """Most nodes of the next level; 0 below the last one."""
        levels = self.planned.levels
        return len(levels[self.depth + 1]) if self.depth + 1 < len(levels) else 0


def likeliest(worths: Sequence[float], count: int) -> list[int]:
    """The places of the `count` largest worths, in their order; the first of equals."""
    order = np.argsort(-np.asarray(worths), kind="stable")[:count]
    return sorted(order.tolist())


def allocate(
    worths: Sequence[float], chances: NDArray[np.float64], count: int
) -> list[NDArray[np.float64]]:
    """Divide `count` children among nodes.

    Args:
        worths: for every node the chance that it is reached, `[nodes]`.
        chances: for every node the chance that its child of each rank is accepted, never rising with
            the rank, `[nodes, ranks]`; 0 for a rank that cannot be drawn.
        count: of children, all nodes together.

    Returns:
        For every node the worths of its children, as many as it gets: the chances that these are
        reached. Fewer than `count` in all where fewer can be drawn.
    """
    reached = np.asarray(worths)[:, None] * chances
    chosen = np.argsort(-reached, axis=None, kind="stable")[:count]
    counts = np.bincount(
        chosen[reached.flat[chosen] > 0] // max(chances.shape[1], 1), minlength=len(worths)
    )
    return [row[:children] for row, children in zip(reached, counts, strict=True)]

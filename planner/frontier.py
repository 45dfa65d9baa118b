"""The best tree of every size and every level limit, for any acceptance vector."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from planner.programme import Level, deepen, split
from planner.relaxation import ROUNDING, Floats, Integers


@dataclass(frozen=True, slots=True)
class SolvedTree:
    """A tree as parent indices in level order, siblings in draw order, the root's parent -1.

    Attributes:
        parents: parent of every node.
        expected_tokens: predicted tokens per step, the bonus token included.
        levels: number of levels; the root alone is one level.
    """

    parents: tuple[int, ...]
    expected_tokens: float
    levels: int

    @property
    def node_count(self) -> int:
        """Number of nodes, the root included."""
        return len(self.parents)


class Frontier:
    """The best trees of every size up to `max_nodes` and every level limit up to `max_levels`.

    Args:
        vector: validated acceptance probabilities a_1..a_k.
        max_nodes: largest size, root included.
        max_levels: largest number of levels, root included.
    """

    def __init__(self, vector: tuple[float, ...], max_nodes: int, max_levels: int) -> None:
        self.max_nodes = max_nodes
        self._vector: Floats = np.trim_zeros(np.asarray(vector, dtype=np.float64), "b")
        self._levels = [Level(np.array([0.0, 1.0]), (), ())]
        self._sizes: dict[tuple[int, int], tuple[int, ...]] = {}
        while self._vector.size and len(self._levels) < min(max_levels, max_nodes):
            below = self._levels[-1].values
            level = deepen(self._vector, below, max_nodes)
            if np.array_equal(level.values, below):
                break
            self._levels.append(level)

    @property
    def level_count(self) -> int:
        """Number of level limits that differ; a higher limit changes nothing."""
        return len(self._levels)

    def expected_tokens(self, nodes: int, levels: int) -> float:
        """Expected tokens per step of the best tree of at most `nodes` nodes, `levels` levels."""
        values = self._levels[min(levels, self.level_count) - 1].values
        return float(values[min(nodes, len(values) - 1)])

    def table(self) -> Floats:
        """Expected tokens `[level limits, sizes]`, from one level and one node upwards."""
        sizes = np.arange(1, self.max_nodes + 1)
        rows = (level.values for level in self._levels)
        return np.stack([values[np.minimum(sizes, len(values) - 1)] for values in rows])

    def sizes_used(self, nodes: Integers, levels: int) -> Integers:
        """Fewest nodes that reach what at most `nodes` nodes reach on at most `levels` levels."""
        values = self._levels[min(levels, self.level_count) - 1].values
        goals = values[np.minimum(nodes, len(values) - 1)] * (1.0 - ROUNDING)
        return np.searchsorted(values, goals)

    def tree(self, nodes: int, levels: int) -> SolvedTree:
        """The smallest and shallowest of the best trees within `nodes` nodes, `levels` levels."""
        nodes, levels = self._smallest(nodes, levels)
        parents, row, start = [-1], [nodes], 0
        for limit in range(levels, 1, -1):
            groups = [self._child_sizes(size, limit) for size in row]
            for position, group in enumerate(groups, start=start):
                parents.extend([position] * len(group))
            start += len(row)
            row = [size for group in groups for size in group]
        return SolvedTree(tuple(parents), self.expected_tokens(nodes, levels), levels)

    def widths(self, nodes: int, levels: int) -> tuple[int, ...]:
        """Number of nodes on each level of `tree(nodes, levels)`, found without building it."""
        nodes, levels = self._smallest(nodes, levels)
        row, widths = Counter({nodes: 1}), [1]
        for limit in range(levels, 1, -1):
            below: Counter[int] = Counter()
            for size, count in row.items():
                for child in self._child_sizes(size, limit):
                    below[child] += count
            row = below
            widths.append(row.total())
        return tuple(widths)

    def _smallest(self, nodes: int, levels: int) -> tuple[int, int]:
        """Fewest levels, then fewest nodes, that reach the same worth up to rounding."""
        goal = self.expected_tokens(nodes, levels) * (1.0 - ROUNDING)
        limits = range(1, self.level_count + 1)
        levels = next(limit for limit in limits if self.expected_tokens(nodes, limit) >= goal)
        return int(np.searchsorted(self._levels[levels - 1].values, goal)), levels

    def _child_sizes(self, nodes: int, limit: int) -> tuple[int, ...]:
        """Sizes of the root's subtrees in a best tree of `nodes` nodes, in draw order."""
        key = (limit, nodes)
        if key not in self._sizes:
            below = self._levels[limit - 2].values
            self._sizes[key] = split(self._vector, below, self._levels[limit - 1], nodes - 1)
        return self._sizes[key]

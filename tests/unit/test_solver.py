"""Best trees of a given size: golden values, brute force, heap against programme."""

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from planner.best_first import best_first
from planner.frontier import SolvedTree
from planner.programme import max_plus
from planner.relaxation import hull_slopes
from planner.solver import frontier, solve
from sequoia.tree import Topology

VECTOR_FILE = Path(__file__).parents[1] / "data" / "acceptance_vector.json"
REFERENCE = tuple(json.loads(VECTOR_FILE.read_text())["vector"][1:-1])
SORTED = tuple(sorted(REFERENCE, reverse=True))


def worth(tree: SolvedTree, vector: Sequence[float]) -> float:
    """Expected tokens of a tree, straight from its definition."""
    worths = [1.0]
    ranks = [0] * tree.node_count
    for parent in tree.parents[1:]:
        worths.append(worths[parent] * vector[ranks[parent]])
        ranks[parent] += 1
    return math.fsum(worths)


def assert_consistent(
    tree: SolvedTree, vector: Sequence[float], max_nodes: int, max_levels: int
) -> None:
    """The tree is in level order, within its limits, and worth what it says."""
    topology = Topology(tree.parents)
    assert topology.level_count == tree.levels <= max_levels
    assert tree.node_count <= max_nodes
    assert worth(tree, vector) == pytest.approx(tree.expected_tokens, rel=1e-12)


@cache
def all_trees(nodes: int, levels: int, ranks: int) -> tuple[tuple[object, ...], ...]:
    """Every ordered tree of exactly `nodes` nodes, as nested tuples of children."""
    return all_forests(nodes - 1, levels - 1, ranks, ranks)


@cache
def all_forests(
    nodes: int, levels: int, children: int, ranks: int
) -> tuple[tuple[object, ...], ...]:
    """Every row of at most `children` trees that have exactly `nodes` nodes together."""
    if nodes == 0:
        return ((),)
    if levels == 0 or children == 0:
        return ()
    return tuple(
        (first, *rest)
        for size in range(1, nodes + 1)
        for first in all_trees(size, levels, ranks)
        for rest in all_forests(nodes - size, levels, children - 1, ranks)
    )


def nested_worth(tree: Sequence[object], vector: Sequence[float]) -> float:
    """Expected tokens of a tree of nested tuples."""
    total = 1.0
    for probability, child in zip(vector, tree, strict=False):
        assert isinstance(child, tuple)
        total += probability * nested_worth(child, vector)
    return total


def plain_programme(vector: Sequence[float], max_nodes: int, levels: int) -> list[float]:
    """The recursion as the paper writes it, nothing pruned: worth by size, index 0 unused."""
    values = [0.0] + [1.0] * max_nodes
    for _ in range(levels - 1):
        shared = [0.0] * max_nodes
        for probability in reversed(vector):
            shared = [0.0] + [
                max(probability * values[j] + shared[m - j] for j in range(1, m + 1))
                for m in range(1, max_nodes)
            ]
        values = [0.0] + [1.0 + shared[n] for n in range(max_nodes)]
    return values


@pytest.mark.parametrize(
    ("nodes", "by_levels"),
    [
        (4, (2.2914, 2.2914, 2.2914)),
        (8, (2.5933, 2.7322, 2.7322)),
        (16, (2.8645, 3.1252, 3.1303)),
        (32, (3.0560, 3.4628, 3.5007)),
        (64, (3.2230, 3.7880, 3.8523)),
    ],
)
def test_reference_vector_reaches_the_golden_values(
    nodes: int, by_levels: tuple[float, ...]
) -> None:
    """The published, slightly non-monotone vector gives the published tokens per step."""
    for levels, golden in zip((4, 7, 10), by_levels, strict=True):
        tree = solve(REFERENCE, nodes, levels)
        assert tree.expected_tokens == pytest.approx(golden, abs=5.1e-5)
        assert_consistent(tree, REFERENCE, nodes, levels)


@pytest.mark.parametrize(
    ("nodes", "golden"),
    [(128, 4.208), (256, 4.551), (512, 4.894), (768, 5.090), (1024, 5.227)],
)
def test_sorted_vector_reaches_the_golden_values(nodes: int, golden: float) -> None:
    """Heap and programme both give the published tokens per step of large trees."""
    tree = solve(SORTED, nodes, 32)
    assert tree.expected_tokens == pytest.approx(golden, abs=5.1e-4)
    assert tree.node_count == nodes
    by_programme = frontier(SORTED, nodes, 32).expected_tokens(nodes, 32)
    assert by_programme == pytest.approx(tree.expected_tokens, rel=1e-12)


def test_sorted_vector_of_64_nodes_on_10_levels() -> None:
    """G(64, 10) is 3.857130, up to the six digits to which the vector is published."""
    assert solve(SORTED, 64, 10).expected_tokens == pytest.approx(3.857130, abs=1e-5)


def test_heap_equals_the_programme_on_monotone_vectors() -> None:
    """On 200 random non-increasing vectors both algorithms reach the same worth."""
    generator = np.random.default_rng(20240212)
    for _ in range(200):
        ranks, nodes, levels = generator.integers((1, 1, 1), (17, 65, 13)).tolist()
        drawn = generator.dirichlet(np.full(ranks + 1, generator.uniform(0.1, 2.0)))[:ranks]
        vector = tuple(np.sort(drawn)[::-1].tolist())
        grown = best_first(vector, nodes, levels).tree(nodes)
        trees = frontier(vector, nodes, levels)
        solved = trees.tree(nodes, levels)
        assert solved.expected_tokens == pytest.approx(grown.expected_tokens, rel=1e-12)
        assert_consistent(grown, vector, nodes, levels)
        assert_consistent(solved, vector, nodes, levels)


def test_every_prefix_of_one_heap_run_is_optimal() -> None:
    """Stopping the heap early gives what a run for that size gives."""
    growth = best_first(SORTED, 200, 8)
    trees = frontier(SORTED, 200, 8)
    for nodes in range(1, 201):
        prefix = growth.tree(nodes)
        assert prefix == solve(SORTED, nodes, 8)
        assert prefix.expected_tokens == pytest.approx(trees.expected_tokens(nodes, 8), rel=1e-12)


def test_non_monotone_vectors_reach_the_true_optimum() -> None:
    """No ordered tree of up to 8 nodes beats the programme, whatever the vector."""
    generator = np.random.default_rng(7)
    fixed = [(0.1, 0.8), (0.0, 0.0, 0.9), (0.3, 0.0, 0.6), (0.05, 0.1, 0.2, 0.4), (1.0, 0.0, 0.0)]
    drawn = [tuple(generator.dirichlet(np.full(5, 0.5))[:4].tolist()) for _ in range(20)]
    for vector in fixed + drawn:
        for levels in (2, 3, 5, 8):
            best = 0.0
            for nodes in range(1, 9):
                candidates = all_trees(nodes, levels, len(vector))
                best = max([best, *(nested_worth(tree, vector) for tree in candidates)])
                tree = solve(vector, nodes, levels)
                assert tree.expected_tokens == pytest.approx(best, rel=1e-12)
                assert_consistent(tree, vector, nodes, levels)


def test_pruning_does_not_change_the_programme() -> None:
    """Every size and level limit has the worth that the unpruned recursion finds."""
    generator = np.random.default_rng(11)
    for concentration in (0.1, 0.3, 1.0, 5.0):
        for ranks in (2, 5, 12):
            vector = generator.dirichlet(np.full(ranks + 1, concentration))[:ranks].tolist()
            trees = frontier(vector, 60, 6)
            for levels in range(1, 7):
                expected = plain_programme(vector, 60, levels)
                for nodes in range(1, 61):
                    found = trees.expected_tokens(nodes, levels)
                    assert found == pytest.approx(expected[nodes], rel=1e-12)
                assert_consistent(trees.tree(60, levels), vector, 60, levels)


def test_large_non_monotone_tree_matches_the_unpruned_recursion() -> None:
    """At 300 nodes, where the published vector stops being concave, nothing is lost either."""
    values = np.concatenate(([0.0], np.ones(300)))
    for _ in range(5):
        shared = np.zeros(300)
        for probability in reversed(REFERENCE):
            child = probability * values[1:300]
            shared = np.concatenate(([0.0], max_plus(child, shared, 299)))
        values = np.concatenate(([0.0], 1.0 + shared))
    trees = frontier(REFERENCE, 300, 6)
    assert trees.table()[-1] == pytest.approx(values[1:], rel=1e-12)
    for nodes in (100, 250, 299, 300):
        assert_consistent(trees.tree(nodes, 6), REFERENCE, nodes, 6)


def test_max_plus_convolution_by_hand() -> None:
    """Sums of matching indices are maximised, and both inputs go on at their last value."""
    first, second = np.array([0.0, 2.0]), np.array([1.0, 4.0, 5.0])
    assert max_plus(first, second, 5).tolist() == [1.0, 4.0, 6.0, 7.0, 7.0]


def test_hull_bridges_the_dents() -> None:
    """A function that is not concave gets the slopes of the shortest string laid over it."""
    assert hull_slopes(np.array([0.0, 1.0, 1.0, 2.0, 2.0])).tolist() == [1.0, 0.5, 0.5, 0.0]


def test_widths_are_those_of_the_tree() -> None:
    """Level widths computed without building a tree equal the widths of the tree built."""
    trees = frontier(REFERENCE, 120, 9)
    for nodes in (1, 2, 17, 64, 120):
        for levels in (1, 2, 5, 9, 40):
            topology = Topology(trees.tree(nodes, levels).parents)
            assert trees.widths(nodes, levels) == tuple(len(level) for level in topology.levels)


def test_useless_nodes_are_left_out() -> None:
    """A tree is not filled up with nodes that are never accepted."""
    assert solve((0.5, 0.0), 10, 3).parents == (-1, 0, 1)
    assert solve((0.2, 0.0, 0.5, 0.0), 10, 2).parents == (-1, 0, 0, 0)
    assert solve((0.0, 0.0), 10, 3).parents == (-1,)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ((), "0 children"),
        ((0.0,) * 1025, "1025 children, must be 1..1024"),
        ((0.5, float("nan")), "a_2 is nan"),
        ((0.5, float("inf")), "a_2 is inf"),
        ((-0.1,), "a_1 is -0.1"),
        ((0.6, 0.5), "sum to 1.1"),
    ],
)
def test_bad_vectors_are_named(vector: tuple[float, ...], message: str) -> None:
    """A vector that cannot be probabilities is refused with the rank and the limit."""
    with pytest.raises(ValueError, match=message):
        solve(vector, 4, 4)


@pytest.mark.parametrize(
    ("nodes", "levels", "message"),
    [(0, 4, "max_nodes is 0"), (4097, 4, "must be 1..4096"), (4, 0, "max_levels is 0")],
)
def test_bad_limits_are_named(nodes: int, levels: int, message: str) -> None:
    """Limits out of range are refused by name."""
    with pytest.raises(ValueError, match=message):
        solve((0.5,), nodes, levels)


def test_heap_refuses_increasing_vectors() -> None:
    """Best-first search is not run where it would not be optimal."""
    with pytest.raises(ValueError, match="never increases"):
        best_first((0.1, 0.2), 4, 4)

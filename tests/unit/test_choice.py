"""The best size and depth for measured times, and the times themselves."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from planner.latency import Curve, Latency
from planner.solver import choose, frontier

VECTOR_FILE = Path(__file__).parents[1] / "data" / "acceptance_vector.json"
REFERENCE = tuple(json.loads(VECTOR_FILE.read_text())["vector"][1:-1])
GOLDEN_TARGET = Curve((1, 2, 4, 8, 16, 32), (10, 10, 10, 12, 14, 18))
GOLDEN = Latency(Curve.constant(0.3), GOLDEN_TARGET, charge_leaves=True)


@pytest.mark.parametrize(("charge_leaves", "ms"), [(True, 4.8878), (False, 4.7569)])
def test_golden_plan_is_chosen_under_both_conventions(charge_leaves: bool, ms: float) -> None:
    """Of the measured sizes 4 nodes on 4 levels win, however draft passes are counted."""
    latency = dataclasses.replace(GOLDEN, charge_leaves=charge_leaves)
    choice = choose(REFERENCE, latency, 32, 10, sizes=GOLDEN_TARGET.points)
    assert (choice.tree.node_count, choice.tree.levels) == (4, 4)
    assert choice.ms_per_token == pytest.approx(ms, abs=5e-5)
    assert choice.speedup == pytest.approx(10 / ms, abs=5e-4)


def test_choice_is_the_best_of_all_trees() -> None:
    """Stopping at the lower bound misses no tree, with draft passes that grow with the width."""
    generator = np.random.default_rng(3)
    for _ in range(12):
        rises = np.cumsum(generator.uniform(0.0, 2.0, (2, 4)), axis=1)
        latency = Latency(
            Curve((1, 4, 16, 40), tuple(rises[0].tolist())),
            Curve((1, 8, 20, 40), tuple((5.0 + rises[1]).tolist())),
            draft_hop_ms=0.2,
            target_hop_ms=0.1,
        )
        trees = frontier(REFERENCE, 40, 8)
        costs = [
            latency.step_ms(trees.widths(nodes, levels)) / trees.expected_tokens(nodes, levels)
            for nodes in range(1, 41)
            for levels in range(1, 9)
        ]
        assert choose(REFERENCE, latency, 40, 8).ms_per_token == pytest.approx(min(costs))


def test_no_speculation_wins_ties() -> None:
    """A tree that is predicted only as fast as no speculation is not chosen."""
    vector = (0.5,)  # two nodes: 1.5 tokens per step
    break_even = Latency(Curve.constant(5.0), Curve.constant(10.0))
    assert choose(vector, break_even, 2, 2).tree.parents == (-1,)
    cheaper = dataclasses.replace(break_even, draft_ms=Curve.constant(4.99))
    assert choose(vector, cheaper, 2, 2).tree.parents == (-1, 0)


def test_no_speculation_pays_neither_draft_nor_its_hop() -> None:
    """The root alone costs one target pass and one round trip to the target, and has speed-up 1."""
    latency = Latency(Curve.constant(100.0), Curve.constant(8.0), 50.0, 2.0, charge_leaves=True)
    choice = choose((0.5,), latency, 16, 4)
    assert (choice.tree.node_count, choice.ms_per_token, choice.speedup) == (1, 10.0, 1.0)


def test_hops_favour_larger_trees() -> None:
    """Dear round trips are worth spreading over more tokens per step."""
    near = choose(REFERENCE, Latency(Curve.constant(0.3), GOLDEN_TARGET), 32, 10)
    far = choose(REFERENCE, Latency(Curve.constant(0.3), GOLDEN_TARGET, 20.0, 20.0), 32, 10)
    assert far.tree.node_count > near.tree.node_count


def test_a_single_node_or_level_means_no_speculation() -> None:
    """Limits that leave no room for a child give the root."""
    latency = Latency(Curve.constant(0.1), GOLDEN_TARGET)
    assert choose(REFERENCE, latency, 1, 8).tree.parents == (-1,)
    assert choose(REFERENCE, latency, 8, 1).tree.parents == (-1,)
    assert choose((0.0,), latency, 8, 8).tree.parents == (-1,)
    assert choose(REFERENCE, latency, 8, 8, sizes=()).tree.parents == (-1,)


def test_curves_interpolate_and_go_on_rising() -> None:
    """Times lie on the lines between points and beyond the last one, and never fall there."""
    assert Curve((1, 3, 5), (1.0, 3.0, 4.0)).at([1, 2, 4, 9]).tolist() == [1.0, 2.0, 3.5, 6.0]
    assert Curve.measured({8: 3.0, 1: 4.0}).at([1, 8, 80]).tolist() == [4.0, 3.0, 3.0]
    assert Curve((1,), (2.0,)).at([1, 3]).tolist() == [2.0, 6.0]
    assert Curve.constant(7.0).at([1, 1000]).tolist() == [7.0, 7.0]


@pytest.mark.parametrize(
    ("points", "times", "message"),
    [
        ((), (), "begin with 1"),
        ((2, 4), (1.0, 1.0), "begin with 1"),
        ((1, 1), (1.0, 1.0), "rise"),
        ((1, 2), (1.0,), "2 points, but 1 times"),
        ((1, 2), (1.0, float("nan")), "nan ms at 2 nodes"),
        ((1,), (-1.0,), "-1.0 ms at 1 nodes"),
    ],
)
def test_bad_curves_are_refused(
    points: tuple[int, ...], times: tuple[float, ...], message: str
) -> None:
    """Measurements that are no curve are refused with the reason."""
    with pytest.raises(ValueError, match=message):
        Curve(points, times)


def test_bad_latencies_are_refused() -> None:
    """A target that takes no time, or a hop below 0, is refused by name."""
    with pytest.raises(ValueError, match="target_ms must be above 0"):
        Latency(Curve.constant(1.0), Curve.constant(0.0))
    with pytest.raises(ValueError, match="draft_hop_ms -1"):
        Latency(Curve.constant(1.0), Curve.constant(1.0), draft_hop_ms=-1)

"""From measurements and acceptance to a plan's trees."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from planner.estimator import PRIOR
from planner.measurements import NO_OVERHEAD, Measurements, Overhead
from planner.planning import plan_trees
from planner.solver import choose
from sequoia.plans import REQUEST_CLASSES, PlannedTree

BATCH_SIZES = (1, 2, 4, 8)
NODES = (1, 2, 4, 8, 16, 32, 64)
WIDTHS = (1, 2, 4, 8, 16, 32)
OVERHEADS = [(batch, samples) for batch in BATCH_SIZES for samples in (False, True)]
NONE_FOR_ONE = dict.fromkeys(OVERHEADS[:2], NO_OVERHEAD)
SAME_FOR_ALL = dict.fromkeys(REQUEST_CLASSES, PRIOR)


def measured(
    draft_ms: float, target_ms: float, per_token_ms: float = 0.0, hop_ms: float = 0.0
) -> Measurements:
    """Passes of a constant part and a part for every token in the batch."""
    return Measurements(
        {(b, n): target_ms + per_token_ms * b * n for b in BATCH_SIZES for n in NODES},
        {(b, w): draft_ms + per_token_ms / 10 * b * w for b in BATCH_SIZES for w in WIDTHS},
        dict.fromkeys(OVERHEADS, Overhead(hop_ms, 2 * hop_ms)),
        max_nodes=64,
    )


def by_batch(
    measurements: Measurements,
    vectors: Mapping[str, tuple[float, ...]] = SAME_FOR_ALL,
    max_levels: int = 8,
    name: str = "greedy",
) -> dict[int, PlannedTree]:
    """The trees of one class by batch size."""
    trees = plan_trees(measurements, vectors, max_levels)
    return {tree.batch_size: tree for tree in trees if tree.request_class == name}


def test_every_class_and_load_has_a_tree() -> None:
    """A plan answers for each request class at each measured load, once."""
    trees = plan_trees(measured(1.0, 30.0, 0.5), SAME_FOR_ALL, 8)
    found = [(tree.request_class, tree.batch_size) for tree in trees]
    assert sorted(found) == sorted((name, b) for name in REQUEST_CLASSES for b in BATCH_SIZES)


def test_a_cheap_draft_gives_trees() -> None:
    """With drafting nearly free and the target insensitive to size, the tree uses what it may."""
    tree = by_batch(measured(0.1, 30.0))[1]
    assert tree.topology.node_count == 64
    assert tree.predicted_seconds_per_token < 0.5 * 0.030
    assert tree.predicted_seconds_per_token_without_speculation == pytest.approx(0.030)


@pytest.mark.parametrize(
    ("measurements", "vector"),
    [
        (measured(200.0, 30.0), PRIOR),
        (measured(1.0, 30.0, hop_ms=500.0), (0.001,)),
        (measured(5.0, 30.0), (0.01, 0.01, 0.01)),
        (measured(1.0, 0.1, per_token_ms=30.0), PRIOR),
    ],
    ids=["expensive draft", "far draft", "low acceptance", "target busy already"],
)
def test_no_speculation_where_it_does_not_pay(
    measurements: Measurements, vector: tuple[float, ...]
) -> None:
    """Without a predicted gain the plan is the root alone, with the prediction of plain steps."""
    for tree in by_batch(measurements, dict.fromkeys(REQUEST_CLASSES, vector)).values():
        assert tree.parents == (-1,)
        assert tree.expected_tokens_per_step == 1.0
        plain = tree.predicted_seconds_per_token_without_speculation
        assert tree.predicted_seconds_per_token == plain


def test_a_tree_is_never_predicted_slower_than_none() -> None:
    """Whatever was measured, the prediction never exceeds the one without speculation."""
    generator = np.random.default_rng(11)
    for _ in range(4):
        draft, target, per_token, hop = generator.uniform(0.01, 20.0, 4)
        for tree in by_batch(measured(draft, target, per_token, hop)).values():
            plain = tree.predicted_seconds_per_token_without_speculation
            assert tree.predicted_seconds_per_token <= plain
            assert (tree.topology.node_count == 1) == (tree.predicted_seconds_per_token == plain)


def test_load_shrinks_the_tree_and_never_speeds_a_request_up() -> None:
    """As more requests share a pass, trees do not grow and no request is predicted faster."""
    trees = by_batch(measured(1.0, 20.0, per_token_ms=1.5))
    counts = [trees[b].topology.node_count for b in BATCH_SIZES]
    seconds = [trees[b].predicted_seconds_per_token for b in BATCH_SIZES]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    assert seconds == sorted(seconds)


def test_predictions_are_the_solvers() -> None:
    """A planned tree carries what the solver chose for the same times, in seconds."""
    measurements = measured(1.0, 25.0, 0.4, 0.3)
    for batch, tree in by_batch(measurements).items():
        latency = measurements.latency(batch, samples=False)
        choice = choose(PRIOR, latency, 64, 8)
        assert tree.parents == choice.tree.parents
        assert tree.expected_tokens_per_step == choice.tree.expected_tokens
        widths = [len(level) for level in tree.topology.levels]
        step = latency.step_ms(widths) / 1000
        assert tree.predicted_seconds_per_token * tree.expected_tokens_per_step == pytest.approx(
            step
        )


def test_each_class_has_its_own_vector() -> None:
    """A class whose drafts are rejected does not spoil the trees of the others."""
    vectors = {**SAME_FOR_ALL, "flat": (0.01,)}
    measurements = measured(1.0, 30.0, 0.2)
    assert by_batch(measurements, vectors, name="flat")[1].parents == (-1,)
    assert by_batch(measurements, vectors, name="sharp")[1].topology.node_count > 1


def test_what_drawing_costs_is_charged_to_those_who_draw() -> None:
    """Where only drawn tokens make trees dear, greedy requests keep theirs."""
    dear = {key: Overhead(0.0, 500.0) if key[1] else NO_OVERHEAD for key in OVERHEADS}
    measurements = replace(measured(1.0, 30.0, 0.2), overheads=dear)
    assert by_batch(measurements, name="greedy")[1].topology.node_count > 1
    assert by_batch(measurements, name="flat")[1].parents == (-1,)


def test_overheads_are_times() -> None:
    """An overhead below zero, or none at all, is refused by name."""
    with pytest.raises(ValueError, match="tree_ms -1"):
        Overhead(0.0, -1.0)
    with pytest.raises(ValueError, match="plain_ms nan"):
        Overhead(float("nan"), 0.0)


def test_trees_that_share_a_pass_share_its_memory() -> None:
    """Four of them have a fourth of its nodes each."""
    measurements = replace(measured(0.1, 30.0), pass_nodes=40)
    sizes = {batch: tree.topology.node_count for batch, tree in by_batch(measurements).items()}
    assert sizes[1] == 40
    assert all(size <= max(40 // batch, 1) for batch, size in sizes.items())


def test_limits_hold() -> None:
    """No tree has more nodes than the workers take, or more levels than allowed."""
    measurements = Measurements(
        {(1, 1): 30.0, (1, 2): 30.0},
        {(1, 1): 0.1},
        dict.fromkeys(OVERHEADS, NO_OVERHEAD),
        max_nodes=5,
    )
    topology = by_batch(measurements, max_levels=3)[1].topology
    assert topology.node_count == 5
    assert topology.level_count <= 3


def test_only_loads_measured_on_both_workers_are_planned() -> None:
    """A load that one worker refuses to measure has no tree of its own."""
    measurements = Measurements(
        {(1, 1): 30.0, (2, 1): 40.0}, {(1, 1): 1.0, (4, 1): 1.0}, NONE_FOR_ONE, max_nodes=8
    )
    assert measurements.batch_sizes == (1,)
    assert {tree.batch_size for tree in plan_trees(measurements, SAME_FOR_ALL, 8)} == {1}


@pytest.mark.parametrize(
    ("target_ms", "draft_ms", "message"),
    [
        ({}, {(1, 1): 1.0}, "no batch size"),
        ({(1, 2): 5.0}, {(1, 1): 1.0}, "begin with 1 node"),
        ({(1, 1): 0.0}, {(1, 1): 1.0}, "target_ms must be above 0"),
        ({(1, 1): 5.0}, {(1, 1): float("nan")}, "nan ms"),
    ],
)
def test_unusable_measurements_are_refused(
    target_ms: dict[tuple[int, int], float],
    draft_ms: dict[tuple[int, int], float],
    message: str,
) -> None:
    """Times from which no plan can be made are refused with the reason."""
    with pytest.raises(ValueError, match=message):
        Measurements(target_ms, draft_ms, dict.fromkeys(OVERHEADS, NO_OVERHEAD), max_nodes=8)


def test_a_streamed_target_gets_a_tree_of_hundreds_of_nodes() -> None:
    """Nine seconds a pass up to some hundred nodes: what counts is how many tokens it yields."""
    target = {1: 9000.0, 16: 9000.0, 64: 9100.0, 256: 10000.0, 1024: 24000.0}
    draft = {1: 2.0, 16: 6.0, 64: 15.0, 256: 50.0, 512: 90.0}
    measurements = Measurements(
        {(1, nodes): ms for nodes, ms in target.items()},
        {(1, width): ms for width, ms in draft.items()},
        {(1, samples): Overhead(1.0, 2.0) for samples in (False, True)},
        max_nodes=1024,
    )
    tree = by_batch(measurements, max_levels=24)[1]
    assert tree.topology.node_count >= 200
    assert tree.topology.level_count > 8
    plain = tree.predicted_seconds_per_token_without_speculation
    assert tree.predicted_seconds_per_token < plain / 3.5

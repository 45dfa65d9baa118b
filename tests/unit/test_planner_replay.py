"""Recorded noisy traffic before the planner's mind: it holds still, and it follows shifts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.measurements import Measurements, Overhead
from sequoia.plans import GREEDY
from tests.replay import Replay, Trace, World

LOADS = (1, 2, 4, 8, 16)
SIZES = (1, 2, 4, 8, 16, 32, 64)
# A target whose passes hardly depend on the tree's size, so that many trees are worth considering.
LARGE_TARGET = Measurements(
    {(b, n): 30.0 + 0.3 * b * n for b in LOADS for n in SIZES},
    {(b, w): 2.0 + 0.1 * b * w for b in LOADS for w in SIZES[:-1]},
    {(b, samples): Overhead(1.0, 2.5) for b in LOADS for samples in (False, True)},
    max_nodes=64,
)
TEN_MINUTES = 600.0
SETTLING_STEPS = 3000
STEPS_TO_FOLLOW = 200

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def trace() -> Trace:
    """The recorded texts and noise, on the large target."""
    return replace(Trace.load(), measurements=LARGE_TARGET)


@pytest.fixture(scope="module")
def usual(trace: Trace) -> World:
    """All texts, and passes that take longer than they took when they were profiled."""
    return World(trace.texts, trace.measurements).slower(target=1.3, draft=1.5)


@pytest.mark.parametrize("load", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_stationary_traffic_changes_the_plan_once_at_most(
    trace: Trace, usual: World, seed: int, load: int
) -> None:
    """Ten minutes from the first plan on: what was assumed gives way to what is seen, and no more."""
    replay = Replay(trace, seed, load)
    replay.run(replace(usual, load=load), seconds=TEN_MINUTES)
    assert replay.step_count > 5000
    assert len(replay.changes) <= 1


@pytest.mark.parametrize("seed", range(2))
def test_the_recorded_machine_changes_no_plan_either(seed: int) -> None:
    """Its profile was taken while other programs ran, and its steps were half as long again."""
    recorded = Trace.load()
    world = World(recorded.texts, recorded.measurements).slower(target=1.5, draft=1.5)
    replay = Replay(recorded, seed)
    replay.run(world, seconds=TEN_MINUTES)
    assert len(replay.changes) <= 1


def shifted(usual: World, name: str) -> World:
    """Another world."""
    by_hits = sorted(usual.texts, key=lambda text: float(np.mean(text[:, 0] == 0)))
    return {
        "a tenth of the hits": replace(usual, hit_share=0.1),
        "the hardest prompts": replace(usual, texts=tuple(by_hits[:12])),
        "the easiest prompts": replace(usual, texts=tuple(by_hits[-12:])),
        "a slower target": usual.slower(target=4.0),
        "a slower draft": usual.slower(draft=6.0),
    }[name]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "name",
    [
        "a tenth of the hits",
        "the hardest prompts",
        "the easiest prompts",
        "a slower target",
        "a slower draft",
    ],
)
def test_the_plan_follows_a_shift(trace: Trace, usual: World, name: str, seed: int) -> None:
    """200 steps later the tree costs at most 3 % more than one chosen with perfect knowledge."""
    replay = Replay(trace, seed)
    replay.run(usual, steps=SETTLING_STEPS)
    after = shifted(usual, name)
    best = after.true_cost(after.best_tree(replay.tree))
    replay.run(after, steps=STEPS_TO_FOLLOW)
    assert after.true_cost(replay.tree) <= 1.03 * best


@pytest.mark.parametrize("seed", range(3))
def test_the_shifts_are_worth_following(trace: Trace, usual: World, seed: int) -> None:
    """The tree of before would cost far more than the one that is found: the test above can fail."""
    replay = Replay(trace, seed)
    replay.run(usual, steps=SETTLING_STEPS)
    for name in ("a tenth of the hits", "a slower draft"):
        after, before = shifted(usual, name), replay.tree
        assert after.true_cost(before) > 1.06 * after.true_cost(after.best_tree(before))


def test_a_shift_is_told_from_noise(trace: Trace, usual: World) -> None:
    """The memory notices that acceptance fell, once, and estimates it afresh."""
    replay = Replay(trace, seed=1)
    replay.run(usual, steps=SETTLING_STEPS)
    memory = replay.mind.memories[GREEDY]
    assert memory.shift_count == 0
    before = replay.mind.estimate(GREEDY).vector[0]
    replay.run(replace(usual, hit_share=0.4), steps=800)
    assert memory.shift_count == 1
    assert replay.mind.estimate(GREEDY).vector[0] == pytest.approx(0.4 * before, rel=0.35)

"""Two memories of one class: which one speaks, and what noise and shifts do to them."""

import numpy as np
import pytest

from planner.memory import LONG_NODES, Memory
from sequoia.plans import AcceptanceCounts

RATES = (0.45, 0.25, 0.15)


def looks(rates: tuple[float, ...], nodes: int, seed: int, count: int) -> list[AcceptanceCounts]:
    """So many looks at nodes with three children that accept independently of each other."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        at_risk, trials, accepts = nodes, [], []
        for rate in rates:
            trials.append(at_risk)
            accepts.append(int(generator.binomial(at_risk, rate)))
            at_risk -= accepts[-1]
        found.append(AcceptanceCounts(tuple(trials), tuple(accepts)))
    return found


def shares(memory: Memory) -> list[float]:
    """The share accepted at each of the three ranks."""
    return [a / t for a, t in zip(memory.accepts[:3], memory.trials[:3], strict=True)]


@pytest.mark.parametrize("nodes", [5, 60, 900])
def test_noise_is_no_shift_in_an_hour_of_looks(nodes: int) -> None:
    """Whatever the traffic's rate, chance alone never makes the short memory speak."""
    memory = Memory()
    shifts = [memory.observe(counts) for counts in looks(RATES, nodes, seed=nodes, count=3600)]
    assert not any(shifts)
    assert shares(memory) == pytest.approx(RATES, abs=0.03)


def test_the_long_memory_is_bounded() -> None:
    """It stands for a few thousand nodes, however many there were."""
    memory = Memory()
    for counts in looks(RATES, 500, seed=1, count=100):
        memory.observe(counts)
    assert memory.nodes <= LONG_NODES


@pytest.mark.parametrize("after", [(0.1, 0.05, 0.03), (0.9, 0.5, 0.5)], ids=["worse", "better"])
def test_a_shift_is_noticed_within_two_hundred_nodes(after: tuple[float, ...]) -> None:
    """The new rates are then believed, give or take what few nodes can say."""
    memory = Memory()
    for counts in looks(RATES, 40, seed=2, count=60):
        assert not memory.observe(counts)
    shifts = [memory.observe(counts) for counts in looks(after, 40, seed=3, count=5)]
    assert sum(shifts) == 1
    assert shares(memory)[0] == pytest.approx(after[0], abs=0.12)
    assert memory.nodes < 200
    assert memory.shift_count == 1


def test_a_shift_from_nothing_is_noticed() -> None:
    """A draft that never agreed and now does is no division by zero."""
    memory = Memory()
    for counts in looks((0.0, 0.0, 0.0), 50, seed=4, count=20):
        memory.observe(counts)
    assert any(memory.observe(counts) for counts in looks(RATES, 50, seed=5, count=6))


def test_traffic_that_varies_is_not_mistaken_for_shifts() -> None:
    """Where every look is another text the dispersion grows, and with it what a shift must exceed."""
    generator = np.random.default_rng(6)
    alike, varying = Memory(), Memory()
    for seed in range(400):
        (same,) = looks(RATES, 150, seed, 1)
        rate = float(np.clip(generator.normal(0.45, 0.1), 0.05, 0.95))
        (other,) = looks((rate, 0.25, 0.15), 150, seed, 1)
        assert not alike.observe(same)
        assert not varying.observe(other)
    assert varying.dispersion > 2 * alike.dispersion
    assert alike.dispersion < 2.0


def test_earlier_counts_are_recalled_with_the_weight_of_one_memory() -> None:
    """A million nodes of last week are a start, not a verdict."""
    memory = Memory()
    memory.recall(AcceptanceCounts((10**6, 5 * 10**5), (5 * 10**5, 10**5)))
    assert memory.nodes == pytest.approx(LONG_NODES)
    assert memory.accepts[0] / memory.trials[0] == pytest.approx(0.5)


def test_a_look_at_nothing_changes_nothing() -> None:
    """Between requests memories stand still."""
    memory = Memory()
    memory.observe(AcceptanceCounts((10, 4), (5, 1)))
    before = memory.trials, memory.accepts
    assert not memory.observe(AcceptanceCounts())
    assert (memory.trials, memory.accepts) == before


def test_weights_say_how_much_the_counts_are_worth() -> None:
    """An exponential average over w nodes is worth up to 2 w equal ones."""
    memory = Memory()
    for counts in looks(RATES, 20, seed=7, count=2000):
        memory.observe(counts)
    assert memory.nodes_per_independent == pytest.approx(memory.dispersion / 2, rel=0.05)

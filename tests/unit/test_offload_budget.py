"""Dividing a device's memory: pure arithmetic, checked against its own sums."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from sequoia.runtime.offload.budget import (
    LEAST_PASS_TOKENS,
    RING_SIZE,
    BudgetError,
    Division,
    Sizes,
    divide,
    smallest,
    spread,
    tiers,
)

MIB = 2**20
SIZES = Sizes(
    process_bytes=100 * MIB,
    rest_bytes=50 * MIB,
    layer_bytes=(10 * MIB,) * 40,
    slot_bytes=10 * MIB,
    scratch_bytes=0,
    token_bytes=MIB // 4,
    kv_cache_limit_bytes=None,
    node_limit=1024,
)


def taken(sizes: Sizes, division: Division) -> int:
    """What a division takes in the end."""
    return (
        sizes.process_bytes
        + sizes.rest_bytes
        + sum(sizes.layer_bytes[number] for number in division.resident)
        + (RING_SIZE * sizes.slot_bytes + sizes.scratch_bytes if division.streamed else 0)
        + division.kv_cache_limit_bytes
        + division.pass_tokens * sizes.token_bytes
    )


@pytest.mark.parametrize("budget_mib", range(350, 1400, 70))
@pytest.mark.parametrize("scratch_mib", [0, 20])
def test_a_division_fits_and_one_layer_more_would_not(budget_mib: int, scratch_mib: int) -> None:
    """Every layer is either there or streamed, in order."""
    sizes, budget = replace(SIZES, scratch_bytes=scratch_mib * MIB), budget_mib * MIB
    division = divide(sizes, budget)
    assert sorted((*division.resident, *division.streamed)) == list(range(40))
    assert list(division.streamed) == sorted(division.streamed)
    assert taken(sizes, division) <= budget
    if division.streamed:
        assert taken(sizes, division) + sizes.layer_bytes[0] > budget


def test_a_budget_for_everything_needs_no_ring() -> None:
    """What fits stays, and then nothing is set aside for streaming."""
    division = divide(SIZES, 2048 * MIB)
    assert division.streamed == ()
    assert taken(SIZES, division) <= 2048 * MIB


def test_sessions_get_their_shares_unless_the_operator_says_otherwise() -> None:
    """A fourth for the KV cache, an eighth for activations, and no more nodes than a tree may have."""
    division = divide(SIZES, 800 * MIB)
    assert division.kv_cache_limit_bytes == 200 * MIB
    assert division.pass_tokens == 400
    chosen = replace(SIZES, kv_cache_limit_bytes=300 * MIB, node_limit=32)
    division = divide(chosen, 800 * MIB)
    assert (division.kv_cache_limit_bytes, division.pass_tokens) == (300 * MIB, 32)
    assert divide(replace(SIZES, token_bytes=MIB), 800 * MIB).pass_tokens == 100
    assert divide(replace(SIZES, token_bytes=2 * MIB), 480 * MIB).pass_tokens == LEAST_PASS_TOKENS


def test_too_small_a_budget_is_told_the_smallest_that_would_do() -> None:
    """To a MiB: that one is taken, and one less is not."""
    with pytest.raises(BudgetError) as caught:
        divide(SIZES, 100 * MIB)
    assert caught.value.smallest > 100 * MIB
    divide(SIZES, caught.value.smallest)
    with pytest.raises(BudgetError):
        divide(SIZES, caught.value.smallest - MIB)


@pytest.mark.parametrize("kept", range(41))
def test_resident_layers_are_spread_evenly(kept: int) -> None:
    """No run of streamed layers is longer than the others by more than one."""
    resident = spread(kept, 40)
    assert len(resident) == kept
    bounds = (-1, *resident)
    runs = [right - left - 1 for left, right in itertools.pairwise(bounds)]
    assert not runs or max(runs) - min(runs) <= 1


def test_smallest_finds_the_threshold() -> None:
    """In whole MiB, from one upwards."""
    assert smallest(lambda size: size >= 1) == MIB
    assert smallest(lambda size: size >= 700 * MIB) == 700 * MIB


def test_host_memory_holds_the_first_layers_that_fit() -> None:
    """The rest is read from disk; a layer too large does not keep a smaller one out."""
    assert tiers({1: 10, 3: 30, 4: 10}, 25) == (1, 4)
    assert tiers({1: 10, 3: 30}, -5) == ()

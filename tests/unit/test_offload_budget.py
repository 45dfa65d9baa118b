"""Dividing a device's memory: pure arithmetic, checked against its own sums."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from sequoia.runtime.offload.budget import (
    KV_CACHE_BYTES,
    KV_COPIES,
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
    kv_token_bytes=0,
    kv_cache_limit_bytes=None,
    has_host=False,
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
    """An eighth for the KV cache, one for activations, and no more nodes than a tree may have."""
    division = divide(SIZES, 800 * MIB)
    assert division.kv_cache_limit_bytes == division.device_kv_bytes == 100 * MIB
    assert division.pass_tokens == 400
    chosen = replace(SIZES, kv_cache_limit_bytes=300 * MIB, node_limit=32)
    division = divide(chosen, 800 * MIB)
    assert (division.kv_cache_limit_bytes, division.pass_tokens) == (300 * MIB, 32)
    assert division.host_kv_bytes == 0
    assert divide(replace(SIZES, token_bytes=MIB), 800 * MIB).pass_tokens == 100
    assert divide(replace(SIZES, token_bytes=2 * MIB), 480 * MIB).pass_tokens == LEAST_PASS_TOKENS


@pytest.mark.parametrize(
    ("kv_token_kib", "expected_mib"), [(64, 100), (128, 128), (196, 196), (1024, 200)]
)
def test_the_kv_cache_has_room_for_a_text_before_layers_stay(
    kv_token_kib: int, expected_mib: int
) -> None:
    """For 1,024 tokens, where these take no more than a quarter."""
    sizes = replace(SIZES, kv_token_bytes=kv_token_kib * 2**10)
    assert divide(sizes, 800 * MIB).kv_cache_limit_bytes == expected_mib * MIB


def test_a_large_budget_keeps_more_layers_rather_than_more_rows() -> None:
    """4 GiB of KV cache are enough by default."""
    assert divide(SIZES, 2**40).kv_cache_limit_bytes == KV_CACHE_BYTES


def test_with_a_host_the_device_has_its_share_and_the_host_room_for_all() -> None:
    """On the device stand, beside the share, the rows of the layer that is computed and of the next."""
    sizes = replace(SIZES, has_host=True, kv_cache_limit_bytes=400 * MIB)
    division = divide(sizes, 600 * MIB)
    assert division.streamed
    assert division.kv_cache_limit_bytes == division.host_kv_bytes == 400 * MIB
    assert division.device_kv_bytes == 75 * MIB
    copies = KV_COPIES * 10 * MIB  # of 40 layers
    on_device = taken(sizes, division) - 400 * MIB + 75 * MIB + copies
    assert on_device <= 600 * MIB < on_device + sizes.layer_bytes[0]
    fits = divide(replace(sizes, kv_cache_limit_bytes=70 * MIB), 600 * MIB)
    assert (fits.device_kv_bytes, fits.host_kv_bytes) == (70 * MIB, 0)


def test_the_smallest_budget_counts_rows_on_their_way() -> None:
    """What is named does, with rows in the host's memory too."""
    sizes = replace(SIZES, has_host=True, kv_cache_limit_bytes=2**30)
    with pytest.raises(BudgetError) as caught:
        divide(sizes, 100 * MIB)
    divide(sizes, caught.value.smallest)
    with pytest.raises(BudgetError):
        divide(sizes, caught.value.smallest - MIB)


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

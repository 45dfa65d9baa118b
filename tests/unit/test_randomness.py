from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import chisquare

from sequoia.randomness import (
    MAX_SEED,
    Purpose,
    coupled_noise,
    gumbel,
    uniforms,
    unit_interval,
)

ADDRESS = (7, Purpose.DRAFT, 11, 3)


def test_the_same_address_gives_the_same_numbers() -> None:
    """A draw is a pure function of what it is for."""
    assert np.array_equal(uniforms(*ADDRESS, 9), uniforms(*ADDRESS, 9))


def test_more_numbers_begin_with_the_same_ones() -> None:
    """How many numbers are asked for changes none of them."""
    assert np.array_equal(uniforms(*ADDRESS, 1000)[:5], uniforms(*ADDRESS, 5))


@pytest.mark.parametrize(
    "other",
    [
        (8, Purpose.DRAFT, 11, 3),
        (7, Purpose.TARGET, 11, 3),
        (7, Purpose.DRAFT, 12, 3),
        (7, Purpose.DRAFT, 11, 4),
        (7, Purpose.DRAFT, 3, 11),
    ],
    ids=["seed", "purpose", "position", "node", "position and node swapped"],
)
def test_another_address_gives_other_numbers(other: tuple[int, Purpose, int, int]) -> None:
    """Every part of the address counts."""
    assert not np.intersect1d(uniforms(*ADDRESS, 100), uniforms(*other, 100)).size


def test_no_two_addresses_meet() -> None:
    """Streams of neighbouring addresses do not overlap, however long they are read."""
    streams = [
        uniforms(seed, purpose, position, node, 500)
        for seed, purpose, position, node in itertools.product(
            (0, 1, MAX_SEED), (Purpose.DRAFT, Purpose.ACCEPT), (0, 1, 2**40), (0, 1, 4095)
        )
    ]
    numbers = np.concatenate(streams)
    assert np.unique(numbers).size == numbers.size


def test_the_largest_seed_is_a_seed() -> None:
    """All 64 bits of a seed are used."""
    numbers = [uniforms(seed, *ADDRESS[1:], 1)[0] for seed in (MAX_SEED, MAX_SEED >> 1, 2**63)]
    assert len(set(numbers)) == 3


def test_the_extremes_lie_inside_the_open_interval() -> None:
    """Neither 0 nor 1 comes out, so that no logarithm of a draw is infinite."""
    low, high = unit_interval(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert 0.0 < low < high < 1.0
    assert np.isfinite(gumbel(np.array([low, high]))).all()


def test_numbers_are_spread_evenly() -> None:
    """Twenty bins of 20,000 numbers pass a chi-square test."""
    counts, _ = np.histogram(uniforms(5, Purpose.ACCEPT, 1, 0, 20_000), bins=20, range=(0, 1))
    assert chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize(
    ("address", "golden"),
    [
        ((0, Purpose.DRAFT, 0, 0), [0.8133540609793565, 0.7513314251083366, 0.6716490436969985]),
        (
            (7, Purpose.TARGET, 11, 3),
            [0.36637502605834305, 0.7393710102349401, 0.38859775129601626],
        ),
        (
            (MAX_SEED, Purpose.COUPLED, 100_000, 4095),
            [0.23346729748167816, 0.8672490955695334, 0.3913023393198801],
        ),
    ],
)
def test_the_numbers_never_change(
    address: tuple[int, Purpose, int, int], golden: list[float]
) -> None:
    """A seed gives the same text in the next version: these values are part of the API."""
    assert uniforms(*address, 3).tolist() == golden


def test_the_purposes_never_change() -> None:
    """Their numbers are part of every draw's address."""
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "DRAFT": 1,
        "TARGET": 2,
        "ACCEPT": 3,
        "COUPLED": 4,
    }


def test_the_largest_of_logits_and_noise_is_a_draw() -> None:
    """Gumbel-max over 20,000 positions follows p (chi-square)."""
    p = np.array([0.5, 0.3, 0.15, 0.05])
    draws = [int(np.argmax(np.log(p) + coupled_noise(3, n, p.size))) for n in range(20_000)]
    observed = np.bincount(draws, minlength=p.size)
    assert chisquare(observed, p * len(draws)).pvalue > 0.001


def test_coupled_noise_does_not_depend_on_the_size_of_the_vocabulary() -> None:
    """A draft with a smaller head meets the same noise at the tokens that it shares."""
    assert np.array_equal(coupled_noise(3, 17, 1000)[:100], coupled_noise(3, 17, 100))

"""Children go where they are most likely to be reached, and never more than there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from draft_service.allocation import allocate, likeliest


def test_a_sure_node_gets_more_than_one_that_is_not() -> None:
    """By hand: worths 0.6 and 0.3; 0.6 * 0.9 and 0.3 * 0.5, 0.3 * 0.4 are the largest three."""
    chances = np.array([[0.9, 0.05, 0.05], [0.5, 0.4, 0.1]])
    first, second = allocate([0.6, 0.3], chances, 3)
    assert first == pytest.approx([0.54])
    assert second == pytest.approx([0.15, 0.12])


def test_no_other_division_is_worth_more() -> None:
    """Against every division, for random nodes."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        chances = -np.sort(-rng.dirichlet(np.ones(4), size=3), axis=1)
        worths = rng.random(3).tolist()
        count = int(rng.integers(1, 9))
        reached = np.asarray(worths)[:, None] * chances
        best = max(
            sum(reached[node, :children].sum() for node, children in enumerate(division))
            for division in product(range(5), repeat=3)
            if sum(division) == count
        )
        shares = allocate(worths, chances, count)
        assert sum(len(share) for share in shares) == count
        assert sum(share.sum() for share in shares) == pytest.approx(best)


def test_what_cannot_be_drawn_is_not_given() -> None:
    """Ranks without a chance are left out, and what is left of the children goes to other nodes."""
    chances = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    assert [len(share) for share in allocate([0.9, 0.1], chances, 5)] == [1, 2]
    assert [len(share) for share in allocate([1.0, 0.0], chances, 5)] == [1, 0]


def test_the_likeliest_keep_their_order() -> None:
    """And the first of equals is taken."""
    assert likeliest([0.1, 0.4, 0.2, 0.4], 2) == [1, 3]
    assert likeliest([0.3, 0.3, 0.3], 2) == [0, 1]
    assert likeliest([0.3], 2) == [0]

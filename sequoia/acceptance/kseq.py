"""SpecTr's K-SEQ at many nodes at once, in expectation over its draws (arXiv 2310.15141).

K-SEQ depends on the number of children through rho, so a curve over 1..32 children needs 32 of its
ladders at every node: 9 ms on one core, against 0.2 ms for the ladder of a rule that is the same
for every child. Its children are independent, so the mean over all draws has a closed form; it is
computed here instead, and tests hold it against `sequoia.verification.spectr_ladder`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sequoia.verification.comparison import BISECTION_STEPS

Floats = NDArray[np.float64]


def rejection_by_count(target: Floats, draft: Floats, most: int) -> Floats:
    """Probability that all of k children are rejected, k = 1..`most`: `[nodes, most]`.

    Args:
        target: p on the draft's support and, last, on its tail: `[nodes, support + 1]`.
        draft: q on the same, 0 on the tail.
        most: children of a node at most.
    """
    counts = range(1, most + 1)
    # (1 - beta)^k: every child is rejected by itself.
    rejects = [(1.0 - _accept_prob(target, draft, count)) ** count for count in counts]
    return np.stack(rejects, axis=-1)


def _accept_prob(target: Floats, draft: Floats, count: int) -> Floats:
    """beta, the probability that one of `count` children passes its test: `[nodes]`."""
    low, high = np.ones(len(target)), np.full(len(target), float(count))
    high = np.where(_is_valid(target, draft, low, count), 1.0, high)
    # The smallest rho in [1, k] that leaves no residual negative, from above, as in `spectr_rho`.
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        valid = _is_valid(target, draft, middle, count)
        low, high = np.where(valid, low, middle), np.where(valid, middle, high)
    return _beta(target, draft, high)


def _is_valid(target: Floats, draft: Floats, rho: Floats, count: int) -> NDArray[np.bool_]:
    """1 - (1 - beta)^k <= rho beta."""
    beta = _beta(target, draft, rho)
    valid: NDArray[np.bool_] = 1.0 - (1.0 - beta) ** count <= rho * beta
    return valid


def _beta(target: Floats, draft: Floats, rho: Floats) -> Floats:
    """Sum of min(q, p / rho)."""
    beta: Floats = np.minimum(draft, target / rho[:, None]).sum(axis=-1)
    return np.minimum(beta, 1.0)

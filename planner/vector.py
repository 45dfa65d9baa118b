"""The acceptance vector a_1..a_k: a_k is the probability that the k-th drawn child is accepted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

MAX_CHILDREN = 1024
SUM_SLACK = 1e-3  # rounding of published vectors


def require_vector(vector: Sequence[float]) -> tuple[float, ...]:
    """Check an acceptance vector and give it back as a tuple.

    Raises:
        ValueError: naming the rank: no child or too many, a number that is not finite or below 0,
            or a sum above 1 (plus 0.001 for rounding).
    """
    if not 1 <= len(vector) <= MAX_CHILDREN:
        raise ValueError(f"{len(vector)} children, must be 1..{MAX_CHILDREN}")
    for rank, probability in enumerate(vector, start=1):
        if not (math.isfinite(probability) and probability >= 0):
            raise ValueError(f"a_{rank} is {probability}, must be a finite number >= 0")
    if (total := math.fsum(vector)) > 1 + SUM_SLACK:
        raise ValueError(f"a_1..a_{len(vector)} sum to {total:.6g}, must not exceed 1")
    return tuple(float(probability) for probability in vector)


def is_monotone(vector: Sequence[float]) -> bool:
    """Whether no rank is more likely accepted than the rank before it."""
    return all(left >= right for left, right in itertools.pairwise(vector))

"""One level of the dynamic programme: the best worth of every size, one level deeper.

V_l(n), the expected tokens of the best tree of at most n nodes on at most l levels, satisfies

    V_1(n) = 1,   V_l(n) = 1 + max over b and j_1 + ... + j_b <= n - 1 of sum a_i V_{l-1}(j_i)

with every j_i >= 1, because child i can only be drawn after children 1..i-1 (Sequoia, arXiv
2402.12374, section 3.1). The sum splits into one max-plus convolution per child. Unlike the
best-first heap this holds for vectors that are not monotone. `planner.relaxation` proves how large
each child can be at most, which shortens the convolutions without giving up the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from planner.relaxation import Floats, Integers, relax

FIRST_GUESS = 4.0  # assumed gap to the bound, in nodes' prices; a wrong guess costs a second pass
ROWS_AT_ONCE = 16  # rows of a convolution per numpy call, so that a block stays in the cache


@dataclass(frozen=True, slots=True)
class Level:
    """Best worths under one level limit.

    Attributes:
        values: worth by size, from 0 to the size at which more nodes stop helping, `[sizes + 1]`.
        tails: for each rank, best worth of children from that rank on by budget.
        caps: for each rank, the largest size tried.
    """

    values: Floats
    tails: tuple[Floats, ...]
    caps: tuple[int, ...]


def split(vector: Floats, below: Floats, level: Level, budget: int) -> tuple[int, ...]:
    """Retrace the programme: the size of each child when `budget` nodes are shared."""
    sizes: list[int] = []
    for rank, (tail, cap) in enumerate(zip(level.tails, level.caps, strict=True)):
        budget = min(budget, len(tail) - 1)
        if tail[budget] <= 0.0:
            break
        rest = level.tails[rank + 1] if rank + 1 < len(level.tails) else np.zeros(1)
        tried = np.arange(1, min(cap, budget) + 1)
        worths = vector[rank] * below[tried] + rest[np.minimum(budget - tried, len(rest) - 1)]
        sizes.append(int(worths.argmax()) + 1)
        budget -= sizes[-1]
    return tuple(sizes)


def deepen(vector: Floats, below: Floats, max_nodes: int) -> Level:
    """One level more: guess how close to the bound the optimum is, solve, and check the guess."""
    relaxation = relax(vector, below, max_nodes - 1)
    gaps = FIRST_GUESS * relaxation.prices + relaxation.tolerance
    while True:
        level = _combine(vector, below, relaxation.caps(gaps), max_nodes - 1)
        proven = relaxation.gaps(level.tails[0][1:])
        if (proven <= gaps).all():
            return level
        gaps = np.maximum(gaps, proven)


def _combine(vector: Floats, below: Floats, caps: Integers, max_budget: int) -> Level:
    """Share budgets 0..`max_budget` among the children, child i taking at most `caps[i]` nodes."""
    absent = np.flatnonzero(caps == 0)
    caps = np.maximum(caps[: max(int(absent[0]), 1)] if absent.size else caps, 1)
    tails = [np.zeros(1)]
    for rank in reversed(range(len(caps))):
        child = vector[rank] * below[1 : caps[rank] + 1]
        shared = max_plus(child, tails[-1], min(max_budget, len(child) + len(tails[-1]) - 1))
        tails.append(np.concatenate(([0.0], shared)))
    values = np.concatenate(([0.0], 1.0 + tails[-1]))
    enough = int(np.searchsorted(values, values[-1]))
    return Level(values[: enough + 1], tuple(reversed(tails[1:])), tuple(caps.tolist()))


def max_plus(first: Floats, second: Floats, length: int) -> Floats:
    """Max-plus convolution `out[m] = max over i of first[i] + second[m - i]`, m < `length`.

    Both arrays are non-decreasing and go on at their last value.
    """
    short, long = sorted((first[:length], second[:length]), key=len)
    rows = len(short)
    padded = np.full(rows - 1 + length, -np.inf)
    padded[rows - 1 : rows - 1 + len(long)] = long
    padded[rows - 1 + len(long) :] = long[-1]
    stride = padded.strides[0]
    shifted = as_strided(padded[rows - 1 :], (rows, length), (-stride, stride), writeable=False)
    out = np.full(length, -np.inf)
    for start in range(0, rows, ROWS_AT_ONCE):  # row i is -inf left of column i
        block = slice(start, start + ROWS_AT_ONCE)
        sums = shifted[block, start:] + short[block, None]
        np.maximum(out[start:], sums.max(axis=0), out=out[start:])
    return out

"""Counter-based randomness: every draw is a pure function of what it is for.

A draw is addressed by (seed, purpose, position, node). The numbers come from Philox 4x64 (Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), read raw, so that any version of any
role gives the same ones. `position` is the absolute position of the token that is drawn: a step
looks only at draws for positions that it commits, so later steps never meet a number twice.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

MAX_SEED = 2**64 - 1


class Purpose(IntEnum):
    """What a draw is for; different purposes are independent."""

    DRAFT = 1
    TARGET = 2
    ACCEPT = 3
    COUPLED = 4


def uniforms(
    seed: int, purpose: Purpose, position: int, node: int, count: int
) -> NDArray[np.float64]:
    """`count` numbers in the open interval (0, 1) for one place of one request."""
    counter = np.array([0, node, position, 0], dtype=np.uint64)
    key = np.array([seed, purpose], dtype=np.uint64)
    return unit_interval(Philox(counter=counter, key=key).random_raw(count))


def unit_interval(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The middles of 2^52 equal steps of (0, 1): one bit fewer than fp64 has, so none is 1."""
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def gumbel(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard Gumbel noise from uniforms; the largest of log p + noise is a draw from p."""
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def coupled_noise(seed: int, position: int, vocabulary_size: int) -> NDArray[np.float64]:
    """The Gumbel noise that draft and target share at one position, `[vocabulary]`."""
    return gumbel(uniforms(seed, Purpose.COUPLED, position, 0, vocabulary_size))

"""Acceptance rules by the names that the command line has for them, and what they give by rank."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sequoia.verification import RULES, Ladder, Rule

RANKS = 32
"""Children of a node that an acceptance vector covers, unless more are asked for."""


class RuleName(StrEnum):
    """Which rule decides whether a child is accepted."""

    SEQUOIA = "sequoia"
    SPECINFER = "specinfer"
    SPECTR = "spectr"
    TOPK = "topk"


RULE_OF: Mapping[RuleName, Rule] = MappingProxyType(
    {
        RuleName.SEQUOIA: RULES["sequoia"],
        RuleName.SPECINFER: RULES["specinfer"],
        RuleName.SPECTR: RULES["spectr"],
        RuleName.TOPK: RULES["top-k"],
    }
)


def by_rank(ladder: Ladder, ranks: int = RANKS) -> NDArray[np.float64]:
    """Probability that child k is the accepted one, by k, then that none is: `[ranks + 1]`.

    Ranks that the ladder has no rung for are never accepted.
    """
    accepts = np.array(ladder.accept_probs[:ranks])
    # child k is accepted with prod_{i < k} (1 - a_i) a_k
    reached = np.concatenate([[1.0], np.cumprod(1.0 - accepts)])
    probs = np.zeros(ranks + 1)
    probs[: len(accepts)] = reached[:-1] * accepts
    probs[-1] = reached[-1]
    return probs

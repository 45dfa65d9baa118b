"""Estimates the acceptance vector from what the coordinator counted.

A node is *at risk* at rank k when it was visited, had at least k children, and its first k - 1
children were all rejected. Nodes differ in their number of children, so the share accepted among
those at risk (the discrete hazard h_k of Kaplan and Meier) is unbiased where a plain share is not:

    h_k = accepts_k / trials_k,    a_k = h_k (1 - h_1) ... (1 - h_{k-1})

Acceptance vector: Sequoia, arXiv 2402.12374, section 3.1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from planner.memory import Counts
from planner.vector import require_vector

PRIOR_RANKS = 32
PRIOR_FIRST_REJECTION = 0.4
PRIOR_EXPONENT = 0.46


def power_law(first_rejection: float, exponent: float, ranks: int) -> tuple[float, ...]:
    """The vector whose chance that children 1..k are all rejected is first_rejection k^-exponent.

    It never increases as long as rank 1 accepts at least as often as rank 2.
    """
    rejected = [1.0, *(first_rejection * rank**-exponent for rank in range(1, ranks + 1))]
    return tuple(before - after for before, after in itertools.pairwise(rejected))


PRIOR = power_law(PRIOR_FIRST_REJECTION, PRIOR_EXPONENT, PRIOR_RANKS)
"""What to assume before anything was counted.

The paper finds that the rejection rate falls as a power of the number of children (definition 3.5,
figure 3). The two numbers follow the vector that the authors publish: 0.37 rejected after one child
and 0.073 after 32, with the first rounded to the cautious side.
"""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Hazards, and how far each can be trusted.

    Attributes:
        hazards: for each rank, the chance that it accepts once all ranks before it have rejected.
        nodes: how many independent nodes at risk each hazard is worth, the prior's among them.
    """

    hazards: tuple[float, ...]
    nodes: tuple[float, ...]

    @property
    def vector(self) -> tuple[float, ...]:
        """The acceptance vector a_1..a_k."""
        return vector_of(self.hazards)

    @property
    def hazard_deviations(self) -> tuple[float, ...]:
        """Standard deviation of every hazard."""
        return tuple(
            math.sqrt(hazard * (1.0 - hazard) / (nodes + 1.0))
            for hazard, nodes in zip(self.hazards, self.nodes, strict=True)
        )

    @property
    def deviations(self) -> tuple[float, ...]:
        """Standard deviation of every a_k, to first order."""
        found: list[float] = []
        alive, rejected = 1.0, 0.0  # and the relative variance of `alive`
        for hazard, deviation in zip(self.hazards, self.hazard_deviations, strict=True):
            found.append(alive * math.hypot(deviation, hazard * math.sqrt(rejected)))
            alive *= 1.0 - hazard
            rejected += (deviation / (1.0 - hazard)) ** 2 if hazard < 1.0 else 0.0
        return tuple(found)


def estimate(
    counts: Counts, prior: tuple[float, ...], prior_weight: float, dispersion: float = 1.0
) -> Estimate:
    """What counts and prior together suggest.

    The prior enters every rank's hazard as `prior_weight` nodes at risk that accepted as often as
    the prior says. So a rank never seen has the prior's hazard, and a rank seen rarely moves little.
    Where the ranks seen accept less often than the prior has it, all its hazards are lowered in
    that proportion first: a poor draft is poor at all ranks, and a hopeful guess at ranks that no tree
    in force has would make such trees look better than they are. Ranks beyond the prior go on with
    its last hazard.

    Args:
        counts: what was observed.
        prior: the vector assumed beforehand.
        prior_weight: how many nodes at risk the prior stands for at each rank, above 0.
        dispersion: how many counted nodes say as much as one independent node, above 0.

    Raises:
        ValueError: a bad prior, or a weight or dispersion that is not finite and above 0.
    """
    for name, value in (("prior_weight", prior_weight), ("dispersion", dispersion)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}, must be a finite number > 0")
    assumed = hazards(require_vector(prior))
    ranks = max(len(prior), len(counts.trials))
    assumed += assumed[-1:] * (ranks - len(assumed))
    unseen = (0.0,) * (ranks - len(counts.trials))
    expected = math.fsum(t * h for t, h in zip(counts.trials, assumed, strict=False))
    proportion = min((math.fsum(counts.accepts) + prior_weight) / (expected + prior_weight), 1.0)
    found: list[float] = []
    worth: list[float] = []
    for hazard, trials, accepts in zip(
        assumed, (*counts.trials, *unseen), (*counts.accepts, *unseen), strict=True
    ):
        found.append((accepts + prior_weight * proportion * hazard) / (trials + prior_weight))
        worth.append(trials / dispersion + prior_weight)
    return Estimate(tuple(found), tuple(worth))


def vector_of(hazards: Sequence[float]) -> tuple[float, ...]:
    """The acceptance vector whose hazards these are."""
    vector: list[float] = []
    alive = 1.0
    for hazard in hazards:
        vector.append(alive * hazard)
        alive *= 1.0 - hazard
    return tuple(vector)


def hazards(vector: Sequence[float]) -> tuple[float, ...]:
    """For each rank, the chance that it accepts once all ranks before it have rejected."""
    found: list[float] = []
    alive = 1.0
    for probability in vector:
        found.append(min(1.0, probability / alive) if alive > 0 else 0.0)
        alive = max(0.0, alive - probability)
    return tuple(found)


def distance(before: Sequence[float], after: Sequence[float]) -> float:
    """How far two acceptance vectors are apart: the largest change of any a_k, in probability.

    Ranks that one vector lacks count as 0.
    """
    pairs = itertools.zip_longest(before, after, fillvalue=0.0)
    return max((abs(left - right) for left, right in pairs), default=0.0)

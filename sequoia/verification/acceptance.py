"""Sequoia's acceptance rule at one inner node, on a sparse support (arXiv 2402.12374, Algorithm 2).

Distributions are held as `[support + 1]`: the last entry is the tail, everything outside the
support at once. One number is enough: q = 0 there, so no rejection changes its proportions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# How far the target's mass may be from 1: half-precision transport stays far below it.
MASS_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known at one inner node: both models' probabilities on the draft's support.

    The token the target drew from the tail is kept by the caller. Where there is none, because the
    target allows no token outside the support, `tail_mass` must not be positive: summing p outside
    the support gives that, 1 - sum over the support may miss it by a rounding.
    """

    support: NDArray[np.int64]  # [support] token ids, distinct
    draft_probs: NDArray[np.float64]  # [support] q; zero outside the support
    target_probs: NDArray[np.float64]  # [support] p
    tail_mass: float  # 1 - sum of p over the support

    def __post_init__(self) -> None:
        size = np.size(self.support)
        if np.ndim(self.support) != 1 or size == 0:
            raise ValueError(f"support must be a non-empty vector, got {np.shape(self.support)}")
        if not np.issubdtype(np.asarray(self.support).dtype, np.integer):
            raise ValueError("support must hold integer token ids")
        if np.unique(self.support).size != size:
            raise ValueError("support holds a token id twice")
        _check_probs("draft_probs", self.draft_probs, size)
        _check_probs("target_probs", self.target_probs, size)
        if not np.any(self.draft_probs):
            raise ValueError("draft_probs are all zero")
        if not -MASS_TOLERANCE <= self.tail_mass <= 1 + MASS_TOLERANCE:
            raise ValueError(f"tail_mass must be a probability, got {self.tail_mass}")
        mass = math.fsum([*np.asarray(self.target_probs, np.float64), self.tail_mass])
        if abs(mass - 1) > MASS_TOLERANCE:
            raise ValueError(f"target_probs and tail_mass must sum to 1, got {mass}")

    @property
    def target_distribution(self) -> NDArray[np.float64]:
        """p on the support and, last, on the tail: [support + 1], normalised in float64."""
        tail = max(float(self.tail_mass), 0.0)
        target = np.append(np.asarray(self.target_probs, np.float64), tail)
        return target / float(target.sum())

    @property
    def draft_distribution(self) -> NDArray[np.float64]:
        """q on the support and, last, 0 for the tail: [support + 1], normalised in float64."""
        draft = np.append(np.asarray(self.draft_probs, np.float64), 0.0)
        return draft / float(draft.sum())

    def positions(self, children: Sequence[int]) -> list[int]:
        """Where the children stand in the support; ValueError for a child outside of it."""
        places = {int(token): place for place, token in enumerate(self.support)}
        missing = [int(child) for child in children if int(child) not in places]
        if missing:
            raise ValueError(f"children {missing} are not in the support")
        return [places[int(child)] for child in children]


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """What happens at a node whose children are drawn: one rung per child, then the residual."""

    accept_probs: tuple[float, ...]  # child i is accepted, given that 0..i-1 were rejected
    residual: NDArray[np.float64]  # [support], with residual_tail sums to 1
    residual_tail: float

    @property
    def rejection_prob(self) -> float:
        """Probability that no child is accepted."""
        return math.prod(1.0 - accept for accept in self.accept_probs)


@dataclass(frozen=True, slots=True)
class Choice:
    """The outcome at a node: an accepted child, or a bonus token from the support or the tail."""

    rank: int | None  # index of the accepted child in drawn order; None: all were rejected
    support_index: (
        int | None
    )  # bonus drawn from the support; None: the tail, or a child was accepted


def sequoia_ladder(evidence: Evidence, children: Sequence[int]) -> Ladder:
    """The ladder for distinct children drawn in order, without replacement, from the draft.

    Exhaustion: a child that the draft could not draw (q = 0, which includes every child after the
    last of the draft's mass is gone) is rejected and changes nothing. A child whose rejection would
    leave the target nothing (p <= q everywhere, that is p = q) is accepted with probability exactly
    1; the ladder then carries the last residual that had mass, which is never reached.
    """
    places = evidence.positions(children)
    if len(set(places)) != len(places):
        raise ValueError("children drawn without replacement must be distinct")
    target, draft = evidence.target_distribution, evidence.draft_distribution
    accept_probs = []
    for place in places:
        # accept x with min(1, p(x) / q(x)); else p <- norm(max(p - q, 0)), q <- norm(q without x)
        accept, target = reject_round(target, draft, place)
        draft[place] = 0.0
        draft = draft / (float(draft.sum()) or 1.0)
        accept_probs.append(accept)
    return as_ladder(accept_probs, target)


def choose(ladder: Ladder, uniforms: Sequence[float]) -> Choice:
    """Climb the ladder with one uniform in [0, 1) per child and a last one for the bonus token.

    A bonus token of probability zero is never chosen, whatever the rounding.
    """
    if len(uniforms) != len(ladder.accept_probs) + 1:
        raise ValueError(f"need {len(ladder.accept_probs) + 1} uniforms, got {len(uniforms)}")
    if not all(0.0 <= uniform < 1.0 for uniform in uniforms):
        raise ValueError("uniforms must lie in [0, 1)")
    for rank, (accept, uniform) in enumerate(zip(ladder.accept_probs, uniforms, strict=False)):
        if uniform < accept:
            return Choice(rank=rank, support_index=None)
    cumulative = np.cumsum(ladder.residual)
    point = uniforms[-1] * (cumulative[-1] + ladder.residual_tail)
    index = int(np.searchsorted(cumulative, point, side="right"))
    # A uniform below 1 keeps the point below the total, in floats too: without a tail, inside it.
    return Choice(rank=None, support_index=index if index < cumulative.size else None)


def reject_round(
    target: NDArray[np.float64], draft: NDArray[np.float64], place: int
) -> tuple[float, NDArray[np.float64]]:
    """One rung for a token drawn from q: its acceptance probability, and p after a rejection."""
    p, q = float(target[place]), float(draft[place])
    if q <= 0.0:
        return 0.0, target
    residual = subtract(target, draft)
    if residual is None:
        return 1.0, target
    return (1.0 if p >= q else p / q), residual


def subtract(target: NDArray[np.float64], taken: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """norm(max(target - taken, 0)), or None when nothing is left."""
    rest = np.maximum(target - taken, 0.0)
    mass = float(rest.sum())
    return rest / mass if mass > 0.0 else None


def as_ladder(accept_probs: Sequence[float], residual: NDArray[np.float64]) -> Ladder:
    """A ladder from its rungs and the residual over support and tail: [support + 1]."""
    return Ladder(tuple(accept_probs), residual[:-1], float(residual[-1]))


def _check_probs(name: str, probs: NDArray[np.float64], size: int) -> None:
    if np.shape(probs) != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {np.shape(probs)}")
    values = np.asarray(probs, np.float64)
    if not np.all((values >= 0.0) & (values <= 1.0 + MASS_TOLERANCE)):  # false for NaN as well
        raise ValueError(f"{name} must be probabilities: negative, NaN or above 1 found")

"""Other acceptance rules in the same shape, to compare Sequoia's with; not used in production."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import permutations, product
from math import prod
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sequoia.verification.acceptance import (
    Evidence,
    Ladder,
    as_ladder,
    reject_round,
    sequoia_ladder,
    subtract,
)

BISECTION_STEPS = 50


class Draw(StrEnum):
    """How a rule's children come from the draft's distribution."""

    WITHOUT_REPLACEMENT = "without replacement"  # in order, each from q without the earlier ones
    WITH_REPLACEMENT = "with replacement"  # independent; a token may come twice
    TOP = "top"  # the most likely tokens, nothing drawn


@dataclass(frozen=True, slots=True)
class Rule:
    """An acceptance rule together with the way its children must be drawn."""

    name: str
    draw: Draw
    ladder: Callable[[Evidence, Sequence[int]], Ladder]
    lossless: bool = True


def specinfer_ladder(evidence: Evidence, children: Sequence[int]) -> Ladder:
    """SpecInfer's multi-step speculative sampling (arXiv 2305.09781) for independent children.

    The draft's distribution stays q in every round, so its mass on rejected tokens is wasted.
    """
    target, draft = evidence.target_distribution, evidence.draft_distribution
    accept_probs = []
    for place in evidence.positions(children):
        # accept x with min(1, p(x) / q(x)); else p <- norm(max(p - q, 0)), q unchanged
        accept, target = reject_round(target, draft, place)
        accept_probs.append(accept)
    return as_ladder(accept_probs, target)


def spectr_ladder(evidence: Evidence, children: Sequence[int]) -> Ladder:
    """SpecTr's K-SEQ (arXiv 2310.15141) for independent children.

    Every child faces the same test against a scaled draft; the residual settles the account once.
    Where p = q the residual is empty: the last child is then accepted with probability exactly 1.
    """
    target, draft = evidence.target_distribution, evidence.draft_distribution
    places = evidence.positions(children)
    if not places:
        return as_ladder((), target)
    rho = spectr_rho(target, draft, len(places))
    # accept x with min(1, p(x) / (rho q(x)))
    scaled = rho * draft
    accept_probs = [
        0.0 if draft[place] <= 0.0 else float(min(target[place], scaled[place]) / scaled[place])
        for place in places
    ]
    # residual <- norm(p - min(q, p / rho) (1 - (1 - beta)^k) / beta), beta = sum min(q, p / rho)
    overlap = np.minimum(draft, target / rho)
    residual = subtract(target, overlap * _tries(float(overlap.sum()), len(places)))
    if residual is None:
        return as_ladder([*accept_probs[:-1], 1.0], target)
    return as_ladder(accept_probs, residual)


def spectr_rho(target: NDArray[np.float64], draft: NDArray[np.float64], count: int) -> float:
    """The smallest rho in [1, k] for which K-SEQ's residual is nowhere negative, from above."""

    # 1 - (1 - beta(rho))^k <= rho beta(rho): the left side falls with rho, the right side grows
    def is_valid(rho: float) -> bool:
        return _tries(float(np.minimum(draft, target / rho).sum()), count) <= rho

    low, high = 1.0, float(count)
    if is_valid(low):
        return low
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_valid(middle) else (middle, high)
    return high


def match_ladder(evidence: Evidence, children: Sequence[int]) -> Ladder:
    """The target samples, and the child that holds its token, if any, is accepted.

    Lossless for children chosen in any way that does not look at the target's sample. For
    deterministic children this is also speculative sampling (arXiv 2211.17192) with one-hot drafts.
    """
    target = evidence.target_distribution
    accept_probs = []
    for place in evidence.positions(children):
        # accept x with p(x); else p <- norm(p without x)
        taken = np.zeros_like(target)
        taken[place] = target[place]
        accept_probs.append(float(target[place]))
        residual = subtract(target, taken)  # None where p(x) = 1: the rest is never reached
        target = target if residual is None else residual
    return as_ladder(accept_probs, target)


def ordered_draws(
    draw: Draw, evidence: Evidence, count: int
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every ordered draw of up to `count` children and its probability; for small supports only.

    Without replacement a draw ends early when no token of positive probability is left.
    """
    q = evidence.draft_distribution[:-1]
    if draw is Draw.TOP:
        top = np.argsort(-q, kind="stable")[:count]
        yield tuple(int(evidence.support[place]) for place in top), 1.0
        return
    drawable = [int(place) for place in np.flatnonzero(q)]
    if draw is Draw.WITH_REPLACEMENT:
        sequences: Iterator[tuple[int, ...]] = product(drawable, repeat=count)
    else:
        sequences = permutations(drawable, min(count, len(drawable)))
    for places in sequences:
        tokens = tuple(int(evidence.support[place]) for place in places)
        yield tokens, _draw_prob(draw, q, places)


def _draw_prob(draw: Draw, q: NDArray[np.float64], places: Sequence[int]) -> float:
    if draw is Draw.WITH_REPLACEMENT:
        return float(prod(q[place] for place in places))
    # product of q(x_i) / (sum of q over everything but x_1 .. x_{i-1})
    left, probability = q.copy(), 1.0
    for place in places:
        probability *= float(left[place] / left.sum())
        left[place] = 0.0
    return probability


def _tries(beta: float, count: int) -> float:
    """(1 - (1 - beta)^k) / beta as a sum, which has no division to go wrong at beta = 0."""
    return sum((1.0 - beta) ** i for i in range(count))


# The ratio test presumes that x was drawn from q. A child that is always offered is taken with
# probability min(1, p(x) / q(x)) >= p(x): too often. Kept to show what goes wrong.
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.name: rule
        for rule in (
            Rule("sequoia", Draw.WITHOUT_REPLACEMENT, sequoia_ladder),
            Rule("specinfer", Draw.WITH_REPLACEMENT, specinfer_ladder),
            Rule("spectr", Draw.WITH_REPLACEMENT, spectr_ladder),
            Rule("top-k", Draw.TOP, match_ladder),
            Rule("target-match", Draw.WITHOUT_REPLACEMENT, match_ladder),
            Rule("naive-top-k", Draw.TOP, sequoia_ladder, lossless=False),
        )
    }
)

"""One node's acceptance: its ladder, every kind of exhaustion, invalid evidence, sampling it."""

from collections import Counter
from collections.abc import Callable, Sequence
from math import nextafter

import numpy as np
import pytest
from numpy.typing import ArrayLike

from sequoia.verification import (
    RULES,
    Choice,
    Draw,
    Evidence,
    Ladder,
    Rule,
    choose,
    match_ladder,
    ordered_draws,
    sequoia_ladder,
    specinfer_ladder,
    spectr_ladder,
)
from sequoia.verification.comparison import spectr_rho

BELOW_ONE = nextafter(1.0, 0.0)
ALL_RULES = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def evidence(
    p: ArrayLike,
    q: ArrayLike,
    tail: float = 0.0,
    support: Sequence[int] | None = None,
    dtype: type = np.float64,
) -> Evidence:
    """Evidence on tokens 10, 11, ... unless their ids are given."""
    ids = np.arange(10, 10 + np.size(p)) if support is None else np.array(support, np.int64)
    return Evidence(ids, np.array(q, dtype), np.array(p, dtype), tail)


def ladder_of(accept_probs: Sequence[float], residual: Sequence[float], tail: float) -> Ladder:
    """A ladder from plain numbers."""
    return Ladder(tuple(accept_probs), np.array(residual, np.float64), tail)


def assert_valid(ladder: Ladder) -> None:
    """Every number of the ladder is a probability, and the residual sums to 1."""
    assert all(0.0 <= accept <= 1.0 for accept in ladder.accept_probs)
    assert np.all(ladder.residual >= 0.0)
    assert ladder.residual_tail >= 0.0
    assert ladder.residual.sum() + ladder.residual_tail == pytest.approx(1.0, abs=1e-12)


# The ladder


def test_two_children_by_hand() -> None:
    """Two rejected children leave the residual worked out on paper."""
    ladder = sequoia_ladder(evidence([0.1, 0.2, 0.5], [0.5, 0.4, 0.1], tail=0.2), [10, 11])
    # first: 0.1 / 0.5; then p = norm(0, 0, 0.4 | 0.2), q = (0, 0.8, 0.2)
    # second: 0 / 0.8; then p = norm(0, 0, 2/3 - 0.2 | 1/3)
    assert ladder.accept_probs == pytest.approx((0.2, 0.0))
    assert ladder.residual == pytest.approx([0.0, 0.0, 7 / 12])
    assert ladder.residual_tail == pytest.approx(5 / 12)


def test_no_children_leaves_the_target() -> None:
    """A node without children has no rungs, and its residual is the target itself."""
    for rule in RULES.values():
        ladder = rule.ladder(evidence([0.1, 0.6], [0.5, 0.5], tail=0.3), [])
        assert ladder.accept_probs == ()
        assert ladder.residual == pytest.approx([0.1, 0.6])
        assert ladder.residual_tail == pytest.approx(0.3)


def test_children_are_token_ids_in_drawn_order() -> None:
    """Children are looked up by token id, wherever they stand in the support."""
    known = evidence([0.3, 0.6], [0.5, 0.5], tail=0.1, support=[70, 7])
    assert sequoia_ladder(known, [70]).accept_probs == pytest.approx((0.6,))
    assert sequoia_ladder(known, [7]).accept_probs == (1.0,)


def test_a_single_child_is_plain_speculative_sampling() -> None:
    """With one drawn child the ratio rules agree with each other."""
    known = evidence([0.1, 0.2, 0.5], [0.5, 0.4, 0.1], tail=0.2)
    for child in (10, 11, 12):
        ladders = [rule(known, [child]) for rule in (sequoia_ladder, specinfer_ladder)]
        ladders.append(spectr_ladder(known, [child]))
        for ladder in ladders[1:]:
            assert ladder.accept_probs == pytest.approx(ladders[0].accept_probs)
            assert ladder.residual == pytest.approx(ladders[0].residual)


def test_rejection_prob_is_the_product_of_the_rungs() -> None:
    """The probability that all children fail is the product of their conditional failures."""
    assert ladder_of([0.5, 0.2], [1.0], 0.0).rejection_prob == pytest.approx(0.4)


def test_evidence_is_left_untouched() -> None:
    """Building a ladder does not write into the caller's arrays."""
    known = evidence([0.1, 0.2, 0.5], [0.5, 0.4, 0.1], tail=0.2)
    for rule in RULES.values():
        rule.ladder(known, [10, 11])
    assert known.draft_probs.tolist() == [0.5, 0.4, 0.1]
    assert known.target_probs.tolist() == [0.1, 0.2, 0.5]


@ALL_RULES
def test_ladder_is_a_distribution_that_keeps_to_the_target(rule: Rule) -> None:
    """On random sparse cases every ladder is valid and never offers a token with p = 0."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        size = int(rng.integers(1, 8))
        p = np.where(rng.random(size + 1) < 0.3, 0.0, rng.dirichlet(np.full(size + 1, 0.3)))
        p[rng.integers(size + 1)] += 1e-3
        p /= p.sum()
        q = rng.dirichlet(np.full(size, 0.3))
        known = evidence(p[:-1], q, tail=p[-1])
        children = rng.choice(known.support[q > 0], size=min(3, int((q > 0).sum())), replace=False)
        ladder = rule.ladder(known, children.tolist())
        assert_valid(ladder)
        assert not np.any(ladder.residual[p[:-1] == 0.0])
        assert ladder.residual_tail == 0.0 or p[-1] > 0.0
        for child, accept in zip(children, ladder.accept_probs, strict=True):
            assert accept == 0.0 or p[child - 10] > 0.0


def test_spectr_rho_is_the_smallest_that_balances() -> None:
    """Bisection ends where K-SEQ accepts rho times the scaled overlap, within [1, k]."""
    rng = np.random.default_rng(2)
    for count in (2, 3, 8):
        p, q = rng.dirichlet(np.full(6, 0.5), size=2)
        rho = spectr_rho(p, q, count)
        beta = np.minimum(q, p / rho).sum()
        assert 1.0 <= rho <= count
        assert 1.0 - (1.0 - beta) ** count == pytest.approx(rho * beta, abs=1e-10)


# Exhaustion


def test_equal_distributions_accept_the_first_child() -> None:
    """With p = q the target residual is empty, so the child is accepted with probability 1."""
    for rule in (sequoia_ladder, specinfer_ladder):
        ladder = rule(evidence([0.3, 0.7], [0.3, 0.7]), [10, 11])
        assert ladder.accept_probs[0] == 1.0
        assert_valid(ladder)
    ladder = spectr_ladder(evidence([0.3, 0.7], [0.3, 0.7]), [10, 11])
    assert ladder.rejection_prob == 0.0
    assert_valid(ladder)


def test_target_residual_empty_through_rounding() -> None:
    """Distributions equal up to rounding give a valid ladder whose rejection is negligible."""
    thirds = np.array([1 / 3, 1 / 3, 1 / 3], np.float32)
    nearly = np.nextafter(thirds, np.float32(0), dtype=np.float32)
    for p, q in ((thirds, nearly), (nearly, thirds), (thirds, [0.33333, 0.33333, 0.33334])):
        for rule in (sequoia_ladder, specinfer_ladder, spectr_ladder):
            ladder = rule(evidence(p, q, tail=float(1 - p.sum(dtype=np.float64))), [10, 11, 12])
            assert_valid(ladder)
            assert ladder.rejection_prob < 1e-4


def test_ratio_one_ulp_short_with_an_empty_residual() -> None:
    """A ratio that rounds below 1 where rejection leaves nothing counts as certain."""
    p = np.array([0.5, 0.43749999999999994, 0.0625])
    known = evidence(p, 0.7 * p)
    assert known.target_distribution[1] < known.draft_distribution[1]
    for rule in (sequoia_ladder, specinfer_ladder, spectr_ladder):
        ladder = rule(known, [11])
        assert ladder.accept_probs == (1.0,)
        assert_valid(ladder)


def test_empty_residual_keeps_the_last_one_with_mass() -> None:
    """When rejection is impossible the ladder carries the last residual, a valid distribution."""
    ladder = sequoia_ladder(evidence([0.0, 1.0], [0.5, 0.5]), [10, 11])
    assert ladder.accept_probs == (0.0, 1.0)  # after 10, p = q = (0, 1)
    assert ladder.residual.tolist() == [0.0, 1.0]
    assert ladder.residual_tail == 0.0


def test_draft_residual_empty() -> None:
    """A child beyond the draft's mass could not be drawn: it is rejected and changes nothing."""
    known = evidence([0.2, 0.3, 0.1], [0.6, 0.4, 0.0], tail=0.4)
    with_extra, without = sequoia_ladder(known, [10, 11, 12]), sequoia_ladder(known, [10, 11])
    assert with_extra.accept_probs == (*without.accept_probs, 0.0)
    assert with_extra.residual.tolist() == without.residual.tolist()
    assert with_extra.residual_tail == without.residual_tail


def test_every_token_of_the_support_drawn_and_rejected() -> None:
    """With the whole support drawn what remains is a distribution, here all in the tail."""
    ladder = sequoia_ladder(evidence([0.1, 0.1], [0.5, 0.5], tail=0.8), [10, 11])
    assert_valid(ladder)
    assert ladder.residual.tolist() == [0.0, 0.0]
    assert ladder.residual_tail == 1.0


@pytest.mark.parametrize("tail", [0.0, 1e-17, 5e-324, -1e-17, -1e-7, -5e-3])
def test_tail_below_rounding_or_negative(tail: float) -> None:
    """A negligible tail gives a valid ladder, and a negative one counts as no tail at all."""
    ladder = sequoia_ladder(evidence([0.2, 0.8], [0.7, 0.3], tail=tail), [10, 11])
    assert_valid(ladder)
    if tail <= 0.0:
        assert ladder.residual_tail == 0.0
        assert choose(ladder, [BELOW_ONE] * 3) != Choice(None, None)


def test_target_zero_on_all_of_the_support() -> None:
    """When the target allows no token of the support, all children fail and the tail answers."""
    for rule in RULES.values():
        ladder = rule.ladder(evidence([0.0, 0.0], [0.5, 0.5], tail=1.0), [10, 11])
        assert ladder.accept_probs == (0.0, 0.0)
        assert ladder.residual_tail == 1.0
        assert choose(ladder, [0.0, 0.0, 0.0]) == Choice(None, None)


def test_draft_with_zeros() -> None:
    """Tokens that only the target allows stay in the residual."""
    ladder = sequoia_ladder(evidence([0.5, 0.5, 0.0], [0.0, 0.4, 0.6]), [12, 11])
    assert ladder.accept_probs == pytest.approx((0.0, 1 / 6))
    # after 12: p = (5/6, 1/6, 0), q = (0, 1, 0)
    assert ladder.residual.tolist() == [1.0, 0.0, 0.0]


def test_draft_mass_vanishing_after_the_first_child() -> None:
    """A remaining draft mass of any size is renormalised exactly, not computed as 1 - q."""
    ladder = sequoia_ladder(evidence([0.2, 0.4], [1.0, 1e-300], tail=0.4), [10, 11])
    assert ladder.accept_probs == pytest.approx((0.2, 0.5))
    assert_valid(ladder)


@pytest.mark.parametrize(("p", "tail"), [(1.0, 0.0), (0.4, 0.6), (0.0, 1.0)])
def test_support_of_one_token(p: float, tail: float) -> None:
    """With a single supported token acceptance is exactly its target probability."""
    for rule in RULES.values():
        ladder = rule.ladder(evidence([p], [1.0], tail=tail), [10])
        assert ladder.accept_probs == pytest.approx((p,))
        assert_valid(ladder)


def test_float32_evidence_is_normalised_in_float64() -> None:
    """Evidence whose float32 sums miss 1 gives a ladder that sums to 1 in float64."""
    rng = np.random.default_rng(3)
    for _ in range(100):
        p, q = rng.dirichlet(np.full(64, 0.2)), rng.dirichlet(np.full(64, 0.2))
        tail = float(np.float32(1) - p.astype(np.float32).sum())
        known = evidence(p, q, tail=tail, dtype=np.float32)
        children = known.support[np.argsort(-q)[:5]].tolist()
        assert_valid(sequoia_ladder(known, children))


# Invalid evidence


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: evidence([], []), "non-empty"),
        (lambda: evidence([0.5, 0.5], [1.0]), "draft_probs must have shape"),
        (lambda: Evidence(np.arange(2), np.ones(2) / 2, np.ones(3) / 3, 0.0), "target_probs must"),
        (lambda: evidence([0.5, 0.5], [1.5, -0.5]), "draft_probs must be prob"),
        (lambda: evidence([1.5, -0.5], [0.5, 0.5]), "target_probs must be prob"),
        (lambda: evidence([0.5, 0.5], [np.nan, 0.5]), "draft_probs must be prob"),
        (lambda: evidence([0.5, np.nan], [0.5, 0.5]), "target_probs must be prob"),
        (lambda: evidence([0.5, np.inf], [0.5, 0.5]), "target_probs must be prob"),
        (lambda: evidence([0.5, 0.5], [0.0, 0.0]), "all zero"),
        (lambda: evidence([0.5, 0.5], [0.5, 0.5], tail=np.nan), "tail_mass must be"),
        (lambda: evidence([0.5, 0.5], [0.5, 0.5], tail=-0.1), "tail_mass must be"),
        (lambda: evidence([0.2, 0.2], [0.5, 0.5], tail=0.1), "must sum to 1"),
        (lambda: evidence([0.0, 0.0], [0.5, 0.5]), "must sum to 1"),
        (lambda: evidence([0.5, 0.5], [0.5, 0.5], support=[7, 7]), "twice"),
        (lambda: Evidence(np.ones(1), np.ones(1), np.ones(1), 0.0), "integer"),  # type: ignore[arg-type]
    ],
)
def test_invalid_evidence_is_refused(build: Callable[[], Evidence], message: str) -> None:
    """Evidence that is no pair of distributions raises ValueError saying which part is wrong."""
    with pytest.raises(ValueError, match=message):
        build()


@ALL_RULES
def test_child_outside_the_support_is_refused(rule: Rule) -> None:
    """No rule guesses at a child that the evidence knows nothing about."""
    with pytest.raises(ValueError, match=r"\[99\] are not in the support"):
        rule.ladder(evidence([0.5, 0.5], [0.5, 0.5]), [10, 99])


def test_duplicate_children_are_refused() -> None:
    """Sampling without replacement cannot draw a token twice."""
    with pytest.raises(ValueError, match="distinct"):
        sequoia_ladder(evidence([0.5, 0.5], [0.4, 0.6]), [10, 10])


# Climbing the ladder


def test_choose_follows_the_ladder_on_a_grid() -> None:
    """Over a fine grid of uniforms each outcome comes as often as the ladder says."""
    ladder = ladder_of([0.25, 0.5], [0.2, 0.0, 0.5], 0.3)
    steps = 40
    grid = (np.arange(steps) + 0.5) / steps
    counts = Counter(choose(ladder, [a, b, c]) for a in grid for b in grid for c in grid)
    rejected = 0.75 * 0.5
    expected = {
        Choice(0, None): 0.25,
        Choice(1, None): 0.75 * 0.5,
        Choice(None, 0): rejected * 0.2,
        Choice(None, 2): rejected * 0.5,
        Choice(None, None): rejected * 0.3,
    }
    assert counts.keys() == expected.keys()
    for choice, probability in expected.items():
        assert counts[choice] / steps**3 == pytest.approx(probability, abs=1e-12)


def test_choose_never_draws_a_token_of_probability_zero() -> None:
    """At both ends of the unit interval the bonus is a token that has probability."""
    without_tail = ladder_of([], [0.0, 0.4, 0.6, 0.0], 0.0)
    assert choose(without_tail, [0.0]) == Choice(None, 1)
    assert choose(without_tail, [BELOW_ONE]) == Choice(None, 2)
    rng = np.random.default_rng(4)
    for _ in range(500):  # sums a little above, at and below 1
        residual = rng.dirichlet(np.full(20, 0.3))
        ladder = ladder_of([], [*residual, 0.0, 0.0], 0.0)
        assert choose(ladder, [BELOW_ONE]).support_index in range(20)


def test_choose_obeys_certainty() -> None:
    """Probability 1 always accepts and probability 0 never does."""
    assert choose(ladder_of([1.0], [1.0], 0.0), [BELOW_ONE, 0.5]) == Choice(0, None)
    assert choose(ladder_of([0.0], [1.0], 0.0), [0.0, 0.5]) == Choice(None, 0)


@pytest.mark.parametrize(
    "uniforms", [[0.5], [0.5, 0.5, 0.5], [1.0, 0.5], [0.5, -0.1], [0.5, np.nan]]
)
def test_choose_refuses_wrong_uniforms(uniforms: list[float]) -> None:
    """A missing, superfluous or out-of-range uniform raises ValueError."""
    with pytest.raises(ValueError, match="uniforms"):
        choose(ladder_of([0.5], [1.0], 0.0), uniforms)


# Comparison rules


def test_match_accepts_with_the_targets_probability() -> None:
    """Matching accepts each child with its target probability given the earlier failures."""
    ladder = match_ladder(evidence([0.2, 0.4], [0.5, 0.5], tail=0.4), [10, 11])
    assert ladder.accept_probs == pytest.approx((0.2, 0.5))
    assert ladder.residual.tolist() == [0.0, 0.0]
    assert ladder.residual_tail == pytest.approx(1.0)


@pytest.mark.parametrize("draw", Draw)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_ordered_draws_are_a_distribution(draw: Draw, count: int) -> None:
    """The probabilities of all draws sum to 1, also when the draft runs out of tokens."""
    known = evidence([0.25] * 4, [0.5, 0.3, 0.2, 0.0])
    draws = list(ordered_draws(draw, known, count))
    assert sum(probability for _, probability in draws) == pytest.approx(1.0)
    assert len({tokens for tokens, _ in draws}) == len(draws)
    if draw is Draw.TOP:
        assert draws == [((10, 11, 12, 13)[:count], 1.0)]
    if draw is Draw.WITHOUT_REPLACEMENT:
        assert all(len(set(tokens)) == min(count, 3) for tokens, _ in draws)


def test_ordered_draws_without_replacement_by_hand() -> None:
    """The second token of a draw is drawn from what the first one left."""
    known = evidence([0.4, 0.3, 0.3], [0.5, 0.3, 0.2])
    draws = dict(ordered_draws(Draw.WITHOUT_REPLACEMENT, known, 2))
    assert draws[(10, 11)] == pytest.approx(0.5 * 0.3 / 0.5)
    assert draws[(12, 10)] == pytest.approx(0.2 * 0.5 / 0.8)

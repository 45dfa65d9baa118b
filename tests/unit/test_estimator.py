"""The acceptance vector from counts: hazards, the prior's pull, and how far vectors are apart."""

import itertools
import math

import numpy as np
import pytest

from planner.estimator import (
    PRIOR,
    PRIOR_EXPONENT,
    PRIOR_FIRST_REJECTION,
    distance,
    estimate,
    hazards,
)
from sequoia.plans import AcceptanceCounts

NOTHING = AcceptanceCounts((), ())


def test_nothing_counted_gives_the_prior() -> None:
    """Without observations the estimate is the prior itself."""
    assert estimate(NOTHING, PRIOR, 50.0).vector == pytest.approx(PRIOR, abs=1e-12)


def test_two_ranks_by_hand() -> None:
    """Observed and assumed hazards mix in proportion to their weights."""
    counts = AcceptanceCounts(trials=(30, 10), accepts=(20, 5))
    first, second = estimate(counts, (0.5, 0.25), prior_weight=10.0).vector
    assert first == pytest.approx((20 + 10 * 0.5) / 40)
    assert second == pytest.approx((1 - first) * (5 + 10 * 0.5) / 20)


def test_many_observations_overrule_the_prior() -> None:
    """With counts far above the weight the estimate is the observed share."""
    counts = AcceptanceCounts(trials=(10**7, 3 * 10**6), accepts=(7 * 10**6, 3 * 10**5))
    assert estimate(counts, PRIOR, 100.0).vector[:2] == pytest.approx((0.7, 0.03), abs=1e-4)


def test_few_observations_move_little() -> None:
    """One rejection against a weight of 100 nodes moves the vector by less than 0.01."""
    vector = estimate(AcceptanceCounts((1,), (0,)), PRIOR, 100.0).vector
    assert distance(vector, PRIOR) < 0.01


def test_ranks_never_seen_keep_the_hazard_of_the_prior() -> None:
    """A draft that is better than assumed at rank 1 is not assumed to be so at the others."""
    vector = estimate(AcceptanceCounts((1000,), (900,)), PRIOR, 10.0).vector
    assert hazards(vector)[1:] == pytest.approx(hazards(PRIOR)[1:])
    assert vector[1] < PRIOR[1]


def test_a_poor_draft_is_poor_at_ranks_never_seen() -> None:
    """A third of the accepts that were assumed at rank 1 leave a third of the hazards."""
    share = hazards(PRIOR)[0] / 3
    counts = AcceptanceCounts((10**6,), (round(share * 10**6),))
    vector = estimate(counts, PRIOR, 10.0).vector
    lowered = [hazard / 3 for hazard in hazards(PRIOR)[1:]]
    assert hazards(vector)[1:] == pytest.approx(lowered, rel=1e-4)


def test_ranks_beyond_the_prior_go_on_with_its_last_hazard() -> None:
    """More ranks counted than assumed are estimated as well."""
    counts = AcceptanceCounts((0, 0, 0), (0, 0, 0))
    assert estimate(counts, (0.5, 0.1), 1.0).vector == pytest.approx((0.5, 0.1, 0.08))


def test_nodes_with_fewer_children_do_not_bias_the_estimate() -> None:
    """Simulated walks over nodes of 1 to 6 children give back the vector they were drawn from."""
    truth = np.array([0.5, 0.15, 0.1, 0.06, 0.04, 0.03])
    generator = np.random.default_rng(5)
    accepted = generator.choice(7, size=200_000, p=[*truth, 1 - truth.sum()])  # 6: none of them
    children = generator.integers(1, 7, size=accepted.size)
    trials = [int(np.sum((children > rank) & (accepted >= rank))) for rank in range(6)]
    accepts = [int(np.sum((children > rank) & (accepted == rank))) for rank in range(6)]
    counts = AcceptanceCounts(tuple(trials), tuple(accepts))
    assert estimate(counts, PRIOR, 1.0).vector[:6] == pytest.approx(truth, abs=5e-3)


def test_the_estimate_is_always_a_vector_of_probabilities() -> None:
    """Whatever was counted, no entry is negative and the sum does not exceed 1."""
    generator = np.random.default_rng(9)
    for _ in range(100):
        trials = generator.integers(0, 50, size=40)
        accepts = generator.integers(0, trials + 1)
        counts = AcceptanceCounts(tuple(trials.tolist()), tuple(accepts.tolist()))
        vector = estimate(counts, PRIOR, 5.0).vector
        assert len(vector) == 40
        assert min(vector) >= 0.0
        assert sum(vector) <= 1.0 + 1e-12


def test_a_prior_that_uses_up_all_probability_is_handled() -> None:
    """Ranks that can never be reached have hazard 0, not a division by zero."""
    assert hazards((1.0, 0.0)) == (1.0, 0.0)
    assert estimate(NOTHING, (1.0, 0.0), 1.0).vector == (1.0, 0.0)


def test_the_built_in_prior_is_a_falling_power_law() -> None:
    """It never increases, and the chance of rejecting k children is the stated power of k."""
    assert all(left > right for left, right in itertools.pairwise(PRIOR))
    rejected = 1 - sum(PRIOR[:8])
    assert rejected == pytest.approx(PRIOR_FIRST_REJECTION * 8**-PRIOR_EXPONENT)


@pytest.mark.parametrize(
    ("trials", "accepts", "message"),
    [
        ((1, 2), (1,), "2 trials, but 1 accepts"),
        ((-1,), (0,), "trials at rank 1 is -1"),
        ((3, 3), (1, -2), "accepts at rank 2 is -2"),
        ((3, 3), (1, 4), "rank 2 has 4 accepts in 3 trials"),
    ],
)
def test_impossible_counts_are_refused(
    trials: tuple[int, ...], accepts: tuple[int, ...], message: str
) -> None:
    """Counts that cannot come from observation are refused with the rank."""
    with pytest.raises(ValueError, match=message):
        AcceptanceCounts(trials, accepts)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_bad_weights_are_refused(weight: float) -> None:
    """The prior's weight must be a finite number above 0."""
    with pytest.raises(ValueError, match="prior_weight"):
        estimate(NOTHING, PRIOR, weight)


@pytest.mark.parametrize("dispersion", [0.0, -1.0, math.nan, math.inf])
def test_bad_dispersions_are_refused(dispersion: float) -> None:
    """The dispersion must be a finite number above 0."""
    with pytest.raises(ValueError, match="dispersion"):
        estimate(NOTHING, PRIOR, 1.0, dispersion)


def test_deviations_are_those_of_repeated_observation() -> None:
    """What the estimates of many samples scatter by is what each of them says of itself."""
    hazard = np.array([0.5, 0.3, 0.2])
    generator = np.random.default_rng(3)
    found = []
    for _ in range(4000):
        at_risk, trials, accepts = 400, [], []
        for chance in hazard:
            trials.append(at_risk)
            accepts.append(int(generator.binomial(at_risk, chance)))
            at_risk -= accepts[-1]
        found.append(estimate(AcceptanceCounts(tuple(trials), tuple(accepts)), (0.5,), 1e-9))
    scatter = np.std([one.vector for one in found], axis=0)
    said = np.mean([one.deviations for one in found], axis=0)
    assert said == pytest.approx(scatter, rel=0.1)


def test_dependent_nodes_make_the_deviations_larger() -> None:
    """Four times the dispersion is worth a quarter of the nodes; the estimate stays."""
    counts = AcceptanceCounts((10_000,), (4000,))
    alone, together = (estimate(counts, (0.4,), 1e-9, factor) for factor in (1.0, 4.0))
    assert together.vector == alone.vector
    assert together.deviations[0] == pytest.approx(2 * alone.deviations[0], rel=0.01)


def test_a_bad_prior_is_refused() -> None:
    """A prior that cannot be probabilities is refused with the rank."""
    with pytest.raises(ValueError, match=r"a_2 is -0\.1"):
        estimate(NOTHING, (0.5, -0.1), 1.0)


def test_distance_is_the_largest_change() -> None:
    """The rank that moved most counts, and missing ranks count as 0."""
    assert distance((0.5, 0.2), (0.4, 0.25)) == pytest.approx(0.1)
    assert distance((0.5,), (0.5, 0.3)) == pytest.approx(0.3)
    assert distance((), ()) == 0.0

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from coordinator.acceptance import Acceptance, Trial, accept, check_grown
from sequoia.errors import MalformedTreeError, WorkerUnavailableError
from sequoia.messages import (
    DraftDistribution,
    GrownTree,
    NodeLogprobs,
    SessionSettings,
    TargetDistribution,
    Verdict,
)
from sequoia.randomness import Purpose, uniforms
from sequoia.sampling import draw_without_replacement
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology, Tree

ROOT_POSITION = 10
#        0:9
#    1:11    2:12
#  3:13 4:14  5:15
TREE = Tree(Topology((-1, 0, 0, 1, 1, 2)), (9, 11, 12, 13, 14, 15))
SAMPLED = DrawRule.WITHOUT_REPLACEMENT


def settings(rule: DrawRule = DrawRule.GREEDY, seed: int = 0) -> SessionSettings:
    """Settings of a session; only rule and seed matter here."""
    temperature = 0.0 if rule is DrawRule.GREEDY else 1.0
    return SessionSettings(SamplingSettings(temperature=temperature), rule, seed, 1, 100)


def walk(*verdict: int, rule: DrawRule = DrawRule.GREEDY) -> Acceptance:
    """The outcome of the tree above when the target says these tokens at its nodes."""
    return accept(GrownTree(TREE), Verdict(verdict), settings(rule), ROOT_POSITION)


def draft_distribution(**weights: float) -> DraftDistribution:
    """q from weights by token: `t11=0.5`."""
    token_ids = [int(name[1:]) for name in weights]
    return DraftDistribution(
        np.array(token_ids, dtype=np.uint32), np.array(list(weights.values()), dtype=np.float16)
    )


def target_distribution(*probs: float, tail_mass: float = 0.0) -> TargetDistribution:
    """p on a support, and outside."""
    return TargetDistribution(np.array(probs, dtype=np.float32), tail_mass)


# One inner node with two children out of a support of three.
SMALL = Tree(Topology((-1, 0, 0)), (9, 11, 12))
GROWN = GrownTree(SMALL, (draft_distribution(t11=1.0, t12=0.5, t13=0.5),))
SMALL_LEAVES = (77, 21, 22)  # the target's tail token at the root, and its draws at the leaves


def sampled(*probs: float, tail_mass: float = 0.0, seed: int = 0) -> Acceptance:
    """The outcome of the small tree when the target has this p on the support."""
    verdict = Verdict(SMALL_LEAVES, (target_distribution(*probs, tail_mass=tail_mass),))
    return accept(GROWN, verdict, settings(SAMPLED, seed), ROOT_POSITION)


def token_ids(acceptance: Acceptance) -> list[int]:
    """The emitted tokens."""
    return [token.token_id for token in acceptance.tokens]


@pytest.mark.parametrize("rule", [DrawRule.GREEDY, DrawRule.COUPLED])
@pytest.mark.parametrize(
    ("verdict", "nodes", "tokens", "trials"),
    [
        ((50, 1, 2, 3, 4, 5), (), [50], [Trial(2, None)]),
        ((12, 1, 50, 3, 4, 5), (2,), [12, 50], [Trial(2, 1), Trial(1, None)]),
        ((11, 14, 2, 3, 60, 5), (1, 4), [11, 14, 60], [Trial(2, 0), Trial(2, 1)]),
        ((12, 13, 15, 3, 4, 70), (2, 5), [12, 15, 70], [Trial(2, 1), Trial(1, 0)]),
    ],
    ids=["nothing accepted", "one accepted", "to a leaf", "to another leaf"],
)
def test_the_walk_follows_the_targets_tokens(
    rule: DrawRule,
    verdict: tuple[int, ...],
    nodes: tuple[int, ...],
    tokens: list[int],
    trials: list[Trial],
) -> None:
    """A target's token among the children is accepted, any other is the bonus token."""
    acceptance = walk(*verdict, rule=rule)
    assert acceptance.nodes == nodes
    assert token_ids(acceptance) == tokens
    assert list(acceptance.trials) == trials


def test_a_token_elsewhere_in_the_tree_is_not_accepted() -> None:
    """Only children of the node that was reached count."""
    assert walk(15, 1, 2, 3, 4, 5).nodes == ()


def test_a_root_alone_gives_one_token() -> None:
    """A step without speculation is the target's token, and no trial."""
    grown = GrownTree(Tree.root_only(9))
    for rule in DrawRule:
        acceptance = accept(grown, Verdict((42,)), settings(rule), ROOT_POSITION)
        assert acceptance.nodes == ()
        assert token_ids(acceptance) == [42]
        assert acceptance.trials == ()


def test_a_child_that_the_target_likes_more_is_always_accepted() -> None:
    """With p >= q at the first child no draw can reject it, and the leaf gives the bonus token."""
    for seed in range(50):
        acceptance = sampled(0.6, 0.2, 0.2, seed=seed)
        assert acceptance.nodes == (1,)
        assert token_ids(acceptance) == [11, 21]
        assert acceptance.trials == (Trial(2, 0),)


def test_a_child_that_the_target_forbids_is_never_accepted() -> None:
    """With p = 0 at the first child the second one is tried."""
    for seed in range(50):
        acceptance = sampled(0.0, 1.0, 0.0, seed=seed)
        assert token_ids(acceptance) == [12, 22]
        assert acceptance.trials == (Trial(2, 1),)


def test_the_bonus_token_may_come_from_the_support() -> None:
    """When the residual is all on the third token of the support, it is that one."""
    acceptance = sampled(0.0, 0.0, 1.0)
    assert acceptance.nodes == ()
    assert token_ids(acceptance) == [13]
    assert acceptance.trials == (Trial(2, None),)


def test_the_bonus_token_may_come_from_the_tail() -> None:
    """When the residual lies outside the support, it is the token that the target drew there."""
    acceptance = sampled(0.0, 0.0, 0.0, tail_mass=1.0)
    assert token_ids(acceptance) == [77]
    assert acceptance.trials == (Trial(2, None),)


def test_the_first_token_follows_the_target() -> None:
    """Over 5,000 drawn trees the emitted token is distributed as p (chi-square)."""
    (q,) = GROWN.distributions
    p = {11: 0.2, 12: 0.4, 13: 0.1, 77: 0.3}
    counts = dict.fromkeys(p, 0)
    verdict = Verdict(SMALL_LEAVES, (target_distribution(0.2, 0.4, 0.1, tail_mass=0.3),))
    for seed in range(5_000):
        uniform = uniforms(seed, Purpose.DRAFT, ROOT_POSITION + 1, 0, 3)
        drawn = q.token_ids[draw_without_replacement(q.weights, 2, uniform)].tolist()
        grown = GrownTree(Tree(SMALL.topology, (9, *drawn)), (q,))
        counts[token_ids(accept(grown, verdict, settings(SAMPLED, seed), ROOT_POSITION))[0]] += 1
    expected = [probability * sum(counts.values()) for probability in p.values()]
    assert chisquare(list(counts.values()), expected).pvalue > 0.001


def test_the_same_place_gives_the_same_outcome() -> None:
    """Acceptance is a function of seed and position, so that a repeated step says the same."""
    probs = (0.25, 0.25, 0.25)
    first = [sampled(*probs, tail_mass=0.25, seed=seed) for seed in range(20)]
    assert first == [sampled(*probs, tail_mass=0.25, seed=seed) for seed in range(20)]
    assert len({acceptance.tokens for acceptance in first}) > 1


def test_a_walk_uses_the_distribution_of_each_inner_node() -> None:
    """Below an accepted child the next inner node's p and q decide."""
    q = tuple(
        draft_distribution(**weights)
        for weights in ({"t11": 0.5, "t12": 0.5}, {"t13": 0.5, "t14": 0.5}, {"t15": 1.0})
    )
    p = (
        target_distribution(0.0, 1.0),
        target_distribution(0.5, 0.5),
        target_distribution(0.0, tail_mass=1.0),
    )
    verdict = Verdict((1, 2, 77, 4, 5, 6), p)
    acceptance = accept(GrownTree(TREE, q), verdict, settings(SAMPLED), ROOT_POSITION)
    assert acceptance.nodes == (2,)
    assert token_ids(acceptance) == [12, 77]
    assert acceptance.trials == (Trial(2, 1), Trial(1, None))


def logprobs(token_logprob: float, *support: float) -> NodeLogprobs:
    """What the target says of one node; its favourite is token 3."""
    return NodeLogprobs(
        token_logprob,
        np.array(support, dtype=np.float32),
        np.array([3], dtype=np.uint32),
        np.array([-0.5], dtype=np.float32),
    )


def test_tokens_carry_the_targets_log_probabilities() -> None:
    """That of the token itself, and the most likely ones beside it."""
    told = tuple(logprobs(-float(node)) for node in range(6))
    verdict = Verdict((12, 1, 50, 3, 4, 5), (), told)
    acceptance = accept(GrownTree(TREE), verdict, settings(), ROOT_POSITION)
    assert [token.logprob for token in acceptance.tokens] == [-0.0, -2.0]
    assert all(token.top_logprobs == ((3, -0.5),) for token in acceptance.tokens)


@pytest.mark.parametrize(
    ("probs", "tail_mass", "expected"),
    [
        ((1.0, 0.0, 0.0), 0.0, [-1.0, -0.25]),
        ((0.0, 0.0, 1.0), 0.0, [-3.0]),
        ((0.0, 0.0, 0.0), 1.0, [-7.0]),
    ],
    ids=["accepted child and leaf", "bonus from the support", "bonus from the tail"],
)
def test_sampled_tokens_carry_the_log_probability_of_where_they_came_from(
    probs: tuple[float, ...], tail_mass: float, expected: list[float]
) -> None:
    """By their place in the support, or, from tail and leaf, that of their node."""
    told = (logprobs(-7.0, -1.0, -2.0, -3.0), logprobs(-0.25), logprobs(-0.25))
    verdict = Verdict(SMALL_LEAVES, (target_distribution(*probs, tail_mass=tail_mass),), told)
    acceptance = accept(GROWN, verdict, settings(SAMPLED), ROOT_POSITION)
    assert [token.logprob for token in acceptance.tokens] == expected


def test_without_log_probabilities_tokens_carry_none() -> None:
    """They cost nothing when nobody asked."""
    assert walk(50, 1, 2, 3, 4, 5).tokens[0].logprob is None


FITTING = Verdict(SMALL_LEAVES, (target_distribution(0.5, 0.25, 0.25),))


@pytest.mark.parametrize(
    "verdict",
    [
        replace(FITTING, token_ids=(77, 21)),
        replace(FITTING, token_ids=(77, 21, 22, 23)),
        replace(FITTING, distributions=()),
        replace(FITTING, distributions=FITTING.distributions * 2),
        replace(FITTING, distributions=(target_distribution(0.5, 0.5),)),
        replace(FITTING, logprobs=(logprobs(-1.0),)),
    ],
    ids=["few tokens", "many tokens", "no p", "two p", "short p", "few log probabilities"],
)
def test_a_verdict_that_does_not_fit_the_tree_is_refused(verdict: Verdict) -> None:
    """The target talks about another tree: nothing of it can be believed."""
    with pytest.raises(WorkerUnavailableError, match="does not fit the tree"):
        accept(GROWN, verdict, settings(SAMPLED), ROOT_POSITION)


def test_a_tree_without_its_distributions_is_refused() -> None:
    """Without q there is no acceptance rule."""
    with pytest.raises(WorkerUnavailableError, match="does not fit the tree"):
        accept(GrownTree(SMALL), FITTING, settings(SAMPLED), ROOT_POSITION)


@pytest.mark.parametrize(
    ("grown", "complaint"),
    [
        (GrownTree(SMALL), "no q"),
        (GrownTree(SMALL, (draft_distribution(t11=1.0, t13=0.5),)), "cannot have drawn"),
        (GrownTree(SMALL, (draft_distribution(t11=1.0, t12=0.0),)), "cannot have drawn"),
        (GrownTree(SMALL, (draft_distribution(t11=np.nan, t12=1.0),)), "cannot have drawn"),
        (GrownTree(Tree(SMALL.topology, (9, 11, 11)), GROWN.distributions), "cannot have drawn"),
        (GrownTree(Tree(SMALL.topology, (8, 11, 12)), GROWN.distributions), "another root"),
    ],
)
def test_no_draft_is_trusted(grown: GrownTree, complaint: str) -> None:
    """A tree that the draft cannot have drawn from its q is refused."""
    with pytest.raises(MalformedTreeError, match=complaint):
        check_grown(grown, 9, 3, settings(SAMPLED, 0))


def test_an_honest_draft_passes() -> None:
    """What a draft drew from its q is taken."""
    check_grown(GROWN, 9, 3, settings(SAMPLED, 0))

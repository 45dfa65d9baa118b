"""Walking a verified tree: which nodes are accepted, and which token follows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sequoia.errors import MalformedTreeError, WorkerUnavailableError
from sequoia.generation import GeneratedToken
from sequoia.messages import GrownTree, SessionSettings, Verdict
from sequoia.randomness import Purpose, uniforms
from sequoia.settings import DrawRule
from sequoia.verification import Evidence, choose, sequoia_ladder


@dataclass(frozen=True, slots=True)
class Trial:
    """What happened at one visited node: how many children it had and which rank was accepted."""

    child_count: int
    accepted_rank: int | None


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The outcome of a step: the accepted nodes, and one token per accepted node and the bonus."""

    nodes: tuple[int, ...]
    tokens: tuple[GeneratedToken, ...]
    trials: tuple[Trial, ...]


def accept(
    grown: GrownTree, verdict: Verdict, settings: SessionSettings, root_position: int
) -> Acceptance:
    """Walk from the root: accept children while one is accepted, then take the bonus token.

    Args:
        grown: the tree and q at its inner nodes.
        verdict: the target's word on the same tree.
        settings: of the session.
        root_position: absolute position of the root.

    Raises:
        WorkerUnavailableError: the verdict does not fit the tree.
    """
    tree, topology = grown.tree, grown.tree.topology
    _check(grown, verdict, settings)
    inner_index = {node: index for index, node in enumerate(topology.inner_nodes)}
    node = 0
    nodes: list[int] = []
    tokens: list[GeneratedToken] = []
    trials: list[Trial] = []
    while True:
        children = topology.children[node]
        if not children:
            tokens.append(_token(verdict, node, verdict.token_ids[node], ()))
            return Acceptance(tuple(nodes), tuple(tokens), tuple(trials))
        drawn = [tree.token_ids[child] for child in children]
        position = root_position + len(nodes) + 1
        if settings.draw_rule is DrawRule.WITHOUT_REPLACEMENT:
            q = grown.distributions[inner_index[node]]
            support: Sequence[int] = q.token_ids.tolist()
            rank, token_id = _choose(
                grown, verdict, inner_index[node], node, drawn, settings.seed, position
            )
        else:
            support = ()
            token_id = verdict.token_ids[node]
            rank = drawn.index(token_id) if token_id in drawn else None
        tokens.append(_token(verdict, node, token_id, support))
        trials.append(Trial(len(children), rank))
        if rank is None:
            return Acceptance(tuple(nodes), tuple(tokens), tuple(trials))
        node = children[rank]
        nodes.append(node)


def check_grown(
    grown: GrownTree, root_token_id: int, node_limit: int, settings: SessionSettings
) -> None:
    """Trust no draft: what it grew must be a tree of tokens that its q can have drawn.

    Raises:
        MalformedTreeError: more nodes than asked for, another root, a token outside the vocabulary,
            a child outside the support or twice, or no q for a node.
    """
    tree, topology = grown.tree, grown.tree.topology
    if topology.node_count > node_limit:
        raise MalformedTreeError("the draft grew more than it was asked for", field="tree")
    if max(tree.token_ids) >= settings.vocabulary_size:
        raise MalformedTreeError("the draft proposed an unknown token", field="tree.token_ids")
    if tree.token_ids[0] != root_token_id:
        raise MalformedTreeError("the draft grew on another root", field="tree.token_ids")
    if settings.draw_rule is not DrawRule.WITHOUT_REPLACEMENT:
        return
    if len(grown.distributions) != len(topology.inner_nodes):
        raise MalformedTreeError("the draft sent no q for some nodes", field="distributions")
    for node, q in zip(topology.inner_nodes, grown.distributions, strict=True):
        drawn = [tree.token_ids[child] for child in topology.children[node]]
        support = q.token_ids[q.weights > 0].tolist()
        sane = len(q.token_ids) == len(q.weights) and bool(np.isfinite(q.weights).all())
        if not sane or len(set(drawn)) < len(drawn) or not set(drawn) <= set(support):
            raise MalformedTreeError(
                f"node {node}: children that q cannot have drawn", field="distributions"
            )


def _choose(
    grown: GrownTree,
    verdict: Verdict,
    index: int,
    node: int,
    drawn: Sequence[int],
    seed: int,
    position: int,
) -> tuple[int | None, int]:
    """Sequoia's acceptance at one inner node: the accepted rank, if any, and the token."""
    q, p = grown.distributions[index], verdict.distributions[index]
    support = q.token_ids.astype(np.int64)
    weights = q.weights.astype(np.float64)
    evidence = Evidence(support, weights / weights.sum(), p.probs.astype(np.float64), p.tail_mass)
    uniform = uniforms(seed, Purpose.ACCEPT, position, node, len(drawn) + 1)
    choice = choose(sequoia_ladder(evidence, drawn), uniform.tolist())
    if choice.rank is not None:
        return choice.rank, drawn[choice.rank]
    if choice.support_index is not None:
        return None, int(support[choice.support_index])
    return None, verdict.token_ids[node]


def _token(verdict: Verdict, node: int, token_id: int, support: Sequence[int]) -> GeneratedToken:
    """The emitted token, with its log probabilities where the target sent them."""
    if not verdict.logprobs:
        return GeneratedToken(token_id)
    known = verdict.logprobs[node]
    logprob = (
        known.token_logprob
        if token_id == verdict.token_ids[node]
        else float(known.support_logprobs[list(support).index(token_id)])
    )
    top = zip(known.top_token_ids.tolist(), known.top_logprobs.tolist(), strict=True)
    return GeneratedToken(token_id, logprob, tuple(top))


def _check(grown: GrownTree, verdict: Verdict, settings: SessionSettings) -> None:
    topology = grown.tree.topology
    sparse = settings.draw_rule is DrawRule.WITHOUT_REPLACEMENT
    wanted = len(topology.inner_nodes) if sparse else 0
    if (
        len(verdict.token_ids) != topology.node_count
        or len(grown.distributions) < wanted
        or len(verdict.distributions) != wanted
        or len(verdict.logprobs) not in (0, topology.node_count)
        or (verdict.features is not None and len(verdict.features) != topology.node_count)
        or any(
            p.probs.shape != q.token_ids.shape or q.weights.shape != q.token_ids.shape
            for p, q in zip(verdict.distributions, grown.distributions, strict=False)
        )
    ):
        raise WorkerUnavailableError("the target's verdict does not fit the tree")

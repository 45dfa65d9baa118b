"""What both models say at nodes of a tree, and which child is accepted there how likely."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sequoia.acceptance import kseq
from sequoia.acceptance.rules import RANKS, RULE_OF, RuleName, by_rank
from sequoia.sampling import SUPPORT_SIZE, draw_without_replacement, sparsify
from sequoia.verification import Draw, Evidence

UNIFORM_COUNT = max(SUPPORT_SIZE, RANKS)
"""Random numbers that the children of one node are drawn with."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """The distributions at some nodes, on the draft's support at each of them.

    Attributes:
        weights: q as the draft worker sends it, most likely token first: `[nodes, support]`.
        target: p on the support and, last, outside of it: `[nodes, support + 1]`.
    """

    weights: NDArray[np.float16]
    target: Floats

    @classmethod
    def of(cls, p: Tensor, log_q: Tensor, token_ids: Tensor) -> Nodes:
        """Nodes from p `[nodes, vocabulary]` and log q `[nodes, columns]`; q is made sparse.

        Args:
            p: probabilities.
            log_q: log probabilities.
            token_ids: the token of each column of `log_q`, within the vocabulary.
        """
        indices, weights = sparsify(log_q, UNIFORM_COUNT)
        support = token_ids.cpu().numpy()[indices]
        columns = token_ids.new_tensor(support)
        on_support = p.gather(-1, columns).double().cpu().numpy()
        outside = p.scatter(-1, columns, 0.0).double().sum(dim=-1).cpu().numpy()
        target = np.column_stack([on_support, outside])
        return cls(weights, target / target.sum(axis=-1, keepdims=True))

    @property
    def draft(self) -> Floats:
        """q on the support and 0 on the tail: `[nodes, support + 1]`, fp64."""
        padded = np.pad(self.weights.astype(np.float64), ((0, 0), (0, 1)))
        draft: Floats = padded / padded.sum(axis=-1, keepdims=True)
        return draft

    def evidence(self) -> Iterator[Evidence]:
        """The same per node, in the words of the rules; the support numbered by its places."""
        for draft, target in zip(self.draft, self.target, strict=True):
            size = int((draft > 0).sum())  # a weight of 0 is outside the support; these come last
            tail = float(target[size:].sum())
            yield Evidence(np.arange(size), draft[:size], target[:size], tail)


def accepted_ranks(name: RuleName, nodes: Nodes, uniforms: Floats, ranks: int = RANKS) -> Floats:
    """Probability that child k is the accepted one, k = 1..`ranks`, then that none is.

    It is that of one draw of `ranks` children at every node: probabilities and not events are counted, so
    that few nodes say much. The first k children are the same however many follow, so the first k
    entries sum to the acceptance of a node with k children. SpecTr's test depends on their number;
    entry k is then what the k-th child adds to a node with k - 1, which keeps the sums what they are.

    Args:
        name: the rule.
        nodes: both models' distributions.
        uniforms: numbers in (0, 1) to draw the children with, `[nodes, UNIFORM_COUNT]`.
        ranks: most children, at most `UNIFORM_COUNT`.

    Returns:
        `[nodes, ranks + 1]`.
    """
    if name is RuleName.SPECTR:
        rejection = kseq.rejection_by_count(nodes.target, nodes.draft, ranks)
        added = -np.diff(rejection, axis=-1, prepend=1.0)
        return np.column_stack([np.maximum(added, 0.0), rejection[:, -1]])
    rule = RULE_OF[name]
    each = zip(nodes.evidence(), nodes.weights, uniforms, strict=True)
    return np.array(
        [
            by_rank(rule.ladder(evidence, draw_places(rule.draw, weights, uniform, ranks)), ranks)
            for evidence, weights, uniform in each
        ]
    )


def matched_ranks(match: NDArray[np.bool_], ranks: int = RANKS) -> Floats:
    """The same at temperature 0, where `match[node, k]` says that child k is the target's choice."""
    found = np.zeros((len(match), ranks + 1))
    found[:, : match.shape[1]] = match
    found[:, -1] = ~match.any(axis=-1)
    return found


def draw_places(draw: Draw, weights: NDArray[np.float16], uniform: Floats, count: int) -> list[int]:
    """Places in the support of at most `count` children, in the order in which they are drawn.

    Args:
        draw: how they come from q.
        weights: q as the draft worker sends it, most likely token first.
        uniform: numbers in (0, 1), one for each place or each child, whichever are more.
        count: children wanted.
    """
    weights = weights[weights > 0]
    if draw is Draw.TOP:
        return list(range(min(count, len(weights))))
    if draw is Draw.WITHOUT_REPLACEMENT:
        drawn = draw_without_replacement(weights, count, uniform[: len(weights)])
    else:
        cumulative = np.cumsum(weights, dtype=np.float64)
        drawn = np.searchsorted(cumulative, uniform[:count] * cumulative[-1], side="right")
    places: list[int] = drawn.tolist()
    return places

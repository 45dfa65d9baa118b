"""What happens at one node of a tree: its children are drawn, and a rule accepts one of them or none.

The random numbers are those that the service takes at that place of a request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sequoia.acceptance.nodes import draw_places
from sequoia.acceptance.rules import RULE_OF, RuleName
from sequoia.randomness import Purpose, uniforms
from sequoia.sampling import draw_indices
from sequoia.verification import Evidence, choose


@dataclass(frozen=True, slots=True)
class Place:
    """Where random numbers are taken: of which request, for which token, at which node of the tree."""

    seed: int
    position: int
    node: int

    def uniforms(self, purpose: Purpose, count: int) -> NDArray[np.float64]:
        """The first `count` numbers of this place for one purpose."""
        return uniforms(self.seed, purpose, self.position, self.node, count)


@dataclass(frozen=True, slots=True, eq=False)
class Guess:
    """The draft's distribution at a node: tokens `[support]` and their weights, most likely first."""

    token_ids: NDArray[np.int64]
    weights: NDArray[np.float16]


def decide(
    rule: RuleName, p: Tensor, guess: Guess, child_count: int, place: Place
) -> tuple[int | None, int]:
    """Draw children and accept one of them, or none.

    Args:
        rule: how children are drawn and accepted.
        p: the target's distribution `[vocabulary]`; written to.
        guess: the draft's.
        child_count: children of the node, at least 1; fewer are drawn where q has fewer tokens.
        place: of the node.

    Returns:
        The rank of the accepted child, None for none, and the token that is emitted.
    """
    has_mass = guess.weights > 0
    support, weights = guess.token_ids[has_mass], guess.weights[has_mass]
    numbers = place.uniforms(Purpose.DRAFT, max(len(support), child_count))
    children = draw_places(RULE_OF[rule].draw, weights, numbers, child_count)
    columns = torch.from_numpy(support).to(p.device)
    on_support = p[columns].double().cpu().numpy()
    p[columns] = 0.0
    token_id, tail = draw(p, place)
    q = weights.astype(np.float64)
    evidence = Evidence(np.arange(len(support)), q / q.sum(), on_support, tail)
    answers = place.uniforms(Purpose.ACCEPT, len(children) + 1)
    choice = choose(RULE_OF[rule].ladder(evidence, children), answers.tolist())
    if choice.rank is not None:
        return choice.rank, int(support[children[choice.rank]])
    if choice.support_index is not None:
        return None, int(support[choice.support_index])
    return None, token_id


def draw(p: Tensor, place: Place) -> tuple[int, float]:
    """A token from weights `[vocabulary]`, and their sum."""
    (token_id,), (mass,) = draw_indices(p[None], place.uniforms(Purpose.TARGET, 1))
    return token_id, mass

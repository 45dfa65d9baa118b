"""How far a draft agrees with its target, at every position of texts that the target wrote.

Both models read the same text, the target's own, so that a position shows what a tree would meet
there had everything before been committed. The acceptance vector and the assumption that it is the
same at every node are those of Sequoia, arXiv 2402.12374, section 3.1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sequoia.acceptance.continuations import Continuation
from sequoia.acceptance.levels import logits_by_level
from sequoia.acceptance.nodes import UNIFORM_COUNT, Floats, Nodes, accepted_ranks, matched_ranks
from sequoia.acceptance.rules import RANKS, RuleName
from sequoia.randomness import Purpose, uniforms
from sequoia.runtime.forward import TreeModel
from sequoia.sampling import warp
from sequoia.settings import SamplingSettings

TOPS = (1, 2, 4, 8, 16, 32)
CHUNK = 128
"""Positions whose distributions over the whole vocabulary are held at a time."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Means over `positions` positions, at one level of a tree.

    Attributes:
        positions: how many tokens of the target were predicted.
        overlap: sum of min(p, q) over the whole vocabulary; at temperature 0, where p and q are
            single tokens, of the distributions at temperature 1.
        coverage: the target's mass on the tokens that the draft can say; likewise at temperature 1.
        top_match: the target's argmax is among the draft's first k tokens, by k.
        vector: 0, then the probability that child k of a node is the accepted one, by k, then
            that none is. See `sequoia.acceptance.nodes.accepted_ranks`.
    """

    positions: int
    overlap: float
    coverage: float
    top_match: dict[int, float]
    vector: tuple[float, ...]

    @property
    def rejection(self) -> tuple[float, ...]:
        """The probability that all of k children are rejected, from k = 1 on."""
        accepted = itertools.accumulate(self.vector[1:-1])
        return tuple(max(1.0 - some, 0.0) for some in accepted)


@dataclass(frozen=True, slots=True)
class Measuring:
    """What is measured: the temperature, the rule, the seed that children are drawn with, and how many.

    At temperature 0 children are the draft's first tokens and the target's argmax is accepted,
    whatever the rule; otherwise children are drawn as the rule wants them.
    """

    temperature: float
    rule: RuleName = RuleName.SEQUOIA
    seed: int = 0
    ranks: int = RANKS

    @property
    def sampling(self) -> SamplingSettings:
        """The settings under which p and q are compared."""
        return SamplingSettings(temperature=self.temperature or 1.0)


class _Tally:
    """Sums over positions of one level."""

    def __init__(self, measuring: Measuring) -> None:
        self.measuring = measuring
        self.positions = 0
        self.overlap = self.coverage = 0.0
        self.top = np.zeros(len(TOPS))
        self.by_rank = np.zeros(measuring.ranks + 1)

    def add(self, taught: Tensor, said: Tensor, token_ids: Tensor, place: tuple[int, int]) -> None:
        """Count positions of one text.

        Args:
            taught: the target's logits, `[positions, vocabulary]`.
            said: the draft's, `[positions, columns]`.
            token_ids: the token of each of the draft's columns.
            place: index of the text, and the position of the first token that is predicted.
        """
        p = warp(taught, self.measuring.sampling).exp()
        log_q = warp(said, self.measuring.sampling)
        covered = p[:, token_ids]
        self.positions += len(p)
        self.overlap += float(torch.minimum(covered, log_q.exp()).double().sum())
        self.coverage += float(covered.double().sum())
        best = token_ids[said.topk(min(self.measuring.ranks, said.shape[-1])).indices]
        match = (best == taught.argmax(dim=-1, keepdim=True)).cpu().numpy()
        self.top += [match[:, :k].sum() for k in TOPS]
        if self.measuring.temperature:
            found = self._drawn(p, log_q, token_ids, place)
        else:
            found = matched_ranks(match, self.measuring.ranks)
        self.by_rank += found.sum(axis=0)

    def _drawn(self, p: Tensor, log_q: Tensor, token_ids: Tensor, place: tuple[int, int]) -> Floats:
        index, first = place
        numbers = [
            uniforms(self.measuring.seed, Purpose.DRAFT, first + row, index, UNIFORM_COUNT)
            for row in range(len(p))
        ]
        nodes = Nodes.of(p, log_q, token_ids)
        return accepted_ranks(self.measuring.rule, nodes, np.stack(numbers), self.measuring.ranks)

    def agreement(self) -> Agreement:
        """The means."""
        count = self.positions
        return Agreement(
            count,
            self.overlap / count,
            self.coverage / count,
            {k: float(hits) / count for k, hits in zip(TOPS, self.top, strict=True)},
            (0.0, *(self.by_rank / count).tolist()),
        )


@torch.inference_mode()
def measure(
    target: TreeModel,
    draft: TreeModel,
    continuations: Sequence[Continuation],
    measuring: Measuring,
    report: Callable[[int], None] = lambda _: None,
) -> tuple[Agreement, ...]:
    """The agreement per level of a tree, from its first on.

    One level is measured for a draft to which all levels are the same, several for one that reads
    the target's features.

    Args:
        target: the model that wrote the texts.
        draft: the model that grows trees.
        continuations: at least one text.
        measuring: what is measured.
        report: told the number of texts that are done, after each.
    """
    tallies: list[_Tally] = []
    for done, text in enumerate(continuations, start=1):
        answer = slice(text.prompt_length - 1, len(text.token_ids) - 1)
        taught = target.plain(text.token_ids)
        levels = logits_by_level(draft, text.token_ids, taught.features)
        token_ids, columns = known_columns(draft, target.vocabulary_size, levels[0])
        tallies = tallies or [_Tally(measuring) for _ in levels]
        for tally, said in zip(tallies, levels, strict=True):
            _add(tally, taught.logits[answer], said[answer, columns], token_ids, text)
        report(done)
    return tuple(tally.agreement() for tally in tallies)


def _add(
    tally: _Tally, taught: Tensor, said: Tensor, token_ids: Tensor, text: Continuation
) -> None:
    """Count all positions of a text, some at a time."""
    for start in range(0, len(taught), CHUNK):
        rows = slice(start, start + CHUNK)
        tally.add(taught[rows], said[rows], token_ids, (text.index, text.prompt_length + start))


def known_columns(
    draft: TreeModel, vocabulary_size: int, logits: Tensor
) -> tuple[Tensor, slice | Tensor]:
    """The draft's output rows that stand for tokens of the target: their tokens, and their places.

    An embedding may be padded beyond the tokens that the target knows; the draft worker proposes
    none of these.
    """
    token_ids = draft.token_ids
    if token_ids is None:
        token_ids = torch.arange(logits.shape[-1], device=logits.device)
    known = token_ids < vocabulary_size
    if bool(known.all()):
        return token_ids, slice(None)
    return token_ids[known], known

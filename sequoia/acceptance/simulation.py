"""Steps of any tree under any rule, at any temperature, for the price of plain decoding.

Which children a node gets depends on the draft's distribution there and on the random numbers of that
place, never on other nodes. So a step comes out the same if both models are asked only about the nodes
that the walk comes to, and a tree of a thousand nodes costs what a tree of two does. Draws, supports
and the addresses of the random numbers are the service's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sequoia.acceptance.continuations import Prompt
from sequoia.acceptance.measure import known_columns
from sequoia.acceptance.outcomes import Guess, Place, decide, draw
from sequoia.acceptance.rules import RuleName
from sequoia.runtime.cache import KVCache
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.segment import Segment
from sequoia.sampling import SUPPORT_SIZE, sparsify, warp, warped_probs
from sequoia.settings import SamplingSettings
from sequoia.tree import Topology


@dataclass(frozen=True, slots=True)
class Speculation:
    """A tree, and the rule that decides which of its nodes are accepted."""

    topology: Topology
    rule: RuleName = RuleName.SEQUOIA


@dataclass(frozen=True, slots=True)
class Text:
    """What came of one prompt: the new tokens, and the steps that they took."""

    token_ids: tuple[int, ...]
    step_count: int


@dataclass(slots=True)
class _Walk:
    """One prompt under one speculation, while it goes on."""

    prompt: Prompt
    speculation: Speculation
    seed: int
    token_ids: list[int]
    target_cache: KVCache = field(default_factory=KVCache)
    draft_cache: KVCache = field(default_factory=KVCache)
    target_features: list[Tensor] = field(default_factory=list)  # [hidden] by position
    draft_feature: Tensor | None = None  # [hidden] of the node before, below the root
    node: int = 0
    depth: int = 0
    step_count: int = 0

    @property
    def room(self) -> int:
        """Tokens that the text may still get."""
        return len(self.prompt.token_ids) + self.prompt.max_new_tokens - len(self.token_ids)

    @property
    def child_count(self) -> int:
        """Children of the node; none where the text has room for one more token only."""
        return len(self.speculation.topology.children[self.node]) if self.room > 1 else 0

    @property
    def support_size(self) -> int:
        """Tokens of q that the draft worker keeps at this level."""
        topology = self.speculation.topology
        counts = (len(topology.children[node]) for node in topology.levels[self.depth])
        return max(SUPPORT_SIZE, *counts)

    def go_on(self, rank: int | None, token_id: int) -> None:
        """Commit a token: that of an accepted child, or the last of a step."""
        if rank is not None:
            self.node = self.speculation.topology.children[self.node][rank]
            self.depth += 1
        else:
            if self.draft_feature is not None:
                # What was read below the root, with the draft's own features, does not stay.
                self.draft_cache.keep(len(self.token_ids) - self.depth, ())
            self.draft_feature = None
            self.node = self.depth = 0
            self.step_count += 1
        self.token_ids.append(token_id)


@dataclass(frozen=True, slots=True)
class Simulator:
    """Lets a target write with a draft's help.

    Attributes:
        target: the model that decides.
        draft: the model that guesses.
        stop_token_ids: tokens that end a text.
        batch_size: texts that are written side by side.
    """

    target: TreeModel
    draft: TreeModel
    stop_token_ids: frozenset[int]
    batch_size: int = 32

    @torch.inference_mode()
    def run(
        self,
        prompts: Sequence[Prompt],
        speculations: Sequence[Speculation],
        sampling: SamplingSettings,
        seed: int = 0,
    ) -> list[list[Text]]:
        """Continue every prompt under every speculation; penalties are not applied.

        Args:
            prompts: at least one token long, and short enough for both models' contexts.
            speculations: trees and rules.
            sampling: of target and draft.
            seed: of all draws; prompt i draws with seed + i.

        Returns:
            For each speculation a text per prompt.
        """
        walks = [
            _Walk(prompt, speculation, seed + number, list(prompt.token_ids))
            for speculation in speculations
            for number, prompt in enumerate(prompts)
        ]
        waiting = walks[::-1]
        writing: list[_Walk] = []
        while waiting or writing:
            while waiting and len(writing) < self.batch_size:
                writing.append(self._begun(waiting.pop()))
            self._advance(writing, sampling)
            writing = [walk for walk in writing if not self._has_ended(walk)]
        texts = [
            Text(tuple(walk.token_ids[len(walk.prompt.token_ids) :]), walk.step_count)
            for walk in walks
        ]
        return [texts[i : i + len(prompts)] for i in range(0, len(texts), len(prompts))]

    def _begun(self, walk: _Walk) -> _Walk:
        features = self.target.prefill(walk.target_cache, walk.token_ids[:-1])
        if self.draft.reads_features:
            walk.target_features.extend(self._carried(features))
        return walk

    def _has_ended(self, walk: _Walk) -> bool:
        if walk.token_ids[-1] not in self.stop_token_ids and walk.room:
            return False
        walk.step_count += walk.depth > 0  # the step in which the text ended
        walk.target_cache, walk.draft_cache = KVCache(), KVCache()  # their memory is needed
        walk.target_features.clear()
        return True

    def _advance(self, walks: Sequence[_Walk], sampling: SamplingSettings) -> None:
        """Write one token of every text: both models on its node, and the rule's answer."""
        said = self.target.forward([Segment.chain(w.target_cache, w.token_ids[-1:]) for w in walks])
        if self.draft.reads_features:
            for walk, output in zip(walks, said, strict=True):
                walk.target_features.extend(self._carried(output.features))
        logits = torch.cat([output.logits for output in said])
        growing = [walk for walk in walks if walk.child_count]
        if sampling.is_greedy:
            self._follow(walks, growing, logits)
            return
        guesses = dict(zip(map(id, growing), self._guesses(growing, sampling), strict=True))
        for walk, p in zip(walks, warped_probs(logits, sampling), strict=True):
            place = Place(walk.seed, len(walk.token_ids), walk.node)
            if id(walk) in guesses:
                rule = walk.speculation.rule
                walk.go_on(*decide(rule, p, guesses[id(walk)], walk.child_count, place))
            else:
                walk.go_on(None, draw(p, place)[0])

    def _follow(self, walks: Sequence[_Walk], growing: Sequence[_Walk], logits: Tensor) -> None:
        """At temperature 0: the argmax, accepted where it is among the draft's first tokens."""
        favourites = dict(zip(map(id, growing), self._draft_logits(growing), strict=True))
        for walk, token_id in zip(walks, logits.argmax(dim=-1).tolist(), strict=True):
            rank = None
            if id(walk) in favourites:
                row = favourites[id(walk)]
                best = self._token_ids(row)[row.topk(min(walk.child_count, len(row))).indices]
                children = best.tolist()
                rank = children.index(token_id) if token_id in children else None
            walk.go_on(rank, token_id)

    def _guesses(self, growing: Sequence[_Walk], sampling: SamplingSettings) -> Iterator[Guess]:
        """q at the nodes that shall have children."""
        for walk, row in zip(growing, self._draft_logits(growing), strict=True):
            indices, weights = sparsify(warp(row[None], sampling), walk.support_size)
            yield Guess(self._token_ids(row).cpu().numpy()[indices[0]], weights[0])

    def _draft_logits(self, growing: Sequence[_Walk]) -> Iterator[Tensor]:
        """The draft's logits `[columns]` at the same nodes, without tokens the target does not know."""
        if not growing:
            return
        outputs = self.draft.forward([self._draft_segment(walk) for walk in growing])
        for walk, output in zip(growing, outputs, strict=True):
            if self.draft.reads_features:
                walk.draft_feature = output.features[-1]
            _, columns = known_columns(self.draft, self.target.vocabulary_size, output.logits)
            yield output.logits[-1, columns]

    def _token_ids(self, row: Tensor) -> Tensor:
        """The token of each of the draft's columns."""
        return known_columns(self.draft, self.target.vocabulary_size, row)[0]

    def _draft_segment(self, walk: _Walk) -> Segment:
        """All tokens up to the node that the draft has not read yet."""
        start = walk.draft_cache.length
        token_ids = walk.token_ids[start:]
        if not self.draft.reads_features:
            return Segment.chain(walk.draft_cache, token_ids)
        if walk.draft_feature is not None:  # below the root
            return Segment.chain(walk.draft_cache, token_ids, walk.draft_feature[None])
        # Each reads the target's feature of the token before it, the first one zeros.
        known = walk.target_features
        before = known[start - 1 : -1] if start else [torch.zeros_like(known[0]), *known[:-1]]
        return Segment.chain(walk.draft_cache, token_ids, torch.stack(before))

    def _carried(self, features: Tensor) -> Tensor:
        """The target's features as they arrive at the draft."""
        return features.to(torch.bfloat16).to(self.draft.dtype)

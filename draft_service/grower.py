"""Growing trees: level by level, all waiting sessions in one pass per level."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draft_service.allocation import AllocatedGrowth
from draft_service.growth import Growth
from sequoia.errors import InvalidArgumentError
from sequoia.messages import DraftDistribution, Features, GrownTree, GrowTree, Prefill
from sequoia.randomness import Purpose, coupled_noise, uniforms
from sequoia.runtime.features import unpack_features
from sequoia.runtime.forward import PassOutput
from sequoia.runtime.segment import Segment
from sequoia.runtime.session import Session
from sequoia.runtime.worker import ModelWorker
from sequoia.sampling import SUPPORT_SIZE, draw_without_replacement, penalise, sparsify, warp
from sequoia.settings import DrawRule
from sequoia.tree import Tree


class Grower(ModelWorker[GrowTree, GrownTree]):
    """The draft worker's model: grows trees of the shapes that coordinators ask for."""

    role = "draft"
    gives_features = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ids = self.model.token_ids
        self._output_token_ids = None if ids is None else ids.cpu().numpy()

    def check(self, request: GrowTree) -> None:
        """See `ModelWorker.check`."""
        self.check_topology(request.header, request.topology, "parent_indices")

    @property
    def feature_size(self) -> int:
        """See `ModelWorker.feature_size`; 0 for a draft that reads tokens alone."""
        return self.model.feature_size if self.model.reads_features else 0

    def check_prefill(self, request: Prefill) -> None:
        """See `ModelWorker.check_prefill`; the features must be those that this draft reads."""
        super().check_prefill(request)
        if self.model.reads_features and len(request.token_ids) > 1:
            self._check_features(request.features, len(request.token_ids) - 1)

    def features_read(self, request: Prefill, start: int, end: int) -> Tensor | None:
        """See `ModelWorker.features_read`: those of the positions before the tokens."""
        if not self.model.reads_features or request.features is None:
            return None
        before = self._unpacked(request.features[max(start - 1, 0) : end - 1])
        return before if start else torch.cat([self._before_first(), before])

    def check_in_session(self, session: Session[GrownTree], request: GrowTree) -> None:
        """See `ModelWorker.check_in_session`."""
        if self.model.reads_features:
            committed = len(request.header.accepted_nodes) + 1
            self._check_features(request.features, min(committed, request.header.base_length - 1))

    def _check_features(self, features: Features | None, rows: int) -> None:
        wanted = [rows, self.feature_size]
        shape = [0, self.feature_size] if features is None else list(features.shape)
        if shape != wanted:
            raise InvalidArgumentError("features", f"shape {shape}, {wanted} wanted", wanted, shape)

    def _read_features(self, session: Session[GrownTree], features: Features | None) -> None:
        """Keep what the draft shall read at the committed tokens that are not cached yet."""
        read = [self._unpacked(features)]
        if session.features is not None:  # the last tree was the root alone, which was not read
            read.insert(0, session.features)
        elif not session.cache.length:
            read.insert(0, self._before_first())
        session.features = torch.cat(read)

    def _unpacked(self, features: Features | None) -> Tensor:
        if features is None:
            return self._before_first()[:0]
        return unpack_features(features, self.model.dtype, self.model.device)

    def _before_first(self) -> Tensor:
        """The feature before the first token, where the target has read nothing: zeros, `[1, hidden]`."""
        return torch.zeros(1, self.feature_size, dtype=self.model.dtype, device=self.model.device)

    def look_at(self, outputs: Sequence[PassOutput]) -> None:
        """See `ModelWorker.look_at`."""
        for output in outputs:
            output.logits.topk(2).indices.tolist()

    def run_steps(
        self, steps: Sequence[tuple[Session[GrownTree], GrowTree]]
    ) -> list[tuple[Tree, GrownTree]]:
        """See `ModelWorker.run_steps`."""
        started = time.perf_counter()
        growths = [_growth(session, request) for session, request in steps]
        if self.model.reads_features:
            for session, request in steps:
                self._read_features(session, request.features)
        growing = [growth for growth in growths if growth.next_inner_nodes()]
        while growing:
            self._grow_level(growing)
            growing = [growth for growth in growing if growth.next_inner_nodes()]
        if self.model.reads_features:
            for session, _ in steps:
                # The nodes were read with the draft's own features. Those that are accepted are
                # read again, with the target's; only the root's row is there to stay.
                session.node_rows = {
                    node: row for node, row in session.node_rows.items() if not node
                }
        seconds = time.perf_counter() - started
        return [
            (tree := growth.tree(), GrownTree(tree, tuple(growth.distributions), seconds))
            for growth in growths
        ]

    def _grow_level(self, growths: Sequence[Growth]) -> None:
        """Forward the deepest nodes that shall have children, and draw these."""
        inner = [growth.next_inner_nodes() for growth in growths]
        segments = [_segment(growth, nodes) for growth, nodes in zip(growths, inner, strict=True)]
        outputs = self.model.forward(segments)
        for growth, nodes, output in zip(growths, inner, outputs, strict=True):
            first = len(growth.token_ids)
            if self.model.reads_features:
                growth.features.update(zip(nodes, output.features[-len(nodes) :], strict=True))
            self._draw_children(growth, nodes, output.logits[-len(nodes) :])
            growth.level = list(range(first, len(growth.token_ids)))

    def _draw_children(self, growth: Growth, nodes: Sequence[int], logits: Tensor) -> None:
        """Draw the children of nodes of one depth from their logits `[nodes, output rows]`."""
        settings = growth.session.settings
        logits = self._adjusted(growth, nodes, logits)
        position = growth.root_position + len(growth.path(nodes[0])) + 1
        if settings.draw_rule is DrawRule.WITHOUT_REPLACEMENT:
            self._draw_without_replacement(growth, nodes, warp(logits, settings.sampling), position)
            return
        if settings.draw_rule is DrawRule.COUPLED:
            noise = coupled_noise(settings.seed, position, self.model.vocabulary_size)
            on_device = torch.from_numpy(noise).to(logits)
            if self.model.token_ids is not None:
                on_device = on_device[self.model.token_ids]
            logits = warp(logits, settings.sampling) + on_device
        best = logits.topk(min(growth.most_children(nodes), logits.shape[-1]), dim=-1)
        # The target's scores are the draft's but for an error: so likely does it prefer each of them.
        chances = (best.values - logits.logsumexp(dim=-1, keepdim=True)).exp()
        indices = best.indices.cpu().numpy()
        counts = growth.share_children(nodes, chances.double().cpu().numpy())
        for row, (node, count) in enumerate(zip(nodes, counts, strict=True)):
            growth.add_children(node, self._token_ids(indices[row, :count]).tolist())

    def _draw_without_replacement(
        self, growth: Growth, nodes: Sequence[int], log_probs: Tensor, position: int
    ) -> None:
        """Make q `[nodes, output rows]` sparse at every node, and draw children from it in order."""
        counts = growth.child_counts(nodes)
        indices, weights = sparsify(log_probs, max(SUPPORT_SIZE, *counts))
        for row, node in enumerate(nodes):
            in_support = weights[row] > 0
            support, q = self._token_ids(indices[row][in_support]), weights[row][in_support]
            uniform = uniforms(growth.session.settings.seed, Purpose.DRAFT, position, node, len(q))
            drawn = draw_without_replacement(q, counts[row], uniform)
            growth.add_children(node, support[drawn].tolist())
            growth.distributions.append(DraftDistribution(support.astype(np.uint32), q))

    def _token_ids(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The vocabulary's ids of rows of the output layer."""
        return rows if self._output_token_ids is None else self._output_token_ids[rows]

    def _adjusted(self, growth: Growth, nodes: Sequence[int], logits: Tensor) -> Tensor:
        """Logits after the penalties, without tokens that the target does not know."""
        settings = growth.session.settings
        is_larger = settings.vocabulary_size < self.model.vocabulary_size
        if not (settings.sampling.has_penalties or is_larger):
            return logits
        ids = self._ids_on_device(logits)
        if settings.sampling.has_penalties:
            size = self.model.vocabulary_size
            tokens, start = growth.session.token_ids, settings.prompt_token_count
            prompt = [token for token in tokens[:start] if token < size]
            generated = [token for token in tokens[start:] if token < size]
            full = logits.new_full((len(nodes), size), -torch.inf)
            full[:, ids] = logits
            for row, node in enumerate(nodes):
                path = generated + [growth.token_ids[member] for member in growth.path(node)]
                full[row] = penalise(full[row], settings.sampling, prompt, path)
            logits = full[:, ids]
        if is_larger:
            logits = logits.masked_fill(ids >= settings.vocabulary_size, -torch.inf)
        return logits

    def _ids_on_device(self, logits: Tensor) -> Tensor:
        """The vocabulary's id of every row of the output layer."""
        if self.model.token_ids is not None:
            return self.model.token_ids
        return torch.arange(logits.shape[-1], device=logits.device)


def _growth(session: Session[GrownTree], request: GrowTree) -> Growth:
    """A tree's beginning. Drawn without replacement, it did not gain by another shape (ADR 0011)."""
    is_drawn = session.settings.draw_rule is DrawRule.WITHOUT_REPLACEMENT
    make = Growth if is_drawn else AllocatedGrowth
    return make(session, request.topology, token_ids=[request.root_token_id])


def _segment(growth: Growth, nodes: Sequence[int]) -> Segment:
    """The pass over some nodes of one depth; at depth 0, over all committed tokens not cached."""
    session = growth.session
    cache, committed = session.cache, len(session.token_ids)
    if nodes[0] == 0:
        session.node_rows[0] = committed - 1
        features, session.features = session.features, None
        return Segment.chain(cache, session.token_ids[cache.length :], features)
    start = cache.length
    depth = len(growth.path(nodes[0]))
    visible = np.zeros((len(nodes), start + len(nodes)), dtype=np.bool_)
    visible[:, :committed] = True
    growth.row_depths.extend([depth] * len(nodes))
    for row, node in enumerate(nodes):
        session.node_rows[node] = start + row
        for member in growth.path(node):
            visible[row, session.node_rows[member]] = True
    positions = [growth.root_position + depth] * len(nodes)
    key_positions = np.concatenate(
        [np.arange(committed), growth.root_position + np.array(growth.row_depths)]
    )
    tokens = [growth.token_ids[node] for node in nodes]
    parents = [growth.parents[node] for node in nodes]
    # The root and all before it read the target's features, what is below it the draft's own.
    features = torch.stack([growth.features[p] for p in parents]) if growth.features else None
    return Segment(cache, tokens, positions, visible, key_positions, features)

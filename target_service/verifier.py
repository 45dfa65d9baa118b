"""Checking trees: one pass over all nodes of all waiting sessions, and one word on every node."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sequoia.errors import InvalidArgumentError, MalformedTreeError
from sequoia.messages import (
    NodeLogprobs,
    Prefill,
    TargetDistribution,
    Verdict,
    VerifyTree,
)
from sequoia.randomness import Purpose, coupled_noise, uniforms
from sequoia.runtime.features import pack_features
from sequoia.runtime.forward import PassOutput
from sequoia.runtime.segment import Segment
from sequoia.runtime.session import Session
from sequoia.runtime.worker import ModelWorker, shared_passes
from sequoia.sampling import draw_indices, favourites, penalise, warp, warped_probs
from sequoia.settings import DrawRule
from sequoia.tree import Tree

Step = tuple[Session[Verdict], VerifyTree]


class Verifier(ModelWorker[VerifyTree, Verdict]):
    """The target worker's model: says of every node what the target would have said there."""

    role = "target"
    gives_features = True

    def check(self, request: VerifyTree) -> None:
        """See `ModelWorker.check`."""
        self.check_topology(request.header, request.tree.topology, "tree.parent_indices")
        self._require_known("tree.token_ids", request.tree.token_ids)
        self._require_known("supports", [int(support.max()) for support in request.supports])

    @property
    def feature_size(self) -> int:
        """See `ModelWorker.feature_size`."""
        return self.model.feature_size

    def check_prefill(self, request: Prefill) -> None:
        """See `ModelWorker.check_prefill`; the target, unlike a draft, must know every token."""
        super().check_prefill(request)
        self._require_known("token_ids", request.token_ids)

    def _require_known(self, field: str, token_ids: Sequence[int]) -> None:
        vocabulary = self.model.vocabulary_size
        largest = max(token_ids, default=0)
        if largest >= vocabulary:
            raise InvalidArgumentError(
                field,
                f"{largest} is outside the vocabulary of {vocabulary}",
                vocabulary - 1,
                largest,
            )

    def check_in_session(self, session: Session[Verdict], request: VerifyTree) -> None:
        """See `ModelWorker.check_in_session`."""
        wanted = (
            len(request.tree.topology.inner_nodes)
            if session.settings.draw_rule is DrawRule.WITHOUT_REPLACEMENT
            else 0
        )
        if len(request.supports) != wanted:
            raise MalformedTreeError(
                f"{len(request.supports)} supports, {wanted} wanted", field="supports", limit=wanted
            )

    def look_at(self, outputs: Sequence[PassOutput]) -> None:
        """See `ModelWorker.look_at`."""
        for output in outputs:
            favourites(output.logits)

    def run_steps(self, steps: Sequence[Step]) -> list[tuple[Tree, Verdict]]:
        """See `ModelWorker.run_steps`; steps whose trees are too much for one pass share several."""
        passes = shared_passes(
            [request.tree.topology.node_count for _, request in steps], self.limits.pass_tokens
        )
        return [answer for share in passes for answer in self._run_pass(steps[share])]

    def _run_pass(self, steps: Sequence[Step]) -> list[tuple[Tree, Verdict]]:
        started = time.perf_counter()
        outputs = self.model.forward(
            [_segment(session, request.tree) for session, request in steps]
        )
        verdicts = [
            _verdict(session, request, output)
            for (session, request), output in zip(steps, outputs, strict=True)
        ]
        seconds = time.perf_counter() - started
        return [
            (
                request.tree,
                replace(verdict, device_seconds=seconds, batch_size=len(steps)),
            )
            for (_, request), verdict in zip(steps, verdicts, strict=True)
        ]


def _segment(session: Session[Verdict], tree: Tree) -> Segment:
    start = session.cache.length
    session.node_rows = {node: start + node for node in range(tree.topology.node_count)}
    return Segment.tree(session.cache, tree.topology, tree.token_ids)


def _verdict(session: Session[Verdict], request: VerifyTree, output: PassOutput) -> Verdict:
    """The target's word on every node."""
    settings, tree, raw = session.settings, request.tree, output.logits
    logits = _penalised(session, tree, raw) if settings.sampling.has_penalties else raw
    distributions: tuple[TargetDistribution, ...] = ()
    if settings.draw_rule is DrawRule.GREEDY:
        token_ids = favourites(logits)
    elif settings.draw_rule is DrawRule.COUPLED:
        token_ids = _coupled_draws(session, tree, warp(logits, settings.sampling))
    else:
        probs = warped_probs(logits, settings.sampling)
        token_ids, distributions = _sparse_answers(session, request, probs)
    logprobs = (
        ()
        if settings.logprob_count is None
        else _logprobs(request, raw, token_ids, settings.logprob_count)
    )
    features = pack_features(output.features) if settings.with_features else None
    session.tree_features = features
    return Verdict(tuple(token_ids), distributions, logprobs, features)


def _penalised(session: Session[Verdict], tree: Tree, logits: Tensor) -> Tensor:
    settings = session.settings
    prompt = session.token_ids[: settings.prompt_token_count]
    generated = session.token_ids[settings.prompt_token_count :]
    return torch.stack(
        [
            penalise(row, settings.sampling, prompt, [*generated, *tree.path_tokens(node)])
            for node, row in enumerate(logits)
        ]
    )


def _coupled_draws(session: Session[Verdict], tree: Tree, log_probs: Tensor) -> list[int]:
    """One draw per node by Gumbel-max, with the noise of the position that the draw is for."""
    root_position, seed = len(session.token_ids) - 1, session.settings.seed
    noise = np.stack(
        [
            coupled_noise(seed, root_position + depth + 1, log_probs.shape[-1])
            for depth in range(tree.topology.level_count)
        ]
    )
    on_device = torch.from_numpy(noise).to(log_probs)
    depths = torch.tensor(tree.topology.depths, device=log_probs.device)
    return favourites(log_probs + on_device[depths])


def _sparse_answers(
    session: Session[Verdict], request: VerifyTree, probs: Tensor
) -> tuple[list[int], tuple[TargetDistribution, ...]]:
    """Per inner node p on the support, the tail's mass and a draw from it; per leaf one from p."""
    topology, seed = request.tree.topology, session.settings.seed
    root_position = len(session.token_ids) - 1
    on_supports = []
    for node, support in zip(topology.inner_nodes, request.supports, strict=True):
        on_device = torch.from_numpy(support.astype(np.int64)).to(probs.device)
        on_supports.append(probs[node, on_device])
        probs[node, on_device] = 0.0  # what is left are the tails
    uniform = [
        uniforms(seed, Purpose.TARGET, root_position + depth + 1, node, 1)
        for node, depth in enumerate(topology.depths)
    ]
    token_ids, tails = draw_indices(probs, np.concatenate(uniform))
    return token_ids, tuple(
        TargetDistribution(on_support.cpu().numpy(), tails[node])
        for node, on_support in zip(topology.inner_nodes, on_supports, strict=True)
    )


def _logprobs(
    request: VerifyTree, raw: Tensor, token_ids: Sequence[int], count: int
) -> tuple[NodeLogprobs, ...]:
    """Unmodified log probabilities at every node, from logits `[nodes, vocabulary]`."""
    log_probs = torch.log_softmax(raw, dim=-1)
    top = log_probs.topk(min(count, log_probs.shape[-1]), dim=-1)
    supports = dict(zip(request.tree.topology.inner_nodes, request.supports, strict=False))
    answers = []
    for node, token_id in enumerate(token_ids):
        row = log_probs[node].cpu().numpy()
        support = supports.get(node, np.empty(0, dtype=np.uint32))
        answers.append(
            NodeLogprobs(
                float(row[token_id]),
                row[support],
                top.indices[node].cpu().numpy().astype(np.uint32),
                top.values[node].cpu().numpy(),
            )
        )
    return tuple(answers)

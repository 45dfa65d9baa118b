from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from sequoia.errors import InvalidArgumentError, MalformedTreeError
from sequoia.messages import Prefill, ProfileSpec, SessionSettings, StepHeader, Verdict, VerifyTree
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.worker import LONG_PASS_SECONDS, WorkerLimits, shared_passes
from sequoia.sampling import penalise, warp
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology, Tree
from target_service.verifier import Verifier
from tests.tiny import tiny_llama

WORDS = 12
PROMPT = (3, 4, 5)
TREE = Tree(Topology((-1, 0, 0, 1)), (5, 6, 7, 8))
INNER_NODES = TREE.topology.inner_nodes
SUPPORTS = (np.array([6, 7, 2], dtype=np.uint32), np.array([8, 1], dtype=np.uint32))
PENALISED = SamplingSettings(
    temperature=0.7, repetition_penalty=1.5, presence_penalty=1.0, frequency_penalty=0.5
)
MODEL = TreeModel(tiny_llama(WORDS, seed=1))


@pytest.fixture
def verifier() -> Iterator[Verifier]:
    """A target worker over words."""
    worker = Verifier("tiny", MODEL, "sha", WorkerLimits(node_limit=8))
    yield worker
    worker.device.stop()


def settings(
    rule: DrawRule, sampling: SamplingSettings | None = None, logprob_count: int | None = None
) -> SessionSettings:
    """Settings of a session whose first token is the prompt."""
    return SessionSettings(sampling or SamplingSettings(), rule, 7, 1, WORDS, logprob_count)


async def verified(verifier: Verifier, of: SessionSettings, tree: Tree = TREE) -> Verdict:
    """The verdict on a tree behind the prompt."""
    await verifier.prefill(Prefill("s", PROMPT, 0, of))
    supports = SUPPORTS if of.draw_rule is DrawRule.WITHOUT_REPLACEMENT else ()
    return await verifier.step(VerifyTree(StepHeader("s", 0, len(PROMPT)), tree, supports))


def logits_at(node: int) -> torch.Tensor:
    """What the model says after the prompt and the path to a node."""
    return MODEL.plain([*PROMPT, *TREE.path_tokens(node)]).logits[-1]


async def test_a_greedy_verdict_is_the_argmax_of_every_node(verifier: Verifier) -> None:
    """At temperature 0 nothing else is said."""
    verdict = await verified(verifier, settings(DrawRule.GREEDY, SamplingSettings(temperature=0)))
    assert verdict.token_ids == tuple(int(logits_at(node).argmax()) for node in range(4))
    assert verdict.distributions == ()


async def test_a_sparse_verdict_is_p_on_the_support_and_its_mass_outside(
    verifier: Verifier,
) -> None:
    """With penalties that count the node's own path as text."""
    of = settings(DrawRule.WITHOUT_REPLACEMENT, PENALISED)
    verdict = await verified(verifier, of)
    for node, support, told in zip(INNER_NODES, SUPPORTS, verdict.distributions, strict=True):
        text = [*PROMPT[1:], *TREE.path_tokens(node)]
        p = warp(penalise(logits_at(node), PENALISED, PROMPT[:1], text)[None], PENALISED)[0].exp()
        on_support = p[support.astype(np.int64)]
        assert np.allclose(told.probs, on_support.numpy(), atol=1e-5)
        assert told.tail_mass == pytest.approx(1 - float(on_support.sum()), abs=1e-5)
        assert verdict.token_ids[node] not in support


@pytest.mark.parametrize("rule", list(DrawRule))
async def test_log_probabilities_are_of_the_unmodified_distribution(
    verifier: Verifier, rule: DrawRule
) -> None:
    """Before penalties and temperature; no more of them than there are tokens."""
    verdict = await verified(verifier, settings(rule, PENALISED, logprob_count=20))
    for node, told in enumerate(verdict.logprobs):
        expected = logits_at(node).log_softmax(-1).numpy()
        assert told.token_logprob == pytest.approx(expected[verdict.token_ids[node]], abs=1e-4)
        assert np.allclose(told.top_logprobs, np.sort(expected)[::-1], atol=1e-4)
        assert np.allclose(expected[told.top_token_ids], told.top_logprobs, atol=1e-4)


async def test_a_prompt_outside_the_vocabulary_is_refused(verifier: Verifier) -> None:
    """The target, unlike a draft, cannot read it as something else."""
    with pytest.raises(InvalidArgumentError) as caught:
        await verifier.prefill(Prefill("s", (3, WORDS), 0, settings(DrawRule.GREEDY)))
    assert caught.value.metadata == {
        "field": "token_ids",
        "limit": str(WORDS - 1),
        "value": str(WORDS),
    }


@pytest.mark.parametrize(
    ("tree", "supports", "field"),
    [
        (Tree(Topology((-1, 0)), (5, WORDS)), (), "tree.token_ids"),
        (TREE, (SUPPORTS[0], np.array([WORDS], dtype=np.uint32)), "supports"),
        (Tree(Topology((-1, *[0] * 8)), (5,) * 9), (), "tree.parent_indices"),
        (TREE, SUPPORTS[:1], "supports"),
    ],
    ids=["token", "token of a support", "too many nodes", "too few supports"],
)
async def test_a_tree_that_cannot_be_verified_is_refused(
    verifier: Verifier, tree: Tree, supports: tuple[np.ndarray, ...], field: str
) -> None:
    """The field is named, and the session goes on."""
    of = settings(DrawRule.WITHOUT_REPLACEMENT)
    await verifier.prefill(Prefill("s", PROMPT, 0, of))
    header = StepHeader("s", 0, len(PROMPT))
    with pytest.raises((InvalidArgumentError, MalformedTreeError)) as caught:
        await verifier.step(VerifyTree(header, tree, supports))
    assert caught.value.metadata["field"] == field
    assert (await verifier.step(VerifyTree(header, TREE, SUPPORTS))).batch_size == 1


async def test_a_tree_beyond_the_context_is_refused(verifier: Verifier) -> None:
    """Positions end where the model's context does."""
    length = MODEL.context_length - 1
    await verifier.prefill(Prefill("s", (5,) * length, 0, settings(DrawRule.GREEDY)))
    with pytest.raises(InvalidArgumentError, match="outside the context"):
        await verifier.step(VerifyTree(StepHeader("s", 0, length), TREE))


@pytest.mark.parametrize(
    ("node_counts", "most", "passes"),
    [
        ([5, 5, 5], None, [[5, 5, 5]]),
        ([5, 5, 5], 10, [[5, 5], [5]]),
        ([5, 20, 5], 10, [[5], [20], [5]]),
        ([10, 1, 9, 1], 10, [[10], [1, 9], [1]]),
    ],
)
def test_trees_share_passes_as_far_as_memory_goes(
    node_counts: list[int], most: int | None, passes: list[list[int]]
) -> None:
    """Neighbours go together, and a tree that is too large alone goes alone."""
    assert [node_counts[share] for share in shared_passes(node_counts, most)] == passes


def test_a_tree_takes_a_quarter_of_a_small_kv_cache_at_most() -> None:
    """Where memory is divided the worker says how large a tree may be; text has to fit as well."""
    row_bytes = Verifier("tiny", MODEL, "sha", WorkerLimits()).info().kv_bytes_per_token
    limits = WorkerLimits(kv_cache_limit_bytes=100 * row_bytes, pass_tokens=200)
    assert Verifier("tiny", MODEL, "sha", limits).info().node_limit == 25
    roomy = replace(limits, kv_cache_limit_bytes=2**30)
    assert Verifier("tiny", MODEL, "sha", roomy).info().node_limit == 200
    assert (
        Verifier("tiny", MODEL, "sha", replace(limits, pass_tokens=None)).info().node_limit == 1024
    )


@pytest.mark.parametrize(("seconds", "passes"), [(0.01, 4), (2 * LONG_PASS_SECONDS, 1)])
async def test_long_passes_are_measured_once(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch, seconds: float, passes: int
) -> None:
    """Others three times behind a warm-up."""
    timed = []

    def time_pass(*combination: int) -> float:
        timed.append(combination)
        return seconds

    monkeypatch.setattr(verifier, "_time_pass", time_pass)
    monkeypatch.setattr(verifier.model, "pass_seconds", seconds)
    (measured,) = await verifier.profile(ProfileSpec((4,), (1,), (16,), 3))
    assert timed == [(4, 1, 16)] * passes
    assert measured.seconds == seconds

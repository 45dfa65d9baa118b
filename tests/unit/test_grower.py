from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from draft_service.grower import Grower
from sequoia.messages import GrownTree, GrowTree, Prefill, SessionSettings, StepHeader
from sequoia.randomness import coupled_noise
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.worker import WorkerLimits
from sequoia.sampling import penalise, warp
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology
from tests.tiny import tiny_llama

WORDS = 12
HEAD = (7, 2, 11, 0, 5)
PROMPT = (3, 4, 5)
SHAPE = Topology((-1, 0, 0, 1, 2))
PENALISED = SamplingSettings(repetition_penalty=1.5, presence_penalty=1.0, frequency_penalty=0.5)
WHOLE = TreeModel(tiny_llama(WORDS, seed=1))
REDUCED = TreeModel(tiny_llama(WORDS, seed=1), torch.tensor(HEAD))
REDUCED.model.lm_head.weight = torch.nn.Parameter(REDUCED.model.lm_head.weight[list(HEAD)].detach())
UNBOUNDED = 2**31 - 1  # what the wire's 0 means


@pytest.fixture(params=[WHOLE, REDUCED], ids=["whole head", "reduced head"])
def grower(request: pytest.FixtureRequest) -> Iterator[Grower]:
    """A draft worker with a head over all words, or over some."""
    worker = Grower("tiny", request.param, "sha", WorkerLimits())
    yield worker
    worker.device.stop()


def columns(grower: Grower) -> list[int]:
    """Vocabulary ids of the draft's output rows."""
    ids = grower.model.token_ids
    return list(range(WORDS)) if ids is None else ids.tolist()


async def grown(
    grower: Grower,
    rule: DrawRule,
    sampling: SamplingSettings | None = None,
    vocabulary_size: int = WORDS,
    prompt: tuple[int, ...] = PROMPT,
) -> GrownTree:
    """A tree behind a prompt of which the first token counts as prompt."""
    settings = SessionSettings(sampling or SamplingSettings(), rule, 7, 1, vocabulary_size)
    await grower.prefill(Prefill("s", prompt, 0, settings))
    return await grower.step(GrowTree(StepHeader("s", 0, len(prompt)), prompt[-1], SHAPE))


async def test_a_greedy_tree_holds_the_top_tokens(grower: Grower) -> None:
    """Children are the most likely tokens of the logits, in order, mapped to vocabulary ids."""
    tree = (await grown(grower, DrawRule.GREEDY, SamplingSettings(temperature=0))).tree
    for node, children in enumerate(tree.topology.children):
        logits = grower.model.plain([*PROMPT, *tree.path_tokens(node)]).logits[-1]
        best = [columns(grower)[row] for row in logits.topk(len(children)).indices.tolist()]
        assert [tree.token_ids[child] for child in children] == best


async def test_a_coupled_tree_draws_with_the_noise_of_the_target(grower: Grower) -> None:
    """The first child is the draw that the target would make from the draft's distribution."""
    tree = (await grown(grower, DrawRule.COUPLED, vocabulary_size=UNBOUNDED)).tree
    for node in tree.topology.inner_nodes:
        path = tree.path_tokens(node)
        log_probs = warp(grower.model.plain([*PROMPT, *path]).logits[-1:], SamplingSettings())[0]
        noise = coupled_noise(7, len(PROMPT) + len(path), WORDS)[columns(grower)]
        drawn = columns(grower)[int(np.argmax(log_probs.numpy() + noise))]
        assert tree.token_ids[tree.topology.children[node][0]] == drawn


async def test_a_sampled_tree_comes_with_the_distribution_it_was_drawn_from(
    grower: Grower,
) -> None:
    """With penalties that count the node's own path as text."""
    answer = await grown(grower, DrawRule.WITHOUT_REPLACEMENT, PENALISED, UNBOUNDED)
    ids, tree = columns(grower), answer.tree
    for node, told in zip(tree.topology.inner_nodes, answer.distributions, strict=True):
        path = tree.path_tokens(node)
        full = torch.full((WORDS,), -torch.inf)
        full[ids] = grower.model.plain([*PROMPT, *path]).logits[-1]
        q = warp(penalise(full, PENALISED, PROMPT[:1], [*PROMPT[1:], *path])[None], PENALISED)[0]
        weights = told.weights.astype(np.float64)
        expected = q.exp()[told.token_ids.astype(np.int64)].numpy()
        assert np.allclose(weights / weights.sum(), expected, atol=2e-3)
        assert {tree.token_ids[child] for child in tree.topology.children[node]} <= set(
            told.token_ids.tolist()
        )


@pytest.mark.parametrize("rule", list(DrawRule))
async def test_no_bound_on_the_vocabulary_costs_no_memory(grower: Grower, rule: DrawRule) -> None:
    """Tokens that the draft does not know may stand in the prompt, and are penalised nowhere."""
    prompt = (3, 2**31, 5)
    answer = await grown(grower, rule, PENALISED, UNBOUNDED, prompt)
    assert [len(level) for level in answer.tree.topology.levels] == [1, 2, 2]
    assert rule is not DrawRule.WITHOUT_REPLACEMENT or answer.tree.topology == SHAPE


@pytest.mark.parametrize("rule", list(DrawRule))
async def test_the_draft_proposes_nothing_that_the_target_does_not_know(
    grower: Grower, rule: DrawRule
) -> None:
    """Ids at or above the target's vocabulary have no probability; the tree is smaller if need be."""
    answer = await grown(grower, rule, vocabulary_size=3)
    assert max(answer.tree.token_ids[1:]) < 3


async def test_children_go_where_the_draft_is_sure(grower: Grower) -> None:
    """The second level holds the two likeliest pairs of tokens, whosever children they are."""
    tree = (await grown(grower, DrawRule.GREEDY, SamplingSettings(temperature=0))).tree
    pairs = []
    first = grower.model.plain(PROMPT).logits[-1].softmax(-1)
    for node in (1, 2):
        path = tree.path_tokens(node)
        chance = first[columns(grower).index(path[0])]
        second = chance * grower.model.plain([*PROMPT, *path]).logits[-1].softmax(-1)
        pairs += [
            (worth, (*path, token))
            for worth, token in zip(second.tolist(), columns(grower), strict=True)
        ]
    likeliest = {pair for _, pair in sorted(pairs)[-2:]}
    assert {tree.path_tokens(node) for node in (3, 4)} == likeliest

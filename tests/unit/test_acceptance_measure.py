"""Measuring a pair: every figure against enumeration, against plain passes, or against itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from draft_service.grower import Grower
from sequoia.acceptance import kseq
from sequoia.acceptance.continuations import Continuation, Prompt, write
from sequoia.acceptance.levels import LEVELS, logits_by_level, shifted
from sequoia.acceptance.measure import Measuring, measure
from sequoia.acceptance.nodes import UNIFORM_COUNT, Floats, Nodes, accepted_ranks
from sequoia.acceptance.pair import require_compatible
from sequoia.acceptance.rules import RANKS, RULE_OF, RuleName, by_rank
from sequoia.acceptance.timing import time_passes
from sequoia.acceptance.walk import Walker
from sequoia.errors import IncompatibleModelsError
from sequoia.runtime.cache import KVCache
from sequoia.runtime.features import pack_features
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.pairing import LoadedModel
from sequoia.runtime.segment import Segment
from sequoia.runtime.worker import WorkerLimits
from sequoia.sampling import warp
from sequoia.settings import SamplingSettings
from sequoia.tree import Topology
from sequoia.verification import Evidence, ordered_draws
from tests.tiny import nudged, tiny_llama

WORDS = 40
GREEDY = SamplingSettings(temperature=0.0)
TARGET = TreeModel(tiny_llama(WORDS, seed=1))
DRAFT = TreeModel(nudged(tiny_llama(WORDS, seed=1), 0.2, seed=2))
PROMPTS = [
    Prompt((3, 4, 5), 24),
    Prompt((6,), 9),
    Prompt((7, 8, 9, 10, 11), 24),
    Prompt((12, 2), 5),
]
NEVER = frozenset[int]()
CHAIN = Topology((-1, 0, 1, 2))
ORDERED = [name for name in RuleName if name is not RuleName.SPECTR]


def feature_draft() -> TreeModel:
    """The draft with the target's features on top of its embeddings: it still agrees at times."""
    fusion = nn.Linear(64, 32, bias=False)
    generator = torch.Generator().manual_seed(5)
    mixing = 0.03 * torch.randn(32, 32, generator=generator)
    fusion.weight = nn.Parameter(torch.cat([torch.eye(32), mixing], dim=1))
    return TreeModel(nudged(tiny_llama(WORDS, seed=1), 0.2, seed=2), fusion=fusion)


@pytest.fixture(scope="module")
def texts() -> list[Continuation]:
    """What the target writes at temperature 0."""
    return write(TARGET, PROMPTS, GREEDY, NEVER)


def random_nodes(tokens: int, count: int, repeats: int) -> Nodes:
    """`count` different nodes of a small vocabulary, each of them `repeats` times in a row."""
    generator = torch.Generator().manual_seed(tokens)
    taught = 2 * torch.randn(count, tokens, generator=generator)
    said = taught + torch.randn(count, tokens, generator=generator)
    # The draft cannot say the first token.
    p, log_q = taught.softmax(-1), said[:, 1:].log_softmax(-1)
    return Nodes.of(
        p.repeat_interleave(repeats, 0),
        log_q.repeat_interleave(repeats, 0),
        torch.arange(1, tokens),
    )


def enumerated(name: RuleName, evidence: Evidence, count: int) -> Floats:
    """The mean of a rule's ladders over every draw of `count` children: `[RANKS + 1]`."""
    rule = RULE_OF[name]
    draws = ordered_draws(rule.draw, evidence, count)
    ranks = [probability * by_rank(rule.ladder(evidence, drawn)) for drawn, probability in draws]
    mean: Floats = np.sum(ranks, axis=0)
    return mean


def uniform_numbers(nodes: int) -> Floats:
    """Numbers to draw children with."""
    return np.random.default_rng(3).random((nodes, UNIFORM_COUNT))


def test_ranks_of_a_ladder_share_out_everything() -> None:
    """Rank k has the product of the rejections before it; what is left over is none."""
    evidence = Evidence(np.arange(3), np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.1]), 0.4)
    ladder = RULE_OF[RuleName.SEQUOIA].ladder(evidence, [0, 1])
    first, second = ladder.accept_probs
    ranks = by_rank(ladder)
    assert ranks[:3].tolist() == pytest.approx([first, (1 - first) * second, 0.0])
    assert ranks[-1] == pytest.approx(ladder.rejection_prob)
    assert ranks.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("name", ORDERED)
def test_drawn_ranks_are_on_average_those_of_all_draws(name: RuleName) -> None:
    """One draw at each of many equal nodes tends to the sum over every possible draw."""
    repeats = 4000
    nodes = random_nodes(5, 1, repeats)
    evidence = next(nodes.evidence())
    found = accepted_ranks(name, nodes, uniform_numbers(repeats)).mean(axis=0)
    assert found.sum() == pytest.approx(1.0)
    # With replacement only three of the 32 children are enumerated: 4^3 draws.
    expected = enumerated(name, evidence, 3 if name is RuleName.SPECINFER else 4)
    assert found[:3] == pytest.approx(expected[:3], abs=0.02)


def test_spectr_in_closed_form_is_the_mean_of_its_ladders() -> None:
    """For every number of children, at every node, to rounding."""
    nodes = random_nodes(4, 6, 1)
    rejection = kseq.rejection_by_count(nodes.target, nodes.draft, 5)
    for node, evidence in enumerate(nodes.evidence()):
        for count in range(1, 6):
            expected = enumerated(RuleName.SPECTR, evidence, count)[-1]
            assert rejection[node, count - 1] == pytest.approx(expected, abs=1e-9)


def test_spectr_where_the_draft_is_the_target_or_never_right() -> None:
    """Equal distributions are always accepted, disjoint ones never."""
    same = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    draft = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    rejection = kseq.rejection_by_count(same, draft, RANKS)
    assert np.allclose(rejection[0], 0.0)
    assert np.allclose(rejection[1], 1.0)


@pytest.mark.parametrize("name", list(RuleName))
def test_the_first_ranks_do_not_depend_on_how_many_are_asked_for(name: RuleName) -> None:
    """As many as there are random numbers can be; what is left over is the rejection of all."""
    nodes = random_nodes(70, 70, 4)
    numbers = uniform_numbers(len(nodes.weights))
    few = accepted_ranks(name, nodes, numbers)
    many = accepted_ranks(name, nodes, numbers, UNIFORM_COUNT)
    assert many.shape == (len(numbers), UNIFORM_COUNT + 1)
    assert np.allclose(many[:, :RANKS], few[:, :RANKS])
    assert np.allclose(many[:, RANKS:].sum(axis=1), few[:, RANKS])


@pytest.mark.parametrize("name", list(RuleName))
def test_more_children_are_never_rejected_more_often(name: RuleName) -> None:
    """Ranks are probabilities that sum to 1, so that rejection falls with the number of children."""
    found = accepted_ranks(name, random_nodes(50, 20, 3), uniform_numbers(60))
    assert found.min() >= 0.0
    assert np.allclose(found.sum(axis=1), 1.0)


def test_a_single_child_of_sequoia_is_rejected_as_often_as_the_overlap_says() -> None:
    """Sum of min(p, q) is the acceptance of one child drawn from q, on average."""
    generator = torch.Generator().manual_seed(0)
    taught = torch.randn(30, 20, generator=generator)
    said = taught + torch.randn(30, 20, generator=generator)
    repeats = 100
    nodes = Nodes.of(
        taught.softmax(-1).repeat_interleave(repeats, 0),
        said.log_softmax(-1).repeat_interleave(repeats, 0),
        torch.arange(20),
    )
    first = accepted_ranks(RuleName.SEQUOIA, nodes, uniform_numbers(30 * repeats))[:, 0].mean()
    overlap = torch.minimum(taught.softmax(-1), said.softmax(-1)).sum(-1).mean()
    assert first == pytest.approx(float(overlap), abs=0.02)


@pytest.mark.parametrize("name", list(RuleName))
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_draft_that_is_the_target_agrees_in_everything(
    name: RuleName, temperature: float
) -> None:
    """Overlap and coverage are 1, and no child of the rules that draw is ever rejected."""
    texts = write(TARGET, PROMPTS, SamplingSettings(temperature=temperature), NEVER)
    (found,) = measure(TARGET, TARGET, texts, Measuring(temperature, name))
    assert found.positions == sum(len(text.new_token_ids) for text in texts)
    assert found.overlap == pytest.approx(1.0, abs=1e-5)
    assert found.coverage == pytest.approx(1.0, abs=1e-5)
    assert set(found.top_match.values()) == {1.0}
    if temperature == 0.0 or name is not RuleName.TOPK:
        # What the wire's precision takes from q stays below a thousandth.
        assert found.rejection == pytest.approx([0.0] * RANKS, abs=1e-3)
        assert found.vector[1] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_vector_has_its_layout_and_its_rejections(
    texts: list[Continuation], temperature: float
) -> None:
    """0, one number per rank, none; all together 1, and rejection is what they leave over."""
    (found,) = measure(TARGET, DRAFT, texts, Measuring(temperature))
    assert len(found.vector) == RANKS + 2
    assert found.vector[0] == 0.0
    assert sum(found.vector) == pytest.approx(1.0)
    assert len(found.rejection) == RANKS
    assert all(left >= right for left, right in pairwise(found.rejection))
    assert found.rejection[-1] == pytest.approx(found.vector[-1])
    assert 0.0 < found.overlap < 1.0


def test_at_temperature_zero_the_vector_counts_matches(texts: list[Continuation]) -> None:
    """Entry k is how often the target's token is the draft's k-th; sums of it are `top_match`."""
    (found,) = measure(TARGET, DRAFT, texts, Measuring(0.0))
    ranks = []
    for text in texts:
        order = DRAFT.plain(text.token_ids).logits.argsort(descending=True).tolist()
        answer = range(text.prompt_length, len(text.token_ids))
        ranks += [order[position - 1].index(text.token_ids[position]) for position in answer]
    assert found.positions == len(ranks)
    expected = np.bincount(ranks, minlength=WORDS)[:RANKS] / len(ranks)
    assert found.vector[1:-1] == pytest.approx(expected)
    for k, match in found.top_match.items():
        assert match == pytest.approx(expected[:k].sum())


def test_a_reduced_output_layer_covers_its_tokens(texts: list[Continuation]) -> None:
    """Coverage is the target's mass on them, and no overlap exceeds it."""
    head = [1, 5, 2, 9, 30, 17]
    draft = TreeModel(tiny_llama(WORDS, seed=1), torch.tensor(head))
    rows = draft.model.lm_head.weight[head].detach()
    draft.model.lm_head.weight = nn.Parameter(rows)
    (found,) = measure(TARGET, draft, texts, Measuring(0.5))
    masses, overlaps = [], []
    for text in texts:
        answer = slice(text.prompt_length - 1, -1)
        logits = TARGET.plain(text.token_ids).logits[answer]
        said = draft.plain(text.token_ids).logits[answer]
        p = (logits / 0.5).softmax(-1)[:, head]
        masses += p.sum(-1).tolist()
        overlaps += torch.minimum(p, (said / 0.5).softmax(-1)).sum(-1).tolist()
    assert found.coverage == pytest.approx(np.mean(masses), abs=1e-5)
    assert found.overlap == pytest.approx(np.mean(overlaps), abs=1e-5)


def test_tokens_that_the_target_does_not_know_count_for_nothing(
    texts: list[Continuation],
) -> None:
    """A draft whose output layer is padded agrees as well as without the padding."""
    padded = nudged(tiny_llama(WORDS, seed=1), 0.2, seed=2)
    padded.resize_token_embeddings(WORDS + 8, mean_resizing=False)
    with torch.no_grad():
        padded.lm_head.weight[WORDS:] = 100.0
    measuring = Measuring(0.7)
    assert measure(TARGET, TreeModel(padded), texts, measuring) == measure(
        TARGET, DRAFT, texts, measuring
    )


def test_the_target_writes_its_own_greedy_text(texts: list[Continuation]) -> None:
    """Every token is the argmax of a plain pass over those before it, up to the prompt's limit."""
    for prompt, text in zip(PROMPTS, texts, strict=True):
        assert text.token_ids[: text.prompt_length] == prompt.token_ids
        assert len(text.new_token_ids) == prompt.max_new_tokens
        best = TARGET.plain(text.token_ids).logits.argmax(-1).tolist()
        assert list(text.new_token_ids) == best[text.prompt_length - 1 : -1]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_texts_do_not_depend_on_their_company(batch_size: int) -> None:
    """A sampled text is a function of seed and prompt; another seed writes another text."""
    sampling = SamplingSettings(temperature=1.0)
    together = write(TARGET, PROMPTS, sampling, NEVER, seed=4)
    assert write(TARGET, PROMPTS, sampling, NEVER, seed=4, batch_size=batch_size) == together
    assert write(TARGET, PROMPTS, sampling, NEVER, seed=5) != together


def test_a_text_ends_with_the_token_that_ends_it(texts: list[Continuation]) -> None:
    """The stop token belongs to the text, nothing follows it, and every end is reported."""
    stop = texts[0].new_token_ids[2]
    reports: list[int] = []
    stopped = write(TARGET, PROMPTS, GREEDY, frozenset({stop}), report=reports.append)
    for text, whole in zip(stopped, texts, strict=True):
        written = list(whole.new_token_ids)
        end = written.index(stop) + 1 if stop in written else len(written)
        assert list(text.new_token_ids) == written[:end]
    assert reports == [1, 2, 3, 4]


def reference_logits(draft: TreeModel, tokens: list[int], read: Tensor, level: int) -> Tensor:
    """The last token's logits at a level, node after node: committed text, then own features."""
    committed = len(tokens) - level + 1
    cache = KVCache()
    own = draft.prefill(cache, tokens[: committed - 1], read[: committed - 1])
    (output,) = draft.forward(
        [Segment.chain(cache, tokens[committed - 1 : committed], read[committed - 1 : committed])]
    )
    assert len(own) == committed - 1
    for token in tokens[committed:]:
        (output,) = draft.forward([Segment.chain(cache, [token], output.features)])
    return output.logits[-1]


def test_levels_below_the_first_read_the_drafts_own_features(texts: list[Continuation]) -> None:
    """Each level of the passes over a whole text is what a tree would show, node by node."""
    draft, tokens = feature_draft(), list(texts[2].token_ids)
    target_features = TARGET.plain(tokens).features
    levels = logits_by_level(draft, tokens, target_features)
    read = shifted(target_features.to(torch.bfloat16)).float()
    assert len(levels) == LEVELS
    for level, logits in enumerate(levels, start=1):
        for end in range(level, len(tokens) + 1):
            expected = reference_logits(draft, tokens[:end], read, level)
            assert torch.allclose(logits[end - 1], expected, atol=1e-4)
    assert not torch.allclose(levels[0][5:], levels[1][5:], atol=1e-2)


def test_a_draft_that_reads_features_is_measured_at_every_level(
    texts: list[Continuation],
) -> None:
    """One agreement per level for it, one in all for a draft that reads tokens alone."""
    levels = measure(TARGET, feature_draft(), texts, Measuring(0.0))
    assert len(levels) == LEVELS
    assert len({found.overlap for found in levels}) == LEVELS
    assert len(measure(TARGET, DRAFT, texts, Measuring(0.0))) == 1


@pytest.fixture(params=["tokens", "features"])
def grower(request: pytest.FixtureRequest) -> Iterator[Grower]:
    """A draft worker, of either kind of draft."""
    draft = DRAFT if request.param == "tokens" else feature_draft()
    worker = Grower("tiny", draft, "sha", WorkerLimits())
    yield worker
    worker.device.stop()


def walker_for(grower: Grower, batch_size: int = 2) -> Walker:
    """A walk with what the draft reads."""
    return Walker(
        grower,
        WORDS,
        grower.model.context_length,
        batch_size,
        (lambda text: pack_features(TARGET.plain(text.token_ids).features))
        if grower.model.reads_features
        else None,
    )


async def test_walking_a_chain_follows_the_levels(
    grower: Grower, texts: list[Continuation]
) -> None:
    """Steps of the draft worker's own chains are those that the levels' argmax tokens promise."""
    steps = 0
    for text in texts:
        features = TARGET.plain(text.token_ids).features
        levels = logits_by_level(grower.model, text.token_ids, features)
        best = [levels[min(i, len(levels) - 1)].argmax(-1).tolist() for i in range(LEVELS)]
        length = text.prompt_length
        while length < len(text.token_ids):
            following = text.token_ids[length : length + LEVELS]
            guesses = [best[level][length - 1 + level] for level in range(len(following))]
            matches = [a == b for a, b in zip(guesses, following, strict=True)]
            length += (*matches, False).index(False) + 1
            steps += 1
    tokens = sum(len(text.new_token_ids) for text in texts)
    walked = await walker_for(grower).tokens_per_step(texts, CHAIN)
    assert walked == pytest.approx(tokens / steps)
    assert walked > 1.2


async def test_a_root_alone_is_one_token_a_step(grower: Grower, texts: list[Continuation]) -> None:
    """Without nodes to accept every token needs a step of its own."""
    assert await walker_for(grower).tokens_per_step(texts, Topology((-1,))) == 1.0


async def test_a_draft_that_is_the_target_is_accepted_to_the_leaf() -> None:
    """A chain of 4 nodes then gives 4 tokens a step."""
    worker = Grower("tiny", TARGET, "sha", WorkerLimits())
    texts = write(TARGET, [Prompt((3, 4, 5), 24), Prompt((9,), 12)], GREEDY, NEVER)
    try:
        assert await walker_for(worker).tokens_per_step(texts, CHAIN) == 4.0
    finally:
        worker.device.stop()


async def test_a_walk_goes_up_to_the_end_of_the_context() -> None:
    """Trees that would reach beyond it lose the levels that do: 17 tokens are 4 + 4 + 4 + 4 + 1."""
    model = TreeModel(tiny_llama(WORDS, seed=1, max_position_embeddings=20))
    worker = Grower("tiny", model, "sha", WorkerLimits())
    texts = write(model, [Prompt((3, 4, 5), 17)], GREEDY, NEVER)
    try:
        assert await walker_for(worker).tokens_per_step(texts, CHAIN) == 17 / 5
    finally:
        worker.device.stop()


@pytest.mark.parametrize("draft", [DRAFT, feature_draft()], ids=["tokens", "features"])
def test_times_are_positive_and_their_ratio_is_theirs(draft: TreeModel) -> None:
    """A level of the draft over a token of the target."""
    times = time_passes(TARGET, draft, repetitions=2)
    assert times.draft_level_ms > 0
    assert times.target_token_ms > 0
    assert times.ratio == times.draft_level_ms / times.target_token_ms


def test_a_pair_shares_tokens_and_the_size_of_features() -> None:
    """A draft that reads features of another size, or has another tokenizer, is refused by name."""
    target = LoadedModel("big", TARGET, "sha", "")
    require_compatible(target, LoadedModel("small", DRAFT, "sha", ""))
    require_compatible(target, LoadedModel("small", feature_draft(), "sha", ""))
    with pytest.raises(IncompatibleModelsError, match="small has another tokenizer"):
        require_compatible(target, LoadedModel("small", DRAFT, "other", ""))
    wide = TreeModel(tiny_llama(WORDS, seed=5, layers=1), fusion=nn.Linear(32 + 48, 32))
    with pytest.raises(IncompatibleModelsError, match="48 elements, and the target big gives 32"):
        require_compatible(target, LoadedModel("small", wide, "sha", ""))


def test_q_is_made_sparse_as_on_the_wire() -> None:
    """At most 64 tokens are kept; p on the rest of the vocabulary is tail."""
    logits = torch.randn(2, 200, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)
    nodes = Nodes.of(p, warp(logits, SamplingSettings()), torch.arange(200))
    top = p.topk(64).values.sum(-1).numpy()
    assert nodes.target.shape == (2, 65)
    assert nodes.target[:, -1] == pytest.approx(1 - top, abs=1e-5)
    assert nodes.draft[:, :-1] == pytest.approx(p.topk(64).values.numpy() / top[:, None], abs=1e-3)

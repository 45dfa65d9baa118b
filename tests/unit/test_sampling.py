from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sequoia.errors import InvalidArgumentError
from sequoia.randomness import Purpose, uniforms
from sequoia.sampling import (
    draw_indices,
    draw_without_replacement,
    favourites,
    penalise,
    sparsify,
    warp,
)
from sequoia.settings import SamplingSettings

VOCABULARY = 200


def logits(rows: int = 16, seed: int = 0) -> Tensor:
    """Random logits with favourites, `[rows, VOCABULARY]`."""
    return 4 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def warped_by_transformers(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Log probabilities after transformers' own processors, in the order of `generate`."""
    processors: list[LogitsProcessor] = [TemperatureLogitsWarper(settings.temperature)]
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        processors.append(MinPLogitsWarper(settings.min_p))
    for processor in processors:
        logits = processor(torch.zeros(len(logits), 1, dtype=torch.long), logits)
    return logits.log_softmax(dim=-1)


@pytest.mark.parametrize("temperature", [0.1, 0.6, 1.0, 3.0])
@pytest.mark.parametrize(
    "cuts",
    [
        {},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": VOCABULARY + 1},
        {"top_p": 0.001},
        {"top_p": 0.8},
        {"top_p": 0.999},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 20, "top_p": 0.7},
        {"top_k": 50, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_warping_equals_transformers(temperature: float, cuts: dict[str, Any]) -> None:
    """The same tokens survive temperature, top-k, top-p and min-p, with the same probabilities."""
    settings = SamplingSettings(temperature=temperature, **cuts)
    log_probs, expected = warp(logits(), settings), warped_by_transformers(logits(), settings)
    assert torch.equal(log_probs.isfinite(), expected.isfinite())
    assert torch.allclose(log_probs.exp(), expected.exp(), atol=1e-6)


def test_warping_half_precision_is_done_in_fp32() -> None:
    """Logits as a GPU gives them lose nothing more on the way."""
    half, settings = logits().bfloat16(), SamplingSettings(temperature=0.6, top_p=0.9)
    assert warp(half, settings).dtype == torch.float32
    assert torch.equal(warp(half, settings), warp(half.float(), settings))


def test_a_tie_at_the_edge_of_top_k_keeps_exactly_k() -> None:
    """transformers keeps all tied tokens; here the support is bounded."""
    tied = torch.zeros(1, 10)
    assert int((warp(tied, SamplingSettings(top_k=3)) > -math.inf).sum()) == 3


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(temperature=5e-324),
        SamplingSettings(temperature=1e-300, top_p=0.5),
        SamplingSettings(temperature=1e-38, min_p=0.5),
        SamplingSettings(top_p=5e-324),
        SamplingSettings(min_p=5e-324),
        SamplingSettings(temperature=100.0, top_k=2**31 - 1),
    ],
    ids=str,
)
def test_extreme_settings_give_a_distribution(settings: SamplingSettings) -> None:
    """Values at the edge of fp64, below that of fp32, never lead to NaN."""
    probs = warp(logits(), settings).exp()
    assert torch.allclose(probs.sum(dim=-1), torch.ones(len(probs)), atol=1e-5)


def test_tokens_ruled_out_before_stay_ruled_out() -> None:
    """A logit of minus infinity has probability zero at any temperature."""
    row = torch.tensor([[1.0, -math.inf, 2.0]])
    for temperature in (1e-300, 0.5, 100.0):
        probs = warp(row, SamplingSettings(temperature=temperature)).exp()
        assert probs[0, 1] == 0
        assert probs.isfinite().all()


@pytest.mark.parametrize("penalty", [0.5, 1.3, 10.0])
def test_the_repetition_penalty_equals_transformers(penalty: float) -> None:
    """It looks at every token of prompt and generated text, once each."""
    prompt, generated = [3, 5, 5, 7], [7, 11]
    row = logits(1)[0]
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([[*prompt, *generated]]), row[None])[0]
    settings = SamplingSettings(repetition_penalty=penalty)
    assert torch.equal(penalise(row, settings, prompt, generated), expected)


@pytest.mark.parametrize(("presence", "frequency"), [(0.7, 0.0), (0.0, 0.4), (-1.0, 2.5)])
def test_presence_and_frequency_follow_their_definition(presence: float, frequency: float) -> None:
    """As OpenAI and vLLM have it: logit - [count > 0] * presence - count * frequency."""
    prompt, generated = [3, 5], [7, 11, 7, 7]
    row = logits(1)[0]
    expected = row.clone()
    for token, count in Counter(generated).items():
        expected[token] -= presence + count * frequency
    settings = SamplingSettings(presence_penalty=presence, frequency_penalty=frequency)
    assert torch.allclose(penalise(row, settings, prompt, generated), expected)


def test_the_repetition_penalty_comes_before_the_others() -> None:
    """vLLM's order: first the factor, then what is subtracted."""
    row = torch.tensor([4.0, 4.0])
    settings = SamplingSettings(repetition_penalty=2.0, presence_penalty=1.0)
    assert penalise(row, settings, [], [0]).tolist() == [1.0, 4.0]


@pytest.mark.parametrize(
    ("prompt", "generated"), [([], []), ([1, 2], []), ([], [3])], ids=["nothing", "prompt", "text"]
)
def test_penalties_leave_their_input_alone(prompt: list[int], generated: list[int]) -> None:
    """They work with any history, an empty one included, on a copy."""
    row = logits(1)[0]
    before = row.clone()
    settings = SamplingSettings(repetition_penalty=2, presence_penalty=1, frequency_penalty=1)
    result = penalise(row, settings, prompt, generated)
    assert torch.equal(row, before)
    assert torch.equal(result, before) == (not prompt and not generated)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SamplingSettings(), False),
        (SamplingSettings(temperature=0, top_k=3, top_p=0.5), False),
        (SamplingSettings(repetition_penalty=1.1), True),
        (SamplingSettings(presence_penalty=-0.1), True),
        (SamplingSettings(frequency_penalty=0.1), True),
    ],
)
def test_penalties_are_known_to_be_on_or_off(settings: SamplingSettings, expected: bool) -> None:
    """Only the three penalties make a distribution depend on the tokens before."""
    assert settings.has_penalties is expected


@pytest.mark.parametrize(
    ("field", "inside", "outside", "limit"),
    [
        ("temperature", [0.0, 100.0], [-1e-9, 100.1], "[0, 100]"),
        ("top_k", [0, 1, 2**31 - 1], [-1, 2**31], "[0, 2147483647]"),
        ("top_p", [1e-9, 1.0], [0.0, -0.5, 1.0001], "(0, 1]"),
        ("min_p", [0.0, 1.0], [-1e-9, 1.0001], "[0, 1]"),
        ("repetition_penalty", [1e-9, 10.0], [0.0, -1.0, 10.1], "(0, 10]"),
        ("presence_penalty", [-10.0, 10.0], [-10.1, 10.1], "[-10, 10]"),
        ("frequency_penalty", [-10.0, 10.0], [-10.1, 10.1], "[-10, 10]"),
    ],
)
def test_every_setting_has_its_limits(
    field: str, inside: Sequence[float], outside: Sequence[float], limit: str
) -> None:
    """Values on the limits are taken; what is beyond, infinite or no number is refused by name."""
    for value in inside:
        assert getattr(SamplingSettings(**{field: value}), field) == value  # type: ignore[arg-type]
    for value in (*outside, math.nan, math.inf, -math.inf):
        with pytest.raises(InvalidArgumentError) as caught:
            SamplingSettings(**{field: value})  # type: ignore[arg-type]
        assert caught.value.metadata["field"] == f"sampling.{field}"
        assert caught.value.metadata["limit"] == limit


def test_sparsifying_keeps_the_most_likely_in_order() -> None:
    """The support is the top of the distribution, weights relative to its first token."""
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    indices, weights = sparsify(probs.log(), 3)
    assert indices.tolist() == [[1, 3, 2]]
    assert weights.dtype == np.float16
    assert np.allclose(weights, [[1.0, 0.75, 0.5]], atol=1e-3)


def test_sparsifying_gives_no_weight_to_what_the_wire_cannot_hold() -> None:
    """Tokens that are ruled out, or too unlikely for half precision, leave the support."""
    log_probs = torch.tensor([[0.0, -10.0, -40.0, -math.inf]])
    _, weights = sparsify(log_probs, 4)
    assert (weights > 0).tolist() == [[True, True, False, False]]


def test_sparsifying_takes_no_more_than_there_is() -> None:
    """A vocabulary smaller than the support is the support."""
    indices, weights = sparsify(torch.zeros(2, 5), 64)
    assert indices.shape == weights.shape == (2, 5)


def test_draws_without_replacement_come_in_the_exact_order() -> None:
    """20,000 ordered pairs out of four tokens follow q(a) * q(b) / (1 - q(a)) (chi-square)."""
    weights = np.array([1.0, 0.5, 0.25, 0.125], dtype=np.float16)
    q = weights.astype(np.float64) / weights.astype(np.float64).sum()
    seen: Counter[tuple[int, ...]] = Counter()
    for position in range(20_000):
        uniform = uniforms(1, Purpose.DRAFT, position, 0, weights.size)
        seen[tuple(draw_without_replacement(weights, 2, uniform).tolist())] += 1
    pairs = list(itertools.permutations(range(4), 2))
    expected = [q[a] * q[b] / (1 - q[a]) * seen.total() for a, b in pairs]
    assert set(seen) == set(pairs)
    assert chisquare([seen[pair] for pair in pairs], expected).pvalue > 0.001


def test_draws_without_replacement_are_distinct_and_have_weight() -> None:
    """Where fewer tokens have a weight than are wanted, fewer are drawn."""
    weights = np.array([0.0, 1.0, 0.0, 6e-8], dtype=np.float16)
    for position in range(200):
        drawn = draw_without_replacement(weights, 4, uniforms(1, Purpose.DRAFT, position, 0, 4))
        assert sorted(drawn.tolist()) == [1, 3]


def test_a_shorter_draw_is_the_beginning_of_a_longer_one() -> None:
    """How many children a node has does not change which come first."""
    weights = np.linspace(0.1, 1, 10).astype(np.float16)
    uniform = uniforms(1, Purpose.DRAFT, 0, 0, 10)
    longer = draw_without_replacement(weights, 10, uniform)
    for count in range(10):
        assert np.array_equal(draw_without_replacement(weights, count, uniform), longer[:count])


@pytest.mark.parametrize("uniform", [2.0**-53, 1e-9, 0.3, 0.5, 0.999, 1 - 2.0**-53])
def test_a_drawn_index_is_never_impossible(uniform: float) -> None:
    """Tokens of probability zero are not drawn, however extreme the draw."""
    for probs in ([0, 0.5, 0, 0.5, 0], [0, 0, 1e-38, 0], [1, 0], [0, 1], [3, 0, 0, 7]):
        weights = torch.tensor([[0] * 254 + probs, probs + [0] * 254], dtype=torch.float32)
        drawn, _ = draw_indices(weights, np.full(2, uniform))
        assert all(row[index] > 0 for row, index in zip(weights, drawn, strict=True))


def test_a_draw_from_nothing_is_the_first_token() -> None:
    """An empty tail has a defined answer."""
    assert draw_indices(torch.zeros(1, 5), np.array([0.7])) == ([0], [0.0])


def test_indices_are_drawn_in_proportion() -> None:
    """20,000 draws from weights that do not sum to one follow them (chi-square)."""
    weights = torch.tensor([2.0, 0.0, 5.0, 1.0])
    numbers = uniforms(1, Purpose.TARGET, 0, 0, 20_000)
    observed = np.bincount(draw_indices(weights.expand(numbers.size, 4), numbers)[0], minlength=4)
    expected = weights.numpy()[[0, 2, 3]] / 8 * numbers.size
    assert observed[1] == 0
    assert chisquare(observed[[0, 2, 3]], expected).pvalue > 0.001


def test_the_ends_of_the_uniform_reach_the_first_and_the_last_token() -> None:
    """Inversion runs through the vocabulary in order."""
    weights = torch.full((2, 1000), 0.001)
    assert draw_indices(weights, np.array([2.0**-53, 1 - 2.0**-53]))[0] == [0, 999]


@pytest.mark.parametrize("vocabulary", [1, 255, 256, 257, 1000])
def test_an_index_is_where_the_sum_passes_the_number(vocabulary: int) -> None:
    """Summing in blocks finds the same index as summing one by one."""
    weights = torch.rand(50, vocabulary, generator=torch.Generator().manual_seed(1))
    numbers = uniforms(2, Purpose.TARGET, 0, 0, 50)
    ends = weights.double().cumsum(-1)
    expected = (ends <= ends[:, -1:] * torch.from_numpy(numbers)[:, None]).sum(-1).tolist()
    drawn, sums = draw_indices(weights, numbers)
    assert drawn == expected
    assert sums == pytest.approx(weights.double().sum(-1).tolist())


def test_the_favourite_is_the_first_of_equals() -> None:
    """As torch has it on every device."""
    scores = torch.tensor([[1.0, 3.0, 3.0], [5.0, 5.0, 2.0], [-torch.inf] * 3])
    assert favourites(scores) == scores.argmax(-1).tolist() == [1, 0, 0]
    assert favourites(scores.bfloat16()) == [1, 0, 0]


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.9999])
def test_a_nucleus_of_a_large_vocabulary_is_that_of_transformers(top_p: float) -> None:
    """Whether it lies among the tokens that are sorted first or not, and with many equal ones."""
    rows = torch.randn(3, 5000, generator=torch.Generator().manual_seed(1))
    rows[0] *= 6
    rows[2] = rows[2].round()
    warped = warp(rows, SamplingSettings(top_p=top_p))
    ordered, order = torch.log_softmax(rows, -1).sort(dim=-1, descending=True, stable=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    for row in range(3):
        kept = order[row][before[row] < top_p].sort().values
        assert warped[row].isfinite().nonzero()[:, 0].tolist() == kept.tolist()

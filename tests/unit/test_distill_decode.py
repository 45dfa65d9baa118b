"""Decoders that write the corpus, and the draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from sequoia.config import DEFAULT_TARGET
from sequoia.distillation.decode import Decoder, draw
from sequoia.distillation.decode_llama import LlamaDecoder, is_plain_llama
from sequoia.distillation.decode_tree import TreeDecoder
from sequoia.distillation.decoders import PROBE_TOLERANCE, decoder_for, feature_deviation
from sequoia.distillation.target import Target
from sequoia.runtime.catalogue import resolve
from sequoia.runtime.forward import TreeModel
from tests.tiny import save_model, tiny_llama, word_tokenizer

WORDS = 40
CPU = torch.device("cpu")
ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}


def tiny(kind: str) -> Any:
    """A random decoder of one of several kinds."""
    small: dict[str, Any] = {"vocab_size": WORDS, "initializer_range": 0.3}
    torch.manual_seed(2)
    if kind == "gpt2":
        shape: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        return AutoModelForCausalLM.from_config(GPT2Config(**shape, **small))
    if kind == "qwen2":
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
        return AutoModelForCausalLM.from_config(Qwen2Config(**shape, **heads, **small))
    options: dict[str, dict[str, Any]] = {
        "llama": {},
        "tied llama": {"tie_word_embeddings": True},
        "scaled llama": {"rope_parameters": ROPE},
        "biased llama": {"attention_bias": True},
    }
    return tiny_llama(WORDS, seed=1, **options[kind])


def decoder_of(kind: str, rows: int, length: int) -> tuple[Any, Decoder]:
    """A model, and the decoder of its kind in fp32."""
    model = tiny(kind).eval()
    if is_plain_llama(model.config):
        weights = model.state_dict()
        return model, LlamaDecoder(model.config, weights, rows, length, torch.float32)
    return model, TreeDecoder(TreeModel(model), rows, length)


@torch.no_grad()
def logits_of(model: Any, token_ids: Tensor) -> Tensor:
    """What transformers says, `[rows, tokens, vocabulary]`."""
    logits: Tensor = model(token_ids).logits
    return logits


@pytest.mark.parametrize("kind", ["llama", "tied llama", "qwen2", "gpt2"])
def test_rows_say_what_transformers_says(kind: str) -> None:
    """Rows at positions of their own give the logits of plain passes over their texts."""
    model, decoder = decoder_of(kind, rows=3, length=12)
    token_ids = torch.randint(0, WORDS, (3, 9), generator=torch.Generator().manual_seed(1))
    expected = logits_of(model, token_ids)
    starts = torch.tensor([0, 2, 5])  # at which pass a row begins
    for number in range(9):
        positions = (number - starts).clamp_min(0)
        fed = token_ids.gather(1, positions[:, None])[:, 0]
        logits = decoder.logits(decoder.step(fed, positions))
        for row in range(3):
            torch.testing.assert_close(
                logits[row], expected[row, positions[row]], rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_opening_is_read_once_for_all_rows(kind: str) -> None:
    """A row that is seeded goes on as if it had read the opening itself, and others do not mind."""
    model, decoder = decoder_of(kind, rows=2, length=12)
    opening, rest = [3, 4, 5], [6, 7]
    expected = logits_of(model, torch.tensor([opening + rest]))[0]
    prefix = decoder.prefix_of(opening)
    accuracy: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(decoder.logits(prefix.features), expected[:3], **accuracy)
    for _ in range(2):  # a second text in the same row
        decoder.seed(1, prefix)
        for place, token_id in enumerate(rest, start=3):
            features = decoder.step(torch.tensor([9, token_id]), torch.tensor([0, place]))
            torch.testing.assert_close(decoder.logits(features)[1], expected[place], **accuracy)


def test_fewer_tokens_than_rows_are_for_the_first_rows() -> None:
    """A decoder that turned out too wide runs some of its rows."""
    for kind in ("llama", "gpt2"):
        model, decoder = decoder_of(kind, rows=4, length=6)
        features = decoder.step(torch.tensor([5, 6]), torch.tensor([0, 0]))
        expected = logits_of(model, torch.tensor([[5], [6]]))[:, 0]
        torch.testing.assert_close(decoder.logits(features), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "lean"),
    [
        ("llama", True),
        ("tied llama", True),
        ("scaled llama", False),
        ("biased llama", False),
        ("qwen2", False),
        ("gpt2", False),
    ],
)
def test_the_lean_decoder_writes_for_plain_llamas_only(
    kind: str, lean: bool, tmp_path: Path
) -> None:
    """Every other target is written for by tree passes, and both say what the target says."""
    folder = save_model(tmp_path, tiny(kind), word_tokenizer(WORDS))
    target = Target.load("tiny", folder, CPU)
    decoder = decoder_for(target, folder, rows=2, length=16)
    assert isinstance(decoder, LlamaDecoder if lean else TreeDecoder)
    assert feature_deviation(decoder, target) < PROBE_TOLERANCE / 2


@pytest.mark.slow
def test_the_lean_decoder_writes_for_the_built_in_target() -> None:
    """Rounding to bfloat16 does not pass for another architecture."""
    folder = resolve(DEFAULT_TARGET)
    target = Target.load(DEFAULT_TARGET, folder, CPU)
    assert isinstance(decoder_for(target, folder, 1, 16), LlamaDecoder)


def test_a_target_that_only_looks_plain_is_found_out(tmp_path: Path) -> None:
    """What the configuration does not tell shows in what the decoder says."""
    folder = save_model(tmp_path, tiny("llama"), word_tokenizer(WORDS))
    target = Target.load("tiny", folder, CPU)
    attention = target.model.model.model.layers[0].self_attn
    attention.scaling = 3 * attention.scaling
    assert is_plain_llama(target.config)
    assert isinstance(decoder_for(target, folder, 1, 16), TreeDecoder)


def test_draws_follow_the_distribution() -> None:
    """Two-stage inversion draws each token as often as its probability says."""
    logits = torch.randn(1, 700, generator=torch.Generator().manual_seed(1)) * 3
    rows = logits.expand(20_000, -1)
    drawn = draw(rows, torch.ones(len(rows)), torch.Generator().manual_seed(2))
    found = torch.bincount(drawn, minlength=700) / len(rows)
    assert (found - F.softmax(logits[0], -1)).abs().max() < 0.02
    assert draw(logits, torch.zeros(1), torch.Generator()).item() == logits.argmax().item()

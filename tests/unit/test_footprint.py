from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, GPT2Config

from sequoia.runtime.footprint import kv_bytes_per_token, measured_kv_bytes_per_token
from sequoia.runtime.forward import TreeModel
from tests.tiny import tiny_llama


@pytest.mark.parametrize("overrides", [{}, {"num_key_value_heads": 4}, {"head_dim": 16}])
def test_what_the_config_says_is_what_a_cache_takes(overrides: dict[str, int]) -> None:
    """Heads that share keys, and heads of a size of their own, are told in the config."""
    model = TreeModel(tiny_llama(12, seed=1, **overrides))
    assert kv_bytes_per_token(model) == measured_kv_bytes_per_token(model)


def test_a_token_takes_keys_and_values_of_every_layer() -> None:
    """2 layers x 2 heads x 8 numbers of 4 bytes, for keys and for values."""
    assert kv_bytes_per_token(TreeModel(tiny_llama(12, seed=1))) == 2 * 2 * 2 * 8 * 4


def test_other_configs_are_measured() -> None:
    """GPT-2's says nothing of key and value heads."""
    config = GPT2Config(
        n_layer=3, n_head=2, n_embd=8, vocab_size=12, bos_token_id=0, eos_token_id=0
    )
    model = TreeModel(AutoModelForCausalLM.from_config(config))
    assert kv_bytes_per_token(model) == 3 * 2 * 8 * 4

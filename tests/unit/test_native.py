"""The compiled engine against transformers, and against itself: same words, same bits."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from sequoia.runtime.cache import KVCache
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.native.library import NativeUnavailableError, library
from sequoia.runtime.segment import Segment
from sequoia.tree import Topology

try:
    library()
except NativeUnavailableError as error:
    pytest.skip(f"no compiled engine here: {error}", allow_module_level=True)

VOCABULARY = 210  # no multiple of a panel
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "max_position_embeddings": 8192,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
CONFIGS = {
    "llama, 3 heads on 1": LlamaConfig(**SIZES, num_attention_heads=3, num_key_value_heads=1),
    "llama, 6 heads of 16": LlamaConfig(**SIZES, num_attention_heads=6, num_key_value_heads=6),
    "llama, 12 heads on 2": LlamaConfig(
        **SIZES, num_attention_heads=12, num_key_value_heads=2, head_dim=80
    ),
    "llama, scaled positions": LlamaConfig(
        **SIZES,
        num_attention_heads=3,
        num_key_value_heads=3,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen2, with biases": Qwen2Config(**SIZES, num_attention_heads=6, num_key_value_heads=2),
    "llama, tied": LlamaConfig(
        **{**SIZES, "tie_word_embeddings": True}, num_attention_heads=3, num_key_value_heads=1
    ),
    "mistral": MistralConfig(
        **SIZES, num_attention_heads=6, num_key_value_heads=2, head_dim=32, sliding_window=None
    ),
}
TOLERANCE = 5e-4  # float32 sums in another order; logits are about 5 in size
TREE = Topology((-1, 0, 0, 0, 1, 2, 2, 5, 5))


def random_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The same weights every time, spread enough to have favourites."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).to(dtype)
    with torch.no_grad():  # biases and norms as training leaves them, not zeros and ones
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def compiled(model: Any, threads: int = 2) -> TreeModel:
    """A copy of the model in the engine's hands."""
    tree_model = TreeModel(copy.deepcopy(model))
    tree_model.compile(threads)
    return tree_model


def tokens(count: int, seed: int = 0) -> list[int]:
    """Some text."""
    ids: list[int] = np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()
    return ids


def continued(model: TreeModel, ids: Sequence[int], parts: Sequence[int]) -> Tensor:
    """Logits of all ids, read in parts of the given lengths."""
    cache, start, logits = KVCache(), 0, []
    for part in parts:
        (output,) = model.forward([Segment.chain(cache, ids[start : start + part])])
        logits.append(output.logits)
        start += part
    assert start == len(ids)
    return torch.cat(logits)


def below_root(nodes: Sequence[int], node: int) -> list[int]:
    """Tokens from just below the root down to a node."""
    return [nodes[member] for member in TREE.path(node)]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_features_are_those_of_transformers(name: str) -> None:
    """At every position of a text, within the stated tolerance."""
    model = random_model(name)
    ids = tokens(183)
    ours, expected = compiled(model).plain(ids), TreeModel(model).plain(ids)
    assert torch.allclose(ours.logits, expected.logits, atol=TOLERANCE)
    assert torch.allclose(ours.features, expected.features, atol=TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_is_no_further_off_than_in_transformers(name: str) -> None:
    """Against float32 on the same weights; both round, in other places."""
    model = random_model(name, torch.bfloat16)
    ids = tokens(183)
    exact = TreeModel(copy.deepcopy(model).float()).plain(ids).logits
    ours = (compiled(model).plain(ids).logits - exact).abs()
    theirs = (TreeModel(model).plain(ids).logits - exact).abs()
    assert ours.mean() <= theirs.mean()
    assert ours.max() <= 1.5 * theirs.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("prefix", [1, 15, 16, 33, 93, 160])
def test_a_tree_says_bit_for_bit_what_its_sequences_say(
    name: str, dtype: torch.dtype, prefix: int
) -> None:
    """Every node's logits equal those of the text along its path, however the prefix ends in a block."""
    model = compiled(random_model(name, dtype))
    ids, nodes = tokens(prefix), tuple(tokens(TREE.node_count, seed=1))
    cache = KVCache()
    model.prefill(cache, ids)
    (over_tree,) = model.forward([Segment.tree(cache, TREE, nodes)])
    for node in range(TREE.node_count):
        path = [nodes[0], *below_root(nodes, node)]
        alone = model.plain([*ids, *path])
        assert torch.equal(over_tree.logits[node], alone.logits[-1])
        assert torch.equal(over_tree.features[node], alone.features[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_company_and_threads_change_no_bit(dtype: torch.dtype) -> None:
    """One by one, in chunks, in a batch of ragged sessions, on one thread or three: the same numbers."""
    model = random_model("llama, 3 heads on 1", dtype)
    one, three = compiled(model, 1), compiled(model, 3)
    ids, other = tokens(230), tokens(45, seed=2)
    whole = one.plain(ids).logits
    for parts in ([1] * 230, [64, 166], [13, 133, 72, 12]):
        assert torch.equal(continued(three, ids, parts), whole)
    first, second = KVCache(), KVCache()
    one.prefill(first, ids[:150])
    one.prefill(second, other[:17])
    together = one.forward([Segment.chain(first, ids[150:]), Segment.chain(second, other[17:20])])
    assert torch.equal(together[0].logits, whole[150:])
    assert torch.equal(together[1].logits, one.plain(other[:20]).logits[17:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("prefix", [14, 15, 32, 127])
def test_kept_rows_go_on_as_if_nothing_else_had_been(dtype: torch.dtype, prefix: int) -> None:
    """After a path was accepted the cache is that of the plain text, bit for bit."""
    model = compiled(random_model("qwen2, with biases", dtype))
    ids, nodes = tokens(prefix), tuple(tokens(TREE.node_count, seed=1))
    cache = KVCache()
    model.prefill(cache, ids)
    model.forward([Segment.tree(cache, TREE, nodes)])
    cache.keep(prefix, [prefix + node for node in (0, 2, 5, 8)])
    (output,) = model.forward([Segment.chain(cache, [4, 5])])
    text = [*ids, *(nodes[node] for node in (0, 2, 5, 8)), 4, 5]
    assert torch.equal(output.logits, model.plain(text).logits[-2:])


def test_a_long_text_grows_its_memory() -> None:
    """Over several blocks of memory and beyond the first table of positions, nothing is lost."""
    model = random_model("llama, 6 heads of 16")
    ids = tokens(4200)
    cache = KVCache()
    ours = compiled(model)
    ours.prefill(cache, ids[:-2])
    (output,) = ours.forward([Segment.chain(cache, ids[-2:])])
    assert torch.allclose(output.logits, TreeModel(model).plain(ids).logits[-2:], atol=TOLERANCE)
    used = cache.memory_bytes
    cache.keep(0, ())
    assert cache.memory_bytes == used


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_repeated_row_is_read_like_any_other(dtype: torch.dtype) -> None:
    """A cache made for the clock holds what as many passes over the same token at one place would."""
    model = compiled(random_model("mistral", dtype))
    first = KVCache()
    model.prefill(first, [7])
    cache = first.repeated(20)
    position = Segment(cache, [3], [1], np.ones((1, 21), np.bool_), np.arange(21))
    (many,) = model.forward([position])
    # Twenty equal keys and one's own weigh as much as one that counts twenty times.
    alone = KVCache()
    model.prefill(alone, [7])
    rows = [
        Segment(alone, [7], [0], np.eye(1, n + 1, n, dtype=np.bool_), np.arange(n + 1))
        for n in range(1, 20)
    ]
    for row in rows:
        model.forward([row])
    (expected,) = model.forward(
        [Segment(alone, [3], [1], np.ones((1, 21), np.bool_), np.arange(21))]
    )
    assert torch.allclose(
        many.logits, expected.logits, atol=TOLERANCE if dtype is torch.float32 else 0.1
    )


def test_the_weights_are_held_once() -> None:
    """What was packed is given back."""
    model = compiled(random_model("llama, 3 heads on 1"))
    held = sum(parameter.numel() for parameter in model.model.parameters())
    assert held < 2 * VOCABULARY * 96  # the embedding, and small things


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_act": "gelu"}, "feed-forward"),
        ({"mlp_bias": True}, "feed-forward"),
        ({"hidden_size": 100, "num_attention_heads": 2, "num_key_value_heads": 2}, "multiples"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rotary"),
    ],
)
def test_what_it_was_not_written_for_is_refused(changes: dict[str, Any], reason: str) -> None:
    """With the reason, and the model left whole for transformers."""
    fields = {**SIZES, "num_attention_heads": 3, "num_key_value_heads": 3, **changes}
    model = TreeModel(AutoModelForCausalLM.from_config(LlamaConfig(**fields)))
    before = model.plain([1, 2, 3]).logits
    with pytest.raises(NativeUnavailableError, match=reason):
        model.compile(1)
    assert model.engine == "transformers"
    assert torch.equal(model.plain([1, 2, 3]).logits, before)


def test_without_a_compiler_there_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """No compiler, or one that fails, is said in a line."""
    monkeypatch.setenv("SEQUOIA_CACHE", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(NativeUnavailableError, match=r"no C\+\+ compiler"):
        library.__wrapped__()
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(NativeUnavailableError, match="false"):
        library.__wrapped__()
    assert not list((tmp_path / "native").iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shared", [16, 33, 93])
def test_what_another_text_has_read_changes_no_bit(dtype: torch.dtype, shared: int) -> None:
    """Cut to what is common or copied as far, however that ends in a block, the rows say the same."""
    model = compiled(random_model("qwen2, with biases", dtype))
    ids = [*tokens(shared), *tokens(40, seed=1)]
    other = [*tokens(shared), *tokens(50, seed=2)]
    whole = model.plain(ids)
    cut = KVCache()
    model.prefill(cut, other)
    copied = cut.copied(shared)
    assert copied is not None
    cut.keep(shared, [])
    for cache in (cut, copied):
        (output,) = model.forward([Segment.chain(cache, ids[shared:])])
        assert torch.equal(output.logits, whole.logits[shared:])
        assert torch.equal(output.features, whole.features[shared:])

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sequoia.messages import PREFILL_CHUNK
from sequoia.runtime.cache import KVCache
from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.layer_rows import LayerRows
from sequoia.runtime.segment import Segment
from sequoia.runtime.selfcheck import PREFIX_LENGTH, check_tree_attention
from sequoia.tree import ROOT_ONLY, Topology
from tests.tiny import tiny_llama

VOCABULARY = 97
WINDOW = 7
TREE = Topology((-1, 0, 0, 1, 2, 2, 4))
ACCURACY = 1e-3  # of logits between about -20 and 20, in fp32

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
HEADLESS = {name: size for name, size in SIZES.items() if name != "head_dim"}
GPT_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "qwen2": ("qwen2", SIZES),
    "qwen2 with windows in its upper layers": (
        "qwen2",
        SIZES | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen2 with a window that is off": ("qwen2", SIZES | {"sliding_window": WINDOW}),
    "qwen3": ("qwen3", SIZES),
    "mistral with a window": ("mistral", SIZES | {"sliding_window": WINDOW}),
    "mistral without": ("mistral", SIZES | {"sliding_window": None}),
    "mixtral": ("mixtral", SIZES | EXPERTS | {"sliding_window": WINDOW}),
    "ministral, windows in all layers": ("ministral", SIZES | {"sliding_window": WINDOW}),
    "phi3 with a window": ("phi3", SIZES | {"sliding_window": WINDOW}),
    "starcoder2 with a window": ("starcoder2", SIZES | {"sliding_window": WINDOW}),
    "gemma2": ("gemma2", SIZES | ALTERNATING | {"query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", SIZES | ALTERNATING | {"query_pre_attn_scalar": 8}),
    "gpt-oss": ("gpt_oss", SIZES | ALTERNATING | EXPERTS),
    "olmo2": ("olmo2", SIZES),
    "olmo3": ("olmo3", SIZES | ALTERNATING),
    "smollm3": ("smollm3", SIZES),
    "granite": ("granite", SIZES),
    "cohere": ("cohere", SIZES),
    "deepseek v3, keys and values of different size": ("deepseek_v3", HEADLESS | LATENT),
    "phi": ("phi", SIZES),
    "stablelm": ("stablelm", SIZES),
    "gpt-neox": ("gpt_neox", SIZES),
    "falcon with rotary positions": ("falcon", HEADLESS | {"alibi": False}),
    "opt, learned positions": ("opt", SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gpt2, learned positions": ("gpt2", GPT_SIZES),
    "gptj": ("gptj", GPT_SIZES | {"rotary_dim": 4}),
}
UNFIT: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom, positions in the mask": ("bloom", SIZES | {"n_layer": 2, "n_head": 4}),
    "falcon with alibi": ("falcon", HEADLESS | {"alibi": True}),
    "mpt, positions from row numbers": (
        "mpt",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    ),
    "mamba": ("mamba", SIZES | {"state_size": 4}),
    "lfm2, convolutions": ("lfm2", SIZES | {"layer_types": ["conv", "full_attention"]}),
    "llama4, attention in chunks": ("llama4_text", SIZES | {"num_local_experts": 2}),
    "gpt-neo, a window of its own": (
        "gpt_neo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 128,
        },
    ),
    "bert, which looks ahead": ("bert", SIZES),
}


def random_model(kind: str, fields: dict[str, Any]) -> Any:
    """A tiny model of an architecture, with weights large enough that every mistake shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.std() < 0.1:
                parameter.normal_(0, 0.3)
    return model


def random_tokens(count: int, seed: int = 0) -> list[int]:
    """Tokens that every tiny model knows."""
    tokens: list[int] = np.random.default_rng(seed).integers(1, VOCABULARY, count).tolist()
    return tokens


def prefilled(model: TreeModel, prefix: Sequence[int]) -> KVCache:
    """A cache that holds a prefix."""
    cache = KVCache()
    model.prefill(cache, prefix)
    return cache


@torch.inference_mode()
def plain_logits(model: Any, tokens: Sequence[int]) -> Tensor:
    """What transformers itself says at the last token, with its own mask and no cache."""
    logits: Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
    return logits[0, -1]


@pytest.fixture(scope="module")
def llama() -> TreeModel:
    """A model for the tests that are not about architectures."""
    return TreeModel(tiny_llama(VOCABULARY, seed=1))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_tree_says_what_its_sequences_say(name: str) -> None:
    """At every node the logits are those of transformers on the path alone, windows or not."""
    reference = random_model(*ARCHITECTURES[name])
    model = TreeModel(reference)
    prefix, nodes = random_tokens(2 * WINDOW + 3), random_tokens(TREE.node_count, seed=1)
    ((logits, _),) = model.forward([Segment.tree(prefilled(model, prefix), TREE, nodes)])
    for node in range(TREE.node_count):
        path = [nodes[0], *(nodes[index] for index in TREE.path(node))]
        expected = plain_logits(reference, [*prefix, *path])
        assert torch.allclose(logits[node], expected, atol=ACCURACY), f"node {node}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_that_attend_over_trees_pass_the_check(name: str) -> None:
    """The check before serving refuses none of them."""
    check_tree_attention(TreeModel(random_model(*ARCHITECTURES[name])))


@pytest.mark.parametrize("name", UNFIT)
def test_models_that_cannot_attend_over_trees_are_refused(name: str) -> None:
    """A wrong answer would be silent: the check refuses them in one clear line."""
    with pytest.raises(ModelError, match=r"^this model (cannot be run|does not follow)"):
        check_tree_attention(TreeModel(random_model(*UNFIT[name])))


def test_the_test_prefix_is_longer_than_the_window() -> None:
    """Otherwise the comparison of architectures above would not show a wrong window."""
    windowed = random_model(*ARCHITECTURES["mistral with a window"])
    full = random_model(*ARCHITECTURES["mistral without"])
    tokens = random_tokens(2 * WINDOW + 3)
    assert not torch.allclose(plain_logits(windowed, tokens), plain_logits(full, tokens), atol=0.1)
    assert PREFIX_LENGTH > WINDOW


def test_a_batch_of_ragged_trees_equals_each_alone(llama: TreeModel) -> None:
    """Prefixes and trees of any size share a pass without touching each other."""
    shapes = [ROOT_ONLY, TREE, Topology((-1, 0, 1, 2, 3)), Topology((-1, 0, 0, 0))]
    prefixes = [random_tokens(length, seed=length) for length in (30, 3, 0, 11)]
    tokens = [random_tokens(shape.node_count, seed=9) for shape in shapes]

    def segment(index: int) -> Segment:
        return Segment.tree(prefilled(llama, prefixes[index]), shapes[index], tokens[index])

    alone = [llama.forward([segment(index)])[0].logits for index in range(4)]
    together = [output.logits for output in llama.forward([segment(index) for index in range(4)])]
    for one, other in zip(alone, together, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=ACCURACY)


def test_a_batch_with_windows_equals_each_alone() -> None:
    """A window counts positions, wherever the padding of a batch puts the rows."""
    model = TreeModel(random_model(*ARCHITECTURES["gemma3"]))
    prefixes = [random_tokens(length, seed=length) for length in (25, 9, 16)]
    nodes = random_tokens(TREE.node_count)
    alone = [
        model.forward([Segment.tree(prefilled(model, p), TREE, nodes)])[0].logits for p in prefixes
    ]
    together = model.forward([Segment.tree(prefilled(model, p), TREE, nodes) for p in prefixes])
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one, other.logits, atol=ACCURACY)


@pytest.mark.parametrize(
    "name", ["llama", "gemma3", "mistral with a window", "gpt2, learned positions"]
)
def test_steps_go_on_from_the_accepted_path(name: str) -> None:
    """After its rows were kept and the others dropped, the cache is that of the sequence."""
    reference = random_model(*ARCHITECTURES[name])
    model = TreeModel(reference)
    prefix, nodes = random_tokens(10), random_tokens(TREE.node_count, seed=1)
    cache = prefilled(model, prefix)
    model.forward([Segment.tree(cache, TREE, nodes)])
    accepted = [0, *TREE.path(6)]
    with torch.inference_mode():
        cache.keep(len(prefix), [len(prefix) + node for node in accepted])
    committed = [*prefix, *(nodes[node] for node in accepted)]
    following = random_tokens(TREE.node_count, seed=2)
    ((logits, _),) = model.forward([Segment.tree(cache, TREE, following)])
    for node in range(TREE.node_count):
        path = [following[0], *(following[index] for index in TREE.path(node))]
        expected = plain_logits(reference, [*committed, *path])
        assert torch.allclose(logits[node], expected, atol=ACCURACY)


def test_a_chain_says_what_the_sequence_says(llama: TreeModel) -> None:
    """Tokens behind a prefix see it and each other, in order."""
    tokens = random_tokens(12)
    cache = prefilled(llama, tokens[:5])
    ((logits, _),) = llama.forward([Segment.chain(cache, tokens[5:])])
    assert torch.allclose(logits, llama.plain(tokens).logits[5:], atol=ACCURACY)
    assert cache.length == len(tokens)


def test_a_prefill_in_chunks_equals_one_pass(llama: TreeModel) -> None:
    """A prompt longer than a chunk leaves the same cache."""
    tokens = random_tokens(PREFILL_CHUNK - 100)
    whole, parts = prefilled(llama, tokens), KVCache()
    for start in range(0, len(tokens), 150):
        llama.prefill(parts, tokens[start : start + 150])
    assert parts.length == whole.length == len(tokens)
    one_rows, other_rows = LayerRows.of(whole), LayerRows.of(parts)
    ours, theirs = (*one_rows.keys, *one_rows.values), (*other_rows.keys, *other_rows.values)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one[:, : whole.length], other[:, : whole.length], atol=ACCURACY)


def test_nothing_to_prefill_is_no_pass(llama: TreeModel) -> None:
    """A prompt of one token has no rows before its root."""
    assert prefilled(llama, []).length == 0


def test_a_pass_without_logits_still_fills_the_cache(llama: TreeModel) -> None:
    """Prefill needs the rows, not the output layer."""
    cache = KVCache()
    (output,) = llama.forward([Segment.chain(cache, [1, 2, 3])], with_logits=False)
    assert not output.logits.numel()
    assert cache.length == 3


def test_tokens_that_a_smaller_embedding_lacks_can_be_passed(llama: TreeModel) -> None:
    """A draft with fewer embedding rows than the target reads something else, and goes on."""
    ((logits, _),) = llama.forward([Segment.chain(KVCache(), [1, VOCABULARY + 5])])
    assert logits.isfinite().all()


def test_a_model_tells_its_limits(llama: TreeModel) -> None:
    """Vocabulary, embedding and context come from the model itself."""
    assert (llama.vocabulary_size, llama.embedding_size) == (VOCABULARY, VOCABULARY)
    assert llama.context_length == 512
    assert llama.dtype is torch.float32


def test_a_reduced_head_bounds_the_vocabulary_by_its_largest_id() -> None:
    """The rows of a draft's head stand for vocabulary ids."""
    model = TreeModel(tiny_llama(8, seed=1), torch.tensor([4, 90, 7, 0, 1, 2, 3, 5]))
    assert model.vocabulary_size == 91


def test_half_precision_passes_the_check() -> None:
    """Rounding is no wrong mask."""
    check_tree_attention(TreeModel(tiny_llama(VOCABULARY, seed=1).bfloat16()))

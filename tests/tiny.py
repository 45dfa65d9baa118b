"""Tiny random models with tokenizers of their own, made in a moment and the same every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from sequoia.runtime.loading import tensor_sha256

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"
)


def word_tokenizer(words: int) -> PreTrainedTokenizerFast:
    """Every token is a word: `w0 w1 …`; w0 ends a text."""
    vocabulary = {f"w{index}": index for index in range(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))  # noqa: S106 a token, no password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _finished(tokenizer, "w0")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, and one more ends a text: half characters are the normal case."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)} | {"<end>": 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _finished(tokenizer, "<end>")


def _finished(tokenizer: Tokenizer, end: str) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def tiny_llama(vocabulary: int, seed: int, layers: int = 2, **overrides: Any) -> Any:
    """A random Llama of some thousand parameters, with logits spread enough to have favourites."""
    fields: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(LlamaConfig(**{**fields, **overrides}))


def save_model(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a model folder as `--target` and `--draft` take it."""
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def nudged(model: Any, amount: float, seed: int) -> Any:
    """The same model with noise on every weight: a draft that mostly agrees."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(amount * parameter.std() * noise)
    return model


def word_pair(folder: Path, words: int = 12) -> tuple[Path, Path]:
    """A target and a draft that mostly agree, over words."""
    target = save_model(folder / "target", tiny_llama(words, seed=1), word_tokenizer(words))
    draft = nudged(tiny_llama(words, seed=1), 0.2, seed=2)
    return target, save_model(folder / "draft", draft, word_tokenizer(words))


def byte_pair(folder: Path, **overrides: Any) -> tuple[Path, Path]:
    """The same over bytes; the draft's embedding is padded beyond the target's."""
    target = save_model(folder / "target", tiny_llama(257, seed=3, **overrides), byte_tokenizer())
    draft = nudged(tiny_llama(257, seed=3, **overrides), 0.1, seed=4)
    draft.resize_token_embeddings(272)
    return target, save_model(folder / "draft", draft, byte_tokenizer())


def feature_draft(folder: Path, target: Path, influence: float = 0.05) -> Path:
    """A feature-conditioned draft that mostly agrees: all of a target's layers, and some influence.

    Half of the vocabulary's upper end is missing from its head.
    """
    model = AutoModelForCausalLM.from_pretrained(target)
    weights = {
        name: tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if "embed_tokens" not in name and "lm_head" not in name
    }
    hidden = model.config.hidden_size
    torch.manual_seed(11)
    fusion = torch.cat([torch.eye(hidden), influence * torch.randn(hidden, hidden)], dim=1)
    embedding = model.model.embed_tokens.weight.detach()
    model.config.save_pretrained(folder)
    save_file(
        {
            **weights,
            "fusion.weight": fusion,
            "head_token_ids": torch.arange(model.config.vocab_size * 3 // 4, dtype=torch.int32),
        },
        folder / "model.safetensors",
    )
    described = {
        "format": 1,
        "target": target.name,
        "embedding": "model.embed_tokens.weight",
        "head": "lm_head.weight",
        "embedding_sha256": tensor_sha256(embedding),
    }
    (folder / "sequoia_draft.json").write_text(json.dumps(described))
    return folder

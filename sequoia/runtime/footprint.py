"""What a token costs in KV cache."""

from __future__ import annotations

from typing import Any

import torch

from sequoia.runtime.cache import GROWTH_ROWS, KVCache
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.segment import Segment

# Marks of configs whose caches are not simply layers by heads.
EXOTIC_FIELDS = ("kv_lora_rank", "num_kv_shared_layers")


def kv_bytes_per_token(model: TreeModel) -> int:
    """Bytes of KV cache for one token of one session, all layers together; of one shard's heads."""
    if model.shard_count > 1:  # how many of them a shard has, its plan decides
        return measured_kv_bytes_per_token(model)
    told = told_kv_bytes_per_token(model.model.config, model.dtype)
    return measured_kv_bytes_per_token(model) if told is None else told


def told_kv_bytes_per_token(model_config: Any, dtype: torch.dtype) -> int | None:
    """The same from a configuration; None where that does not tell."""
    config = model_config.get_text_config(decoder=True)
    layers = getattr(config, "num_hidden_layers", None)
    heads = getattr(config, "num_key_value_heads", None)
    head_size = getattr(config, "head_dim", None)
    if head_size is None and hasattr(config, "hidden_size"):
        head_size = config.hidden_size // config.num_attention_heads
    if any(getattr(config, name, None) for name in EXOTIC_FIELDS) or not (
        isinstance(layers, int) and isinstance(heads, int) and isinstance(head_size, int)
    ):
        return None
    return 2 * layers * heads * head_size * dtype.itemsize


def measured_kv_bytes_per_token(model: TreeModel) -> int:
    """The same from the cache of a pass, for configs that do not tell."""
    cache = KVCache()
    model.forward([Segment.chain(cache, [1])], with_logits=False)
    return cache.memory_bytes // GROWTH_ROWS

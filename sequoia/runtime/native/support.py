"""Which models the compiled engine was written for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

PANEL = 32  # columns that are packed together; inner sizes are multiples of it
HEAD_DIM_STEP = 16
FAMILIES = frozenset({"llama", "mistral", "qwen2"})
ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})  # the same at every length of text
DTYPES = frozenset({torch.float32, torch.bfloat16})


def misfit(model: Any, fusion: nn.Linear | None) -> str:
    """The first thing about a model that the engine was not written for; empty where it fits."""
    if model.config.model_type not in FAMILIES:
        return f"not written for models of type {model.config.model_type}"
    return next(_misfits(model, fusion), "")


def _misfits(model: Any, fusion: nn.Linear | None) -> Iterator[str]:
    config = model.config
    if model.device.type != "cpu":
        yield f"the model is on {model.device}"
    if model.dtype not in DTYPES:
        yield f"not written for {model.dtype}"
    if config.hidden_act != "silu" or getattr(config, "mlp_bias", False):
        yield "not written for this feed-forward layer"
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if rotation not in ROTATIONS:
        yield f"not written for rotary positions of type {rotation}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        yield "not written for sliding windows"
    linears = [*_linears(model), *([] if fusion is None else [fusion])]
    if any(type(linear) is not nn.Linear for linear in linears):
        yield "not written for linear layers that compute something else"
    embedding = model.get_input_embeddings().weight
    if any(weight.dtype is not model.dtype for weight in (embedding, *(x.weight for x in linears))):
        yield "not written for weights of several types"
    head_dim = model.model.layers[0].self_attn.head_dim
    sizes = [config.hidden_size, config.num_attention_heads * head_dim, config.intermediate_size]
    sizes += [fusion.in_features] if fusion is not None else []
    if any(size % PANEL for size in sizes):
        yield f"sizes {sizes} are not all multiples of {PANEL}"
    if head_dim % HEAD_DIM_STEP:
        yield f"heads of {head_dim} are no multiple of {HEAD_DIM_STEP}"


def _linears(model: Any) -> list[nn.Module]:
    """Every linear layer that the engine takes over."""
    taken = [model.get_output_embeddings()]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        taken += [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        taken += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return taken

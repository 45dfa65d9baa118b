"""Where the target's numbers stand in the wide model, so that it says the same. All else is zero.

Hidden size. The residual stream is the target's w elements and W - w zeros. A mean over W elements is
w/W of the mean over w, so with eps' = eps·w/W and g' = g·sqrt(w/W) the norm

    x / sqrt(mean_W(x²) + eps') · g'  =  x / sqrt(mean_w(x²) + eps) · g

is the target's (Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467). What the
output layer reads is therefore the target's features and zeros.

Heads. A query head of the wide model attends to the KV head of its group. The target's groups are laid
into the wide ones; where these are smaller, a group takes several, each with a copy of its KV head.
The heads in between have no query, no key and no value, and no column of the output projection.

Layers. Those that are added put nothing on the residual stream: their output projections are zero, as
all their weights are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sequoia.widening.shapes import Shape, kv_copies

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


class Block(NamedTuple):
    """Rows or columns that stay together."""

    wide: int
    source: int
    length: int


def tensor_sizes(shape: Shape, vocabulary: int, is_tied: bool) -> dict[str, tuple[int, ...]]:
    """Names and sizes of a Llama's tensors, in the order in which a pass reads them."""
    hidden, ffn = shape.hidden, shape.ffn
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    sizes: dict[str, tuple[int, ...]] = {EMBEDDING: (vocabulary, hidden)}
    for index in range(shape.layers):
        sizes |= {f"model.layers.{index}.{name}.weight": size for name, size in layer.items()}
    sizes[NORM] = (hidden,)
    return sizes if is_tied else sizes | {HEAD: (vocabulary, hidden)}


def widened(
    name: str,
    values: Tensor,
    source: Shape,
    wide: Shape,
    size: tuple[int, ...],
    dtype: torch.dtype,
) -> Tensor:
    """A tensor of the target in the wide model: zeros, and the target's numbers among them.

    Args:
        name: the tensor's.
        values: the target's.
        source: the target's shape.
        wide: the wide model's.
        size: the tensor's in the wide model.
        dtype: the result's.
    """
    out = torch.zeros(size, dtype=dtype)
    if values.dim() == 1:  # a norm
        out[: len(values)] = values.float() * math.sqrt(source.hidden / wide.hidden)
        return out
    rows, columns = ([Block(0, 0, length)] for length in values.shape)
    match name.split(".")[-2]:
        case "q_proj":
            rows = _query_blocks(source, wide)
        case "k_proj" | "v_proj":
            rows = _key_blocks(source, wide)
        case "o_proj":
            columns = _query_blocks(source, wide)
    for row in rows:
        for column in columns:
            out[_wide(row), _wide(column)] = values[_source(row), _source(column)]
    return out


def padded_columns(values: Tensor, count: int) -> Tensor:
    """A matrix with columns of zeros behind its own, `[rows, count]`."""
    return torch.nn.functional.pad(values, (0, count - values.shape[1]))


def _query_blocks(source: Shape, wide: Shape) -> list[Block]:
    """Query head j is the i-th of its group g, and becomes the i-th of the wide groups for g."""
    blocks = []
    for head in range(source.heads):
        group, index = divmod(head, source.group)
        first = group * kv_copies(source, wide) * wide.group
        blocks.append(_head_block(first + index, head, source))
    return blocks


def _key_blocks(source: Shape, wide: Shape) -> list[Block]:
    """KV head g becomes the KV heads of the wide groups for g."""
    copies = kv_copies(source, wide)
    heads = range(source.kv_heads * copies)
    return [_head_block(head, head // copies, source) for head in heads]


def _head_block(wide: int, head: int, source: Shape) -> Block:
    return Block(wide * source.head_dim, head * source.head_dim, source.head_dim)


def _wide(block: Block) -> slice:
    return slice(block.wide, block.wide + block.length)


def _source(block: Block) -> slice:
    return slice(block.source, block.source + block.length)

"""A lean decoder for Llama-shaped targets: static KV cache, one token a row a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sequoia.distillation.decode import Prefix


def is_plain_llama(config: Any) -> bool:
    """Whether a target is a Llama without any of the variations that `LlamaDecoder` lacks."""
    if config.model_type != "llama":
        return False
    rope = config.rope_parameters or {}
    return (
        rope.get("rope_type", "default") == "default"
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and config.hidden_act == "silu"
        and not config.attention_bias
        and not config.mlp_bias
    )


class LlamaDecoder:
    """See `sequoia.distillation.decode.Decoder`; everything is computed in one precision."""

    def __init__(
        self,
        config: Any,
        weights: Mapping[str, Tensor],
        rows: int,
        length: int,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Take the checkpoint's `weights` by name; reserve `rows` x `length` cache positions."""
        self.rows, self.length = rows, length
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads or self.heads
        self.head_dim = config.head_dim or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps
        self.layers = [_layer(weights, i, dtype) for i in range(config.num_hidden_layers)]
        self.embedding = weights["model.embed_tokens.weight"].to(dtype)
        own = None if config.tie_word_embeddings else weights.get("lm_head.weight")
        self.head = self.embedding if own is None else own.to(dtype)
        self.norm = weights["model.norm.weight"].to(dtype)
        self.device = self.embedding.device
        shape = (len(self.layers), 2, rows, self.kv_heads, length, self.head_dim)
        self.cache = torch.zeros(shape, dtype=dtype, device=self.device)
        theta = float((config.rope_parameters or {}).get("rope_theta") or 10000.0)
        frequency = theta ** -(torch.arange(0, self.head_dim, 2) / self.head_dim)
        angle = torch.outer(torch.arange(length), frequency).repeat(1, 2)  # [length, head_dim]
        self.cos, self.sin = (x.to(self.device, dtype) for x in (angle.cos(), angle.sin()))
        self.index = torch.arange(rows, device=self.device)
        self.places = torch.arange(length, device=self.device)

    @torch.inference_mode()
    def step(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Feed one token a row at its position: normed last hidden states, `[rows, hidden]`."""
        token_ids, positions = token_ids.to(self.device), positions.to(self.device)
        rows, group = len(token_ids), self.heads // self.kv_heads
        unseen = self.places > positions[:, None]  # [rows, length]
        mask = torch.zeros(unseen.shape, device=self.device)
        mask = mask.masked_fill_(unseen, -torch.inf)[:, None, None]
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]  # [rows, 1, head_dim]
        x, index = self.embedding[token_ids], self.index[:rows]
        for layer, cache in zip(self.layers, self.cache[:, :, :rows], strict=True):
            qkv = F.linear(self._norm(x, layer["in_norm"]), layer["qkv"])
            qkv = qkv.view(rows, -1, self.head_dim)
            rotated = qkv[:, : self.heads + self.kv_heads]
            rotated = rotated * cos + _rotate_half(rotated) * sin
            cache[0, index, :, positions] = rotated[:, self.heads :]
            cache[1, index, :, positions] = qkv[:, self.heads + self.kv_heads :]
            # Query heads that share a KV head stand in for query positions: no copies of K or V.
            query = rotated[:, : self.heads].reshape(rows, self.kv_heads, group, self.head_dim)
            # The whole cache, not a slice of it: a sliced operand would be copied by `bmm`.
            scores = query @ cache[0].transpose(-1, -2) * self.head_dim**-0.5 + mask
            mixed = scores.softmax(-1).to(x.dtype) @ cache[1]
            x = x + F.linear(mixed.reshape(rows, -1), layer["out"])
            gate, up = F.linear(self._norm(x, layer["mlp_norm"]), layer["gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        return self._norm(x, self.norm)

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """Scores of every token id, in fp32: `[rows, hidden]` to `[rows, vocabulary]`."""
        return F.linear(features, self.head).float()

    def prefix_of(self, token_ids: list[int]) -> Prefix:
        """Keys and values of a common opening; the first row is scratch for it."""
        states = [
            self.step(torch.tensor([token_id]), torch.tensor([position]))
            for position, token_id in enumerate(token_ids)
        ]
        return Prefix(self.cache[:, :, 0, :, : len(token_ids)].clone(), torch.cat(states))

    def seed(self, row: int, prefix: Prefix) -> None:
        """Put the keys and values of a prefix at the start of `row`."""
        self.cache[:, :, row, :, : prefix.state.shape[-2]] = prefix.state

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)


def _layer(weights: Mapping[str, Tensor], index: int, dtype: torch.dtype) -> dict[str, Tensor]:
    def named(name: str) -> Tensor:
        return weights[f"model.layers.{index}.{name}.weight"].to(dtype)

    return {
        "in_norm": named("input_layernorm"),
        "qkv": torch.cat([named(f"self_attn.{x}_proj") for x in "qkv"]),
        "out": named("self_attn.o_proj"),
        "mlp_norm": named("post_attention_layernorm"),
        "gate_up": torch.cat([named("mlp.gate_proj"), named("mlp.up_proj")]),
        "down": named("mlp.down_proj"),
    }


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)

"""A lean batched decoder for Llama-shaped targets: static KV cache, one token a row a step."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig

CHUNK = 256
"""Tokens per block of the two-stage draw in `draw`."""


class Decoder:
    """Runs `rows` sequences side by side, each at its own position.

    Rows are independent slots: to start a new sequence in one, set its position back to 0 (or to
    the length of a prefix put there with `seed`). Everything is computed in the dtype of `weights`.
    """

    def __init__(
        self, config: LlamaConfig, weights: Mapping[str, Tensor], rows: int, length: int
    ) -> None:
        """Take the checkpoint's `weights` by name; reserve `rows` x `length` cache positions."""
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads or self.heads
        self.head_dim = config.head_dim or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps
        self.layers = [_layer(weights, i) for i in range(config.num_hidden_layers)]
        self.embedding = weights["model.embed_tokens.weight"]
        self.head = weights.get("lm_head.weight", self.embedding)
        self.norm = weights["model.norm.weight"]
        shape = (len(self.layers), 2, rows, self.kv_heads, length, self.head_dim)
        self.cache = torch.zeros(shape, dtype=self.embedding.dtype)
        rope = config.rope_parameters or {}
        theta = float(rope.get("rope_theta") or 10000.0)
        frequency = theta ** -(torch.arange(0, self.head_dim, 2) / self.head_dim)
        angle = torch.outer(torch.arange(length), frequency).repeat(1, 2)  # [length, head_dim]
        self.cos, self.sin = angle.cos().to(self.cache.dtype), angle.sin().to(self.cache.dtype)
        self.index = torch.arange(rows)

    @torch.no_grad()
    def step(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Feed one token a row at its position: normed last hidden states, [rows, hidden]."""
        rows, group = len(token_ids), self.heads // self.kv_heads
        unseen = torch.arange(self.cache.shape[-2]) > positions[:, None]  # [rows, length]
        mask = torch.zeros(unseen.shape).masked_fill_(unseen, -torch.inf)[:, None, None]
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]  # [rows, 1, head_dim]
        x = self.embedding[token_ids]
        for layer, cache in zip(self.layers, self.cache, strict=True):
            qkv = F.linear(self._norm(x, layer["in_norm"]), layer["qkv"])
            qkv = qkv.view(rows, -1, self.head_dim)
            rotated = qkv[:, : self.heads + self.kv_heads]
            rotated = rotated * cos + _rotate_half(rotated) * sin
            cache[0, self.index, :, positions] = rotated[:, self.heads :]
            cache[1, self.index, :, positions] = qkv[:, self.heads + self.kv_heads :]
            # Query heads that share a KV head stand in for query positions: no copies of K or V.
            query = rotated[:, : self.heads].reshape(rows, self.kv_heads, group, self.head_dim)
            # The whole cache, not a slice of it: a sliced operand would be copied by `bmm`.
            scores = query @ cache[0].transpose(-1, -2) * self.head_dim**-0.5 + mask
            mixed = scores.softmax(-1).to(x.dtype) @ cache[1]
            x = x + F.linear(mixed.reshape(rows, -1), layer["out"])
            gate, up = F.linear(self._norm(x, layer["mlp_norm"]), layer["gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        return self._norm(x, self.norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token id, in fp32: [rows, hidden] -> [rows, vocab]."""
        return F.linear(hidden, self.head).float()

    def seed(self, row: int, prefix: Tensor) -> None:
        """Put the cached keys and values of a prefix (from `prefix_of`) at the start of `row`."""
        self.cache[:, :, row, :, : prefix.shape[-2]] = prefix

    def prefix_of(self, token_ids: list[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of a common opening, and its hidden states [tokens, hidden].

        Uses every row as scratch, so call it before any row is in use.
        """
        rows = len(self.index)
        states = [
            self.step(torch.full((rows,), token), torch.full((rows,), position))[0]
            for position, token in enumerate(token_ids)
        ]
        return self.cache[:, :, 0, :, : len(token_ids)].clone(), torch.stack(states)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)


def draw(logits: Tensor, temperatures: Tensor, generator: torch.Generator) -> Tensor:
    """One token id a row from softmax(logits / temperature); the argmax where that is 0.

    Inverts the cumulative distribution in two stages (which block, then which token), which costs
    one pass over the vocabulary instead of a random number per entry.
    """
    top, best = logits.max(-1)
    scale = 1 / temperatures.clamp_min(1e-3)
    weight = (logits - top[:, None]).mul_(scale[:, None]).exp_()
    weight = F.pad(weight, (0, -weight.shape[-1] % CHUNK)).view(len(logits), -1, CHUNK)
    chunk_end = weight.sum(-1).cumsum(-1)  # [rows, chunks]
    mark = torch.rand(len(logits), 1, generator=generator) * chunk_end[:, -1:]
    chunk = torch.searchsorted(chunk_end, mark, right=True).clamp_max(chunk_end.shape[-1] - 1)
    start = F.pad(chunk_end, (1, 0)).gather(1, chunk)
    inner_end = weight.gather(1, chunk[..., None].expand(-1, 1, CHUNK))[:, 0].cumsum(-1)
    inner = torch.searchsorted(inner_end, mark - start, right=True).clamp_max(CHUNK - 1)
    drawn = (chunk * CHUNK + inner)[:, 0].clamp_max(logits.shape[-1] - 1)
    return torch.where(temperatures > 0, drawn, best)


def _layer(weights: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    def named(name: str) -> Tensor:
        return weights[f"model.layers.{index}.{name}.weight"]

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

"""A model's weights, packed for the compiled engine."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sequoia.runtime.native import structures as c
from sequoia.runtime.native.library import NativeUnavailableError
from sequoia.runtime.native.support import PANEL


class PackedWeights:
    """Takes over every weight of a model, and gives the model's own memory of it back.

    The embedding stays as it is, beside the packed head where the two are tied.
    """

    def __init__(self, library: ctypes.CDLL, model: Any, fusion: nn.Linear | None) -> None:
        self._library = library
        self._dtype: torch.dtype = model.dtype
        self._arena = _Arena(model, self._dtype)
        self._kept: list[Tensor] = []  # small tensors that the structures point to
        self.decoder = self._take_over(model, fusion)

    def _take_over(self, model: Any, fusion: nn.Linear | None) -> c.Decoder:
        config, layers = model.config, model.model.layers
        taken = [self._layer(layer) for layer in layers]
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings().weight
        vocabulary, is_tied = len(head.weight), head.weight is embedding
        self._kept.append(embedding.detach())
        return c.Decoder(
            len(taken),
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            layers[0].self_attn.head_dim,
            config.intermediate_size,
            vocabulary,
            int(self._dtype is torch.bfloat16),
            model.model.norm.variance_epsilon,
            layers[0].self_attn.scaling,
            (c.Layer * len(taken))(*taken),
            self._floats(model.model.norm.weight),
            self._linear([head], releases=not is_tied),
            c.Linear() if fusion is None else self._linear([fusion]),
            c.address(embedding),
            embedding.shape[1],
        )

    def _layer(self, layer: Any) -> c.Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return c.Layer(
            self._linear([attention.q_proj, attention.k_proj, attention.v_proj]),
            self._linear([attention.o_proj]),
            self._gate_up(mlp.gate_proj, mlp.up_proj),
            self._linear([mlp.down_proj]),
            self._floats(layer.input_layernorm.weight),
            self._floats(layer.post_attention_layernorm.weight),
        )

    def _linear(self, parts: Sequence[nn.Linear], releases: bool = True) -> c.Linear:
        """Linear layers of the same input as one."""
        weight = torch.cat([part.weight.detach() for part in parts])
        biases: list[Tensor | None] = [part.bias for part in parts]
        bias = None
        if any(one is not None for one in biases):
            zeros = [part.weight.new_zeros(len(part.weight)) for part in parts]
            filled: list[Tensor] = [
                z if b is None else b for b, z in zip(biases, zeros, strict=True)
            ]
            bias = self._floats(torch.cat(filled))
        return self._packed(weight, bias, parts if releases else ())

    def _gate_up(self, gate: nn.Linear, up: nn.Linear) -> c.Linear:
        """Both in alternating panels."""
        pairs = [part.weight.detach().unflatten(0, (-1, PANEL)) for part in (gate, up)]
        return self._packed(torch.stack(pairs, 1).flatten(0, 2), None, (gate, up))

    def _packed(self, weight: Tensor, bias: int | None, released: Sequence[nn.Linear]) -> c.Linear:
        outputs, inputs = weight.shape
        packed = self._arena.take(-(-outputs // PANEL) * PANEL * inputs)
        weight = weight.to(self._dtype).contiguous()
        self._library.sequoia_pack(
            int(self._dtype is torch.bfloat16),
            ctypes.c_void_p(c.address(weight)),
            outputs,
            inputs,
            ctypes.c_void_p(c.address(packed)),
        )
        for linear in released:
            linear.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)
        return c.Linear(c.address(packed), bias, inputs, outputs)

    def _floats(self, tensor: Tensor) -> int:
        floats = tensor.detach().float().contiguous()
        self._kept.append(floats)
        return c.address(floats)


class _Arena:
    """Memory for all packed weights, in huge pages where the system has them.

    Passes read it from end to end; with pages of 4 KiB a part of the bandwidth goes into looking
    them up.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        elements = sum((len(linear.weight) + PANEL) * linear.in_features for linear in linears)
        size = elements * dtype.itemsize  # pages count once they are written
        try:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise NativeUnavailableError(f"no memory for {size} bytes of weights") from error
        with contextlib.suppress(AttributeError, OSError):  # a system without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._left = torch.frombuffer(memory, dtype=dtype)

    def take(self, elements: int) -> Tensor:
        """Some elements more."""
        taken, self._left = self._left[:elements], self._left[elements:]
        return taken

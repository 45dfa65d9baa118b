"""The least time that a pass can take here: what it must read and compute, over what the machine can.

Measured in the same run: memory bandwidth by adding up a buffer much larger than any cache, and
matrix rate by a large product in the models' precision; of each the best of several, since it is a limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from sequoia.runtime.device import finish

BUFFER_BYTES = 2**30
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
MEASUREMENTS = 7


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """What the device can do: bytes read and operations computed a second."""

    bytes_per_second: float
    operations_per_second: float

    def seconds(self, byte_count: float, operation_count: float) -> float:
        """The least time for both, each at its own limit and at the same time."""
        return max(byte_count / self.bytes_per_second, operation_count / self.operations_per_second)

    def as_json(self) -> dict[str, float]:
        """For reports."""
        return {
            "bytes_per_second": self.bytes_per_second,
            "operations_per_second": self.operations_per_second,
        }


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A dense decoder, as far as the cost of its passes goes.

    Attributes:
        weight_count: elements of all matrices that a pass multiplies by, the output layer included.
        cache_elements: that attention reads for each cached token, over all layers.
        score_operations: of attention, for each pair of a new token and one that it sees.
        element_bytes: of weights and cache.
    """

    weight_count: int
    cache_elements: int
    score_operations: int
    element_bytes: int

    @classmethod
    def of(
        cls, config: object, element_bytes: int, output_rows: int | None, fused: int
    ) -> ModelSize:
        """Of a configuration of transformers, without its weights.

        Args:
            config: the configuration.
            element_bytes: of the precision.
            output_rows: of a reduced output layer; None for a full one.
            fused: elements that a feature-conditioned draft reads beside the embedding, else 0.
        """
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        text = model.config.get_text_config(decoder=True)
        hidden, layers, heads = text.hidden_size, text.num_hidden_layers, text.num_attention_heads
        head_size = getattr(text, "head_dim", None) or hidden // heads
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        output = model.get_output_embeddings()
        weights = sum(
            module.weight.numel()
            for module in model.modules()
            if isinstance(module, nn.Linear) and module is not output
        )
        weights += (output_rows or output.weight.shape[0]) * hidden
        weights += hidden * (hidden + fused) if fused else 0
        return cls(
            weights,
            2 * layers * kv_heads * head_size,
            4 * layers * heads * head_size,
            element_bytes,
        )

    def bytes_moved(self, nodes: int, batch: int, prefix: int) -> float:
        """Weights once, and every session's cached keys and values."""
        cached = batch * (prefix + nodes) * self.cache_elements
        return float((self.weight_count + cached) * self.element_bytes)

    def operations(self, nodes: int, batch: int, prefix: int) -> float:
        """Two for each weight and new token, and those of attention."""
        seen = nodes * (prefix + nodes) * self.score_operations
        return float(batch * (2 * nodes * self.weight_count + seen))


class LimitMeter:
    """Measures the limits; made in a process of its own."""

    def __init__(self, device: torch.device, dtype: torch.dtype, threads: int) -> None:
        torch.set_num_threads(threads)
        self._device, self._dtype = device, dtype

    @torch.inference_mode()
    def measure(self) -> MachineLimits:
        """Both limits, in some seconds."""
        bandwidth = BUFFER_BYTES / self._seconds_to_read()
        size = MATRIX_SIZE[self._device.type]
        left = torch.ones(size, size, dtype=self._dtype, device=self._device)
        right = torch.ones_like(left)
        rate = 2 * size**3 / self._best(partial(F.linear, left, right))
        return MachineLimits(bandwidth, rate)

    def _seconds_to_read(self) -> float:
        """The whole buffer, in whichever way is faster here."""
        buffer = torch.ones(BUFFER_BYTES // 4, device=self._device)
        return min(self._best(buffer.sum), self._best(partial(torch.dot, buffer, buffer)))

    def _best(self, run: Callable[[], object]) -> float:
        """The least seconds of several, after one that does not count."""
        seconds = []
        for _ in range(MEASUREMENTS + 1):
            finish(self._device)
            started = time.perf_counter()
            run()
            finish(self._device)
            seconds.append(time.perf_counter() - started)
        return min(seconds[1:])

"""The memory of a KV cache as transformers has it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sequoia.runtime.cache import KVCache, Rows, grown_capacity


class LayerRows:
    """Rows as transformers has them, two tensors a layer."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []  # per layer [heads, capacity, head_dim]
        self.values: list[Tensor] = []

    @classmethod
    def of(cls, cache: KVCache) -> LayerRows:
        """The memory of a cache that this engine fills."""
        if cache.rows is None:
            cache.rows = cls()
        if not isinstance(cache.rows, cls):
            raise TypeError("the cache was filled by another engine")
        return cache.rows

    @property
    def memory_bytes(self) -> int:
        """See `Rows`."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def write(self, layer: int, at: int, keys: Tensor, values: Tensor) -> None:
        """Write rows `[heads, rows, head_dim]` of one layer from row `at` on; those below stay."""
        end = at + keys.shape[1]
        if layer == len(self.keys):
            self.keys.append(keys.new_empty(keys.shape[0], 0, keys.shape[2]))
            self.values.append(values.new_empty(values.shape[0], 0, values.shape[2]))
        if end > self.keys[layer].shape[1]:
            capacity = grown_capacity(self.keys[layer].shape[1], end)
            self.keys[layer] = _beginning(self.keys[layer], at, capacity)
            self.values[layer] = _beginning(self.values[layer], at, capacity)
        self.keys[layer][:, at:end] = keys
        self.values[layer][:, at:end] = values

    @property
    def is_retainable(self) -> bool:
        """See `Rows`."""
        return True

    def copied(self, length: int) -> Rows | None:
        """See `Rows`."""
        other = LayerRows()
        other.copy(self, length)
        return other

    def copy(self, one: LayerRows, length: int) -> None:
        """Become another's first `length` rows."""
        capacity = grown_capacity(0, length)
        self.keys = [_beginning(tensor, length, capacity) for tensor in one.keys]
        self.values = [_beginning(tensor, length, capacity) for tensor in one.values]

    def repeated(self, length: int) -> Rows:
        """See `Rows`."""
        other = LayerRows()
        other.repeat(self, length)
        return other

    def repeat(self, one: LayerRows, length: int) -> None:
        """Become `length` rows that all repeat another's first."""
        capacity = grown_capacity(0, length)
        self.keys = [tensor[:, :1].repeat(1, capacity, 1) for tensor in one.keys]
        self.values = [tensor[:, :1].repeat(1, capacity, 1) for tensor in one.values]

    def move(self, start: int, rows: Sequence[int]) -> None:
        """See `Rows`."""
        index = torch.tensor(rows, device=self.keys[0].device, dtype=torch.long)
        for tensor in (*self.keys, *self.values):
            tensor[:, start : start + len(rows)] = tensor[:, index]


def _beginning(tensor: Tensor, length: int, capacity: int) -> Tensor:
    """The first `length` rows of `[heads, rows, head_dim]`, with room for `capacity`."""
    other = tensor.new_zeros(tensor.shape[0], capacity, tensor.shape[2])
    other[:, :length] = tensor[:, :length]
    return other

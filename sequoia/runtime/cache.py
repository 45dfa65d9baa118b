"""The KV cache of a session, and the view of several of them that one forward pass needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH_ROWS = 256


class Rows(Protocol):
    """The memory of a cache, in whatever layout the engine that fills it reads best."""

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated."""

    def move(self, start: int, rows: Sequence[int]) -> None:
        """Let `rows`, which rise, become rows start, start + 1, ..."""

    def repeated(self, length: int) -> Rows:
        """Memory of `length` rows that all repeat the first."""

    @property
    def is_retainable(self) -> bool:
        """Whether they may stay when their session is closed."""

    def copied(self, length: int) -> Rows | None:
        """Memory of its own with the first `length` rows; None where there is no room for it."""


class KVCache:
    """Keys and values of one session, written in place, grown in blocks of rows.

    Rows below `length` are valid. A pass writes its rows behind them; they become valid when the
    pass is over and `length` is raised. The engine that runs the first pass brings the memory.
    """

    def __init__(self) -> None:
        self.length = 0
        self.rows: Rows | None = None

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated."""
        return self.rows.memory_bytes if self.rows else 0

    def free(self) -> None:
        """Give the memory back at once, whoever still knows this cache."""
        self.rows, self.length = None, 0

    @property
    def is_retainable(self) -> bool:
        """Whether there are rows that may stay when their session is closed."""
        return self.rows is not None and self.rows.is_retainable

    def copied(self, length: int) -> KVCache | None:
        """A cache with the first `length` rows in memory of its own; None where there is no room."""
        rows = self.rows  # looked at once, since whoever needs the room may free them meanwhile
        rows = rows.copied(length) if rows else None
        if rows is None:
            return None
        other = KVCache()
        other.rows, other.length = rows, length
        return other

    def repeated(self, length: int) -> KVCache:
        """A cache of `length` rows that all repeat the first: like any other, to a clock."""
        other = KVCache()
        if self.rows:
            other.rows = self.rows.repeated(length)
        other.length = length
        return other

    def keep(self, start: int, rows: Sequence[int]) -> None:
        """Drop every row from `start` on but the given ones, which move up in their order."""
        length = start + len(rows)
        if self.rows and list(rows) != list(range(start, length)):
            self.rows.move(start, rows)
        self.length = length


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


def cache_argument(module: nn.Module) -> str:
    """The name by which a transformers module takes its cache; later ones have another than earlier ones."""
    is_renamed = "cache" in inspect.signature(module.forward).parameters
    return "cache" if is_renamed else "past_key_values"


def grown_capacity(capacity: int, needed: int) -> int:
    """Rows to allocate for `needed` ones; an eighth more than before, to copy long texts seldom."""
    rows = max(needed, capacity + capacity // 8)
    return -(-rows // GROWTH_ROWS) * GROWTH_ROWS


def _beginning(tensor: Tensor, length: int, capacity: int) -> Tensor:
    """The first `length` rows of `[heads, rows, head_dim]`, with room for `capacity`."""
    other = tensor.new_zeros(tensor.shape[0], capacity, tensor.shape[2])
    other[:, :length] = tensor[:, :length]
    return other


class Homes(Protocol):
    """Where transformers' sessions have their rows, and how a pass comes by them.

    Attributes:
        spare: to be called when a place has no more room; frees rows that nobody needs, if there are any.
    """

    spare: Callable[[], bool]

    def serving(
        self, caches: Sequence[KVCache], row_counts: Sequence[int]
    ) -> AbstractContextManager[None]:
        """A pass that writes so many rows behind each of the caches."""

    def extended(
        self, cache: KVCache, layer: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write rows `[heads, rows, head_dim]` of a layer behind the valid ones; all of its rows."""


def nothing_to_spare() -> bool:
    """Frees no rows."""
    return False


class OnDevice:
    """All rows stay on the device that computes."""

    def __init__(self) -> None:
        self.spare: Callable[[], bool] = nothing_to_spare

    @contextmanager
    def serving(self, caches: Sequence[KVCache], row_counts: Sequence[int]) -> Iterator[None]:
        """See `Homes`."""
        yield

    def extended(
        self, cache: KVCache, layer: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Homes`."""
        rows, end = LayerRows.of(cache), cache.length + keys.shape[1]
        rows.write(layer, cache.length, keys, values)
        return rows.keys[layer][:, :end], rows.values[layer][:, :end]


class PassLayer(CacheLayerMixin):
    """One layer of a pass over several sessions, padded to the longest."""

    is_sliding = False

    def __init__(
        self, layer: int, caches: Sequence[KVCache], row_counts: Sequence[int], homes: Homes
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layer = layer
        self.caches = caches
        self.row_counts = row_counts
        self.homes = homes
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the sessions own the memory."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new rows `[batch, heads, rows, head_dim]`; return all rows, padded."""
        keys, values = [], []
        for index, (cache, count) in enumerate(zip(self.caches, self.row_counts, strict=True)):
            new = key_states[index, :, :count], value_states[index, :, :count]
            its_keys, its_values = self.homes.extended(cache, self.layer, *new)
            keys.append(its_keys)
            values.append(its_values)
        longest = max(tensor.shape[1] for tensor in keys)
        return _stacked(keys, longest), _stacked(values, longest)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys; unused, since every pass brings its own mask."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Valid rows of the longest session."""
        return max(cache.length for cache in self.caches)

    def get_max_length(self) -> int:
        """No bound of its own."""
        return -1


def _stacked(tensors: Sequence[Tensor], length: int) -> Tensor:
    if len(tensors) == 1:
        return tensors[0].unsqueeze(0)
    first = tensors[0]
    stacked = first.new_zeros(len(tensors), first.shape[0], length, first.shape[2])
    for index, tensor in enumerate(tensors):
        stacked[index, :, : tensor.shape[1]] = tensor
    return stacked


class PassCache(Cache):
    """What transformers sees as the cache during one pass."""

    def __init__(
        self, caches: Sequence[KVCache], row_counts: Sequence[int], homes: Homes | None = None
    ) -> None:
        self._of_layers = caches, row_counts, homes or OnDevice()
        super().__init__(layers=[PassLayer(0, *self._of_layers)])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the layers as the model reaches them, then update as usual."""
        while len(self.layers) <= layer_idx:
            self.layers.append(PassLayer(len(self.layers), *self._of_layers))
        layer: Any = self.layers[layer_idx]
        keys, values = layer.update(key_states, value_states)
        return keys, values

"""What transformers sees as its cache in a pass over several sessions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from sequoia.runtime.cache import KVCache
from sequoia.runtime.layer_rows import LayerRows


def cache_argument(module: nn.Module) -> str:
    """The name by which a transformers module takes its cache; later ones have another than earlier ones."""
    is_renamed = "cache" in inspect.signature(module.forward).parameters
    return "cache" if is_renamed else "past_key_values"


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

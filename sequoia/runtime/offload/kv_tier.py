"""Keys and values in two places: on the device as long as they fit it, and in the host's memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from sequoia.runtime.cache import GROWTH_ROWS, KVCache, Rows, grown_capacity
from sequoia.runtime.layer_rows import LayerRows
from sequoia.runtime.offload.host_rows import HostRows
from sequoia.runtime.offload.shelf import Shelf
from sequoia.runtime.offload.windows import Guest, Windows
from sequoia.runtime.pass_cache import OnDevice, nothing_to_spare


class KVTier:
    """Where the sessions of an offloaded model have their rows (see `Homes`).

    A session begins on the device. When its rows no longer fit there beside those of the others, all of
    them move to the host, and stay there until it ends. Rows that closed sessions have left on the device
    give way before any move; none are left in the host's memory.

    Args:
        device_bytes: most bytes of rows on the device.
        token_bytes: what a token takes in all layers.
        shelf: the host's memory for rows; it has room for those of all sessions.
        windows: where these stand while their layer is computed.
    """

    def __init__(self, device_bytes: int, token_bytes: int, shelf: Shelf, windows: Windows) -> None:
        self._device_bytes = device_bytes
        self._token_bytes = token_bytes
        self._shelf = shelf
        self._windows = windows
        self._on_device = OnDevice()
        self.spare: Callable[[], bool] = nothing_to_spare
        self._resident: weakref.WeakSet[DeviceRows] = weakref.WeakSet()

    @contextmanager
    def serving(self, caches: Sequence[KVCache], row_counts: Sequence[int]) -> Iterator[None]:
        """See `Homes`."""
        guests = []
        for cache, count in zip(caches, row_counts, strict=True):
            end = cache.length + count
            cache.rows = rows = self._placed(cache, end)
            if isinstance(rows, HostRows):
                guests.append(Guest(rows, cache.length, end))
        self._windows.begin(guests)
        try:
            yield
        finally:
            self._windows.end()

    def extended(
        self, cache: KVCache, layer: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Homes`.

        Raises:
            MemoryError: the host's memory is full.
        """
        if isinstance(cache.rows, HostRows):
            return self._windows.extended(cache.rows, layer, keys, values)
        return self._on_device.extended(cache, layer, keys, values)

    def repeated(self, rows: LayerRows, length: int) -> Rows:
        """As many rows that all repeat the first, wherever there is room for them."""
        if self._has_device_room(grown_capacity(0, length), None):
            other = self._added()
            other.repeat(rows, length)
            return other
        return HostRows.moved(rows, 1, self._shelf).repeated(length)

    def copied(self, rows: LayerRows, length: int) -> Rows | None:
        """The first rows once more, if there is room for them on the device."""
        if not self._has_device_room(grown_capacity(0, length), None):
            return None
        other = self._added()
        other.copy(rows, length)
        return other

    def _placed(self, cache: KVCache, end: int) -> LayerRows | HostRows:
        """A session's rows, where they shall be when there are `end` of them.

        Where the host has no room either they stay; the worker's own limit then sees to it.
        """
        rows = self._added() if cache.rows is None else cache.rows
        if isinstance(rows, HostRows):
            return rows
        if not isinstance(rows, LayerRows):
            raise TypeError("the cache was filled by another engine")
        capacity = rows.keys[0].shape[1] if rows.keys else 0
        wanted = grown_capacity(capacity, end)
        if end <= capacity or self._has_device_room(wanted, rows) or not self._fits_host(end):
            return rows
        return HostRows.moved(rows, cache.length, self._shelf)

    def _has_device_room(self, capacity: int, but: LayerRows | None) -> bool:
        """Whether a session of so many rows fits once nothing is left there that could be spared."""
        while not self._fits_device(capacity, but):
            if not self.spare():
                return False
        return True

    def _fits_device(self, capacity: int, but: LayerRows | None) -> bool:
        """Whether a session of so many rows fits beside the others, `but` not counted."""
        others = sum(rows.memory_bytes for rows in self._resident if rows is not but)
        return others + capacity * self._token_bytes <= self._device_bytes

    def _fits_host(self, row_count: int) -> bool:
        blocks = -(-row_count // GROWTH_ROWS) * GROWTH_ROWS * self._token_bytes
        return blocks <= self._shelf.free_count * self._shelf.block_bytes

    def _added(self) -> DeviceRows:
        rows = DeviceRows(self)
        self._resident.add(rows)
        return rows


class DeviceRows(LayerRows):
    """Rows on the device that a tier knows of."""

    def __init__(self, tier: KVTier) -> None:
        super().__init__()
        self._tier = tier

    def repeated(self, length: int) -> Rows:
        """See `Rows`."""
        return self._tier.repeated(self, length)

    def copied(self, length: int) -> Rows | None:
        """See `Rows`."""
        return self._tier.copied(self, length)

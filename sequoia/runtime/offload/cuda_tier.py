"""Layers on a GPU: copied from pinned memory on a stream of their own, under the computation."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from sequoia.runtime.offload.disk import Disk, Pages
from sequoia.runtime.offload.extents import Layout
from sequoia.runtime.offload.host import host_pages
from sequoia.runtime.offload.lane import Lane

STAGING_COUNT = 2


class CudaSlot:
    """A buffer on the device, when it was filled, and when it was last used."""

    def __init__(self, byte_count: int, lane: Lane) -> None:
        self.bytes = torch.empty(byte_count, dtype=torch.uint8, device=lane.device)
        self.ready = lane.event()
        self.released = lane.event()
        # The allocator may hand out what a computation in the queue still reads.
        lane.mark_computed(self.released)


class Staging:
    """Memory of the host through which layers come from disk, and when it was last copied from."""

    def __init__(self, byte_count: int, lane: Lane) -> None:
        self.pages = host_pages(byte_count, lane.device)
        self.copied = lane.event()


class CudaTier:
    """Where the streamed layers of a model on a GPU come from.

    Args:
        layouts: the streamed layers.
        kept: those of them that stay in pinned memory of the host; the others are on disk.
        disk: to read from.
        dtype: in which the model runs; layers are converted on the way.
        lane: the copies to the GPU.

    Raises:
        HostMemoryError: the host cannot pin so much memory.
        OSError: a layer that stays in the host's memory cannot be read.
    """

    def __init__(
        self,
        layouts: Mapping[int, Layout],
        kept: Collection[int],
        disk: Disk,
        dtype: torch.dtype,
        lane: Lane,
    ) -> None:
        self._layouts = layouts
        self._disk = disk
        self._dtype = dtype
        self._lane = lane
        self._sizes = {layer: layout.placed_bytes(dtype) for layer, layout in layouts.items()}
        self._read_pages = Pages(max(layout.byte_count for layout in layouts.values()))
        self._staged = 0
        self._staging = [
            Staging(max(self._sizes.values()), lane)
            for _ in range(STAGING_COUNT if set(layouts) - set(kept) else 0)
        ]
        self._kept: dict[int, Pages] = {}
        for layer in kept:
            self._kept[layer] = host_pages(self._sizes[layer], lane.device)
            self._read(layer, self._kept[layer].bytes)

    def new_slot(self) -> CudaSlot:
        """A buffer for any of the layers."""
        return CudaSlot(max(self._sizes.values()), self._lane)

    @torch.inference_mode()
    def fill(self, layer: int, slot: CudaSlot) -> None:
        """Put a layer's copy on its way; called on the reading thread.

        Raises:
            OSError: it cannot be read.
        """
        if layer in self._kept:
            self._copy(layer, self._kept[layer], slot)
            return
        staging = self._staging[self._staged % STAGING_COUNT]
        self._staged += 1
        self._lane.wait(staging.copied)
        self._read(layer, staging.pages.bytes)
        self._copy(layer, staging.pages, slot)
        self._lane.mark(staging.copied)

    def tensors(self, layer: int, slot: CudaSlot) -> dict[str, Tensor]:
        """The layer's tensors by name, valid until the slot is released."""
        self._lane.compute_after(slot.ready)
        return self._layouts[layer].carved(slot.bytes, self._dtype)

    def release(self, slot: CudaSlot) -> None:
        """The layer's computation has been put into the queue."""
        self._lane.mark_computed(slot.released)

    def _copy(self, layer: int, source: Pages, slot: CudaSlot) -> None:
        size = self._sizes[layer]
        self._lane.hold_until(slot.released)
        self._lane.copy(slot.bytes[:size], source.bytes[:size])
        self._lane.mark(slot.ready)

    @torch.inference_mode()
    def _read(self, layer: int, memory: Tensor) -> None:
        """A layer from disk, converted."""
        layout = self._layouts[layer]
        self._disk.read(layout, self._read_pages)
        room = layout.carved(memory, self._dtype)
        for name, tensor in layout.views(self._read_pages.bytes).items():
            room[name].copy_(tensor)

"""Layers on a GPU: copied from pinned memory on a stream of their own, under the computation."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from sequoia.runtime.offload.disk import Disk, Pages
from sequoia.runtime.offload.extents import Layout

STAGING_COUNT = 2


class CudaSlot:
    """A buffer on the device, when it was filled, and when it was last used."""

    def __init__(self, byte_count: int, device: torch.device) -> None:
        self.bytes = torch.empty(byte_count, dtype=torch.uint8, device=device)
        self.ready = torch.cuda.Event()
        self.released = torch.cuda.Event()


class Staging:
    """Pinned memory through which layers come from disk, and when it was last copied from."""

    def __init__(self, byte_count: int) -> None:
        self.bytes = torch.empty(byte_count, dtype=torch.uint8, pin_memory=True)
        self.copied = torch.cuda.Event()


class CudaTier:
    """Where the streamed layers of a model on a GPU come from.

    Args:
        layouts: the streamed layers.
        kept: those of them that stay in pinned memory of the host; the others are on disk.
        disk: to read from.
        dtype: in which the model runs; layers are converted on the way.
        device: the GPU.
    """

    def __init__(
        self,
        layouts: Mapping[int, Layout],
        kept: Collection[int],
        disk: Disk,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._layouts = layouts
        self._disk = disk
        self._dtype = dtype
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._sizes = {layer: layout.placed_bytes(dtype) for layer, layout in layouts.items()}
        self._pages = Pages(max(layout.byte_count for layout in layouts.values()))
        self._staged = 0
        self._staging = [
            Staging(max(self._sizes.values()))
            for _ in range(STAGING_COUNT if set(layouts) - set(kept) else 0)
        ]
        self._kept: dict[int, Tensor] = {}
        for layer in kept:
            memory = torch.empty(self._sizes[layer], dtype=torch.uint8, pin_memory=True)
            self._read(layer, memory)
            self._kept[layer] = memory

    def new_slot(self) -> CudaSlot:
        """A buffer for any of the layers."""
        return CudaSlot(max(self._sizes.values()), self._device)

    @torch.inference_mode()
    def fill(self, layer: int, slot: CudaSlot) -> None:
        """Put a layer's copy on its way; called on the reading thread.

        Raises:
            OSError: it cannot be read.
        """
        staging, source = None, self._kept.get(layer)
        if source is None:
            staging = self._staging[self._staged % STAGING_COUNT]
            self._staged += 1
            staging.copied.synchronize()
            source = staging.bytes
            self._read(layer, source)
        size = self._sizes[layer]
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.released)
            slot.bytes[:size].copy_(source[:size], non_blocking=True)
            slot.ready.record(self._stream)
            if staging:
                staging.copied.record(self._stream)

    def tensors(self, layer: int, slot: CudaSlot) -> dict[str, Tensor]:
        """The layer's tensors by name, valid until the slot is released."""
        torch.cuda.current_stream(self._device).wait_event(slot.ready)
        return self._layouts[layer].carved(slot.bytes, self._dtype)

    def release(self, slot: CudaSlot) -> None:
        """The layer's computation has been put into the queue."""
        slot.released.record(torch.cuda.current_stream(self._device))

    @torch.inference_mode()
    def _read(self, layer: int, memory: Tensor) -> None:
        """A layer from disk, converted."""
        layout = self._layouts[layer]
        self._disk.read(layout, self._pages)
        room = layout.carved(memory, self._dtype)
        for name, tensor in layout.views(self._pages.bytes).items():
            room[name].copy_(tensor)

"""Layers on a CPU: read from disk into a buffer, and used there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sequoia.runtime.offload.disk import Disk, Pages
from sequoia.runtime.offload.extents import Layout


class CpuTier:
    """Where the streamed layers of a model on a CPU come from.

    Layers that are stored in another type than the model runs in are converted when they are used,
    all into the same memory.
    """

    def __init__(self, layouts: Mapping[int, Layout], disk: Disk, dtype: torch.dtype) -> None:
        self._layouts = layouts
        self._disk = disk
        self._dtype = dtype
        self._slot_bytes = max(layout.byte_count for layout in layouts.values())
        copied = [layout for layout in layouts.values() if layout.must_be_copied(dtype)]
        scratch_bytes = max((layout.placed_bytes(dtype) for layout in copied), default=0)
        self._scratch = torch.empty(scratch_bytes, dtype=torch.uint8)

    def new_slot(self) -> Pages:
        """A buffer for any of the layers."""
        return Pages(self._slot_bytes)

    def fill(self, layer: int, slot: Pages) -> None:
        """Read a layer; called on the reading thread.

        Raises:
            OSError: it cannot be read.
        """
        self._disk.read(self._layouts[layer], slot)

    def tensors(self, layer: int, slot: Pages) -> dict[str, Tensor]:
        """The layer's tensors by name, valid until the slot is released."""
        layout = self._layouts[layer]
        stored = layout.views(slot.bytes)
        if not layout.must_be_copied(self._dtype):
            return stored
        room = layout.carved(self._scratch, self._dtype)
        for name, tensor in stored.items():
            room[name].copy_(tensor)
        return room

    def release(self, slot: Pages) -> None:
        """The layer has been used: nothing on a CPU is still under way."""

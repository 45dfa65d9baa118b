"""Which bytes of the files hold a set of tensors, and where these stand in the memory read into; pure.

Direct reads take whole blocks of a file into whole blocks of memory, so tensors keep their place within
a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sequoia.runtime.offload.checkpoint import Stored

BLOCK_BYTES = 4096
GAP_BYTES = 2**20  # to read over rather than to begin a new extent
ALIGNMENT = 256  # of tensors that are placed by us; what matrix libraries like best


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of whole blocks of one file."""

    path: Path
    start: int  # in the file
    byte_count: int
    position: int  # in the memory


@dataclass(frozen=True, slots=True)
class Layout:
    """A set of tensors as it is read: extents one behind the other, and the tensors' positions."""

    extents: tuple[Extent, ...]
    tensors: Mapping[str, tuple[int, Stored]]  # position in the memory

    @property
    def byte_count(self) -> int:
        """Memory that is read into."""
        return sum(extent.byte_count for extent in self.extents)

    def placed_bytes(self, dtype: torch.dtype) -> int:
        """Memory of the tensors in another type, each aligned (see `carved`)."""
        return sum(
            aligned(stored.element_count * dtype.itemsize) for _, stored in self.tensors.values()
        )

    def must_be_copied(self, dtype: torch.dtype) -> bool:
        """Whether a tensor is of another type than wanted, or stands across its elements' places."""
        return any(
            stored.dtype is not dtype or position % dtype.itemsize
            for position, stored in self.tensors.values()
        )

    def views(self, memory: Tensor) -> dict[str, Tensor]:
        """The tensors, as they are stored, in bytes `[byte_count]` that were read."""
        views = {}
        for name, (position, stored) in self.tensors.items():
            piece = memory[position : position + stored.byte_count]
            if position % stored.dtype.itemsize:
                piece = piece.clone()
            views[name] = piece.view(stored.dtype).view(stored.shape)
        return views

    def carved(self, memory: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Room for the tensors in a type, one behind the other in bytes `[at least placed_bytes]`."""
        room, position = {}, 0
        for name, (_, stored) in self.tensors.items():
            byte_count = stored.element_count * dtype.itemsize
            room[name] = memory[position : position + byte_count].view(dtype).view(stored.shape)
            position += aligned(byte_count)
        return room


def layout_of(tensors: Mapping[str, Stored]) -> Layout:
    """The layout of some tensors, in the order of the files."""
    extents: list[Extent] = []
    placed: dict[str, tuple[int, Stored]] = {}
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].path, item[1].start)):
        start = stored.start // BLOCK_BYTES * BLOCK_BYTES
        end = -(-(stored.start + stored.byte_count) // BLOCK_BYTES) * BLOCK_BYTES
        last = extents[-1] if extents else None
        if last and last.path == stored.path and start - (last.start + last.byte_count) < GAP_BYTES:
            longer = max(end - last.start, last.byte_count)
            extents[-1] = Extent(last.path, last.start, longer, last.position)
        else:
            position = last.position + last.byte_count if last else 0
            extents.append(Extent(stored.path, start, end - start, position))
        last = extents[-1]
        placed[name] = last.position + stored.start - last.start, stored
    return Layout(tuple(extents), placed)


def aligned(byte_count: int) -> int:
    """Bytes up to where the next tensor may begin."""
    return -(-byte_count // ALIGNMENT) * ALIGNMENT

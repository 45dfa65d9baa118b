"""Memory of the host for keys and values, in blocks that sessions take and give back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from sequoia.runtime.cache import GROWTH_ROWS
from sequoia.runtime.offload.extents import aligned
from sequoia.runtime.offload.host import host_pages


class RowShape(NamedTuple):
    """A layer's row: of every head a key with its value behind it."""

    heads: int
    key_size: int
    value_size: int
    dtype: torch.dtype

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> RowShape:
        """That of rows `[heads, rows, head_dim]`."""
        return cls(keys.shape[0], keys.shape[2], values.shape[2], keys.dtype)

    @property
    def width(self) -> int:
        """Numbers of a head."""
        return self.key_size + self.value_size

    @property
    def byte_count(self) -> int:
        """Bytes of a row."""
        return self.heads * self.width * self.dtype.itemsize


class Shelf:
    """Blocks of equal size; each holds rows of one layer of one session.

    Only the device's thread takes blocks. Whoever drops the last reference to a session gives its back,
    on any thread: both ends of a deque are safe without a lock.

    Args:
        byte_count: of all blocks together, at most.
        token_bytes: what a token takes in all layers.
        layer_count: of the model.
        device: to which rows are copied.

    Raises:
        HostMemoryError: the host cannot pin so much.
    """

    def __init__(
        self, byte_count: int, token_bytes: int, layer_count: int, device: torch.device
    ) -> None:
        self.block_bytes = aligned(GROWTH_ROWS * -(-token_bytes // layer_count))
        self.device = device
        count = byte_count // self.block_bytes
        self._pages = host_pages(count * self.block_bytes, device)
        self._free = deque(range(count))

    @property
    def free_count(self) -> int:
        """Blocks that nobody has."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Numbers of so many blocks, which are the caller's now.

        Raises:
            MemoryError: there are fewer.
        """
        if count > len(self._free):
            raise MemoryError(
                f"the KV cache in the host's memory has {len(self._free)} blocks left, not {count}"
            )
        return [self._free.popleft() for _ in range(count)]

    def give_back(self, numbers: Iterable[int]) -> None:
        """Let others have these blocks."""
        self._free.extend(numbers)

    def rows_per_block(self, shape: RowShape) -> int:
        """How many rows a block holds."""
        return self.block_bytes // shape.byte_count

    def rows(self, shape: RowShape) -> Tensor:
        """All blocks as rows, `[blocks, rows, heads, width]`."""
        count = self.rows_per_block(shape)
        memory = self._pages.bytes
        blocks = memory[: len(memory) // self.block_bytes * self.block_bytes]
        used = blocks.view(-1, self.block_bytes)[:, : count * shape.byte_count]
        rows = used.unflatten(1, (count, shape.byte_count)).view(shape.dtype)
        by_head: Tensor = rows.unflatten(2, (shape.heads, shape.width))
        return by_head

"""A session's keys and values in the host's memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sequoia.runtime.device import finish
from sequoia.runtime.layer_rows import LayerRows
from sequoia.runtime.offload.shelf import RowShape, Shelf


class HostRows:
    """Rows in blocks of a shelf, which get them back when the session is gone.

    Rows of a layer stand one behind the other within a block, so that a copy to the device or from it
    is one run of bytes per block.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._shapes: list[RowShape] = []  # per layer
        self._blocks: list[list[int]] = []  # per layer, in the order of the rows
        self._taken: list[int] = []  # all of them
        weakref.finalize(self, shelf.give_back, self._taken).atexit = False

    @classmethod
    def moved(cls, rows: LayerRows, length: int, shelf: Shelf) -> HostRows:
        """The first `length` rows of a session that was on the device until now.

        Raises:
            MemoryError: the shelf has too few blocks.
        """
        host = cls(shelf)
        for layer, (keys, values) in enumerate(zip(rows.keys, rows.values, strict=True)):
            joined = torch.cat([keys[:, :length], values[:, :length]], -1).transpose(0, 1)
            host.write(layer, 0, joined.contiguous(), RowShape.of(keys, values))
        return host

    @property
    def memory_bytes(self) -> int:
        """See `Rows`."""
        return len(self._taken) * self._shelf.block_bytes

    @property
    def is_retainable(self) -> bool:
        """See `Rows`; the shelf has room for sessions that are at work alone."""
        return False

    def copied(self, length: int) -> None:
        """See `Rows`."""

    @property
    def layer_count(self) -> int:
        """Layers that have rows."""
        return len(self._shapes)

    def shape(self, layer: int) -> RowShape:
        """What a row of a layer is made of."""
        return self._shapes[layer]

    def write(self, layer: int, at: int, rows: Tensor, shape: RowShape) -> None:
        """Put rows `[rows, heads, width]` of a layer, in one run of bytes, behind the first `at` ones.

        From a device this is put into the queue of its computation.

        Raises:
            MemoryError: the shelf has too few blocks.
        """
        end = at + rows.shape[0]
        self._reserve(layer, end, shape)
        for start, block in self.blocks(layer, at, end):
            first = start - at
            block.copy_(rows[first : first + block.shape[0]], non_blocking=True)

    def blocks(self, layer: int, start: int, end: int) -> Iterator[tuple[int, Tensor]]:
        """Rows from `start` to `end` as they lie: the number of the first, `[rows, heads, width]`."""
        shape = self._shapes[layer]
        memory, size = self._shelf.rows(shape), self._shelf.rows_per_block(shape)
        while start < end:
            index, within = divmod(start, size)
            count = min(size - within, end - start)
            yield start, memory[self._blocks[layer][index], within : within + count]
            start += count

    def move(self, start: int, rows: Sequence[int]) -> None:
        """See `Rows`."""
        finish(self._shelf.device)  # what was written last may be on its way
        for layer, shape in enumerate(self._shapes):
            memory = self._shelf.rows(shape)
            new = self._places(layer, range(start, start + len(rows)))
            memory[new] = memory[self._places(layer, rows)]

    def repeated(self, length: int) -> HostRows:
        """See `Rows`.

        Raises:
            MemoryError: the shelf has too few blocks.
        """
        finish(self._shelf.device)
        other = HostRows(self._shelf)
        for layer, shape in enumerate(self._shapes):
            ((_, first),) = self.blocks(layer, 0, 1)
            other.write(layer, 0, first.expand(length, -1, -1), shape)
        return other

    def _reserve(self, layer: int, end: int, shape: RowShape) -> None:
        if layer == len(self._shapes):
            self._shapes.append(shape)
            self._blocks.append([])
        mine = self._blocks[layer]
        more = -(-end // self._shelf.rows_per_block(shape)) - len(mine)
        if more > 0:
            taken = self._shelf.take(more)
            self._taken.extend(taken)
            mine.extend(taken)

    def _places(self, layer: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Block and row within it of every row."""
        index = torch.tensor(rows, dtype=torch.long)
        size = self._shelf.rows_per_block(self._shapes[layer])
        return torch.tensor(self._blocks[layer])[index // size], index % size

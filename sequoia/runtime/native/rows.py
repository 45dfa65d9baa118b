"""The memory of a KV cache in the layout that the compiled engine reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from sequoia.runtime.cache import KVCache, grown_capacity

BLOCK_ROWS = 16  # keys that lie side by side

Move = Callable[["BlockRows", int, Sequence[int]], None]


class BlockRows:
    """Keys and values of all layers, `[layers, 2, kv heads, capacity, head_dim]`, in blocks of rows.

    Within a block the elements of keys stand unit by unit (32 bits of one key, then of the next),
    those of values in groups of as many rows as fill a unit; `decoder.cpp` has the particulars.
    """

    def __init__(self, memory: Tensor, move: Move) -> None:
        self.memory = memory
        self._move = move

    @classmethod
    def of(cls, cache: KVCache, needed: int, empty: BlockRows) -> BlockRows:
        """The memory of a cache, with room for `needed` rows; made like `empty` where it has none.

        Raises:
            TypeError: another engine filled the cache.
        """
        rows = empty if cache.rows is None else cache.rows
        if not isinstance(rows, cls):
            raise TypeError("the cache was filled by another engine")
        if needed > rows.capacity:
            rows = rows.grown(needed)
        cache.rows = rows
        return rows

    @property
    def capacity(self) -> int:
        """Rows that fit."""
        return int(self.memory.shape[3])

    @property
    def memory_bytes(self) -> int:
        """See `Rows`."""
        return self.memory.numel() * self.memory.element_size()

    def grown(self, needed: int) -> BlockRows:
        """The same rows in more memory. What was never written must be finite, so it is zero."""
        return self._beginning(self.capacity, grown_capacity(self.capacity, needed))

    @property
    def is_retainable(self) -> bool:
        """See `Rows`."""
        return True

    def copied(self, length: int) -> BlockRows:
        """See `Rows`."""
        whole_blocks = -(-length // BLOCK_ROWS) * BLOCK_ROWS
        return self._beginning(whole_blocks, grown_capacity(0, length))

    def _beginning(self, rows: int, capacity: int) -> BlockRows:
        """The first rows, a number of whole blocks, with room for more."""
        *before, _, head_dim = self.memory.shape
        memory = self.memory.new_zeros(*before, capacity, head_dim)
        memory[..., :rows, :] = self.memory[..., :rows, :]
        return BlockRows(memory, self._move)

    def move(self, start: int, rows: Sequence[int]) -> None:
        """See `Rows`."""
        self._move(self, start, rows)

    def repeated(self, length: int) -> BlockRows:
        """See `Rows`."""
        *before, _, head_dim = self.memory.shape
        capacity = grown_capacity(0, length)
        memory = self.memory.new_empty(*before, capacity, head_dim)
        per_unit = 4 // self.memory.element_size()
        blocks = capacity // BLOCK_ROWS
        keys = self.memory[:, 0, :, :BLOCK_ROWS].unflatten(-1, (-1, per_unit))
        # One block's memory, read as [units, rows, elements of a unit].
        units = keys.reshape(*keys.shape[:2], head_dim // per_unit, BLOCK_ROWS, per_unit)
        first = units[:, :, None, :, :1].expand(-1, -1, blocks, -1, BLOCK_ROWS, -1)
        memory[:, 0] = first.reshape(memory[:, 0].shape)
        values = self.memory[:, 1, :, :per_unit].reshape(*keys.shape[:2], 1, head_dim, per_unit)
        groups = values[..., :1].expand(-1, -1, capacity // per_unit, -1, per_unit)
        memory[:, 1] = groups.reshape(memory[:, 1].shape)
        return BlockRows(memory, self._move)

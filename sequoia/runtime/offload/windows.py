"""Where rows of the host's memory stand on the device while their layer is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia.runtime.offload.extents import ALIGNMENT, aligned
from sequoia.runtime.offload.host_rows import HostRows
from sequoia.runtime.offload.lane import Lane
from sequoia.runtime.offload.shelf import RowShape

WINDOW_COUNT = 2  # one is computed with while the next layer's rows come into the other
MOST_SESSIONS = 1024  # of a pass: --batch-limit goes no further


@dataclass(frozen=True, slots=True, eq=False)
class Guest:
    """A session of a pass: its rows, how many of them are valid, and how many there will be."""

    rows: HostRows
    length: int
    end: int


class Windows:
    """The rows of all sessions of a pass that are in the host's memory, one layer after the other.

    The next layer's rows are put on their way before a layer is computed, on the lane that its weights
    take, and ahead of the weights of the layer after it: so they are never late because of these.

    Args:
        byte_count: of a window; it holds a layer's rows of all sessions.
        lane: the copies to the device.
    """

    def __init__(self, byte_count: int, lane: Lane) -> None:
        size = byte_count + MOST_SESSIONS * ALIGNMENT
        self._memory = [
            torch.empty(size, dtype=torch.uint8, device=lane.device) for _ in range(WINDOW_COUNT)
        ]
        self._lane = lane
        self._filled = [lane.event() for _ in range(WINDOW_COUNT)]
        self._released = [lane.event() for _ in range(WINDOW_COUNT)]
        self._guests: Sequence[Guest] = ()
        self._layer = -1  # that is computed
        self._fetched = -1  # the last one whose rows were put on their way

    def begin(self, guests: Sequence[Guest]) -> None:
        """Begin a pass; of its first layer the rows are put on their way."""
        self._guests, self._layer, self._fetched = guests, -1, -1
        # Whatever became of the last pass: it is over before its windows are filled again, and what it
        # wrote has arrived before it is read.
        for released in self._released:
            self._lane.mark_computed(released)
        self._fetch(0)

    def end(self) -> None:
        """The pass is over, or has failed."""
        self._guests = ()

    def extended(
        self, rows: HostRows, layer: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write rows `[heads, rows, head_dim]` of a layer, here and in the host; all of its rows.

        Layers come in their order.

        Raises:
            MemoryError: the host's memory or the window is full.
        """
        if layer != self._layer:
            self._turn_to(layer)
        shape, guest = RowShape.of(keys, values), self._guest(rows)
        window = self._window(layer, shape, guest)
        new = window[guest.length :]
        new[..., : shape.key_size] = keys.transpose(0, 1)
        new[..., shape.key_size :] = values.transpose(0, 1)
        rows.write(layer, guest.length, new, shape)
        by_head = window.transpose(0, 1)
        return by_head[..., : shape.key_size], by_head[..., shape.key_size :]

    def _turn_to(self, layer: int) -> None:
        if self._layer >= 0:
            self._lane.mark_computed(self._released[self._layer % WINDOW_COUNT])
        if self._fetched < layer:  # a decoder may have layers without rows of their own
            self._fetch(layer)
        self._layer = layer
        self._lane.compute_after(self._filled[layer % WINDOW_COUNT])
        self._fetch(layer + 1)

    def _fetch(self, layer: int) -> None:
        self._fetched = layer
        self._lane.hold_until(self._released[layer % WINDOW_COUNT])
        for guest in self._guests:
            if guest.length and layer < guest.rows.layer_count:
                window = self._window(layer, guest.rows.shape(layer), guest)
                for start, block in guest.rows.blocks(layer, 0, guest.length):
                    self._lane.copy(window[start : start + block.shape[0]], block)
        self._lane.mark(self._filled[layer % WINDOW_COUNT])

    def _guest(self, rows: HostRows) -> Guest:
        return next(guest for guest in self._guests if guest.rows is rows)

    def _window(self, layer: int, shape: RowShape, guest: Guest) -> Tensor:
        """A session's part of a layer's window, `[rows, heads, width]`."""
        start = 0
        for other in self._guests:
            end = start + other.end * shape.byte_count
            if other is guest:
                break
            start = aligned(end)
        memory = self._memory[layer % WINDOW_COUNT]
        if end > len(memory):
            raise MemoryError(
                f"the KV cache of a layer takes {end} bytes on the device, over the {len(memory)} "
                "that are set aside"
            )
        rows = memory[start:end].view(shape.dtype)
        return rows.view(guest.end, shape.heads, shape.width)

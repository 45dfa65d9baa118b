"""Copies beside the computation, and what waits for what."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Lane:
    """A queue of copies to a device, beside the queue in which the calling thread computes.

    Events order the two: nothing ever waits for the whole device. On a CPU a copy is over when its call
    returns, and there is nothing to wait for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # torch.cuda, or torch.cpu, which has the same names and nothing behind them.
        self._module: Any = torch.get_device_module(device)
        self._stream: Any = self._module.Stream(device)

    def event(self) -> Any:
        """A mark to be set; what waits for it before it has been set does not wait."""
        return self._module.Event()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Put a copy into the queue; from pinned memory the call returns at once."""
        with self._module.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def mark(self, event: Any) -> None:
        """Set an event behind all copies so far."""
        event.record(self._stream)

    def hold_until(self, event: Any) -> None:
        """Let later copies wait for an event."""
        self._stream.wait_event(event)

    def mark_computed(self, event: Any) -> None:
        """Set an event behind all that has been put into the computation's queue so far."""
        event.record(self._computation)

    def compute_after(self, event: Any) -> None:
        """Let later computation wait for an event."""
        self._computation.wait_event(event)

    def wait(self, event: Any) -> None:
        """Wait for an event, here."""
        event.synchronize()

    @property
    def _computation(self) -> Any:
        return self._module.current_stream(self.device)

"""Tiny models that are streamed, however small they are: budgets made for the test."""

from __future__ import annotations

from pathlib import Path
from threading import RLock

import torch
from torch import Tensor

from sequoia.runtime.cache import KVCache
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.offload.budget import LEAST_PASS_TOKENS, Division, spread
from sequoia.runtime.offload.checkpoint import Checkpoint
from sequoia.runtime.offload.lane import Lane
from sequoia.runtime.offload.loading import Offloaded, load_offloaded
from sequoia.runtime.offload.skeleton import Skeleton
from sequoia.runtime.segment import Segment
from sequoia.tree import Topology

CPU = torch.device("cpu")
KV_BYTES = 16 * 2**20
TOKENS = (3, 1, 4, 1, 5)
TREE = Topology((-1, 0, 0, 1, 2, 2))


def offloaded(
    folder: Path,
    resident_count: int = 0,
    dtype: torch.dtype = torch.float32,
    device_kv_bytes: int = KV_BYTES,
) -> Offloaded:
    """A model of which so many layers stay and the others are streamed."""
    skeleton = Skeleton.of(folder, Checkpoint(folder), dtype)
    count = len(skeleton.layers)
    resident = spread(resident_count, count)
    streamed = tuple(number for number in range(count) if number not in resident)
    division = Division(resident, streamed, KV_BYTES, device_kv_bytes, LEAST_PASS_TOKENS)
    return load_offloaded(skeleton, division, dtype, CPU)


def tree_logits(model: TreeModel) -> Tensor:
    """What a model says on a small tree behind a few tokens, `[nodes, vocabulary]`."""
    cache = KVCache()
    model.prefill(cache, TOKENS)
    (output,) = model.forward([Segment.tree(cache, TREE, (2, 7, 1, 8, 2, 8))])
    return output.logits


class LateLane(Lane):
    """Copies that only come when something waits for them, and everything that it must wait for."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._late: list[tuple[Tensor, Tensor]] = []
        self._lock = RLock()

    def event(self) -> list[int]:
        """The number of copies before it, once it is set."""
        return []

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Not yet."""
        with self._lock:
            self._late.append((target, source))

    def mark(self, event: list[int]) -> None:
        """See `Lane`."""
        with self._lock:
            event[:] = [len(self._late)]

    def hold_until(self, event: list[int]) -> None:
        """What is computed here is computed at once."""

    def mark_computed(self, event: list[int]) -> None:
        """It has been computed: nothing to wait for."""
        event.clear()

    def compute_after(self, event: list[int]) -> None:
        """Now."""
        self.wait(event)

    @torch.inference_mode()
    def wait(self, event: list[int]) -> None:
        """Make the copies before the event, of which those that are made are gone."""
        with self._lock:
            for number in range(event[0] if event else 0):
                target, source = self._late[number]
                target.copy_(source)
                self._late[number] = target, target

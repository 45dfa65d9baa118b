"""The processes that share a model: how they find each other, and how rank 0 speaks to the others."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from sequoia.runtime.sharding.ranks import Ranks

# How long ranks wait for each other within a pass; one that takes so long is gone or stuck.
PASS_TIMEOUT = timedelta(minutes=5)
# How long a rank waits for an order. Nothing may come for days; when rank 0 ends, so does the wait.
IDLE_TIMEOUT = timedelta(days=3650)
LOOPBACK = "lo" if sys.platform == "linux" else "lo0"


class Group:
    """All ranks, joined. Orders travel apart from the passes' own traffic, between the processors.

    They hold prompts, and nothing encrypts them: where all ranks are on one machine, so are the orders.
    """

    def __init__(
        self, ranks: Ranks, device: torch.device, pass_timeout: timedelta = PASS_TIMEOUT
    ) -> None:
        self.ranks = ranks
        if ranks.local_size == ranks.size:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
        is_cuda = device.type == "cuda"
        store, _, _ = next(rendezvous("env://", timeout=pass_timeout))
        # torchrun keeps its store over restarts; the addresses of ranks that have ended stay in it.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=PrefixStore(f"attempt-{attempt}", store),
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=pass_timeout,
            device_id=device if is_cuda else None,
        )
        self._orders = dist.new_group(backend="gloo", timeout=IDLE_TIMEOUT)

    def send(self, message: bytes) -> None:
        """Give all other ranks a message; called by rank 0.

        Raises:
            RuntimeError: one of them is gone.
        """
        dist.broadcast(torch.tensor([len(message)]), 0, group=self._orders)
        dist.broadcast(torch.frombuffer(bytearray(message), dtype=torch.uint8), 0, self._orders)

    def receive(self) -> bytes:
        """Wait for rank 0's next message.

        Raises:
            RuntimeError: rank 0 is gone.
        """
        length = torch.zeros(1, dtype=torch.long)
        dist.broadcast(length, 0, group=self._orders)
        message = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(message, 0, group=self._orders)
        return message.numpy().tobytes()

    def leave(self) -> None:
        """Part from the others, who leave as well."""
        dist.destroy_process_group()

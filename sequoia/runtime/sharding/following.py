"""The side of the other ranks: they run what rank 0 runs, on shards of their own, until it ends."""

from __future__ import annotations

import signal
from typing import Any

import structlog
import torch

from sequoia.runtime.cache import KVCache
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.sharding.group import Group
from sequoia.runtime.sharding.orders import Copy, Move, Order, Pass, PlainEnds, Repeat, decode

log = structlog.get_logger(__name__)


class LostLeadError(Exception):
    """Rank 0 is gone."""


class Follower:
    """One rank's shards, and its share of every session's rows by the numbers that rank 0 gave."""

    def __init__(self, model: TreeModel, group: Group) -> None:
        self.model = model
        self.caches: dict[int, KVCache] = {}
        self._group = group
        self._is_asked_to_stop = False

    def follow(self) -> None:
        """Carry out orders until there are no more.

        Signals to stop are for rank 0, which says when; torchrun sends them to all.

        Raises:
            LostLeadError: rank 0 is gone, and nobody wanted that.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)
        with torch.inference_mode():
            while message := self._next_message():
                if not self._carry_out(*decode(message)):
                    self._group.leave()
                    break
        log.info("stopped", rank=self._group.ranks.rank, cache_count=len(self.caches))

    def _next_message(self) -> bytes:
        """Rank 0's next message; none where it has ended without, as it does when asked early."""
        try:
            return self._group.receive()
        except RuntimeError as error:
            if self._is_asked_to_stop:
                return b""
            raise LostLeadError(f"rank 0 is gone: {error}") from error

    def _note(self, _number: int, _frame: Any) -> None:
        self._is_asked_to_stop = True

    def _carry_out(self, order: Order, freed: list[int]) -> bool:
        """Run one operation; whether there are more to come."""
        for number in freed:
            self.caches.pop(number, None)
        match order:
            case Pass(shares, with_logits):
                segments = [
                    share.segment(self._cache(share.cache, share.length)) for share in shares
                ]
                self.model.forward(segments, with_logits)
            case PlainEnds(sequences):
                self.model.plain_ends(sequences)
            case Move(number, start, rows):
                self.caches[number].keep(start, rows)
            case Repeat(number, one, length):
                self.caches[number] = self.caches[one].repeated(length)
            case Copy(number, one, length):
                if copy := self.caches[one].copied(length):
                    self.caches[number] = copy
            case _:
                return False
        return True

    def _cache(self, number: int, length: int) -> KVCache:
        cache = self.caches.setdefault(number, KVCache())
        cache.length = length
        return cache

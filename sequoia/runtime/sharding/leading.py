"""Rank 0's side: a model like any other, whose every operation the other ranks are told of first."""

from __future__ import annotations

import itertools
import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from torch import Tensor

from sequoia.runtime.cache import KVCache, Rows
from sequoia.runtime.forward import PassOutput, TreeModel
from sequoia.runtime.layer_rows import LayerRows
from sequoia.runtime.segment import Segment
from sequoia.runtime.sharding.group import Group
from sequoia.runtime.sharding.orders import (
    Copy,
    End,
    Move,
    Order,
    Pass,
    PlainEnds,
    Repeat,
    Share,
    encode,
)

log = structlog.get_logger(__name__)


class Lead:
    """Gives the orders, all from one thread: ranks meet in each other's passes in this order only.

    While a model loads, a failure is raised like any other. Once it serves, one ends the process:
    the ranks are out of step, and a pass that waits for another rank cannot be called back. Whoever
    started the ranks starts them again, and sessions are rebuilt as after any lost worker.
    """

    def __init__(self, group: Group) -> None:
        self.is_serving = False
        self._group = group
        self._numbers = itertools.count(1)
        self._freed: deque[int] = deque()

    def new_rows(self) -> ShardRows:
        """Memory for a cache that has none yet."""
        return ShardRows(self, next(self._numbers))

    def free(self, number: int) -> None:
        """Let the others free a cache, ahead of the next order; called from any thread."""
        self._freed.append(number)

    @contextmanager
    def ordering(self, order: Order) -> Iterator[None]:
        """Do in the body what the others are told to do."""
        try:
            self._send(order)
            yield
        except Exception:
            if not self.is_serving:
                raise
            log.exception("ranks are out of step", order=type(order).__name__)
            os._exit(1)

    def end(self) -> None:
        """Let the others end."""
        self.is_serving = False
        try:
            self._send(End())
            self._group.leave()
        except RuntimeError as error:
            log.warning("ranks are gone", error=str(error))

    def _send(self, order: Order) -> None:
        freed = [self._freed.popleft() for _ in range(len(self._freed))]
        self._group.send(encode(order, freed))


class ShardRows(LayerRows):
    """Rank 0's shard of a session's rows; the other ranks know it by its number."""

    def __init__(self, lead: Lead, number: int) -> None:
        super().__init__()
        self.number = number
        self._lead = lead
        weakref.finalize(self, lead.free, number).atexit = False

    def move(self, start: int, rows: Sequence[int]) -> None:
        """See `Rows`."""
        with self._lead.ordering(Move(self.number, start, list(rows))):
            super().move(start, rows)

    def copied(self, length: int) -> Rows | None:
        """See `Rows`."""
        other = self._lead.new_rows()
        with self._lead.ordering(Copy(other.number, self.number, length)):
            other.copy(self, length)
        return other

    def repeated(self, length: int) -> Rows:
        """See `Rows`."""
        other = self._lead.new_rows()
        with self._lead.ordering(Repeat(other.number, self.number, length)):
            other.repeat(self, length)
        return other


class LeadingModel(TreeModel):
    """Rank 0's shards of a model, which runs passes with those of the others."""

    def __init__(self, model: Any, lead: Lead, size: int) -> None:
        super().__init__(model)
        self.shard_count = size
        self.lead = lead

    def forward(self, segments: Sequence[Segment], with_logits: bool = True) -> list[PassOutput]:
        """See `TreeModel`."""
        shares = [Share.of(segment, self._number_of(segment.cache)) for segment in segments]
        with self.lead.ordering(Pass(shares, with_logits)):
            return super().forward(segments, with_logits)

    def plain_ends(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """See `TreeModel`."""
        with self.lead.ordering(PlainEnds([list(sequence) for sequence in sequences])):
            return super().plain_ends(sequences)

    def end(self) -> None:
        """See `TreeModel`."""
        self.lead.end()

    def _number_of(self, cache: KVCache) -> int:
        if cache.rows is None:
            cache.rows = self.lead.new_rows()
        if not isinstance(cache.rows, ShardRows):
            raise TypeError("the cache was filled by another engine")
        return cache.rows.number

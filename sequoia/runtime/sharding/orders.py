"""What rank 0 tells the others to do: every operation on the model or its cache, before it does the same."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sequoia.runtime.cache import KVCache
from sequoia.runtime.segment import Segment


@dataclass(frozen=True, slots=True)
class Share:
    """A segment whose rows see every valid row of their cache, as those of chains and trees do."""

    cache: int
    length: int  # valid rows
    token_ids: list[int]
    positions: list[int]
    ancestry: str  # [new rows, new rows]: which of each other they see; bits in base64

    @classmethod
    def of(cls, segment: Segment, cache: int) -> Share:
        """The share of a session whose cache has that number.

        Raises:
            ValueError: a row does not see a valid one.
        """
        length = segment.cache.length
        if not segment.visible[:, :length].all():
            raise ValueError("a sharded model runs trees and chains behind all rows of their cache")
        bits = np.packbits(segment.visible[:, length:]).tobytes()
        token_ids = [int(token_id) for token_id in segment.token_ids]
        positions = [int(position) for position in segment.positions]
        return cls(cache, length, token_ids, positions, base64.b64encode(bits).decode())

    def segment(self, cache: KVCache) -> Segment:
        """The same segment, on another rank's cache."""
        count = len(self.token_ids)
        visible = np.ones((count, self.length + count), dtype=np.bool_)
        visible[:, self.length :] = self._unpacked(count)
        positions = np.asarray(self.positions, dtype=np.int64)
        key_positions = np.concatenate([np.arange(self.length, dtype=np.int64), positions])
        return Segment(cache, self.token_ids, self.positions, visible, key_positions)

    def _unpacked(self, count: int) -> NDArray[np.bool_]:
        bits = np.frombuffer(base64.b64decode(self.ancestry), dtype=np.uint8)
        return np.unpackbits(bits, count=count * count).reshape(count, count).astype(np.bool_)


@dataclass(frozen=True, slots=True)
class Pass:
    """`TreeModel.forward`."""

    shares: list[Share]
    with_logits: bool


@dataclass(frozen=True, slots=True)
class PlainEnds:
    """`TreeModel.plain_ends`."""

    sequences: list[list[int]]


@dataclass(frozen=True, slots=True)
class Move:
    """`Rows.move` of a cache's rows."""

    cache: int
    start: int
    rows: list[int]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`Rows.repeated`: a new cache."""

    cache: int
    one: int
    length: int


@dataclass(frozen=True, slots=True)
class Copy:
    """`Rows.copied`: a new cache."""

    cache: int
    one: int
    length: int


@dataclass(frozen=True, slots=True)
class End:
    """Nothing more."""


Order = Pass | PlainEnds | Move | Repeat | Copy | End
ORDERS: dict[str, Any] = {
    order.__name__: order for order in (Pass, PlainEnds, Move, Repeat, Copy, End)
}


def encode(order: Order, freed: list[int]) -> bytes:
    """An order, and the caches that are to be freed before it."""
    parts = [type(order).__name__, order, freed]
    return json.dumps(parts, separators=(",", ":"), default=_fields).encode()


def _fields(one: Any) -> dict[str, Any]:
    return {field.name: getattr(one, field.name) for field in fields(one)}


def decode(message: bytes) -> tuple[Order, list[int]]:
    """See `encode`."""
    name, values, freed = json.loads(message)
    if name == Pass.__name__:
        values["shares"] = [Share(**share) for share in values["shares"]]
    order: Order = ORDERS[name](**values)
    return order, freed

"""One session's share of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sequoia.runtime.cache import KVCache
from sequoia.tree import Topology


@dataclass(frozen=True, slots=True)
class Segment:
    """One session's share of a pass: new rows behind the valid rows of its cache."""

    cache: KVCache
    token_ids: Sequence[int]
    positions: Sequence[int]
    visible: NDArray[np.bool_]  # [new rows, valid rows + new rows]
    key_positions: NDArray[np.int64]  # [valid rows + new rows]
    # [new rows, hidden], each of the position before its row; read by feature-conditioned models
    # only, for which None means zeros.
    features: Tensor | None = None

    @classmethod
    def chain(
        cls, cache: KVCache, token_ids: Sequence[int], features: Tensor | None = None
    ) -> Segment:
        """Tokens that follow the cached ones, each seeing all before it."""
        count, start = len(token_ids), cache.length
        visible = np.tri(count, start + count, start, dtype=np.bool_)
        positions = range(start, start + count)
        return cls(cache, token_ids, positions, visible, np.arange(start + count), features)

    @classmethod
    def tree(cls, cache: KVCache, topology: Topology, token_ids: Sequence[int]) -> Segment:
        """A whole tree behind the cached rows: a node sees these, its ancestors and itself."""
        start, count = cache.length, topology.node_count
        visible = np.ones((count, start + count), dtype=np.bool_)
        visible[:, start:] = topology.ancestry
        positions = start + np.array(topology.depths)
        key_positions = np.concatenate([np.arange(start), positions])
        return cls(cache, token_ids, positions.tolist(), visible, key_positions)

"""Tiny models that are streamed, however small they are: budgets made for the test."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sequoia.runtime.cache import KVCache
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.offload.budget import LEAST_PASS_TOKENS, Division, spread
from sequoia.runtime.offload.checkpoint import Checkpoint
from sequoia.runtime.offload.loading import Offloaded, load_offloaded
from sequoia.runtime.offload.skeleton import Skeleton
from sequoia.runtime.segment import Segment
from sequoia.tree import Topology

CPU = torch.device("cpu")
TOKENS = (3, 1, 4, 1, 5)
TREE = Topology((-1, 0, 0, 1, 2, 2))


def offloaded(
    folder: Path, resident_count: int = 0, dtype: torch.dtype = torch.float32
) -> Offloaded:
    """A model of which so many layers stay and the others are streamed."""
    skeleton = Skeleton.of(folder, Checkpoint(folder), dtype)
    count = len(skeleton.layers)
    resident = spread(resident_count, count)
    streamed = tuple(number for number in range(count) if number not in resident)
    division = Division(resident, streamed, 2**30, LEAST_PASS_TOKENS)
    return load_offloaded(skeleton, division, dtype, CPU)


def tree_logits(model: TreeModel) -> Tensor:
    """What a model says on a small tree behind a few tokens, `[nodes, vocabulary]`."""
    cache = KVCache()
    model.prefill(cache, TOKENS)
    (output,) = model.forward([Segment.tree(cache, TREE, (2, 7, 1, 8, 2, 8))])
    return output.logits

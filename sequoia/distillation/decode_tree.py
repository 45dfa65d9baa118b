"""A decoder for any target that transformers runs: tree passes of one token a text."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from sequoia.distillation.decode import Prefix
from sequoia.runtime.cache import KVCache
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.segment import Segment


class TreeDecoder:
    """See `sequoia.distillation.decode.Decoder`; one cache a row."""

    def __init__(self, model: TreeModel, rows: int, length: int) -> None:
        """Write with `model`, in its precision."""
        self.rows, self.length = rows, length
        self.model = model
        self.head: Tensor = model.model.get_output_embeddings().weight
        self.caches = [KVCache() for _ in range(rows)]

    def step(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Feed one token a row at its position: the features, `[rows, hidden]`."""
        caches = self.caches[: len(token_ids)]
        for cache, position in zip(caches, positions.tolist(), strict=True):
            cache.keep(position, ())
        segments = [
            Segment.chain(cache, [token])
            for cache, token in zip(caches, token_ids.tolist(), strict=True)
        ]
        outputs = self.model.forward(segments, with_logits=False)
        return torch.cat([output.features for output in outputs])

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """Scores of every token id, in fp32: `[rows, hidden]` to `[rows, vocabulary]`."""
        return F.linear(features, self.head).float()

    def prefix_of(self, token_ids: list[int]) -> Prefix:
        """Read a common opening."""
        cache = KVCache()
        return Prefix(cache, self.model.prefill(cache, token_ids))

    def seed(self, row: int, prefix: Prefix) -> None:
        """Begin `row` with a copy of a prefix."""
        self.caches[row] = copy.deepcopy(prefix.state)

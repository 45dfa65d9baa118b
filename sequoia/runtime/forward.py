"""One pass over the trees of several sessions: any transformers decoder, with a tree mask."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sequoia.runtime.cache import KVCache, PassCache
from sequoia.tree import Topology

PREFILL_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Segment:
    """One session's share of a pass: new rows behind the valid rows of its cache."""

    cache: KVCache
    token_ids: Sequence[int]
    positions: Sequence[int]
    visible: NDArray[np.bool_]  # [new rows, valid rows + new rows]
    key_positions: NDArray[np.int64]  # [valid rows + new rows]

    @classmethod
    def chain(cls, cache: KVCache, token_ids: Sequence[int]) -> Segment:
        """Tokens that follow the cached ones, each seeing all before it."""
        count, start = len(token_ids), cache.length
        visible = np.tri(count, start + count, start, dtype=np.bool_)
        positions = range(start, start + count)
        return cls(cache, token_ids, positions, visible, np.arange(start + count))

    @classmethod
    def tree(cls, cache: KVCache, topology: Topology, token_ids: Sequence[int]) -> Segment:
        """A whole tree behind the cached rows: a node sees these, its ancestors and itself."""
        start, count = cache.length, topology.node_count
        visible = np.ones((count, start + count), dtype=np.bool_)
        visible[:, start:] = topology.ancestry
        positions = start + np.array(topology.depths)
        key_positions = np.concatenate([np.arange(start), positions])
        return cls(cache, token_ids, positions.tolist(), visible, key_positions)


class TreeModel:
    """A decoder that runs segments; the only place that knows how transformers wants its inputs.

    `token_ids` maps the rows of a reduced output layer to the vocabulary; None for a full one.
    """

    def __init__(self, model: Any, token_ids: Tensor | None = None) -> None:
        self.model = model.eval()
        self.token_ids = token_ids
        text_config = model.config.get_text_config(decoder=True)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.context_length = int(getattr(text_config, "max_position_embeddings", 0) or 2**31 - 1)
        self.embedding_size = int(model.get_input_embeddings().weight.shape[0])
        self.vocabulary_size = (
            int(model.get_output_embeddings().weight.shape[0])
            if token_ids is None
            else int(token_ids.max()) + 1
        )
        self._window: int | None = getattr(text_config, "sliding_window", None)
        if getattr(text_config, "use_sliding_window", True) is False:
            self._window = None
        self.layer_types = frozenset(
            (
                *(getattr(text_config, "layer_types", None) or ()),
                *(getattr(text_config, "attention_layers", None) or ()),  # GPT-Neo's word
            )
        )
        parameters = inspect.signature(model.forward).parameters
        self._trims_logits = "logits_to_keep" in parameters

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment], with_logits: bool = True) -> list[Tensor]:
        """Run one pass; the caches' new rows become valid.

        Returns:
            Per segment, fp32 logits `[new rows, output rows]`; empty without logits.
        """
        counts = [len(segment.token_ids) for segment in segments]
        width = max(counts)
        token_ids = torch.zeros(len(segments), width, dtype=torch.long)
        positions = torch.zeros(len(segments), width, dtype=torch.long)
        for row, segment in enumerate(segments):
            token_ids[row, : counts[row]] = torch.as_tensor(segment.token_ids)
            positions[row, : counts[row]] = torch.as_tensor(segment.positions)
        # Ids beyond a smaller embedding cannot be read; a draft then guesses from another token.
        token_ids.clamp_(max=self.embedding_size - 1)
        arguments: dict[str, Any] = {"logits_to_keep": 1} if self._trims_logits else {}
        output = self.model(
            input_ids=token_ids.to(self.device),
            position_ids=positions.to(self.device),
            attention_mask=self._masks(segments, width),
            past_key_values=PassCache([segment.cache for segment in segments], counts),
            use_cache=True,
            **({} if with_logits else arguments),
        )
        for segment, count in zip(segments, counts, strict=True):
            segment.cache.length += count
        if not with_logits:
            return []
        return [output.logits[row, :count].float() for row, count in enumerate(counts)]

    def prefill(self, cache: KVCache, token_ids: Sequence[int]) -> None:
        """Append tokens to a cache, in chunks that bound the memory of a pass."""
        for start in range(0, len(token_ids), PREFILL_CHUNK):
            chunk = token_ids[start : start + PREFILL_CHUNK]
            self.forward([Segment.chain(cache, chunk)], with_logits=False)

    @torch.inference_mode()
    def plain(self, token_ids: Sequence[int]) -> Tensor:
        """fp32 logits `[tokens, output rows]` as transformers has them, without our cache and mask."""
        tokens = torch.tensor([token_ids], device=self.device)
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits[0].float()
        return logits

    def _masks(self, segments: Sequence[Segment], width: int) -> Tensor | dict[str, Tensor]:
        full = self._mask(segments, width, None)
        if self._window is None or self.layer_types == {"full_attention"}:
            return full
        sliding = self._mask(segments, width, self._window)
        if len(self.layer_types) > 1:
            return {"full_attention": full, "sliding_attention": sliding}
        return sliding

    def _mask(self, segments: Sequence[Segment], width: int, window: int | None) -> Tensor:
        """Additive mask `[segments, 1, width, keys]`: 0 where a row may look, else the least."""
        keys = max(segment.visible.shape[1] for segment in segments)
        allowed = np.zeros((len(segments), 1, width, keys), dtype=np.bool_)
        for row, segment in enumerate(segments):
            visible = segment.visible
            if window is not None:
                distance = np.asarray(segment.positions)[:, None] - segment.key_positions[None, :]
                visible = visible & (distance < window)
            allowed[row, 0, : visible.shape[0], : visible.shape[1]] = visible
        least = torch.finfo(self.dtype).min
        mask = torch.zeros(allowed.shape, dtype=self.dtype)
        mask.masked_fill_(torch.from_numpy(~allowed), least)
        return mask.to(self.device)

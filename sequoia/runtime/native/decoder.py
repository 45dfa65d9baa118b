"""A transformers decoder, taken over by the compiled engine."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from ctypes import c_int32
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sequoia.runtime.native import structures as c
from sequoia.runtime.native.library import NativeUnavailableError, library
from sequoia.runtime.native.rows import BlockRows
from sequoia.runtime.native.support import misfit
from sequoia.runtime.native.weights import PackedWeights
from sequoia.runtime.segment import Segment

POSITION_STEP = 4096


class NativeDecoder:
    """Runs segments as the decoder that it was made from would.

    Raises:
        NativeUnavailableError: no engine on this machine, or not for this model.
    """

    def __init__(self, model: Any, fusion: nn.Linear | None, threads: int) -> None:
        if reason := misfit(model, fusion):
            raise NativeUnavailableError(reason)
        self._library = library()
        pool = self._library.sequoia_new_pool(threads)
        if pool is None:
            raise NativeUnavailableError(f"the system gives no {threads} threads")
        self._pool = ctypes.c_void_p(pool)
        # Not at the process's exit: a pass may be running then, and the system frees it all.
        weakref.finalize(self, self._library.sequoia_free_pool, self._pool).atexit = False
        self._rotation = _Rotation(model.model.rotary_emb)
        self._weights = PackedWeights(self._library, model, fusion)
        self._decoder = d = self._weights.decoder
        self._feature_size = d.fusion.inputs - d.embedding_size if fusion is not None else 0
        memory = torch.empty(d.layer_count, 2, d.kv_heads, 0, d.head_dim, dtype=model.dtype)
        self._empty = BlockRows(memory, self._move)

    def run(self, segments: Sequence[Segment], with_logits: bool) -> tuple[Tensor, Tensor]:
        """One pass; the caches' new rows become valid.

        Args:
            segments: the sessions' shares; no token may be outside the embedding.
            with_logits: whether logits are wanted.

        Returns:
            fp32 logits `[rows, output rows]`, of no rows without logits, and features
            `[rows, hidden]`; the rows of all segments, one behind the other.

        Raises:
            MemoryError: not enough for the pass; the caches are as they were.
        """
        token_ids = [token_id for segment in segments for token_id in segment.token_ids]
        positions = [position for segment in segments for position in segment.positions]
        rows, decoder = len(token_ids), self._decoder
        indices = c_int32 * rows
        cosines, sines = self._rotation.up_to(max(positions))
        read = self._read_features(segments, rows) if self._feature_size else None
        features = torch.empty(rows, decoder.hidden)
        logits = torch.empty(rows if with_logits else 0, decoder.vocabulary)
        visible = [np.ascontiguousarray(segment.visible) for segment in segments]
        shares = [self._share(one, seen) for one, seen in zip(segments, visible, strict=True)]
        one = c.Pass(
            len(segments),
            rows,
            int(with_logits),
            self._feature_size,
            (c.Segment * len(shares))(*shares),
            indices(*token_ids),
            indices(*positions),
            *(
                None if t is None else c.address(t)
                for t in (cosines, sines, read, features, logits)
            ),
        )
        if not self._library.sequoia_run(ctypes.byref(decoder), ctypes.byref(one), self._pool):
            raise MemoryError(f"no memory for a pass over {rows} tokens")
        for segment in segments:
            segment.cache.length += len(segment.token_ids)
        return logits, features

    def _read_features(self, segments: Sequence[Segment], rows: int) -> Tensor:
        """What a feature-conditioned draft reads, `[rows, feature size]`; narrower ones end in zeros."""
        read = torch.zeros(rows, self._feature_size)
        start = 0
        for segment in segments:
            end = start + len(segment.token_ids)
            if segment.features is not None:
                read[start:end, : segment.features.shape[-1]] = segment.features
            start = end
        return read

    def _share(self, segment: Segment, visible: NDArray[np.bool_]) -> c.Segment:
        cache, count = segment.cache, len(segment.token_ids)
        if not count or visible.shape != (count, cache.length + count):
            raise ValueError(f"{count} rows behind {cache.length} cannot see {visible.shape}")
        rows = BlockRows.of(cache, cache.length + count, self._empty)
        memory, seen = c.address(rows.memory), visible.ctypes.data
        return c.Segment(memory, seen, visible.shape[1], rows.capacity, cache.length, count)

    def _move(self, rows: BlockRows, start: int, moved: Sequence[int]) -> None:
        where = c.Segment(c.address(rows.memory), None, 0, rows.capacity, 0, 0)
        indices = (c_int32 * len(moved))(*moved)
        self._library.sequoia_move_rows(
            ctypes.byref(self._decoder), ctypes.byref(where), start, indices, len(moved)
        )


class _Rotation:
    """Cosines and sines of rotary positions, fp32, computed as far as positions were asked for."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._cosines, self._sines = self._table(POSITION_STEP)

    def up_to(self, position: int) -> tuple[Tensor, Tensor]:
        """Both for all positions up to one, and perhaps more, `[positions, head_dim]`."""
        if position >= len(self._cosines):
            steps = position // POSITION_STEP + 1
            self._cosines, self._sines = self._table(steps * POSITION_STEP)
        return self._cosines, self._sines

    def _table(self, count: int) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            cosines, sines = self._module(torch.empty(0), torch.arange(count)[None])
            return cosines[0].contiguous(), sines[0].contiguous()

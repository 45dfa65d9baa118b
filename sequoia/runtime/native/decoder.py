"""A transformers decoder, taken over by the compiled engine."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
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
        self._rotation = _Rotation(model.model.rotary_emb)
        self._weights = PackedWeights(self._library, model, fusion)
        self._decoder = d = self._weights.decoder
        memory = torch.empty(d.layer_count, 2, d.kv_heads, 0, d.head_dim, dtype=model.dtype)
        self._empty = BlockRows(memory, self._move)
        self._pool = ctypes.c_void_p(self._library.sequoia_new_pool(threads))
        weakref.finalize(self, self._library.sequoia_free_pool, self._pool)

    def run(
        self, segments: Sequence[Segment], inputs: Tensor, with_logits: bool
    ) -> tuple[Tensor, Tensor]:
        """One pass; the caches' new rows become valid.

        Args:
            segments: the sessions' shares.
            inputs: fp32 `[rows, hidden]` of all segments, one behind the other; for a draft that
                reads features embedding and feature, end to end.
            with_logits: whether logits are wanted.

        Returns:
            fp32 logits `[rows, output rows]`, of no rows without logits, and features
            `[rows, hidden]`.
        """
        rows, decoder = len(inputs), self._decoder
        cosines, sines = self._rotation.at([p for s in segments for p in s.positions])
        features = torch.empty(rows, decoder.hidden)
        logits = torch.empty(rows if with_logits else 0, decoder.vocabulary)
        visible = [np.ascontiguousarray(segment.visible) for segment in segments]
        shares = [self._share(one, seen) for one, seen in zip(segments, visible, strict=True)]
        one = c.Pass(
            len(segments),
            rows,
            int(with_logits),
            (c.Segment * len(shares))(*shares),
            *(c.address(t) for t in (inputs, cosines, sines, features, logits)),
        )
        self._library.sequoia_run(ctypes.byref(decoder), ctypes.byref(one), self._pool)
        for segment in segments:
            segment.cache.length += len(segment.token_ids)
        return logits, features

    def _share(self, segment: Segment, visible: NDArray[np.bool_]) -> c.Segment:
        cache, count = segment.cache, len(segment.token_ids)
        rows = BlockRows.of(cache, cache.length + count, self._empty)
        memory, seen = c.address(rows.memory), visible.ctypes.data
        return c.Segment(memory, seen, visible.shape[1], rows.capacity, cache.length, count)

    def _move(self, rows: BlockRows, start: int, moved: Sequence[int]) -> None:
        where = c.Segment(c.address(rows.memory), None, 0, rows.capacity, 0, 0)
        indices = (ctypes.c_int32 * len(moved))(*moved)
        self._library.sequoia_move_rows(
            ctypes.byref(self._decoder), ctypes.byref(where), start, indices, len(moved)
        )


class _Rotation:
    """Cosines and sines of rotary positions, fp32, computed as far as positions were asked for."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._cosines, self._sines = self._table(POSITION_STEP)

    def at(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Both for some positions, `[positions, head_dim]`."""
        needed = max(positions) + 1
        if needed > len(self._cosines):
            self._cosines, self._sines = self._table(-(-needed // POSITION_STEP) * POSITION_STEP)
        index = torch.tensor(positions)
        return self._cosines[index], self._sines[index]

    def _table(self, count: int) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            cosines, sines = self._module(torch.empty(0), torch.arange(count)[None])
            return cosines[0].contiguous(), sines[0].contiguous()

"""Passes of one model, run again and again on scratch sessions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sequoia.bench.forward.roofline import ModelSize
from sequoia.runtime.cache import KVCache
from sequoia.runtime.catalogue import default_draft, resolve
from sequoia.runtime.device import finish
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.pairing import load_draft_worker, load_target_worker
from sequoia.runtime.segment import Segment
from sequoia.runtime.tokenization import gguf_arguments
from sequoia.tree import Topology


@dataclass(frozen=True, slots=True, order=True)
class Pass:
    """One kind of pass: trees of `nodes` nodes for `batch` sessions with `prefix` cached tokens each."""

    nodes: int
    batch: int
    prefix: int


@dataclass(frozen=True, slots=True)
class MakePassTimer:
    """How to make a timer in its process; `role` is `target` or `draft`."""

    role: str
    target: str
    draft: str | None
    dtype: str
    device: str
    threads: int

    def __call__(self) -> PassTimer:
        """Load the model as its worker does."""
        torch.set_num_threads(self.threads)
        place = self.dtype, self.device
        if self.role == "target":
            return PassTimer(self.target, load_target_worker(self.target, *place).model)
        draft = self.draft or default_draft(self.target) or ""
        return PassTimer(draft, load_draft_worker(self.draft, self.target, *place).model)


class PassTimer:
    """Runs passes of one model on scratch sessions."""

    def __init__(self, reference: str, model: TreeModel) -> None:
        self._reference = reference
        self._model = model
        self._first = KVCache()
        model.prefill(self._first, [1])
        self._caches: dict[tuple[int, int], list[KVCache]] = {}

    @property
    def _fused(self) -> int:
        return self._model.feature_size if self._model.reads_features else 0

    def size(self) -> ModelSize:
        """What the model's passes cost."""
        from transformers import AutoConfig

        folder = resolve(self._reference)
        config: Any = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, **gguf_arguments(folder)
        )
        rows = None if self._model.token_ids is None else len(self._model.token_ids)
        return ModelSize.of(config, self._model.dtype.itemsize, rows, self._fused)

    def context_length(self) -> int:
        """Tokens that the model can hold."""
        return self._model.context_length

    def seconds(self, kind: Pass) -> float:
        """Of one pass, after another of the same kind: a worker under load does not begin cold."""
        self._run(kind)
        return self._run(kind)

    def _run(self, kind: Pass) -> float:
        caches = self._sessions(kind)
        topology = Topology((-1, *[0] * (kind.nodes - 1)))
        segments = [Segment.tree(cache, topology, [1] * kind.nodes) for cache in caches]
        finish(self._model.device)
        started = time.perf_counter()
        self._model.forward(segments)
        finish(self._model.device)
        seconds = time.perf_counter() - started
        for cache in caches:
            cache.keep(kind.prefix, ())
        return seconds

    def _sessions(self, kind: Pass) -> Sequence[KVCache]:
        key = kind.batch, kind.prefix
        if key not in self._caches:
            self._caches[key] = [self._first.repeated(kind.prefix) for _ in range(kind.batch)]
        return self._caches[key]

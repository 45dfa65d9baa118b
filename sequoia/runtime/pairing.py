"""Which models a worker runs: references resolved, loaded, and checked to attend over trees."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from sequoia.runtime.catalogue import ModelError, default_draft, resolve
from sequoia.runtime.fingerprint import model_sha256
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.loading import (
    BorrowedDraft,
    choose_device,
    choose_dtype,
    load_draft,
)
from sequoia.runtime.native.library import NativeUnavailableError
from sequoia.runtime.offload.budget import KV_CACHE_BYTES
from sequoia.runtime.offload.placement import PlacementOptions, place_target
from sequoia.runtime.packing import pack_linear_layers
from sequoia.runtime.selfcheck import check_tree_attention
from sequoia.runtime.sharding.ranks import Ranks
from sequoia.runtime.sharding.starting import lead_shards
from sequoia.runtime.tokenization import load_tokenizer, tokenizer_sha256

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready for a worker, and what it says of itself."""

    name: str
    model: TreeModel
    tokenizer_sha256: str
    model_sha256: str


@dataclass(frozen=True, slots=True)
class LoadedTarget(LoadedModel):
    """The same of a target, with what its placement leaves for sessions (see `PlacedModel`)."""

    kv_cache_limit_bytes: int
    pass_tokens: int | None


def load_target_worker(
    target: str,
    dtype: str,
    device: str,
    placement: PlacementOptions | None = None,
    ranks: Ranks | None = None,
) -> LoadedTarget:
    """Load a target, where `placement` wants it; with `ranks`, rank 0's shards of it.

    Raises:
        ModelError: it cannot be found, loaded or placed, or does not attend over trees.
    """
    started = time.perf_counter()
    folder = resolve(target)
    fingerprints = tokenizer_sha256(load_tokenizer(folder)), _model_sha256(folder)
    device_ = choose_device(device)
    options = placement or PlacementOptions()
    if ranks is not None:
        model = lead_shards(folder, choose_dtype(dtype, device_), device_, ranks)
        _check(target, model, started)
        model.lead.is_serving = True
        limit = options.kv_cache_limit_bytes or KV_CACHE_BYTES
        return LoadedTarget(target, model, *fingerprints, limit, None)
    placed = place_target(folder, choose_dtype(dtype, device_), device_, options)
    _check(target, placed.model, started)
    limits = placed.kv_cache_limit_bytes, placed.pass_tokens
    return LoadedTarget(target, placed.model, *fingerprints, *limits)


def load_draft_worker(draft: str | None, target: str, dtype: str, device: str) -> LoadedModel:
    """Load a draft; the target's default one where none is named.

    Raises:
        ModelError: as for a target, or the draft was made for another target.
    """
    started = time.perf_counter()
    reference = draft or default_draft(target)
    if reference is None:
        raise ModelError(f"{target} has no draft of its own: name one with --draft")
    folder = resolve(reference)
    borrows = BorrowedDraft.read(folder) is not None
    target_folder = resolve(target) if borrows else None
    place = choose_device(device)
    fingerprint = _model_sha256(folder, *([target_folder] if target_folder else []))
    model = load_draft(folder, target_folder, choose_dtype(dtype, place), place)
    tokenizer = load_tokenizer(target_folder or folder)
    _check(reference, model, started)
    return LoadedModel(reference, model, tokenizer_sha256(tokenizer), fingerprint)


def _model_sha256(folder: Path, *lenders: Path) -> str:
    try:
        return model_sha256(folder, *lenders)
    except OSError as error:
        raise ModelError(f"{folder}: {error}") from error


def _check(name: str, model: TreeModel, started: float) -> None:
    model.pass_seconds = check_tree_attention(model, lambda: _prepare(model))
    log.info(
        "model loaded",
        model=name,
        engine=model.engine,
        placement=model.placement,
        shards=model.shard_count,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        threads=torch.get_num_threads(),
        pass_seconds=round(model.pass_seconds, 4),
        seconds=round(time.perf_counter() - started, 2),
    )


def _prepare(model: TreeModel) -> None:
    """Bring a model's weights into the form in which this machine reads them fastest."""
    if model.device.type != "cpu" or model.placement == "offload" or model.shard_count > 1:
        return
    try:
        model.compile(torch.get_num_threads())
    except NativeUnavailableError as error:
        log.warning("passes go through transformers", reason=str(error))
        pack_linear_layers(model.model)

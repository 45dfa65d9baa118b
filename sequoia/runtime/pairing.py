"""Which models a worker runs: references resolved, loaded, and checked to attend over trees."""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog
import torch

from sequoia.runtime.catalogue import ModelError, default_draft, resolve
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.loading import (
    BorrowedDraft,
    choose_device,
    choose_dtype,
    load_draft,
    load_model,
)
from sequoia.runtime.native.library import NativeUnavailableError
from sequoia.runtime.packing import pack_linear_layers
from sequoia.runtime.selfcheck import check_tree_attention
from sequoia.runtime.tokenization import load_tokenizer, tokenizer_sha256

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready for a worker, and what it says of itself."""

    name: str
    model: TreeModel
    tokenizer_sha256: str


def load_target_worker(target: str, dtype: str, device: str) -> LoadedModel:
    """Load a target.

    Raises:
        ModelError: it cannot be found, loaded, or does not attend over trees.
    """
    started = time.perf_counter()
    folder = resolve(target)
    place = choose_device(device)
    model = load_model(folder, choose_dtype(dtype, place), place)
    return _checked(target, model, tokenizer_sha256(load_tokenizer(folder)), started)


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
    model = load_draft(folder, target_folder, choose_dtype(dtype, place), place)
    tokenizer = load_tokenizer(target_folder or folder)
    return _checked(reference, model, tokenizer_sha256(tokenizer), started)


def _checked(name: str, model: TreeModel, fingerprint: str, started: float) -> LoadedModel:
    check_tree_attention(model, lambda: _prepare(model))
    log.info(
        "model loaded",
        model=name,
        engine=model.engine,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        threads=torch.get_num_threads(),
        seconds=round(time.perf_counter() - started, 2),
    )
    return LoadedModel(name, model, fingerprint)


def _prepare(model: TreeModel) -> None:
    """Bring a model's weights into the form in which this machine reads them fastest."""
    if model.device.type != "cpu":
        return
    try:
        model.compile(torch.get_num_threads())
    except NativeUnavailableError as error:
        log.warning("passes go through transformers", reason=str(error))
        pack_linear_layers(model.model)

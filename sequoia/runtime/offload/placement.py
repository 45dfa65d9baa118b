"""Where a target's weights go: all on its device where they fit, streamed where they do not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.loading import load_model
from sequoia.runtime.offload.budget import (
    ACTIVATION_SHARE,
    KV_CACHE_BYTES,
    KV_CACHE_MOST_SHARE,
    RING_SIZE,
    BudgetError,
    Division,
    Sizes,
    divide,
)
from sequoia.runtime.offload.checkpoint import Checkpoint
from sequoia.runtime.offload.host import HostMemoryError
from sequoia.runtime.offload.loading import (
    Offloaded,
    load_offloaded,
    process_bytes,
    sizes_of,
    tier_bytes,
)
from sequoia.runtime.offload.memory import (
    device_free,
    device_total,
    host_free,
    host_total,
    process_resident,
)
from sequoia.runtime.offload.skeleton import Skeleton

log = structlog.get_logger(__name__)

FREE_SHARE = 0.8  # of what is free, by default; other roles want some as well
ACTIVATION_BYTES = 2**30  # of a model that stays on its device
# Weights are packed for the CPU one after another, and the output layer stands twice where it is tied.
ON_CHIP_OVERHEAD = 1.25


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """What the operator wants; None leaves a size to what is free.

    Attributes:
        placement: auto, on-chip or offload.
        device_memory: most bytes on the device; on a CPU, of the process.
        host_memory: most bytes of the host, for KV cache and for layers that are streamed to a GPU.
        kv_cache_limit_bytes: most bytes of KV cache.
        node_limit: most nodes of a tree.
    """

    placement: str = "auto"
    device_memory: int | None = None
    host_memory: int | None = None
    kv_cache_limit_bytes: int | None = None
    node_limit: int = 1024


@dataclass(frozen=True, slots=True)
class PlacedModel:
    """A model where it belongs, and what is left for sessions.

    Attributes:
        pass_tokens: most tokens of a pass; None for no bound but the device's memory.
    """

    model: TreeModel
    kv_cache_limit_bytes: int
    pass_tokens: int | None = None


def place_target(
    folder: Path, dtype: torch.dtype, device: torch.device, options: PlacementOptions
) -> PlacedModel:
    """Load a target where its options or the memory that is free want it.

    Raises:
        ModelError: broken files, a budget too small for the model or too large for the machine.
    """
    _check_budgets(options, device)
    budget = options.device_memory or int(FREE_SHARE * device_free(device))
    if options.placement != "offload" and _stays(folder, dtype, device, options, budget):
        log.info("placement chosen", placement="on-chip", device_memory_bytes=budget)
        return PlacedModel(load_model(folder, dtype, device), _kv_cache_bytes(options, budget))
    return _offloaded(folder, dtype, device, options, budget)


def _check_budgets(options: PlacementOptions, device: torch.device) -> None:
    if options.host_memory is not None and device.type != "cuda":
        raise ModelError(
            "--host-memory is for a target on a GPU; on a CPU --device-memory bounds its process"
        )
    wanted = (
        ("--device-memory", options.device_memory, device_total(device), str(device)),
        ("--host-memory", options.host_memory, host_total(), "the host"),
    )
    for name, value, most, where in wanted:
        if value is not None and value > most:
            raise ModelError(f"{name} is {value} bytes, but {where} has {most}")


def _stays(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    options: PlacementOptions,
    budget: int,
) -> bool:
    """Whether all weights are to stay on the device.

    Raises:
        ModelError: they are, and do not fit the operator's budget.
    """
    is_chosen = options.placement == "on-chip"
    if is_chosen and options.device_memory is None:
        return True
    try:
        weights = sum(s.element_count for s in Checkpoint(folder).values()) * dtype.itemsize
    except ModelError:
        return True  # not for streaming, whatever it is; loading it says what is wrong
    process = process_bytes(device)
    needed = process + _kv_cache_bytes(options, budget)
    needed += min(ACTIVATION_BYTES, budget // ACTIVATION_SHARE)
    needed += int(ON_CHIP_OVERHEAD * weights)
    if is_chosen and needed > budget:
        raise ModelError(
            f"--device-memory is {budget} bytes; on-chip this model takes {needed} "
            "(--placement offload streams it)"
        )
    return needed <= budget


def _kv_cache_bytes(options: PlacementOptions, budget: int) -> int:
    """Most KV cache of a target that stays; without a budget of the operator's, as much as ever."""
    if options.kv_cache_limit_bytes or options.device_memory is None:
        return options.kv_cache_limit_bytes or KV_CACHE_BYTES
    return min(KV_CACHE_BYTES, budget // KV_CACHE_MOST_SHARE)


def _offloaded(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    options: PlacementOptions,
    budget: int,
) -> PlacedModel:
    if not hasattr(os, "O_DIRECT"):
        raise ModelError("--placement offload reads past the page cache, which needs Linux")
    skeleton = Skeleton.of(folder, Checkpoint(folder), dtype)
    limits = options.kv_cache_limit_bytes, options.node_limit
    sizes = sizes_of(skeleton, dtype, device, *limits)
    try:
        division = divide(sizes, budget)
    except BudgetError as error:
        raise ModelError(
            f"--device-memory is {budget} bytes, too few for {folder} even when all its layers "
            f"are streamed; {error.smallest} ({error.smallest // 2**20}MiB) would do"
        ) from error
    host_bytes = options.host_memory or int(FREE_SHARE * (host_free() + process_resident()))
    try:
        offloaded = load_offloaded(skeleton, division, dtype, device, host_bytes)
    except HostMemoryError as error:
        raise ModelError(f"--host-memory of {host_bytes} bytes: {error}") from error
    except OSError as error:
        raise ModelError(f"{error.filename}: {error.strerror}") from error
    _log(budget, sizes, division, offloaded)
    limit = division.kv_cache_limit_bytes
    return PlacedModel(offloaded.model, limit, division.pass_tokens)


def _log(budget: int, sizes: Sizes, division: Division, offloaded: Offloaded) -> None:
    log.info(
        "placement chosen",
        placement="offload",
        device_memory_bytes=budget,
        resident_layers=len(division.resident),
        streamed_layers=len(division.streamed),
        host_layers=len(offloaded.host_layers),
        ring_size=RING_SIZE if division.streamed else 0,
        **tier_bytes(sizes, division),
        process_bytes=sizes.process_bytes,
        kv_cache_limit_bytes=division.kv_cache_limit_bytes,
        device_kv_bytes=division.device_kv_bytes,
        pass_tokens=division.pass_tokens,
        direct_reads=offloaded.disk.is_direct,
    )

"""A model whose layers do not all stay on its device, ready for tree passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.footprint import kv_bytes_per_token, told_kv_bytes_per_token
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.offload.budget import RING_SIZE, Division, Sizes, tiers
from sequoia.runtime.offload.cpu_tier import CpuTier
from sequoia.runtime.offload.cuda_tier import STAGING_COUNT, CudaTier
from sequoia.runtime.offload.disk import Disk, Pages
from sequoia.runtime.offload.extents import Layout
from sequoia.runtime.offload.kv_tier import KVTier
from sequoia.runtime.offload.lane import Lane
from sequoia.runtime.offload.memory import process_resident
from sequoia.runtime.offload.ring import Ring
from sequoia.runtime.offload.shelf import Shelf
from sequoia.runtime.offload.skeleton import Skeleton
from sequoia.runtime.offload.streaming import put_in, stream_layers
from sequoia.runtime.offload.windows import Windows

# What a process comes to hold beside what it holds before weights are loaded: the matrix library's
# kernels and thread pools, the server's buffers.
GROWTH_BYTES = 192 * 2**20
CUDA_BYTES = 640 * 2**20  # a CUDA context with the libraries' workspaces
LOGIT_COPIES = 3  # fp32, of a pass's logits while they become answers


@dataclass(frozen=True, slots=True)
class Offloaded:
    """A streamed model, and what it is streamed with; None where every layer stays.

    Attributes:
        host_layers: streamed layers that stay in the host's memory; the rest comes from disk.
    """

    model: TreeModel
    disk: Disk
    ring: Ring[Any] | None
    host_layers: tuple[int, ...]


def process_bytes(device: torch.device) -> int:
    """What a process takes of a device's memory beside any model."""
    return CUDA_BYTES if device.type == "cuda" else process_resident() + GROWTH_BYTES


def sizes_of(
    skeleton: Skeleton,
    dtype: torch.dtype,
    device: torch.device,
    kv_cache_limit_bytes: int | None,
    node_limit: int,
) -> Sizes:
    """What a model takes on a device, beside what the process holds now."""
    on_gpu = device.type == "cuda"
    layouts = tuple(skeleton.layer_layouts.values())
    converted = [layout for layout in layouts if on_gpu or layout.must_be_copied(dtype)]
    scratch = max((layout.placed_bytes(dtype) for layout in converted), default=0)
    return Sizes(
        process_bytes=process_bytes(device),
        rest_bytes=_resident_bytes(skeleton.rest_layout, dtype, on_gpu),
        layer_bytes=tuple(_resident_bytes(layout, dtype, on_gpu) for layout in layouts),
        slot_bytes=scratch if on_gpu else max(layout.byte_count for layout in layouts),
        scratch_bytes=0 if on_gpu else scratch,
        token_bytes=_token_bytes(skeleton, dtype),
        kv_token_bytes=told_kv_bytes_per_token(skeleton.model.config, dtype) or 0,
        kv_cache_limit_bytes=kv_cache_limit_bytes,
        has_host=on_gpu,
        node_limit=node_limit,
    )


def load_offloaded(
    skeleton: Skeleton,
    division: Division,
    dtype: torch.dtype,
    device: torch.device,
    host_bytes: int = 0,
) -> Offloaded:
    """Load what stays, and begin to stream the rest.

    Args:
        skeleton: of the model; becomes the model.
        division: which layers stay.
        dtype: in which the model runs.
        device: where it runs.
        host_bytes: of the host's memory, for KV cache and for layers that are streamed to a GPU.

    Raises:
        ModelError: a file cannot be opened, or the host's memory has no room for the KV cache.
        HostMemoryError: the host cannot pin so much memory.
        OSError: a file cannot be read.
    """
    model, disk = skeleton.model, Disk(skeleton.paths)
    put_in(model, _loaded(skeleton.rest_layout, disk, dtype, device))
    model.tie_weights()
    for name, buffer in model.named_buffers():
        put_in(model, {name: buffer.to(device)})
    for number in division.resident:
        tensors = _loaded(skeleton.layer_layouts[number], disk, dtype, device)
        put_in(skeleton.layers[number], tensors)
    streamed = {number: skeleton.layer_layouts[number] for number in division.streamed}
    layers = {number: skeleton.layers[number] for number in division.streamed}
    lane = Lane(device)
    ring: Ring[Any] | None = None
    host_layers: tuple[int, ...] = ()
    if device.type == "cuda":
        host_layers = layers_in_host(streamed, dtype, host_bytes, division.host_kv_bytes)
    if streamed and device.type == "cuda":
        ring = stream_layers(layers, CudaTier(streamed, host_layers, disk, dtype, lane))
    elif streamed:
        ring = stream_layers(layers, CpuTier(streamed, disk, dtype))
    tree_model = TreeModel(model)
    tree_model.placement = "offload"
    if division.host_kv_bytes:
        tree_model.homes = _kv_tier(tree_model, len(skeleton.layers), division, lane)
    return Offloaded(tree_model, disk, ring, host_layers)


def layers_in_host(
    streamed: Mapping[int, Layout], dtype: torch.dtype, host_bytes: int, kv_bytes: int
) -> tuple[int, ...]:
    """The layers that stay in the host's memory, beside the process and the KV cache.

    Raises:
        ModelError: these alone are more than the host's share.
    """
    sizes = {number: layout.placed_bytes(dtype) for number, layout in streamed.items()}
    passing = STAGING_COUNT * max(sizes.values(), default=0) + max(
        (layout.byte_count for layout in streamed.values()), default=0
    )
    needed = process_resident() + GROWTH_BYTES + passing + kv_bytes
    if kv_bytes and needed > host_bytes:
        raise ModelError(
            f"--host-memory is {host_bytes} bytes; with --kv-cache-limit-bytes of {kv_bytes}, which the "
            f"GPU cannot hold, {needed} would do"
        )
    return tiers(sizes, host_bytes - needed)


def _kv_tier(model: TreeModel, layer_count: int, division: Division, lane: Lane) -> KVTier:
    """Homes for keys and values on the device and in the host's memory."""
    token_bytes = kv_bytes_per_token(model)
    shelf = Shelf(division.host_kv_bytes, token_bytes, layer_count, lane.device)
    windows = Windows(-(-division.host_kv_bytes // layer_count), lane)
    return KVTier(division.device_kv_bytes, token_bytes, shelf, windows)


def tier_bytes(sizes: Sizes, division: Division) -> dict[str, int]:
    """Bytes of weights that stay, that are streamed at every pass, and of the ring; for the log."""
    return {
        "resident_bytes": sizes.rest_bytes + sum(sizes.layer_bytes[i] for i in division.resident),
        "streamed_bytes": sum(sizes.layer_bytes[i] for i in division.streamed),
        "ring_bytes": RING_SIZE * sizes.slot_bytes if division.streamed else 0,
    }


def _loaded(
    layout: Layout, disk: Disk, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Tensors that stay, in memory of their own."""
    pages = Pages(layout.byte_count)
    disk.read(layout, pages)
    stored = layout.views(pages.bytes)
    if device.type == "cpu" and not layout.must_be_copied(dtype):
        return stored
    memory = torch.empty(layout.placed_bytes(dtype), dtype=torch.uint8, device=device)
    room = layout.carved(memory, dtype)
    for name, tensor in stored.items():
        room[name].copy_(tensor)
    return room


def _resident_bytes(layout: Layout, dtype: torch.dtype, on_gpu: bool) -> int:
    copied = on_gpu or layout.must_be_copied(dtype)
    return layout.placed_bytes(dtype) if copied else layout.byte_count


def _token_bytes(skeleton: Skeleton, dtype: torch.dtype) -> int:
    """Activations of a token within the widest layer, and its logits on the way to an answer."""
    widths = (
        sum(stored.shape[0] for _, stored in layout.tensors.values() if len(stored.shape) > 1)
        for layout in skeleton.layer_layouts.values()
    )
    vocabulary = int(skeleton.model.get_output_embeddings().weight.shape[0])
    logits = vocabulary * (dtype.itemsize + LOGIT_COPIES * torch.float32.itemsize)
    return logits + 2 * max(widths) * dtype.itemsize

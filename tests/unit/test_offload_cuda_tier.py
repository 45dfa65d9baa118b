"""What layers go through on their way to a GPU, on a CPU: staging, conversion, buffers and their order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sequoia.runtime.forward import TreeModel
from sequoia.runtime.loading import load_model
from sequoia.runtime.offload.checkpoint import Checkpoint
from sequoia.runtime.offload.cuda_tier import CudaTier
from sequoia.runtime.offload.disk import Disk
from sequoia.runtime.offload.lane import Lane
from sequoia.runtime.offload.skeleton import Skeleton
from sequoia.runtime.offload.streaming import stream_layers
from tests.offloading import CPU, LateLane, tree_logits
from tests.tiny import save_model, tiny_llama, word_tokenizer
from tests.unit.test_offload_model import LAYERS, WORDS

EVERY = range(LAYERS)


def folder_of(path: Path, dtype: torch.dtype) -> Path:
    """A tiny Llama's folder, stored in a type."""
    model = tiny_llama(WORDS, seed=1, layers=LAYERS).to(dtype)
    return save_model(path / "model", model, word_tokenizer(WORDS))


def streamed(folder: Path, kept: range, dtype: torch.dtype, lane: Lane) -> TreeModel:
    """A model that has lost its layers, which come through the tier instead."""
    model = load_model(folder, dtype, CPU)
    skeleton = Skeleton.of(folder, Checkpoint(folder), dtype)
    layers = dict(enumerate(model.model.model.layers))
    for layer in layers.values():
        for parameter in layer.parameters():
            parameter.data.fill_(torch.nan)
    disk = Disk(skeleton.paths)
    stream_layers(layers, CudaTier(skeleton.layer_layouts, kept, disk, dtype, lane))
    return model


@pytest.mark.parametrize("make_lane", [Lane, LateLane], ids=["at once", "as late as may be"])
@pytest.mark.parametrize("kept", [EVERY, EVERY[:2], EVERY[:0]], ids=["host", "both", "disk"])
@pytest.mark.parametrize(
    ("stored", "wanted"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
    ids=["as stored", "converted"],
)
def test_layers_arrive_whole_and_in_time(
    stored: torch.dtype, wanted: torch.dtype, kept: range, make_lane: type[Lane], tmp_path: Path
) -> None:
    """From the host's memory and from disk, pass after pass, as the model has them by itself."""
    folder = folder_of(tmp_path, stored)
    expected = tree_logits(load_model(folder, wanted, CPU))
    model = streamed(folder, kept, wanted, make_lane(CPU))
    for _ in range(3):
        assert torch.equal(tree_logits(model), expected)


@pytest.mark.parametrize("make_lane", [Lane, LateLane], ids=["at once", "as late as may be"])
def test_staging_is_read_into_only_when_it_has_been_copied_from(
    make_lane: type[Lane], tmp_path: Path
) -> None:
    """More layers on their way than there are stagings, and none computed yet."""
    folder = folder_of(tmp_path, torch.float32)
    skeleton = Skeleton.of(folder, Checkpoint(folder), torch.float32)
    disk, lane = Disk(skeleton.paths), make_lane(CPU)
    tier = CudaTier(skeleton.layer_layouts, (), disk, torch.float32, lane)
    slots = [tier.new_slot() for _ in EVERY]
    for layer in EVERY:
        tier.fill(layer, slots[layer])
    expected = load_model(folder, torch.float32, CPU).model.model.layers
    for layer in EVERY:
        tensors = tier.tensors(layer, slots[layer])
        for name, tensor in expected[layer].state_dict().items():
            assert torch.equal(tensors[name], tensor)


def test_layers_in_the_hosts_memory_are_read_once(tmp_path: Path) -> None:
    """The others at every pass; what is read is counted by the disk."""
    folder = folder_of(tmp_path, torch.float32)
    skeleton = Skeleton.of(folder, Checkpoint(folder), torch.float32)
    disk, lane = Disk(skeleton.paths), Lane(CPU)
    tier = CudaTier(skeleton.layer_layouts, EVERY[:4], disk, torch.float32, lane)
    at_first = disk.read_bytes
    slot = tier.new_slot()
    for layer in EVERY:
        tier.fill(layer, slot)
    last = skeleton.layer_layouts[LAYERS - 1].byte_count
    assert at_first >= 3 * last
    assert disk.read_bytes - at_first == pytest.approx(last, rel=0.1)

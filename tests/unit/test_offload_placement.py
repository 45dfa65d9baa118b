"""Where a target goes by its options: the whole way from a folder and a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from sequoia import config
from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.loading import load_model
from sequoia.runtime.offload import loading
from sequoia.runtime.offload.memory import host_free, host_total, process_resident
from sequoia.runtime.offload.placement import (
    PlacedModel,
    PlacementOptions,
    place_target,
)
from tests.offloading import CPU, tree_logits
from tests.tiny import save_model, tiny_llama, word_tokenizer

MIB = 2**20
PROCESS_MIB = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of twelve layers of some MiB each."""
    model = tiny_llama(
        12,
        seed=1,
        layers=12,
        hidden_size=512,
        intermediate_size=1536,
        num_attention_heads=8,
        num_key_value_heads=4,
        initializer_range=0.02,
    )
    return save_model(tmp_path_factory.mktemp("model") / "target", model, word_tokenizer(12))


def place(folder: Path, name: str, budget: int | None, **more: Any) -> PlacedModel:
    """Place a target on the CPU."""
    options = PlacementOptions(name, budget, **more)
    return place_target(folder, torch.float32, CPU, options)


@pytest.fixture(autouse=True)
def steady_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process of the tests holds changes from one to the next."""
    monkeypatch.setattr(loading, "process_resident", lambda: PROCESS_MIB * MIB)


def beside(extra_mib: int) -> int:
    """A budget that leaves so much beside the process."""
    return PROCESS_MIB * MIB + loading.GROWTH_BYTES + extra_mib * MIB


def test_a_small_budget_streams_and_says_the_same(folder: Path) -> None:
    """Parameters are absent for most layers, and the logits are those of a resident model."""
    expected = tree_logits(load_model(folder, torch.float32, CPU))
    placed = place(folder, "offload", beside(110), kv_cache_limit_bytes=MIB)
    weights = sum(p.nbytes for p in placed.model.model.parameters() if p.device.type == "cpu")
    assert placed.model.placement == "offload"
    assert 0 < weights < 100 * MIB
    assert torch.equal(tree_logits(placed.model), expected)
    assert placed.kv_cache_limit_bytes == MIB


def test_auto_keeps_what_fits_and_streams_what_does_not(folder: Path) -> None:
    """By the budget, or by what is free."""
    assert place(folder, "auto", None).model.placement == "on-chip"
    # More than half of the weights, but not all of them.
    small = place(folder, "auto", beside(110), kv_cache_limit_bytes=MIB)
    assert small.model.placement == "offload"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PlacementOptions("offload", 64 * MIB), r"--device-memory is 67108864 .*MiB\) would do"),
        (PlacementOptions("offload", 2**50), "--device-memory is .* but cpu has"),
        (PlacementOptions("auto", 2**50), "--device-memory is .* but cpu has"),
        (PlacementOptions("on-chip", 64 * MIB), "--device-memory is 67108864 .* takes"),
        (PlacementOptions("offload", host_memory=2**30), "--host-memory is for a target on a GPU"),
    ],
    ids=["too small", "too large", "too large for auto", "not on-chip", "no GPU"],
)
def test_budgets_that_cannot_be_are_refused(
    folder: Path, options: PlacementOptions, message: str
) -> None:
    """At the start, in a line that names the option and its limit."""
    with pytest.raises(ModelError, match=message):
        place_target(folder, torch.float32, CPU, options)


def test_the_smallest_budget_named_is_one_that_does(folder: Path) -> None:
    """What the message says can be typed in."""
    with pytest.raises(ModelError) as caught:
        place(folder, "offload", 64 * MIB)
    named = int(str(caught.value).split("; ")[1].split(" ")[0])
    assert place(folder, "offload", named).model.placement == "offload"
    with pytest.raises(ModelError):
        place(folder, "offload", named - MIB)


def test_gguf_is_not_streamed(tmp_path: Path) -> None:
    """The message says what is."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="no safetensors; weights are streamed from these alone"):
        place(tmp_path, "offload", None)


def test_memory_is_told_in_bytes() -> None:
    """In an order that any machine keeps."""
    assert 10 * MIB < process_resident() < host_total()
    assert 0 < host_free() <= host_total()


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024", 1024), ("64KiB", 2**16), ("1.5MiB", 3 * 2**19), ("4GiB", 2**32)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    """Plain bytes, or with a binary unit."""
    assert config.read_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "4GB", "-1", "0", "GiB", "4 GiB", "four", "4GiB\n", "9" * 400, "9" * 300 + "GiB"]
)
def test_sizes_that_are_none_are_refused(text: str) -> None:
    """With an example of one, or with the limit; of a long text only the beginning is repeated."""
    with pytest.raises(
        typer.BadParameter, match=r"such as 4GiB|not above 0|more than \d+ bytes"
    ) as no:
        config.read_size(text)
    assert len(no.value.message) < 200

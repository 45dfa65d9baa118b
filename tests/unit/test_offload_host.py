"""The host's memory for copies to a GPU: what is pinned, and rows in blocks of a shelf."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sequoia.runtime.cache import GROWTH_ROWS, KVCache
from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.layer_rows import LayerRows
from sequoia.runtime.offload import loading
from sequoia.runtime.offload.budget import smallest
from sequoia.runtime.offload.checkpoint import Stored
from sequoia.runtime.offload.extents import layout_of
from sequoia.runtime.offload.host import HostMemoryError, host_pages
from sequoia.runtime.offload.host_rows import HostRows
from sequoia.runtime.offload.loading import layers_in_host
from sequoia.runtime.offload.shelf import RowShape, Shelf
from tests.offloading import CPU

HEADS, KEY_DIM, VALUE_DIM, LAYERS = 2, 3, 5, 3
WIDTH = KEY_DIM + VALUE_DIM
SHAPE = RowShape(HEADS, KEY_DIM, VALUE_DIM, torch.float32)
TOKEN_BYTES = LAYERS * HEADS * WIDTH * 4
MIB = 2**20


def driver(code: int, pinned: dict[int, int]) -> SimpleNamespace:
    """Stands for the driver's calls that pin memory, which answer with a code."""

    def register(address: int, byte_count: int, flags: int) -> int:
        assert flags == 0
        pinned[address] = byte_count
        return code

    return SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=pinned.pop)


def test_for_a_gpu_the_bytes_asked_for_are_pinned_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And let go with the memory; an odd size is not rounded up to a power of two."""
    pinned: dict[int, int] = {}
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver(0, pinned))
    pages = host_pages(5 * MIB + 1000, torch.device("cuda"))
    assert pinned == {pages.bytes.data_ptr(): 5 * MIB + 1000}
    del pages
    gc.collect()
    assert pinned == {}


def test_memory_that_cannot_be_pinned_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the driver's number; a CPU needs none pinned."""
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver(2, {}))
    with pytest.raises(HostMemoryError, match="1048576 bytes cannot be pinned: CUDA error 2"):
        host_pages(MIB, torch.device("cuda"))
    assert len(host_pages(MIB, CPU).bytes) == MIB


@pytest.fixture
def shelf() -> Shelf:
    """Room for six blocks a layer."""
    return Shelf(6 * GROWTH_ROWS * TOKEN_BYTES, TOKEN_BYTES, LAYERS, CPU)


def numbered(count: int, layer: int) -> Tensor:
    """Rows `[count, heads, width]`, no two numbers the same."""
    return torch.arange(count * HEADS * WIDTH).reshape(count, HEADS, WIDTH).float() + 0.25 * layer


def filled(shelf: Shelf, count: int) -> KVCache:
    """A cache with so many rows in a shelf, written in parts."""
    cache, rows = KVCache(), HostRows(shelf)
    for layer in range(LAYERS):
        for start in range(0, count, 100):
            part = numbered(count, layer)[start : start + 100]
            rows.write(layer, start, part, SHAPE)
    cache.rows, cache.length = rows, count
    return cache


def twin(count: int) -> KVCache:
    """The same rows in device memory."""
    cache, rows = KVCache(), LayerRows()
    for layer in range(LAYERS):
        by_head = numbered(count, layer).transpose(0, 1)
        rows.write(layer, 0, by_head[..., :KEY_DIM], by_head[..., KEY_DIM:])
    cache.rows, cache.length = rows, count
    return cache


def rows_of(cache: KVCache, layer: int) -> Tensor:
    """Valid rows of a layer, `[rows, heads, width]`."""
    rows = cache.rows
    if isinstance(rows, LayerRows):
        joined = torch.cat([rows.keys[layer], rows.values[layer]], -1)
        return joined[:, : cache.length].transpose(0, 1)
    assert isinstance(rows, HostRows)
    return torch.cat([block for _, block in rows.blocks(layer, 0, cache.length)])


def test_rows_are_read_as_they_were_written(shelf: Shelf) -> None:
    """Over the ends of blocks."""
    cache = filled(shelf, 700)
    for layer in range(LAYERS):
        assert torch.equal(rows_of(cache, layer), numbered(700, layer))
    assert cache.memory_bytes == 3 * GROWTH_ROWS * TOKEN_BYTES


@pytest.mark.parametrize(
    ("start", "kept"),
    [
        (690, [690, 691]),
        (690, [692, 695, 699]),
        (250, [254, 258, 260, 511, 512, 699]),
        (0, [255, 256, 257]),
        (500, []),
    ],
)
def test_rows_move_up_as_they_do_on_the_device(
    shelf: Shelf, start: int, kept: Sequence[int]
) -> None:
    """From one block into another as well."""
    here, there = filled(shelf, 700), twin(700)
    for cache in (here, there):
        cache.keep(start, kept)
    assert here.length == there.length == start + len(kept)
    for layer in range(LAYERS):
        assert torch.equal(rows_of(here, layer), rows_of(there, layer))


def test_rows_that_repeat_the_first(shelf: Shelf) -> None:
    """In blocks of their own."""
    cache = filled(shelf, 10)
    other = cache.repeated(300)
    for layer in range(LAYERS):
        assert torch.equal(rows_of(other, layer), rows_of(cache, layer)[:1].expand(300, -1, -1))
        assert torch.equal(rows_of(cache, layer), numbered(10, layer))
    assert shelf.free_count == (6 - 1 - 2) * LAYERS


def test_moved_rows_are_those_of_the_device(shelf: Shelf) -> None:
    """The valid ones alone."""
    there = twin(300)
    assert isinstance(there.rows, LayerRows)
    here = KVCache()
    here.rows, here.length = HostRows.moved(there.rows, 260, shelf), 260
    for layer in range(LAYERS):
        assert torch.equal(rows_of(here, layer), numbered(300, layer)[:260])


def test_rows_of_other_sizes_share_a_shelf() -> None:
    """A layer with wider rows has fewer in a block."""
    shelf = Shelf(12 * 2048, 2 * 8, 2, CPU)
    wide = RowShape(2, 4, 4, torch.bfloat16)
    assert (shelf.block_bytes, shelf.rows_per_block(wide)) == (2048, 64)
    rows = HostRows(shelf)
    values = torch.arange(100 * 16).reshape(100, 2, 8).bfloat16()
    rows.write(0, 0, values, wide)
    assert rows.memory_bytes == 2 * 2048
    rows.move(60, [61, 64, 99])
    read = torch.cat([block for _, block in rows.blocks(0, 0, 63)])
    assert torch.equal(read, torch.cat([values[:60], values[[61, 64, 99]]]))


def stored(byte_count: int) -> Stored:
    """A tensor of so many bytes."""
    path = SimpleNamespace()
    return Stored(path, 0, byte_count, torch.float32, (byte_count // 4,))  # type: ignore[arg-type]


def test_the_host_holds_the_kv_cache_first_and_then_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside the process and what layers from disk pass through."""
    monkeypatch.setattr(loading, "process_resident", lambda: 300 * MIB)
    layouts = {number: layout_of({"weight": stored(100 * MIB)}) for number in range(5)}

    def held(host_bytes: int, kv_bytes: int) -> tuple[int, ...]:
        return layers_in_host(layouts, torch.float32, host_bytes, kv_bytes)

    least = smallest(lambda size: bool(held(size, 0)))
    assert held(least + 200 * MIB, 0) == (0, 1, 2)
    assert held(least + 200 * MIB, 200 * MIB) == (0,)
    assert held(least + 150 * MIB, 200 * MIB) == ()
    with pytest.raises(ModelError, match=r"--host-memory is 104857600 .*-limit-bytes of 209715200"):
        held(100 * MIB, 200 * MIB)
    assert held(100 * MIB, 0) == ()

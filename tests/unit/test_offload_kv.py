"""Keys and values in the host's memory: logits stay bit for bit, and every block comes back."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sequoia.errors import CapacityError
from sequoia.messages import Prefill, SessionSettings
from sequoia.runtime.cache import GROWTH_ROWS, KVCache
from sequoia.runtime.footprint import kv_bytes_per_token
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.layer_rows import LayerRows
from sequoia.runtime.loading import load_model
from sequoia.runtime.offload.host_rows import HostRows
from sequoia.runtime.offload.kv_tier import KVTier
from sequoia.runtime.offload.lane import Lane
from sequoia.runtime.offload.shelf import Shelf
from sequoia.runtime.offload.windows import Windows
from sequoia.runtime.segment import Segment
from sequoia.runtime.worker import WorkerLimits
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology
from target_service.verifier import Verifier
from tests.offloading import CPU, LateLane, offloaded, tree_logits
from tests.tiny import tiny_llama
from tests.unit.test_offload_model import LAYERS, MODELS, WORDS, saved

TREE = Topology((-1, 0, 0, 1, 2, 2))
NODES = (2, 7, 1, 8, 2, 8)
MIB = 2**20
TOKEN_BYTES = 2 * LAYERS * 2 * 8 * 4
BLOCK_BYTES = GROWTH_ROWS * TOKEN_BYTES
SETTINGS = SessionSettings(SamplingSettings(temperature=0), DrawRule.GREEDY, 7, 1, WORDS)


@pytest.fixture(params=[Lane, LateLane], ids=["at once", "as late as may be"])
def lane(request: pytest.FixtureRequest) -> Lane:
    """Copies that are over at once, and copies that only come when somebody waits for them."""
    made: Lane = request.param(CPU)
    return made


def tiered(model: TreeModel, lane: Lane, device_bytes: int, host_bytes: int = 4 * MIB) -> Shelf:
    """Give a model two places for keys and values; the one in the host."""
    layers = model.model.config.num_hidden_layers
    token_bytes = kv_bytes_per_token(model)
    shelf = Shelf(host_bytes, token_bytes, layers, CPU)
    windows = Windows(-(-host_bytes // layers), lane)
    model.homes = KVTier(device_bytes, token_bytes, shelf, windows)
    return shelf


def tokens(count: int, first: int = 1) -> list[int]:
    """So many words."""
    return [(first + 3 * number) % WORDS for number in range(count)]


@torch.inference_mode()
def talk(model: TreeModel) -> list[Tensor]:
    """Two sessions of different lengths: prompts, trees in one pass, what they accept, and on."""
    long, short, said = KVCache(), KVCache(), []
    model.prefill(long, tokens(300))
    model.prefill(short, tokens(20, 5))
    for first in (1, 4, 9):
        trees = NODES, tuple(tokens(6, first))
        pairs = zip((long, short), trees, strict=True)
        outputs = model.forward([Segment.tree(cache, TREE, tree) for cache, tree in pairs])
        said += [output.logits for output in outputs]
        long.keep(long.length - 6, [long.length - 6, long.length - 4, long.length - 1])
        short.keep(short.length - 6, [short.length - 5])
    model.prefill(long, tokens(150))
    (output,) = model.forward([Segment.tree(long, TREE, NODES)])
    return [*said, output.logits]


@pytest.mark.parametrize("device_bytes", [0, 150_000, MIB], ids=["host", "both", "device"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_bit_for_bit_those_of_rows_on_the_device(
    name: str, device_bytes: int, lane: Lane, tmp_path: Path
) -> None:
    """Whatever the architecture, wherever the rows are, over blocks that fill and rows that move up."""
    folder = saved(tmp_path, name)
    expected = talk(load_model(folder, torch.float32, CPU))
    model = load_model(folder, torch.float32, CPU)
    tiered(model, lane, device_bytes)

    said = talk(model)

    assert all(torch.equal(one, other) for one, other in zip(said, expected, strict=True))


@pytest.fixture
def model() -> TreeModel:
    """A tiny Llama whose rows take `TOKEN_BYTES` a token."""
    return TreeModel(tiny_llama(WORDS, seed=1, layers=LAYERS, max_position_embeddings=4096))


def test_a_session_that_outgrows_the_device_moves_with_all_its_rows(
    model: TreeModel, lane: Lane
) -> None:
    """As long as it fits it is on the device; then it is in the host's memory and stays there."""
    chunks = [tokens(200, first) for first in range(4)]
    before, cache = KVCache(), KVCache()
    for chunk in chunks:
        model.prefill(before, chunk)
    shelf = tiered(model, lane, device_bytes=2 * BLOCK_BYTES)
    places = []
    for chunk in chunks:
        model.prefill(cache, chunk)
        places.append(type(cache.rows).__name__)
    assert places == ["DeviceRows", "DeviceRows", "HostRows", "HostRows"]
    assert cache.memory_bytes == 4 * BLOCK_BYTES
    assert shelf.free_count == shelf_size(shelf) - 4 * LAYERS
    assert torch.equal(rows_of(cache, 800), rows_of(before, 800))


def shelf_size(shelf: Shelf) -> int:
    """Blocks of a shelf, taken or not."""
    return 4 * MIB // shelf.block_bytes


def rows_of(cache: KVCache, length: int) -> Tensor:
    """Keys with their values behind them, `[layers, heads, rows, width]`, wherever they are."""
    if isinstance(cache.rows, LayerRows):
        pairs = zip(cache.rows.keys, cache.rows.values, strict=True)
        return torch.stack([torch.cat([k, v], -1)[:, :length] for k, v in pairs])
    assert isinstance(cache.rows, HostRows)
    layers = range(cache.rows.layer_count)
    blocks = [[rows for _, rows in cache.rows.blocks(layer, 0, length)] for layer in layers]
    return torch.stack([torch.cat(some).transpose(0, 1) for some in blocks])


def test_others_on_the_device_leave_less_room(model: TreeModel, lane: Lane) -> None:
    """And as soon as one of them is gone there is more again."""
    tiered(model, lane, device_bytes=BLOCK_BYTES)
    caches = [KVCache() for _ in range(3)]
    model.prefill(caches[0], tokens(5))
    model.prefill(caches[1], tokens(5))
    assert isinstance(caches[0].rows, LayerRows)
    assert isinstance(caches[1].rows, HostRows)
    del caches[0]
    gc.collect()
    model.prefill(caches[1], tokens(5))
    assert isinstance(caches[1].rows, LayerRows)


def test_blocks_come_back_with_the_session(model: TreeModel, lane: Lane) -> None:
    """However it grew."""
    shelf = tiered(model, lane, device_bytes=0)
    cache = KVCache()
    model.prefill(cache, tokens(700))
    assert shelf.free_count == shelf_size(shelf) - 3 * LAYERS
    del cache
    gc.collect()
    assert shelf.free_count == shelf_size(shelf)


def test_a_full_host_leaves_new_sessions_on_the_device(model: TreeModel, lane: Lane) -> None:
    """Over its budget rather than not at all; one that is in the host's memory cannot grow."""
    tiered(model, lane, device_bytes=0, host_bytes=BLOCK_BYTES)
    first, second = KVCache(), KVCache()
    model.prefill(first, tokens(100))
    model.prefill(second, tokens(300))
    assert isinstance(first.rows, HostRows)
    assert isinstance(second.rows, LayerRows)
    with pytest.raises(MemoryError, match="host's memory has 0 blocks left, not 1"):
        model.prefill(first, tokens(200))


def test_a_window_that_is_too_small_says_so(model: TreeModel, lane: Lane) -> None:
    """Rather than write beyond it."""
    tiered(model, lane, device_bytes=0)
    shelf = Shelf(4 * MIB, TOKEN_BYTES, LAYERS, CPU)
    model.homes = KVTier(0, TOKEN_BYTES, shelf, Windows(0, lane))
    with pytest.raises(MemoryError, match=r"takes 332800 bytes .* over the 262144"):
        model.forward([Segment.chain(KVCache(), tokens(2600))])


def test_repeated_rows_go_where_there_is_room(model: TreeModel, lane: Lane) -> None:
    """Scratch sessions are like any others, to a clock and to the budget."""
    one = KVCache()
    model.prefill(one, tokens(1))
    expected = rows_of(one.repeated(600), 600)
    tiered(model, lane, device_bytes=2 * BLOCK_BYTES)
    one = KVCache()
    model.prefill(one, tokens(1))
    short, long = one.repeated(200), one.repeated(600)
    assert isinstance(short.rows, LayerRows)
    assert isinstance(long.rows, HostRows)
    assert torch.equal(rows_of(long, 600), expected)
    assert torch.equal(rows_of(long.repeated(600), 600), expected)


def test_a_pass_that_fails_halfway_leaves_no_trace(
    model: TreeModel, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one has the rows that were valid before it."""
    expected = talk(model)
    tiered(model, lane, device_bytes=0)
    cache = KVCache()
    model.prefill(cache, tokens(300))
    before = rows_of(cache, 300)
    with monkeypatch.context() as patched:
        patched.setattr(model.model.model.layers[2].mlp, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.prefill(cache, tokens(20))
    assert cache.length == 300
    assert torch.equal(rows_of(cache, 300), before)
    assert all(torch.equal(one, other) for one, other in zip(talk(model), expected, strict=True))


def test_the_next_layers_rows_are_on_their_way_before_a_layer_is_computed(
    model: TreeModel,
) -> None:
    """So they come while it is, and ahead of the weights that its buffer is free for afterwards."""
    noted: list[str] = []

    class NotingLane(Lane):
        def copy(self, target: Tensor, source: Tensor) -> None:
            noted.append("rows")
            super().copy(target, source)

    tiered(model, NotingLane(CPU), device_bytes=0)
    cache = KVCache()
    model.prefill(cache, tokens(5))
    assert noted == []
    for number, layer in enumerate(model.model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, name=f"layer {number}": noted.append(name))
    model.prefill(cache, tokens(5))
    numbers = [f"layer {number}" for number in range(LAYERS)]
    assert noted == ["rows", *(x for name in numbers[:-1] for x in ("rows", name)), numbers[-1]]


@pytest.mark.parametrize("resident_count", [0, 2])
def test_a_division_with_a_host_makes_the_tier(resident_count: int, tmp_path: Path) -> None:
    """With streamed layers and without; the whole way from the folder."""
    folder = saved(tmp_path, "llama")
    expected = talk(load_model(folder, torch.float32, CPU))
    streamed = offloaded(folder, resident_count, device_kv_bytes=0).model
    assert isinstance(streamed.homes, KVTier)
    assert all(torch.equal(one, other) for one, other in zip(talk(streamed), expected, strict=True))
    assert not isinstance(offloaded(folder, resident_count).model.homes, KVTier)


def test_models_whose_configuration_does_not_tell_are_measured(tmp_path: Path) -> None:
    """GPT-2's says nothing of key and value heads."""
    folder = saved(tmp_path, "gpt2")
    expected = tree_logits(load_model(folder, torch.float32, CPU))
    assert torch.equal(tree_logits(offloaded(folder, device_kv_bytes=0).model), expected)


async def test_a_worker_counts_rows_wherever_they_are(model: TreeModel) -> None:
    """All of them against its limit; a prompt that neither place holds is refused, and frees them."""
    shelf = tiered(model, Lane(CPU), device_bytes=BLOCK_BYTES, host_bytes=3 * BLOCK_BYTES)
    worker = Verifier(
        "tiny", model, "sha", WorkerLimits(kv_cache_limit_bytes=3 * BLOCK_BYTES), clock=Clock()
    )
    await worker.prefill(Prefill("small", tuple(tokens(200)), 0, SETTINGS))
    await worker.prefill(Prefill("large", tuple(tokens(400)), 0, SETTINGS))
    assert worker.info().kv_cache_bytes == 3 * BLOCK_BYTES
    assert shelf.free_count == LAYERS
    with pytest.raises(CapacityError):
        await worker.prefill(Prefill("larger", tuple(tokens(2000)), 0, SETTINGS))
    worker.close_session("large")
    gc.collect()
    assert worker.info().kv_cache_bytes == BLOCK_BYTES
    assert shelf.free_count == 3 * LAYERS
    worker.device.stop()


async def test_retained_rows_never_make_a_session_move(model: TreeModel) -> None:
    """They are on the device alone, and are freed there as soon as somebody else needs the room."""
    shelf = tiered(model, Lane(CPU), device_bytes=2 * BLOCK_BYTES)
    worker = Verifier("tiny", model, "sha", WorkerLimits(), clock=Clock())
    for name, count in (("in the host", 600), ("on the device", 100)):
        await worker.prefill(Prefill(name, tuple(tokens(count)), 0, SETTINGS))
        worker.close_session(name)
    gc.collect()
    assert worker.sessions.retained_bytes == BLOCK_BYTES
    assert shelf.free_count == shelf_size(shelf)

    await worker.prefill(Prefill("alike", tuple(tokens(200)), 0, SETTINGS))
    session = worker.sessions._sessions["alike"]
    assert session.reused_count == 99
    await worker.prefill(Prefill("another", tuple(tokens(200, 2)), 0, SETTINGS))
    worker.close_session("another")
    await worker.prefill(Prefill("a third", tuple(tokens(200, 4)), 0, SETTINGS))

    assert worker.sessions.retained_bytes == 0
    live = worker.sessions._sessions.values()
    assert all(isinstance(one.cache.rows, LayerRows) for one in live)
    worker.device.stop()


async def test_rows_are_copied_on_the_device_where_it_has_room(model: TreeModel) -> None:
    """Otherwise the prompt is read anew; what is retained gives way to it as to any other."""
    tiered(model, Lane(CPU), device_bytes=2 * BLOCK_BYTES)
    worker = Verifier("tiny", model, "sha", WorkerLimits(), clock=Clock())
    await worker.prefill(Prefill("first", tuple(tokens(100)), 0, SETTINGS))
    worker.close_session("first")
    for name, count in (("copied", 30), ("anew", 0)):
        await worker.prefill(Prefill(name, (*tokens(30), 5, 5), 0, SETTINGS))
        session = worker.sessions._sessions[name]
        assert session.reused_count == count
        assert isinstance(session.cache.rows, LayerRows)
    worker.device.stop()


class Clock:
    """Stands still."""

    def __call__(self) -> float:
        return 0.0

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sequoia.runtime.cache import GROWTH_ROWS, KVCache
from sequoia.runtime.layer_rows import LayerRows
from sequoia.runtime.pass_cache import PassCache

HEADS, KEY_DIM, VALUE_DIM = 2, 3, 5


@pytest.fixture(autouse=True)
def as_on_the_device_thread() -> Iterator[None]:
    """Caches live in inference mode, as the device thread runs everything."""
    with torch.inference_mode():
        yield


def rows(first: int, count: int, dim: int = KEY_DIM) -> Tensor:
    """Rows `[heads, count, dim]` that carry their number."""
    return torch.arange(first, first + count).float()[None, :, None].expand(HEADS, count, dim)


def filled(count: int, layers: int = 2) -> KVCache:
    """A cache with some valid rows, numbered from 0."""
    cache = KVCache()
    for layer in range(layers):
        LayerRows.of(cache).write(layer, cache.length, rows(0, count), rows(0, count, VALUE_DIM))
    cache.length = count
    return cache


def numbers(cache: KVCache, layer: int, end: int | None = None) -> list[int]:
    """The numbers that the rows of a layer carry; keys and values agree."""
    end = cache.length if end is None else end
    keys, values = (
        LayerRows.of(cache).keys[layer][:, :end],
        LayerRows.of(cache).values[layer][:, :end],
    )
    assert torch.equal(keys, keys[:1, :, :1].expand_as(keys))
    assert torch.equal(values, keys[:, :, :1].expand_as(values))
    found: list[int] = keys[0, :, 0].int().tolist()
    return found


def test_an_empty_cache_holds_nothing() -> None:
    """Memory is taken when there is something to keep."""
    cache = KVCache()
    assert cache.length == 0
    assert cache.memory_bytes == 0


def test_rows_are_written_behind_the_valid_ones() -> None:
    """They become valid when the owner raises the length."""
    cache = filled(4)
    for layer in range(2):
        LayerRows.of(cache).write(layer, cache.length, rows(4, 3), rows(4, 3, VALUE_DIM))
    assert cache.length == 4
    assert numbers(cache, 0, end=7) == numbers(cache, 1, end=7) == list(range(7))


def test_rows_that_never_became_valid_are_overwritten() -> None:
    """A pass that failed leaves nothing behind."""
    cache = filled(4, layers=1)
    LayerRows.of(cache).write(0, cache.length, rows(90, 3), rows(90, 3, VALUE_DIM))
    LayerRows.of(cache).write(0, cache.length, rows(4, 1), rows(4, 1, VALUE_DIM))
    cache.length = 5
    assert numbers(cache, 0) == list(range(5))


def test_growing_keeps_the_valid_rows() -> None:
    """Row after row over several blocks, nothing is lost."""
    cache = KVCache()
    for first in range(0, 3 * GROWTH_ROWS, 100):
        LayerRows.of(cache).write(0, cache.length, rows(first, 100), rows(first, 100, VALUE_DIM))
        cache.length += 100
    assert numbers(cache, 0) == list(range(cache.length))


def test_memory_grows_in_blocks() -> None:
    """The bytes told are the bytes taken, keys and values of all layers."""
    row_bytes = HEADS * (KEY_DIM + VALUE_DIM) * 4
    assert filled(1, layers=3).memory_bytes == 3 * GROWTH_ROWS * row_bytes
    assert filled(GROWTH_ROWS, layers=1).memory_bytes == GROWTH_ROWS * row_bytes
    assert filled(GROWTH_ROWS + 1, layers=1).memory_bytes == 2 * GROWTH_ROWS * row_bytes


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ([], [0, 1, 2, 3]),
        ([4], [0, 1, 2, 3, 4]),
        ([4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([5, 7], [0, 1, 2, 3, 5, 7]),
        ([4, 6, 7], [0, 1, 2, 3, 4, 6, 7]),
    ],
)
def test_keeping_some_rows_drops_the_rest(kept: list[int], expected: list[int]) -> None:
    """Rows of the accepted path move up in their order, in every layer, even over one another."""
    cache = filled(8)
    cache.keep(4, kept)
    assert cache.length == len(expected)
    assert numbers(cache, 0) == numbers(cache, 1) == expected


def test_a_pass_sees_each_session_padded_to_the_longest() -> None:
    """Rows of all sessions stack; a shorter one ends in zeros."""
    short, long = filled(2, layers=1), filled(5, layers=1)
    cache = PassCache([short, long], [1, 3])
    new = torch.stack([rows(2, 3), rows(5, 3)])
    keys, values = cache.update(new, new[..., :1].expand(2, HEADS, 3, VALUE_DIM), 0)
    assert keys.shape == (2, HEADS, 8, KEY_DIM)
    assert values.shape == (2, HEADS, 8, VALUE_DIM)
    assert keys[0, 0, :, 0].tolist() == [0, 1, 2, 0, 0, 0, 0, 0]
    assert keys[1, 0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_pass_writes_only_real_rows_into_the_sessions() -> None:
    """The padding of a shorter tree stays out of its session's cache."""
    short, long = filled(2, layers=1), filled(5, layers=1)
    new = torch.stack([rows(2, 3), rows(5, 3)])
    PassCache([short, long], [1, 3]).update(new, new[..., :1].expand(2, HEADS, 3, VALUE_DIM), 0)
    assert numbers(short, 0, end=4) == [0, 1, 2, 0]
    assert numbers(long, 0, end=8) == list(range(8))


def test_a_pass_over_one_session_copies_nothing() -> None:
    """With one session the model reads the session's own memory."""
    cache = filled(5, layers=1)
    keys, _ = PassCache([cache], [1]).update(rows(5, 1)[None], rows(5, 1, VALUE_DIM)[None], 0)
    assert keys.data_ptr() == LayerRows.of(cache).keys[0].data_ptr()


def test_transformers_is_told_the_length_of_the_longest_session() -> None:
    """Models that ask the cache how much it holds get an answer."""
    cache = PassCache([filled(2), filled(5)], [1, 1])
    assert cache.get_seq_length() == 5


def test_the_first_rows_can_be_copied() -> None:
    """Into memory of their own, with room for as many as a block holds."""
    cache = filled(300)
    other = cache.copied(20)
    assert other is not None
    assert other.memory_bytes * 2 == cache.memory_bytes
    LayerRows.of(other).write(0, 20, rows(90, 3), rows(90, 3, VALUE_DIM))
    other.length = 23
    assert numbers(other, 0) == [*range(20), 90, 91, 92]
    assert numbers(other, 1, 20) == list(range(20))
    assert numbers(cache, 0) == list(range(300))


def test_there_is_nothing_to_copy_in_an_empty_cache() -> None:
    """Nor anything to retain."""
    assert KVCache().copied(1) is None
    assert not KVCache().is_retainable
    assert filled(1).is_retainable

"""The ring alone, with a reader that the test holds by the hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from sequoia.runtime.offload.ring import Ring

SECONDS = 10.0


class Reader:
    """Writes a layer's number into a buffer, when the test says so."""

    def __init__(self) -> None:
        self.begun: SimpleQueue[int] = SimpleQueue()
        self.allowed = threading.Semaphore(0)
        self.failing: set[int] = set()

    def fill(self, layer: int, slot: list[int]) -> None:
        self.begun.put(layer)
        assert self.allowed.acquire(timeout=SECONDS)
        if layer in self.failing:
            raise OSError(f"layer {layer}")
        slot[0] = layer

    def allow(self, count: int = 1) -> None:
        self.allowed.release(count)

    def next_begun(self) -> int:
        return self.begun.get(timeout=SECONDS)


@pytest.fixture
def reader() -> Reader:
    """A reader that waits."""
    return Reader()


@pytest.fixture
def ring(reader: Reader) -> Iterator[Ring[list[int]]]:
    """Two buffers for the layers 0, 2 and 5."""
    ring = Ring([[-1], [-1]], (0, 2, 5), reader.fill)
    yield ring
    ring.close()
    reader.allow(100)


def taken(ring: Ring[list[int]], layer: int) -> int:
    """Take a layer and give its buffer back; what was in it."""
    slot = ring.take(layer)
    number = slot[0]
    ring.give_back(slot)
    return number


def test_layers_come_in_order_pass_after_pass(ring: Ring[list[int]], reader: Reader) -> None:
    """Each buffer holds what was asked for."""
    reader.allow(100)
    assert [taken(ring, layer) for _ in range(4) for layer in (0, 2, 5)] == [0, 2, 5] * 4


def test_reading_goes_on_across_the_end_of_a_pass(ring: Ring[list[int]], reader: Reader) -> None:
    """With the last layer taken, the first ones of the next pass are read before anybody asks."""
    reader.allow(3)
    assert [taken(ring, layer) for layer in (0, 2, 5)] == [0, 2, 5]
    assert [reader.next_begun() for _ in range(4)] == [0, 2, 5, 0]


def test_no_more_is_read_than_there_are_buffers(ring: Ring[list[int]], reader: Reader) -> None:
    """A third layer is begun only once a buffer is given back."""
    reader.allow(2)
    assert [reader.next_begun() for _ in range(2)] == [0, 2]
    slot = ring.take(0)
    assert reader.begun.empty()
    ring.give_back(slot)
    assert reader.next_begun() == 5


def test_a_failed_read_is_raised_where_its_layer_is_taken(
    ring: Ring[list[int]], reader: Reader
) -> None:
    """And not before; the next pass begins again and is whole."""
    reader.failing = {2}
    reader.allow(100)
    assert taken(ring, 0) == 0
    with pytest.raises(OSError, match="layer 2"):
        ring.take(2)
    reader.failing = set()
    assert [taken(ring, layer) for layer in (0, 2, 5)] == [0, 2, 5]


def test_a_pass_that_begins_again_gets_no_buffer_of_the_old_one(
    ring: Ring[list[int]], reader: Reader
) -> None:
    """What was read ahead, and what is just being read, is dropped."""
    reader.allow(2)
    assert taken(ring, 0) == 0
    assert [reader.next_begun() for _ in range(3)] == [0, 2, 5]  # 5 is under way
    reader.allow(100)
    assert [taken(ring, layer) for layer in (0, 2, 5)] == [0, 2, 5]


def test_a_closed_ring_says_so(ring: Ring[list[int]], reader: Reader) -> None:
    """Nobody waits for ever."""
    ring.close()
    with pytest.raises(RuntimeError, match="no longer read"):
        ring.take(0)

"""A share of `make fuzz` in every test run, with another seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sequoia.embedded_valkey import EmbeddedValkey
from tests.fuzz.calling import call_all
from tests.fuzz.decoding import read_client_files, read_messages, read_plans
from tests.fuzz.inputs import described_methods, rpcs
from tests.fuzz.remembering import read_memories
from tests.fuzz.storing import store_garbage
from tests.fuzz.tally import Tally
from tests.tiny import byte_pair

SEED = 20
SECONDS = 0.5  # of a processor, for one input


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    """A server of our own."""
    with EmbeddedValkey() as server:
        yield server


def assert_sound(tally: Tally, count: int) -> None:
    """Nothing broke, and both valid and invalid inputs were among them."""
    assert tally.failures == []
    assert tally.count == count
    assert len(tally.outcomes) > 1, tally.line()


def test_every_rpc_of_the_protos_is_fuzzed() -> None:
    """One that is added later is fuzzed from then on."""
    assert {rpc.method.path for rpc in rpcs()} == set(described_methods())


def test_messages_are_read_or_refused() -> None:
    """Whatever the bytes, in little time."""
    tally = read_messages(4000, SEED)
    assert_sound(tally, 4000)
    assert {"taken", "INVALID_ARGUMENT", "MALFORMED_MESSAGE", "MALFORMED_TREE"} <= set(
        tally.outcomes
    )
    assert tally.slowest_seconds < SECONDS, tally.line()


def test_plans_are_read_or_refused() -> None:
    """Likewise."""
    tally = read_plans(1500, SEED)
    assert_sound(tally, 1500)
    assert tally.slowest_seconds < SECONDS, tally.line()


def test_what_a_planner_left_is_read_or_refused() -> None:
    """Measurements and the plan that stands: likewise, and what is taken can be thought about."""
    tally = read_memories(300, SEED)
    assert_sound(tally, 300)
    assert tally.slowest_seconds < SECONDS, tally.line()


def test_files_of_clients_are_read_or_refused() -> None:
    """Likewise."""
    assert_sound(read_client_files(500, SEED), 500)


async def test_garbage_in_redis_stops_nobody(valkey: EmbeddedValkey) -> None:
    """Readers refuse it, and a follower takes the next good plan."""
    assert_sound(await store_garbage(valkey.url, 300, SEED), 300)


async def test_calls_are_answered_or_refused(tmp_path: Path, valkey: EmbeddedValkey) -> None:
    """By every role, with a status that blames the request; a good request is served as before."""
    assert_sound(await call_all(byte_pair(tmp_path), valkey.url, 300, SEED), 300)

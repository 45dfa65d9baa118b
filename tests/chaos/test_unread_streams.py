"""Clients that ask and do not read."""

from __future__ import annotations

import asyncio
import time

from sequoia.launcher import LocalSystem
from tests.chaos.journal import Journal
from tests.chaos.lazy import LAZY_REQUESTS, Lazy
from tests.chaos.load import Load, Tokens
from tests.chaos.marks import CHAOS
from tests.chaos.observation import observe
from tests.chaos.requests import REQUESTS
from tests.chaos.system import get_ready

pytestmark = CHAOS


async def test_a_stream_that_nobody_reads_stands_still_alone(
    system: LocalSystem, undisturbed: list[Tokens], journal: Journal
) -> None:
    """Four streams that are full to the brim hold up no other, and go on when they are read."""
    await get_ready(system)
    readers = [Lazy(request) for request in LAZY_REQUESTS]
    for reader in readers:
        reader.goes_on.set()
    began = time.monotonic()
    await asyncio.gather(*(reader.ask(system.address) for reader in readers))
    whole_seconds = time.monotonic() - began  # by then a stream is at its end, or stands still

    lazy = [Lazy(request) for request in LAZY_REQUESTS]
    asking = asyncio.gather(*(one.ask(system.address) for one in lazy))
    await asyncio.sleep(whole_seconds)
    stood_from = time.monotonic()
    load = Load([system.address], REQUESTS, undisturbed)
    stood_seconds = 0.0

    async def read_on() -> str:
        nonlocal stood_seconds
        stood_seconds = time.monotonic() - stood_from
        for one in lazy:
            one.goes_on.set()
        await asking
        return f"{len(lazy)} full streams stood still for {stood_seconds:.0f} s, then were read"

    seen = await observe("client_that_does_not_read", load, read_on, back_from_the_end=True)
    figures = journal.add(seen)

    figures.require_nothing_lost()
    assert figures.back_seconds is not None
    for one, reader in zip(lazy, readers, strict=True):
        assert one.tokens == reader.tokens
        assert one.server_seconds > whole_seconds + stood_seconds  # it was full, not at its end

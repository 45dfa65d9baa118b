"""Which of several workers is found, and what is said where none is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from planner.found_worker import Finder
from sequoia.errors import SequoiaError, WorkerUnavailableError
from sequoia.messages import WorkerInfo
from sequoia.rpc.codec import GET_INFO
from sequoia.rpc.server import RpcServer
from tests.unit.test_profiler import INFO

HOST = "127.0.0.1"
NOBODY = [f"{HOST}:{port}" for port in (1, 2, 3)]


class Worker:
    """Says its name, once it may."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.server = RpcServer()
        self.server.add_unary(GET_INFO, self._get_info)
        self.address = ""
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def _get_info(self, _request: None, _context: Any) -> WorkerInfo:
        await self.may_answer.wait()
        return replace(INFO, instance_id=self.name)


@asynccontextmanager
async def served(*names: str) -> AsyncIterator[list[Worker]]:
    """Workers that serve."""
    workers = [Worker(name) for name in names]
    for worker in workers:
        worker.address = f"{HOST}:{await worker.server.start(HOST, 0)}"
        await worker.server.set_serving(True)
    try:
        yield workers
    finally:
        for worker in workers:
            await worker.server.kill()


@asynccontextmanager
async def finder(*addresses: str) -> AsyncIterator[Finder]:
    """A finder of workers at these addresses."""
    found = Finder(addresses, None)
    try:
        yield found
    finally:
        await found.close()


async def name_of(one: Finder) -> str:
    """The worker that is found."""
    return (await one.find()).info.instance_id


async def test_the_first_address_that_answers_is_found() -> None:
    """Whatever order they answer in; those that do not answer are passed over."""
    async with (
        served("a", "b") as (a, b),
        finder(NOBODY[0], a.address, b.address) as one,
        finder(b.address, a.address) as other,
    ):
        assert await name_of(one) == "a"
        assert await name_of(other) == "b"


async def test_a_worker_that_was_found_stays_the_one() -> None:
    """A worker named before it is not gone back to; only a loss makes another one be found."""
    async with served("a", "b") as (a, b), finder(a.address, b.address) as one:
        await a.server.set_serving(False)
        assert await name_of(one) == "b"
        await a.server.set_serving(True)
        assert await name_of(one) == "b"
        await b.server.set_serving(False)
        assert await name_of(one) == "a"


async def test_one_error_names_all_addresses_in_their_order() -> None:
    """The same at every look, so that whoever logs a trouble once logs it once."""
    async with finder(*NOBODY) as one:
        texts = set()
        for _ in range(3):
            with pytest.raises(WorkerUnavailableError) as refused:
                await one.find()
            texts.add(refused.value.message)
    (text,) = texts
    places = [text.index(address) for address in NOBODY]
    assert places == sorted(places)
    assert refused.value.metadata["address"] == ", ".join(NOBODY)


async def test_a_single_address_keeps_its_own_error() -> None:
    """Nothing is put around what it says."""
    async with finder(NOBODY[0]) as one:
        with pytest.raises(SequoiaError, match=f"^the worker at {NOBODY[0]} is not serving$"):
            await one.find()


@pytest.mark.parametrize("place", [0, 1])
async def test_an_address_that_hangs_delays_the_others_little(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than its own time limit, wherever it stands."""
    monkeypatch.setattr("planner.found_worker.AHEAD_SECONDS", 0.1)
    async with served("a", "b") as workers:
        workers[place].may_answer.clear()
        async with finder(*(worker.address for worker in workers)) as one:
            started = time.perf_counter()
            assert await name_of(one) == "ba"[place]
            assert time.perf_counter() - started < 1.0
            workers[place].may_answer.set()

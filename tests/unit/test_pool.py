from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from coordinator.discovery import Directory, Location
from coordinator.placement import PREFIX_BLOCK_TOKENS, prefix_keys
from coordinator.pool import WorkerPool
from coordinator.room import Demand
from coordinator.seat import Seat
from coordinator.worker import Compatibility
from sequoia.errors import (
    IncompatibleModelsError,
    InvalidArgumentError,
    NotReadyError,
    WorkerUnavailableError,
)
from sequoia.tasks import end_tasks, keep_going
from tests.fleet import INFO, NEEDED, ONE, SMALL, THREE, TWO, Fleet, found, seat, until

TEXT = tuple(range(2 * PREFIX_BLOCK_TOKENS))


@contextmanager
def names(monkeypatch: pytest.MonkeyPatch, **known: list[str]) -> Iterator[None]:
    """A name service; it can be changed meanwhile."""

    def look_up(host: str, port: int, **__: object) -> list[tuple[Any, ...]]:
        if host not in known:
            raise socket.gaierror(f"{host} is not known")
        return [(2, 1, 6, "", (ip, port)) for ip in known[host]]

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", look_up)
        yield


async def test_sessions_are_spread_over_the_workers() -> None:
    """Each takes the one with the fewest."""
    async with found(ONE, TWO, THREE) as (pool, _):
        seats = [seat(pool) for _ in range(6)]
        assert sorted(one.worker.address for one in seats) == sorted([ONE, TWO, THREE] * 2)
        for one in seats:
            one.leave()
        assert [worker.session_count for worker in pool.workers] == [0, 0, 0]


async def test_a_text_goes_where_its_beginning_was_read() -> None:
    """The next turn of a conversation finds the worker of the last one."""
    async with found(ONE, TWO) as (pool, _):
        first = seat(pool, TEXT[:PREFIX_BLOCK_TOKENS])
        first.has_read(prefix_keys(TEXT))
        first.leave()
        assert seat(pool, [*TEXT, 1, 2]).worker is first.worker
        assert seat(pool, [7] * PREFIX_BLOCK_TOKENS).worker is not first.worker


async def test_a_worker_that_started_anew_has_read_nothing() -> None:
    """Whatever it was known for is gone with it."""
    async with found(ONE, TWO) as (pool, fleet):
        worker = seat(pool, TEXT).worker
        fleet.channels[worker.address].info = replace(INFO, instance_id="another")
        await pool.find(NEEDED)
        assert worker.prefixes.shared_tokens(prefix_keys(TEXT)) == 0


async def test_sessions_of_other_coordinators_count_once_they_stay() -> None:
    """Seen twice in a row: ours that are just being closed are not theirs."""
    async with found(ONE, TWO) as (pool, fleet):
        worker = pool.workers[0]
        fleet.channels[ONE].info = replace(INFO, instance_id=ONE, active_session_count=5)
        await worker.find(NEEDED.misfit)
        assert worker.session_count == 0
        await worker.find(NEEDED.misfit)
        assert worker.session_count == 5
        assert seat(pool).worker is pool.workers[1]


async def test_a_seat_moves_when_its_worker_is_lost_and_another_is_there() -> None:
    """The room is promised on the other one from then on."""
    async with found(ONE, TWO) as (pool, _):
        one = seat(pool)
        lost, other = one.worker, next(w for w in pool.workers if w is not one.worker)
        assert not one.should_move()
        lost.lost(WorkerUnavailableError("gone"))
        assert one.should_move()
        one.move()
        assert one.worker is other
        assert (lost.session_count, other.session_count) == (0, 1)


async def test_a_seat_stays_when_nobody_else_is_there() -> None:
    """The only worker may come back."""
    async with found(ONE) as (pool, _):
        one = seat(pool)
        one.worker.lost(WorkerUnavailableError("gone"))
        assert not one.should_move()
        assert Seat(pool, SMALL, ()).is_free


async def test_a_full_worker_is_left_for_one_with_room() -> None:
    """Another coordinator may have filled it; one that is as full is no better."""
    async with found(ONE, TWO) as (pool, _):
        one = seat(pool)
        assert one.should_move(is_full=True)
        other = next(worker for worker in pool.workers if worker is not one.worker)
        for _ in range(8):
            other.room.take(SMALL)
        assert not one.should_move(is_full=True)


async def test_a_request_waits_until_any_worker_has_room() -> None:
    """And not for one in particular."""
    async with found(ONE, TWO) as (pool, _):
        seats = [seat(pool) for _ in range(16)]
        assert not Seat(pool, SMALL, ()).is_free
        seats[3].leave()
        assert Seat(pool, SMALL, ()).is_free


async def test_what_no_worker_could_hold_is_refused() -> None:
    """The largest worker decides."""
    async with found(ONE, TWO) as (pool, fleet):
        large = Demand(3000, 10, 1)
        with pytest.raises(InvalidArgumentError, match="the target holds 2560"):
            pool.check(large)
        fleet.channels[TWO].info = replace(INFO, instance_id=TWO, kv_cache_limit_bytes=10**6)
        await pool.find(NEEDED)
        pool.check(large)
        assert pool.could_hold(large)


async def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a steady order, each with the name that its certificate has to show."""
    with names(monkeypatch, target=["10.0.0.2", "10.0.0.1", "10.0.0.1"], six=["fd00::1"]):
        directory = Directory(["target:1", "10.0.0.3:1", "six:2"])
        assert await directory.look_up() == [
            Location(ONE, "target"),
            Location(TWO, "target"),
            Location(THREE),
            Location("[fd00::1]:2", "six"),
        ]


async def test_a_name_that_is_lost_stands_for_what_it_stood_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name service that is away is no reason to let go of workers; it is said once."""
    known = {"target": ["10.0.0.1"]}
    directory = Directory(["target:1"])
    with names(monkeypatch, **known):
        assert await directory.look_up() == [Location(ONE, "target")]
    with names(monkeypatch), capture_logs() as logs:
        assert await directory.look_up() == [Location(ONE, "target")]
        assert await directory.look_up() == [Location(ONE, "target")]
    assert [line["event"] for line in logs] == ["name not found"]


async def test_before_a_name_was_ever_found_it_is_called_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is always somebody to look for."""
    with names(monkeypatch):
        assert await Directory(["target:1"]).look_up() == [Location("target:1")]


async def test_a_worker_that_comes_gets_sessions_and_one_that_leaves_gets_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It keeps those that it has, and is let go of after the last."""
    addresses = ["10.0.0.1"]
    fleet, came = Fleet(), asyncio.Event()
    monkeypatch.setattr("coordinator.pool.LOOK_UP_SECONDS", 0.01)
    monkeypatch.setattr("coordinator.worker.WATCH_SECONDS", 0.01)
    with names(monkeypatch, target=addresses):
        pool = WorkerPool("target", ["target:1"], fleet.make)
        assert await pool.find(NEEDED)
        first = seat(pool)
        watching = asyncio.create_task(pool.watch(NEEDED, came.set))
        addresses[:] = ["10.0.0.1", "10.0.0.2"]
        await came.wait()
        second = seat(pool)
        assert [first.worker.address, second.worker.address] == [ONE, TWO]
        addresses[:] = ["10.0.0.2"]
        await until(lambda: first.worker.is_leaving)
        assert seat(pool).worker is second.worker
        assert not first.should_move()
        first.leave()
        await until(lambda: fleet.channels[ONE].info is None)
        await end_tasks([watching])
        assert [worker.address for worker in pool.workers] == [TWO]
    await pool.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_sha256": "other"}, "is not that of the worker at 10.0.0.1:1, m in float32"),
        ({"dtype": "bfloat16"}, "in bfloat16 is not that of the worker at 10.0.0.1:1"),
        ({"instance_id": ONE}, "is reached at 10.0.0.1:1 already"),
        ({"tokenizer_sha256": "x"}, "has another tokenizer"),
    ],
)
async def test_a_worker_that_would_say_something_else_is_refused(
    change: dict[str, Any], words: str
) -> None:
    """A session that moves must go on with the same text; the others go on."""
    async with found(ONE, TWO) as (pool, fleet):
        other = pool.workers[1]
        other.lost(NotReadyError("starts anew"))
        info = fleet.channels[TWO].info
        assert info
        fleet.channels[TWO].info = replace(info, **change)
        assert await pool.find(NEEDED)
        assert [worker.is_available for worker in pool.workers] == [True, False]
        with pytest.raises(IncompatibleModelsError, match=words):
            await other.find(lambda info: pool._misfit(other, NEEDED, info))


async def test_when_no_worker_fits_the_start_fails() -> None:
    """Naming what is wrong; one that is not there yet is waited for."""
    fleet = Fleet()
    pool = WorkerPool("target", [ONE], fleet.make)
    with pytest.raises(IncompatibleModelsError, match="another tokenizer"):
        await pool.find(Compatibility("other"))
    fleet.channels[ONE].info = None
    assert await pool.find(NEEDED) is None
    await pool.close()


async def test_a_slow_name_service_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the name last stood for counts; the look-up goes on, and is heard when it is done."""
    monkeypatch.setattr("coordinator.discovery.PATIENCE_SECONDS", 0.02)
    answered, count = threading.Event(), 0

    def look_up(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        nonlocal count
        count += 1
        answered.wait(10)
        return [(2, 1, 6, "", ("10.0.0.1", port))]

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", look_up)
        directory = Directory(["target:1", TWO])
        for _ in range(3):
            assert await directory.look_up() == [Location("target:1"), Location(TWO)]
        assert count == 1
        answered.set()
        async with asyncio.timeout(10):
            while await directory.look_up() != [Location(ONE, "target"), Location(TWO)]:
                pass


async def test_a_defect_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun again, it finds workers that are lost later."""
    monkeypatch.setattr("coordinator.pool.LOOK_UP_SECONDS", 0.01)
    monkeypatch.setattr("coordinator.worker.WATCH_SECONDS", 0.01)
    async with found(ONE) as (pool, _):
        look_up, count = pool._look_up, 0

        async def failing() -> None:
            nonlocal count
            count += 1
            if count == 3:
                raise RuntimeError("can't start new thread")
            await look_up()

        monkeypatch.setattr(pool, "_look_up", failing)
        work = partial(pool.watch, NEEDED, lambda: None)
        watching = asyncio.create_task(keep_going(work, pause_seconds=0.0))
        await until(lambda: count > 4)
        pool.workers[0].lost(WorkerUnavailableError("gone"))
        await until(lambda: pool.workers[0].is_available)
        await end_tasks([watching])


async def test_another_worker_at_an_address_is_looked_at_like_any_that_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It started between two looks; its model may be another, and it has read nothing."""
    monkeypatch.setattr("coordinator.worker.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("coordinator.worker.WATCH_SECONDS", 0.01)
    async with found(ONE, TWO) as (pool, fleet):
        worker = pool.workers[0]
        misfit = partial(pool._misfit, worker, NEEDED)
        with capture_logs() as logs:
            watching = asyncio.create_task(worker.watch(misfit, lambda: None))
            fleet.channels[ONE].info = replace(INFO, instance_id="new", tokenizer_sha256="x")
            await until(lambda: any(line["event"] == "worker refused" for line in logs))
            await end_tasks([watching])
        assert not worker.is_available


async def test_a_worker_whose_name_is_back_has_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait in line hear of it."""
    known = {"target": ["10.0.0.1", "10.0.0.2"]}
    fleet, heard = Fleet(), asyncio.Event()
    monkeypatch.setattr("coordinator.pool.LOOK_UP_SECONDS", 0.01)
    with names(monkeypatch, **known):
        pool = WorkerPool("target", ["target:1"], fleet.make)
        assert await pool.find(NEEDED)
        stays = [seat(pool), seat(pool)]
        watching = asyncio.create_task(pool.watch(NEEDED, heard.set))
        known["target"].remove("10.0.0.2")
        await until(lambda: pool.workers[1].is_leaving)
        heard.clear()
        known["target"].append("10.0.0.2")
        await heard.wait()
        assert not any(one.worker.is_leaving for one in stays)
        await end_tasks([watching])
    await pool.close()

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from coordinator.admission import Admission
from coordinator.room import Demand, Room
from sequoia.errors import CapacityError, InvalidArgumentError, NotReadyError, SequoiaError
from sequoia.messages import WorkerInfo

SMALL = Demand(100, 100, 10)  # a block of 256 tokens
LARGE = Demand(600, 100, 10)  # three of them
# Holds three blocks of tokens of ten bytes, and a little that is no whole block.
INFO = WorkerInfo(
    "m", "", 10, 4096, "float32", "cpu", 8, 7999, 0, 0, 64, "one", kv_bytes_per_token=10
)


def room(info: WorkerInfo | None = INFO) -> Room:
    """An empty worker."""
    return Room(lambda: info)


class Booking:
    """A place in the room of one worker."""

    def __init__(self, booked: Room, demand: Demand) -> None:
        self._room, self._demand = booked, demand

    @property
    def is_free(self) -> bool:
        return self._room.can_hold(self._demand)

    def take(self) -> None:
        self._room.take(self._demand)

    def leave(self) -> None:
        self._room.give_back(self._demand)


class Line:
    """Requests on an admission, and what became of them."""

    def __init__(
        self, request_limit: int = 8, queue_limit: int = 8, queue_seconds: float = 60.0
    ) -> None:
        self.admission = Admission(request_limit, queue_limit, queue_seconds)
        self.inside: list[str] = []  # in order of admission
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str, demand: Demand = SMALL, rooms: Sequence[Room] = ()) -> None:
        """Requests come one after the other, and get as far as they can."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._stay(name, demand, rooms))
            await settled()

    async def _stay(self, name: str, demand: Demand, rooms: Sequence[Room]) -> None:
        async with self.admission.admitted([Booking(one, demand) for one in rooms]):
            self.inside.append(name)
            await self._ends[name].wait()

    async def end(self, *names: str) -> None:
        """Requests that are inside end."""
        for name in names:
            self._ends[name].set()
            await settled()

    async def cancel(self, name: str) -> None:
        """A request's caller goes away."""
        self._tasks[name].cancel()
        await settled()

    def failure(self, name: str) -> SequoiaError:
        """What a request was refused with."""
        error = self._tasks[name].exception()
        assert isinstance(error, SequoiaError)
        return error

    async def __aenter__(self) -> Line:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        assert self.admission.active_count == self.admission.queued_count == 0


async def settled() -> None:
    """Everybody has gone on as far as they can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_requests_are_admitted_in_order_of_arrival() -> None:
    """As many at a time as the limit allows; the next one as soon as one ends."""
    async with Line(request_limit=2) as line:
        await line.come("a", "b", "c", "d", "e")
        assert line.inside == ["a", "b"]
        await line.end("b")
        assert line.inside == ["a", "b", "c"]
        await line.end("a", "c")
        assert line.inside == ["a", "b", "c", "d", "e"]
        assert line.admission.active_count == 2


async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    """Not even in the moment in which there is room."""
    async with Line(request_limit=1) as line:
        await line.come("a", "b")
        line._ends["a"].set()
        await line.come("c")
        assert line.inside == ["a", "b"]


async def test_a_full_queue_refuses() -> None:
    """With the limit and how many wait; nobody else notices."""
    async with Line(request_limit=1, queue_limit=2) as line:
        await line.come("a", "b", "c", "d")
        refused = line.failure("d")
        assert isinstance(refused, CapacityError)
        assert refused.metadata == {"field": "queue_limit", "limit": "2", "value": "2"}
        await line.end("a", "b")
        assert line.inside == ["a", "b", "c"]


async def test_without_a_queue_there_is_room_or_not() -> None:
    """A limit of 0 does not keep out whom there is room for."""
    async with Line(request_limit=1, queue_limit=0) as line:
        await line.come("a", "b")
        assert line.inside == ["a"]
        assert line.failure("b").metadata["limit"] == "0"
        await line.end("a")
        await line.come("c")
        assert line.inside == ["a", "c"]


async def test_waiting_has_an_end() -> None:
    """Who has waited for the longest time allowed is refused, and leaves the line."""
    async with Line(request_limit=1, queue_seconds=0.0) as line:
        await line.come("a", "b")
        refused = line.failure("b")
        assert isinstance(refused, CapacityError)
        assert refused.metadata["field"] == "queue_seconds"
        assert refused.metadata["limit"] == "0.0"
        assert line.admission.queued_count == 0
        assert line.inside == ["a"]


async def test_who_goes_away_leaves_the_line_at_once() -> None:
    """Those behind move up, also where the one who left had no room and they have."""
    async with Line() as line:
        target = room()
        await line.come("a", rooms=[target])
        await line.come("b", demand=LARGE, rooms=[target])
        await line.come("c", rooms=[target])
        assert line.inside == ["a"]
        await line.cancel("b")
        assert line.inside == ["a", "c"]
        assert line.admission.queued_count == 0


@pytest.mark.parametrize("end", ["return", "cancel", "error"])
async def test_room_is_given_back_however_a_request_ends(end: str) -> None:
    """Sessions and tokens alike, on every worker."""
    rooms = [room(), room()]
    admission = Admission(8, 8, 60.0)

    async def stay() -> None:
        async with admission.admitted([Booking(one, LARGE) for one in rooms]):
            assert [one.token_count for one in rooms] == [768, 768]
            if end == "error":
                raise SequoiaError("lost")
            if end == "cancel":
                await asyncio.Event().wait()

    task = asyncio.create_task(stay())
    await settled()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [(one.session_count, one.token_count) for one in rooms] == [(0, 0), (0, 0)]
    assert admission.active_count == 0


async def test_a_request_cancelled_in_the_moment_of_its_turn_keeps_nothing() -> None:
    """The next one gets the place."""
    async with Line(request_limit=1) as line:
        await line.come("a", "b", "c")
        line._ends["a"].set()
        await asyncio.sleep(0)  # a has left, and b has been let in, but does not run yet
        line._tasks["b"].cancel()
        await settled()
        assert line.inside == ["a", "c"]
        assert line.admission.active_count == 1


async def test_memory_is_promised_in_whole_blocks() -> None:
    """The cache grows by blocks, so parts of them cannot be shared."""
    assert Demand(1, 1, 1).token_count == 256
    assert Demand(200, 50, 6).token_count == 256
    assert Demand(200, 50, 7).token_count == 512
    async with Line() as line:
        target = room()
        await line.come("a", "b", "c", "d", rooms=[target])
        assert line.inside == ["a", "b", "c"]
        assert target.token_count == 3 * 256
        await line.end("b")
        assert line.inside == ["a", "b", "c", "d"]


async def test_a_large_request_is_never_overtaken() -> None:
    """Smaller ones that would fit wait behind it: it would starve otherwise."""
    async with Line() as line:
        target = room()
        await line.come("a", rooms=[target])
        await line.come("large", demand=LARGE, rooms=[target])
        await line.come("b", rooms=[target])
        assert line.inside == ["a"]
        await line.end("a")
        assert line.inside == ["a", "large"]
        await line.end("large")
        assert line.inside == ["a", "large", "b"]


async def test_every_worker_must_have_room() -> None:
    """The one with less of it decides, in bytes as in sessions."""
    wide = replace(INFO, kv_cache_limit_bytes=10**9)
    for narrow, admitted in ((INFO, 3), (replace(wide, session_limit=2), 2)):
        async with Line() as line:
            await line.come("a", "b", "c", "d", rooms=[room(wide), room(narrow)])
            assert len(line.inside) == admitted


async def test_a_worker_that_says_nothing_has_no_limits() -> None:
    """It has not been found yet, or does not know; it will say so itself."""
    silent = replace(INFO, kv_bytes_per_token=0)
    async with Line() as line:
        await line.come("a", "b", "c", "d", demand=LARGE, rooms=[room(None), room(silent)])
        assert len(line.inside) == 4


async def test_another_worker_brings_its_own_limits() -> None:
    """What is promised stays promised; what it takes is a matter of the worker in use."""
    infos = [replace(INFO, kv_cache_limit_bytes=10**9)]
    async with Line() as line:
        target = Room(lambda: infos[-1])
        await line.come("a", "b", rooms=[target])
        infos.append(INFO)
        await line.come("c", "d", rooms=[target])
        assert line.inside == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("demand", "facts"),
    [
        (Demand(600, 200, 10), {"field": "max_new_tokens", "limit": "158", "value": "200"}),
        (Demand(900, 1, 10), {"field": "prompt", "limit": "757", "value": "900"}),
        (Demand(900, 200, 10), {"field": "prompt", "limit": "757", "value": "900"}),
    ],
)
def test_what_could_never_fit_is_refused(demand: Demand, facts: dict[str, str]) -> None:
    """It names the field that asks for too much, and what would fit."""
    target = room()
    with pytest.raises(InvalidArgumentError, match="the target holds 799") as caught:
        target.check(demand)
    assert caught.value.metadata == facts
    limit = int(facts["limit"])
    largest = (
        Demand(limit, 1, 10) if facts["field"] == "prompt" else replace(demand, new_tokens=limit)
    )
    target.check(largest)
    with pytest.raises(InvalidArgumentError):
        target.check(replace(largest, new_tokens=largest.new_tokens + 1))


async def test_closing_refuses_those_who_wait_and_lets_the_others_end() -> None:
    """Nobody is let in any more."""
    async with Line(request_limit=1) as line:
        await line.come("a", "b")
        line.admission.close()
        idle = asyncio.create_task(line.admission.wait_until_idle(60.0))
        await line.come("c")
        assert {type(line.failure(name)) for name in ("b", "c")} == {NotReadyError}
        assert not idle.done()
        await line.end("a")
        assert await idle
        assert line.inside == ["a"]


async def test_waiting_for_the_last_request_has_an_end() -> None:
    """A client that does not read must not keep the coordinator from ending."""
    async with Line() as line:
        await line.come("a")
        line.admission.close()
        assert not await line.admission.wait_until_idle(0.0)
        assert line.admission.active_count == 1


async def test_a_place_that_becomes_free_elsewhere_lets_the_next_one_in() -> None:
    """Another worker has come, for instance: whoever notices it says so."""
    infos = [replace(INFO, kv_cache_limit_bytes=2560)]
    async with Line() as line:
        target = Room(lambda: infos[-1])
        await line.come("a", "b", rooms=[target])
        assert line.inside == ["a"]
        infos.append(INFO)
        line.admission.advance()
        await settled()
        assert line.inside == ["a", "b"]

"""Plans and statistics in a real Valkey."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from sequoia import embedded_valkey, plan_store
from sequoia.embedded_valkey import EmbeddedValkey
from sequoia.observations import SUM_NAMES, Circumstance, StepKind, StepSums, StepTimes
from sequoia.plan_store import PlanStore
from sequoia.plans import RANK_LIMIT, AcceptanceCounts, Plan, PlanError, PlannedTree
from sequoia.tasks import end_tasks

SMALL = (PlannedTree("greedy", 1, (-1, 0), 1.6, 0.01, 0.02),)
LARGE = (PlannedTree("greedy", 1, (-1, 0, 0, 1), 1.9, 0.009, 0.02),)
SECONDS = 15.0


@pytest.fixture(params=["valkey", "redis"])
def valkey(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmbeddedValkey]:
    """A server that comes back on its port when it is started again; Redis too, where it is."""
    found = shutil.which("redis-server")
    if request.param == "redis" and found is None:
        pytest.skip("no redis-server on this machine")
    binary = Path(found) if request.param == "redis" and found else None
    with EmbeddedValkey(binary=binary) as server:
        monkeypatch.setattr(embedded_valkey, "_free_port", lambda: server.port)
        yield server


@pytest.fixture
async def store(valkey: EmbeddedValkey) -> AsyncIterator[PlanStore]:
    """A store on that server."""
    store = PlanStore(valkey.url)
    yield store
    await store.close()


@pytest.fixture
def by_hand(valkey: EmbeddedValkey) -> Iterator[redis.Redis]:
    """Somebody who writes to Redis without asking."""
    with redis.Redis.from_url(valkey.url) as client:
        yield client


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 any condition
            await asyncio.sleep(0.01)


async def collect(store: PlanStore, found: list[Plan]) -> None:
    """Follow the plans as a coordinator does."""
    async for plan in store.plans():
        found.append(plan)  # noqa: PERF401 there is no end to wait for


@pytest.fixture
async def found(store: PlanStore) -> AsyncIterator[list[Plan]]:
    """All plans that a follower has come to see."""
    plans: list[Plan] = []
    following = asyncio.create_task(collect(store, plans))
    yield plans
    assert not following.done()
    await end_tasks([following])


async def test_a_stored_plan_reads_back(store: PlanStore) -> None:
    """There is no plan at first; a published one reads back as it was, with a rising version."""
    assert await store.read() is None
    first = await store.publish(SMALL)
    assert await store.read() == first
    second = await store.publish(LARGE)
    assert await store.read() == second
    assert second.trees == LARGE
    assert (first.version, second.version) == (1, 2)


async def test_followers_see_the_stored_plan_and_every_announced_one(
    store: PlanStore, found: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The announcement is enough: no look of the follower's own is needed."""
    monkeypatch.setattr(plan_store, "POLL_SECONDS", 10 * SECONDS)
    published = [await store.publish(SMALL)]
    await until(lambda: found == published)
    published.append(await store.publish(LARGE))
    await until(lambda: found == published)


async def test_a_plan_whose_announcement_was_lost_is_found(
    store: PlanStore, found: list[Plan], by_hand: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower looks by itself now and then."""
    monkeypatch.setattr(plan_store, "POLL_SECONDS", 0.05)
    plan = Plan(40, 1_700_000_000.0, SMALL)
    by_hand.set(plan_store.PLAN_KEY, plan.to_json())
    await until(lambda: found == [plan])


@pytest.mark.parametrize("garbage", [b"", b"\xff\x00", b"[]", b'{"version": 9}'])
async def test_garbage_is_logged_and_kept_out(
    store: PlanStore, found: list[Plan], by_hand: redis.Redis, garbage: bytes
) -> None:
    """What is no plan is complained of once, and followers stay with the last good one."""
    good = await store.publish(SMALL)
    await until(lambda: found == [good])
    with capture_logs() as logs:
        by_hand.set(plan_store.PLAN_KEY, garbage)
        by_hand.publish(plan_store.PLAN_CHANNEL, "9")
        await until(lambda: logs)
        by_hand.publish(plan_store.PLAN_CHANNEL, "9")
        with pytest.raises(PlanError):
            await store.read()
        better = await store.publish(LARGE)
        await until(lambda: len(found) == 2)
    assert [entry["event"] for entry in logs] == ["plan refused"]
    assert found == [good, better]


async def test_a_key_of_another_type_is_no_plan(
    store: PlanStore, found: list[Plan], by_hand: redis.Redis
) -> None:
    """A list where the plan should be is garbage as well, and is replaced by the next plan."""
    by_hand.rpush(plan_store.PLAN_KEY, "a", "b")
    by_hand.set(plan_store.VERSION_KEY, "many")
    with pytest.raises(PlanError, match="WRONGTYPE"):
        await store.read()
    plan = await store.publish(SMALL, after=4)
    assert plan.version == 5
    await until(lambda: found == [plan])


async def test_followers_survive_an_outage(
    valkey: EmbeddedValkey, store: PlanStore, found: list[Plan]
) -> None:
    """With Redis gone the last plan stays; when it is back, empty, the next plan arrives."""
    first = await store.publish(SMALL)
    await until(lambda: found == [first])
    with capture_logs() as logs:
        valkey.stop()
        with pytest.raises((RedisError, OSError)):
            await store.publish(LARGE)
        await until(lambda: logs)
        valkey.start()
        assert await store.read() is None
        second = await store.publish(LARGE, after=first.version)
        await until(lambda: len(found) == 2)
    assert {entry["event"] for entry in logs} == {"redis unavailable"}
    assert second.version == 2
    assert found == [first, second]


def counts(*pairs: tuple[int, int]) -> AcceptanceCounts:
    """Trials and accepts of the first ranks."""
    rest = (0,) * (RANK_LIMIT - len(pairs))
    return AcceptanceCounts(
        tuple(trials for trials, _ in pairs) + rest, tuple(accepts for _, accepts in pairs) + rest
    )


async def test_counts_add_up(store: PlanStore) -> None:
    """Counts from several coordinators are summed per pair of models and class."""
    await store.add_counts("pair", {"greedy": counts((10, 6), (4, 1)), "flat": counts((3, 3))})
    await store.add_counts("pair", {"greedy": counts((5, 5), (0, 0), (2, 1))})
    await store.add_counts("other", {"greedy": counts((100, 0))})
    assert await store.read_counts("pair", "greedy") == counts((15, 11), (4, 1), (2, 1))
    assert await store.read_counts("pair", "flat") == counts((3, 3))
    assert await store.read_counts("pair", "sharp") == AcceptanceCounts()


async def test_counts_that_are_none_read_as_nothing(store: PlanStore, by_hand: redis.Redis) -> None:
    """Unknown fields, ranks out of range, text and impossible shares do not reach the planner."""
    await store.add_counts("pair", {"greedy": counts((10, 6), (7, 1))})
    garbage: dict[bytes | str, str | int] = {
        "trials:2": "many",
        "trials:3": "9" * 5000,
        "trials:4": -3,
        "accepts:5": 2,
        "trials:0": 5,
        "trials:²": 5,
        "trials:65": 5,
        "trials:" + "1" * 5000: 5,
        b"\xff:1": 5,
        "note": "hello",
    }
    for field, value in garbage.items():
        by_hand.hset("sequoia:acceptance:pair:greedy", field, value)
    by_hand.set("sequoia:acceptance:pair:flat", "no hash")
    assert await store.read_counts("pair", "greedy") == counts((10, 6))
    assert await store.read_counts("pair", "flat") == AcceptanceCounts()


PLANNED = Circumstance("greedy", 2, StepKind.PLANNED)
CUT = Circumstance("flat-seeded", 16, StepKind.CUT)
STEPS_KEY = "sequoia:steps:pair:7"


def steps(count: int) -> StepSums:
    """Steps of 40 ms that yield two tokens each."""
    sums = StepSums()
    for _ in range(count):
        sums.record(2, StepTimes(0.040, 0.005, 0.030, 3, 100))
    return sums


async def test_steps_add_up(store: PlanStore) -> None:
    """Sums of several coordinators, per pair of models, version and circumstance."""
    await store.add_steps("pair", 7, {PLANNED: steps(3), CUT: steps(1)})
    await store.add_steps("pair", 7, {PLANNED: steps(2)})
    await store.add_steps("pair", 8, {PLANNED: steps(9)})
    read = await store.read_steps("pair", 7)
    assert set(read) == {PLANNED, CUT}
    for name in SUM_NAMES:
        assert getattr(read[PLANNED], name) == pytest.approx(getattr(steps(5), name))
    assert (await store.read_steps("pair", 8))[PLANNED].count == 9
    assert await store.read_steps("other", 7) == {}


async def test_steps_that_are_none_read_as_nothing(store: PlanStore, by_hand: redis.Redis) -> None:
    """Unknown circumstances and sums are left out, impossible numbers read as 0."""
    await store.add_steps("pair", 7, {PLANNED: steps(3)})
    garbage: dict[bytes | str, str | float] = {
        "greedy:2:planned:target_seconds": "nan",
        "greedy:2:planned:draft_seconds": "many",
        "greedy:2:planned:colour": 5,
        "nobody:2:planned:count": 5,
        "greedy:2:" + "x" * 5000 + ":count": 5,
        b"\xff:1:planned:count": 5,
        "note": "hello",
    }
    for field, value in garbage.items():
        by_hand.hset(STEPS_KEY, field, value)
    by_hand.set("sequoia:steps:pair:8", "no hash")
    read = await store.read_steps("pair", 7)
    assert set(read) == {PLANNED}
    sums = read[PLANNED]
    assert (sums.count, sums.tokens, sums.target_seconds, sums.draft_seconds) == (3, 6, 0, 0)
    assert await store.read_steps("pair", 8) == {}


async def test_steps_that_yield_less_than_a_token_are_left_out(
    store: PlanStore, by_hand: redis.Redis
) -> None:
    """No step does; what stands beside such sums is read."""
    await store.add_steps("pair", 7, {PLANNED: steps(3), CUT: steps(1)})
    by_hand.hset(STEPS_KEY, "greedy:2:planned:tokens", "many")
    assert set(await store.read_steps("pair", 7)) == {CUT}


async def test_garbage_holds_nothing_up(store: PlanStore, by_hand: redis.Redis) -> None:
    """What cannot be added to it is given up, the rest is added once, and the log says so."""
    by_hand.hset(STEPS_KEY, "greedy:2:planned:draft_seconds", "many")
    by_hand.set("sequoia:steps:pair:8", "no hash")
    by_hand.hset("sequoia:acceptance:pair:greedy", "trials:1", "many")
    with capture_logs() as logs:
        await store.add_steps("pair", 7, {PLANNED: steps(3)})
        await store.add_steps("pair", 8, {PLANNED: steps(3)})
        await store.add_counts("pair", {"greedy": counts((10, 6), (4, 1))})
    assert {entry["event"] for entry in logs} == {"statistics refused"}
    assert (await store.read_steps("pair", 7))[PLANNED].count == 3
    assert (await store.read_counts("pair", "greedy")).trials[:2] == (0, 4)


async def test_what_is_stored_is_forgotten_in_the_end(
    store: PlanStore, by_hand: redis.Redis
) -> None:
    """Sums of an old plan, counts of models that nobody uses, measurements of workers that are gone."""
    await store.add_steps("pair", 7, {PLANNED: steps(3)})
    await store.add_counts("pair", {"greedy": counts((10, 6))})
    await store.measurements.write("workers", "text")
    for key, longest in (
        (STEPS_KEY, 3600),
        ("sequoia:acceptance:pair:greedy", 31 * 86400),
        (MEASUREMENTS_KEY, 86400),
    ):
        assert 0 < int(str(by_hand.ttl(key))) <= longest


MEASUREMENTS_KEY = "sequoia:measurements:workers"


async def test_measurements_are_kept_as_long_as_they_are_renewed(
    store: PlanStore, by_hand: redis.Redis
) -> None:
    """They read back; to renew them puts their end off, and tells when they are gone."""
    assert await store.measurements.read("workers", 9) == b""
    assert not await store.measurements.renew("workers")
    await store.measurements.write("workers", "text")
    by_hand.expire(MEASUREMENTS_KEY, 5)
    assert await store.measurements.renew("workers")
    assert int(str(by_hand.ttl(MEASUREMENTS_KEY))) > 5
    assert await store.measurements.read("workers", 9) == b"text"
    assert await store.measurements.read("workers", 2) == b"te"
    assert await store.measurements.read("others", 9) == b""


async def test_measurements_of_another_type_are_none(
    store: PlanStore, by_hand: redis.Redis
) -> None:
    """A list is refused, and a text takes its place."""
    by_hand.rpush(MEASUREMENTS_KEY, "a", "b")
    with pytest.raises(ValueError, match="measurements: WRONGTYPE"):
        await store.measurements.read("workers", 9)
    await store.measurements.write("workers", "text")
    assert await store.measurements.read("workers", 9) == b"text"

"""Garbage in a real Valkey, where plans, counts, measurements and announcements should be."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import redis.asyncio as redis

from planner.accuracy import Accuracy
from planner.calibration import Calibration
from planner.measurements_codec import BYTES_LIMIT, MeasurementsError
from sequoia.observations import SUM_NAMES, StepsByCircumstance
from sequoia.plan_store import PLAN_CHANNEL, PLAN_KEY, VERSION_KEY, PlanStore
from sequoia.plans import PlanError
from sequoia.tasks import end_tasks
from tests.fuzz.inputs import PLAN, plans
from tests.fuzz.mutation import CHUNKS, damaged
from tests.fuzz.remembering import MEASUREMENTS, measurements, think_of_measurements
from tests.fuzz.tally import Tally

PAIR = "pair"
CLASS = "greedy"
COUNTS_KEY = f"sequoia:acceptance:{PAIR}:{CLASS}"
STEPS_KEY = f"sequoia:steps:{PAIR}:{PLAN.version}"
CIRCUMSTANCES = (
    "greedy:1:planned",
    "greedy:2:cut",
    "sharp:1:planned",
    "x:1:planned",
    "greedy:-1:cut",
)
WORKERS = "workers"
MEASUREMENTS_KEY = f"sequoia:measurements:{WORKERS}"
NUMBERS = (b"0", b"7", b"-3", b"1e9", b"9" * 18, b"9" * 30, b"x", b"", "٣".encode(), b"\xff", b" 1")
RECOVERY_SECONDS = 60.0


async def store_garbage(url: str, count: int, seed: int) -> Tally:
    """Write, announce and read back; in the end a follower must still take a good plan."""
    tally = Tally("redis")
    generator = random.Random(seed)
    store, by_hand = PlanStore(url), redis.Redis.from_url(url)
    follower = Follower()
    following = asyncio.create_task(follower.follow(store))
    inputs = plans(generator)
    try:
        for number in range(count):
            data = next(inputs)
            try:
                with tally.on_processor("value", data):
                    await _store_one(number, data, store, by_hand, generator)
            except (PlanError, MeasurementsError):
                tally.outcomes["refused"] += 1
            except Exception as error:
                tally.outcomes["broken"] += 1
                tally.fail("value", data, f"{type(error).__name__}: {error}")
            else:
                tally.outcomes["taken"] += 1
        await by_hand.delete(PLAN_KEY, VERSION_KEY)
        good = await store.publish(PLAN.trees, after=2**40)
        async with asyncio.timeout(RECOVERY_SECONDS):
            while follower.version != good.version:
                if following.done():
                    raise AssertionError("the follower has ended")
                await asyncio.sleep(0.01)
    finally:
        await end_tasks([following])
        await store.close()
        await by_hand.aclose()
    return tally


async def _store_one(
    number: int, data: bytes, store: PlanStore, by_hand: redis.Redis, generator: random.Random
) -> None:
    match number % 6:
        case 0:
            await by_hand.set(PLAN_KEY, data)
            await by_hand.publish(PLAN_CHANNEL, damaged(data[:50], CHUNKS, generator))
            await store.read()
        case 1:
            await by_hand.delete(COUNTS_KEY)
            ranks = (b"1", b"64", b"65", b"0", *NUMBERS)
            fields: dict[Any, Any] = {
                generator.choice((b"trials:", b"accepts:", b"", b":"))
                + generator.choice(ranks): generator.choice(NUMBERS)
                for _ in range(generator.randint(1, 20))
            }
            await by_hand.hset(COUNTS_KEY, mapping=fields)
            await store.read_counts(PAIR, CLASS)
        case 2:
            await by_hand.delete(PLAN_KEY, COUNTS_KEY)
            await by_hand.rpush(generator.choice((PLAN_KEY, COUNTS_KEY)), data)
            await store.read_counts(PAIR, CLASS)
            await store.read()
        case 3:
            await by_hand.delete(STEPS_KEY)
            sums: dict[Any, Any] = {
                f"{generator.choice(CIRCUMSTANCES)}:{generator.choice(SUM_NAMES)}": generator.choice(
                    NUMBERS
                )
                for _ in range(generator.randint(1, 20))
            }
            await by_hand.hset(STEPS_KEY, mapping={**sums, data[:50]: b"1"})
            _think_of(await store.read_steps(PAIR, PLAN.version))
        case 4:
            await by_hand.delete(MEASUREMENTS_KEY)
            await by_hand.set(MEASUREMENTS_KEY, next(measurements(generator)))
            stored = await store.measurements.read(WORKERS, BYTES_LIMIT + 1)
            think_of_measurements(stored.encode() if isinstance(stored, str) else stored)
        case _:
            await by_hand.delete(PLAN_KEY)
            await by_hand.set(VERSION_KEY, generator.choice(NUMBERS))
            await store.publish(PLAN.trees, after=generator.choice((0, 5)))
            await store.read()


def _think_of(steps: StepsByCircumstance) -> None:
    """As a planner does at every look."""
    accuracy, calibration = Accuracy(), Calibration(MEASUREMENTS)
    accuracy.begin(PLAN.trees)
    accuracy.observe(steps)
    for sums in steps.values():
        for tree in PLAN.trees:
            calibration.observe(tree, sums)
    calibration.calibrated()


@dataclass
class Follower:
    """Whoever takes plans as they come, like a coordinator."""

    version: int = 0

    async def follow(self, store: PlanStore) -> None:
        """Never ends."""
        async for plan in store.plans():
            self.version = plan.version

"""What a planner finds of the one before it: measurements, and the plan that stands."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from planner.accuracy import Accuracy
from planner.deliberation import Deliberation
from planner.measurements import Measurements, Overhead
from planner.measurements_codec import (
    LEAST_MS,
    MOST_MS,
    MeasurementsError,
    from_json,
    to_json,
)
from planner.scope import Scope
from planner.succession import LEAST_SECONDS, MOST_SECONDS, can_go_on
from sequoia.observations import Circumstance, StepKind, StepSums, StepTimes
from sequoia.plans import REQUEST_CLASSES, AcceptanceCounts, Plan, PlanError
from tests.fuzz.decoding import read_one
from tests.fuzz.inputs import plans
from tests.fuzz.mutation import damaged
from tests.fuzz.tally import Tally

MAX_NODES, MAX_LEVELS = 8, 4
SCOPE = Scope(MAX_NODES, MAX_LEVELS, (1, 2))
MEASUREMENTS = Measurements(
    {(load, nodes): 30.0 + nodes for load in (1, 2) for nodes in (1, 2, 4, 8)},
    {(load, width): 2.0 for load in (1, 2) for width in (1, 2, 4)},
    {(load, samples): Overhead(1.0, 2.0) for load in (1, 2) for samples in (False, True)},
    MAX_NODES,
)
STANDING = Plan(3, 1_700_000_000.5, Deliberation(MEASUREMENTS, MAX_LEVELS).plan())
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 10**40, "", [], {}, [[]]),
    *(0.0, 5e-324, 1e-6, 1e7, 1e308, float("nan"), float("inf")),
)
SECONDS = {"predicted_seconds_per_token", "predicted_seconds_per_token_without_speculation"}
TIMES = (LEAST_MS, MOST_MS, 1.0, 3.0, 1e-3, 1e5)
COUNTS = AcceptanceCounts((600, 300, *[0] * 62), (300, 100, *[0] * 62))


def read_memories(count: int, seed: int) -> Tally:
    """Measurements and plans by turns; a planner must be able to think about those that it takes."""
    tally = Tally("memories")
    generator = random.Random(seed)
    measured, standing = measurements(generator), standing_plans(generator)
    for number in range(count):
        if number % 2:
            read_one(tally, "plan", think_of_plan, next(standing), PlanError)
        else:
            read_one(
                tally, "measurements", think_of_measurements, next(measured), MeasurementsError
            )
    return tally


def measurements(generator: random.Random) -> Iterator[bytes]:
    """What may lie in Redis where measurements should."""
    text = to_json(MEASUREMENTS, SCOPE).encode()
    while True:
        if generator.random() < 0.3:
            yield damaged(text, [text, STANDING.to_json().encode()], generator)
            continue
        content = json.loads(text)
        name = generator.choice([*content, "other"])
        rows = content.get(name)
        if generator.random() < 0.5:
            for row in content[generator.choice(("target_ms", "draft_ms", "overheads"))]:
                row[-1] = generator.choice(TIMES)
        elif not isinstance(rows, list) or generator.random() < 0.2:
            content[name] = generator.choice(VALUES)
        else:
            for _ in range(generator.randint(1, 3)):
                row = generator.choice(rows)
                row[generator.randrange(len(row))] = generator.choice(VALUES)
        yield json.dumps(content).encode()


def standing_plans(generator: random.Random) -> Iterator[bytes]:
    """What may lie there where the plan stands: garbage, and plans that might fit."""
    garbage = plans(generator, STANDING)
    while True:
        if generator.random() < 0.5:
            yield next(garbage)
            continue
        content = json.loads(STANDING.to_json())
        for tree in content["trees"]:
            tree["parents"] = generator.choice(([-1], [-1, 0], [-1, 0, 0, 1], tree["parents"]))
            tree["expected_tokens_per_step"] = generator.uniform(1.0, len(tree["parents"]))
            for name in tree.keys() & SECONDS:
                tree[name] = generator.choice((LEAST_SECONDS, MOST_SECONDS, 0.01))
        yield json.dumps(content).encode()


def think_of_measurements(data: bytes) -> None:
    """Read, plan, and look at steps and counts."""
    read = from_json(data, SCOPE, MAX_NODES)
    if read is None:
        raise MeasurementsError("scope: another one")
    if from_json(to_json(read, SCOPE), SCOPE, MAX_NODES) != read:
        raise AssertionError("measurements do not read back")
    mind = Deliberation(read, MAX_LEVELS)
    _go_on(mind, Plan(1, 0.0, mind.plan()))


def think_of_plan(data: bytes) -> None:
    """Read, and go on from it where it fits."""
    plan = Plan.from_json(data)
    if not can_go_on(plan, MEASUREMENTS, MAX_LEVELS):
        raise PlanError("trees: of other measurements")
    mind = Deliberation(MEASUREMENTS, MAX_LEVELS)
    mind.inherit()
    _go_on(mind, plan)


def _go_on(mind: Deliberation, plan: Plan) -> None:
    """As a planner does at its looks."""
    accuracy = Accuracy()
    accuracy.begin(plan.trees)
    sums = StepSums()
    for _ in range(200):
        sums.record(2, StepTimes(0.040, 0.005, 0.030, 1, 100))
    steps = {Circumstance(name, 1, StepKind.PLANNED): sums for name in REQUEST_CLASSES}
    for name in REQUEST_CLASSES:
        mind.observe_counts(name, COUNTS)
    mind.observe_steps(plan.trees, steps)
    accuracy.observe(steps)
    mind.revision(plan.trees)

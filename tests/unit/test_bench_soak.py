"""Growth, leftovers and failures are found; what settles is forgiven."""

from __future__ import annotations

import os
import random

import pytest

from sequoia.bench.environment import Environment
from sequoia.bench.soak.memory import Sample, measure_drift, read_sample
from sequoia.bench.soak.report import Soaked, make_result
from sequoia.bench.soak.traffic import MANNERS, Tally, draw_visit, wait_until_idle
from sequoia.cli.bench_soak import long_prompts


def samples(*sizes: int, pid: int = 1) -> list[Sample]:
    """One a second."""
    return [Sample(float(second), pid, size, size) for second, size in enumerate(sizes)]


def soaked(role: str = "coordinator", *sizes: int, left: int = 0, failed: int = 0) -> Soaked:
    """A run with one role."""
    mine = samples(*sizes)
    tally = Tally()
    for _ in range(failed):
        tally.fail(ValueError("oh"))
    return Soaked({role: mine}, {role: measure_drift(mine, 0.0)}, tally, {"target_service": left})


def test_memory_that_has_settled_does_not_drift() -> None:
    """What a process takes at the beginning is not counted."""
    drift = measure_drift(samples(10, 500, 1000, 1000, 1000, 1000, 1000, 1000), settled_after=2.0)
    assert drift is not None
    assert drift.change == 0.0
    assert drift.fitted_change == pytest.approx(0.0)


def test_growth_is_told_by_medians_and_by_a_line() -> None:
    """Of the first and the last third, and from end to end."""
    drift = measure_drift(samples(100, 110, 120, 130, 140, 150), settled_after=0.0)
    assert drift is not None
    assert drift.change == pytest.approx(145 / 105 - 1)
    assert drift.fitted_change == pytest.approx(0.5)
    assert measure_drift(samples(1, 2, 3), settled_after=2.0) is None


def test_this_process_can_be_sampled() -> None:
    """RSS and PSS are bytes; a process that is gone has no sample."""
    sample = read_sample(os.getpid(), 1.0)
    assert sample is not None
    assert sample.rss_bytes > 2**20
    assert read_sample(2**30, 1.0) is None


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (soaked("coordinator", 100, 100, 100, 103, 103, 103), "coordinator: memory grew by 3.0%"),
        (soaked("coordinator", 1), "too few samples"),
        (soaked("coordinator", 1, 1, 1, left=2), "target_service: 2 sessions left"),
        (soaked("coordinator", 1, 1, 1, failed=3), "3 requests failed, ValueError: oh first"),
    ],
)
def test_every_broken_limit_is_named(run: Soaked, words: str) -> None:
    """The command fails with these words, and its files hold them."""
    (problem,) = run.problems()
    assert words in problem
    result = make_result(run, {"dtype": "x"}, Environment.gather("cpu"))
    assert words in result.problem
    assert result.as_json()["passed"] is False


def test_within_the_limits_nothing_is_wrong() -> None:
    """Less memory is no fault, nor are the movements of Valkey's few megabytes."""
    assert soaked("coordinator", 100, 100, 100, 90, 90, 90).problems() == []
    assert soaked("valkey", 100, 100, 100, 110, 110, 110).problems() == []


def test_a_role_that_was_started_again_is_a_problem() -> None:
    """Its memory would look well."""
    mine = samples(100, 100, 100) + samples(100, 100, 100, pid=2)
    run = Soaked({"planner": mine}, {"planner": measure_drift(mine, 0.0)}, Tally(), {})
    assert run.problems() == ["planner: was started again"]


def test_visits_repeat_with_their_seed_and_cover_all_manners() -> None:
    """Prompts, seeds, temperatures and endings at random."""
    prompts = [(1,), (2, 3)]
    visits = [
        draw_visit(generator, prompts, 8) for generator in [random.Random(1)] for _ in range(99)
    ]
    again = random.Random(1)
    assert visits == [draw_visit(again, prompts, 8) for _ in range(99)]
    assert {visit.manner for visit in visits} == set(MANNERS)
    assert {visit.request.token_ids for visit in visits} == set(prompts)
    assert {visit.request.disable_speculation for visit in visits} == {True, False}
    assert any(visit.request.seed is None for visit in visits)


async def test_idle_workers_are_waited_for() -> None:
    """Until none holds a session, or the time is over."""
    counts = iter([2, 1, 0])

    async def falling() -> int:
        return next(counts)

    async def stuck() -> int:
        return 3

    assert await wait_until_idle(10.0, [falling]) == [0]
    assert await wait_until_idle(0.0, [stuck]) == [3]


def test_long_prompts_fit_their_room() -> None:
    """Whether the others are short or long together."""
    assert long_prompts([(1, 2), (3,)], room=8) == [(1, 2, 3, 1), (1, 2, 3, 1, 2, 3, 1, 2)]
    half, whole = long_prompts([tuple(range(5000))], room=9000)
    assert (len(half), len(whole)) == (512, 1024)

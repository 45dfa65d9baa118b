"""Live times against a profile: which ratio holds where, and what it does to the times planned with."""

import pytest

from planner.calibration import Calibration, Part, Place
from planner.measurements import Measurements, Overhead
from sequoia.observations import StepSums, StepTimes
from sequoia.plans import PlannedTree

LOADS = (1, 2, 4)
PROFILE = Measurements(
    {(b, n): 20.0 + n for b in LOADS for n in (1, 2, 4, 8)},
    {(b, w): 2.0 for b in LOADS for w in (1, 2, 4)},
    {(b, samples): Overhead(1.0, 3.0) for b in LOADS for samples in (False, True)},
    max_nodes=8,
)
TREE = (-1, 0, 0, 1)  # 3 levels: two draft passes, 4 ms; 24 ms at the target; 3 ms beside


def planned(batch_size: int = 1, parents: tuple[int, ...] = TREE) -> PlannedTree:
    """A tree in force."""
    return PlannedTree("greedy", batch_size, parents, 1.8, 0.02, 0.03)


def steps(count: int, draft_ms: float, target_ms: float, beside_ms: float) -> StepSums:
    """So many steps that all took the same."""
    sums = StepSums()
    whole = draft_ms + target_ms + beside_ms
    for _ in range(count):
        sums.record(2, StepTimes(whole / 1000, draft_ms / 1000, target_ms / 1000, 1, 100))
    return sums


def test_nothing_seen_leaves_the_profile_as_it_is() -> None:
    """Every ratio is 1, and somewhat uncertain."""
    calibration = Calibration(PROFILE)
    assert calibration.calibrated() == PROFILE
    assert calibration.ratio(Part.DRAFT, Place(1, True)).deviation > 0


def test_every_part_has_its_ratio() -> None:
    """A step's time on the target, on the draft and beside them is compared with the profile's."""
    calibration = Calibration(PROFILE)
    calibration.observe(planned(), steps(200, 8.0, 36.0, 6.0))
    latency = calibration.calibrated().latency(1, samples=False)
    assert latency.step_ms([1, 2, 1]) == pytest.approx(8.0 + 36.0 + 6.0)
    assert float(latency.target_ms.at([8])[0]) == pytest.approx(28.0 * 1.5)
    assert latency.plain_ms() == pytest.approx(21.0 * 1.5 + 1.0 * 2.0)


def test_few_steps_are_not_believed() -> None:
    """Ten of them change nothing."""
    calibration = Calibration(PROFILE)
    calibration.observe(planned(), steps(10, 8.0, 36.0, 6.0))
    assert calibration.calibrated() == PROFILE
    assert calibration.seen() == {}


def test_another_load_borrows_from_the_nearest_one() -> None:
    """Load 4 is nearer to 2 than to 1; what is seen there itself goes first."""
    calibration = Calibration(PROFILE)
    calibration.observe(planned(1), steps(100, 4.0, 24.0, 3.0))
    calibration.observe(planned(2), steps(100, 4.0, 48.0, 3.0))
    assert calibration.ratio(Part.TARGET, Place(4, True)).mean == pytest.approx(2.0)
    calibration.observe(planned(4), steps(100, 4.0, 72.0, 3.0))
    assert calibration.ratio(Part.TARGET, Place(4, True)).mean == pytest.approx(3.0)
    assert calibration.ratio(Part.TARGET, Place(1, True)).mean == pytest.approx(1.0)


def test_a_busy_machine_slows_trees_and_plain_steps_alike() -> None:
    """Trees were timed in a quiet hour, plain steps in a busy one: that speaks for neither."""
    calibration = Calibration(PROFILE)
    calibration.observe(planned(), steps(200, 4.0, 24.0, 3.0))
    before = calibration.calibrated().latency(1, samples=False)
    calibration.observe(planned(parents=(-1,)), steps(2000, 0.0, 42.0, 2.0))
    after = calibration.calibrated().latency(1, samples=False)
    for widths in ([1], [1, 2, 1]):
        ratio = after.step_ms(widths) / before.step_ms(widths)
        assert ratio == pytest.approx(2.0, rel=0.01)


def test_new_times_replace_old_ones_within_two_hundred_steps() -> None:
    """A target that has become slower is known to be by then."""
    calibration = Calibration(PROFILE)
    calibration.observe(planned(), steps(1000, 4.0, 24.0, 3.0))
    for _ in range(10):
        calibration.observe(planned(), steps(20, 4.0, 72.0, 3.0))
    assert calibration.ratio(Part.TARGET, Place(1, True)).mean == pytest.approx(3.0, rel=0.1)


def test_a_load_that_traffic_has_left_is_forgotten() -> None:
    """After hours it is believed to be like the load that is seen."""
    calibration = Calibration(PROFILE)
    calibration.observe(planned(1), steps(200, 4.0, 96.0, 3.0))
    for _ in range(6):
        calibration.fade(3600.0)
    calibration.observe(planned(4), steps(200, 4.0, 24.0, 3.0))
    assert calibration.ratio(Part.TARGET, Place(1, True)).mean == pytest.approx(1.0)


def test_steady_times_are_surer_than_restless_ones() -> None:
    """The deviation of the draft's ratio follows from how much its times differ."""
    steady, restless = Calibration(PROFILE), Calibration(PROFILE)
    steady.observe(planned(), steps(200, 4.0, 24.0, 3.0))
    mixed = steps(100, 2.0, 24.0, 3.0)
    mixed.add(steps(100, 6.0, 24.0, 3.0))
    restless.observe(planned(), mixed)
    place = Place(1, True)
    assert steady.ratio(Part.DRAFT, place).deviation == pytest.approx(0.0, abs=1e-6)
    assert restless.ratio(Part.DRAFT, place).deviation == pytest.approx(0.1, rel=0.05)
    assert restless.ratio(Part.DRAFT, place).mean == pytest.approx(1.0)


def test_what_the_profile_missed_is_seen_live() -> None:
    """A profile that found nothing beside the passes does not hide what live steps take there."""
    silent = Measurements(
        PROFILE.target_ms,
        PROFILE.draft_ms,
        dict.fromkeys(PROFILE.overheads, Overhead(0.0, 0.0)),
        max_nodes=8,
    )
    calibration = Calibration(silent)
    calibration.observe(planned(), steps(100, 4.0, 24.0, 7.0))
    latency = calibration.calibrated().latency(1, samples=False)
    assert latency.step_ms([1, 2, 1]) == pytest.approx(4.0 + 24.0 + 7.0)


def test_a_load_without_a_profile_is_left_out() -> None:
    """Steps planned for it, by a plan of before, say nothing that could be used."""
    calibration = Calibration(PROFILE)
    calibration.observe(planned(16), steps(100, 8.0, 48.0, 3.0))
    assert calibration.calibrated() == PROFILE

"""Load is repeatable, and throughput and latency are counted as they are described."""

from __future__ import annotations

from typing import Any

import pytest

from sequoia.bench.environment import Environment
from sequoia.bench.serve.figures import MODES, Cell, Load, Percentiles, make_ratios
from sequoia.bench.serve.load import Recording, arrival_times
from sequoia.bench.serve.report import make_result
from sequoia.cli.bench_serve import single_stream_trees
from sequoia.generation import Usage
from sequoia.plans import BUILT_IN_PLAN


def recording(tokens: int) -> Recording:
    """Two seconds of some tokens, two a step, of which one request of five steps ended."""
    usage = Usage(1, 10, 5, 0, 0, 0.0, 0.5, 0.0, 1.0, 0.1, 1, 1)
    return Recording(2.0, tokens, tokens // 2, [0.1], [0.01, 0.03], [usage], 1)


def cells() -> list[Cell]:
    """Every mode with one stream and with eight."""
    rates = {"planned": (40, 80), "none": (20, 100), "always": (40, 50)}
    return [
        Cell.of(mode, Load(clients=clients), [recording(tokens)])
        for mode in MODES
        for clients, tokens in zip((1, 8), rates[mode], strict=True)
    ]


def test_sessions_in_the_target_follow_from_steps_and_pass_times() -> None:
    """Steps a second times the mean seconds of the passes they were in."""
    found = recording(40)
    assert found.tokens_per_second == 20.0
    assert found.sessions_in_target == pytest.approx(20 / 2.0 * 0.1)
    assert Recording(1.0).sessions_in_target is None


def test_ratios_compare_modes_and_streams() -> None:
    """Of throughput, so above 1 the first is faster."""
    ratios = make_ratios(cells())
    assert ratios["planned / none, 1 stream"] == 2.0
    assert ratios["planned / none, 8 streams"] == pytest.approx(0.8)
    assert ratios["8 streams / 1 stream, none"] == 5.0
    assert "none / none, 1 stream" not in ratios


def test_percentiles_are_of_all_samples() -> None:
    """None without samples."""
    assert Percentiles.of([]) is None
    found = Percentiles.of([float(value) for value in range(101)])
    assert found == Percentiles(50.0, 95.0, 99.0)


def test_arrivals_repeat_with_their_seed() -> None:
    """A Poisson process: as many as the rate says, on average, all within the time."""
    times = arrival_times(rate=50.0, seconds=20.0, seed=1)
    assert times == arrival_times(50.0, 20.0, 1)
    assert times != arrival_times(50.0, 20.0, 2)
    assert times == sorted(times)
    assert times[-1] < 20.0
    assert len(times) == pytest.approx(1000, rel=0.15)


def test_one_tree_for_every_load() -> None:
    """That of the least load, for every class of requests."""
    trees = single_stream_trees(BUILT_IN_PLAN)
    assert len({tree.request_class for tree in trees}) == len(trees) == 5
    assert {tree.batch_size for tree in trees} == {4}
    assert all(tree.topology.node_count > 1 for tree in trees)


def test_the_report_names_modes_loads_and_trees() -> None:
    """Rows for closed and open loads have the same keys."""
    some = [*cells(), Cell.of("planned", Load(capacity_share=0.5, rate=2.0), [recording(8)])]
    some += [Cell.of("none", Load(capacity_share=0.5, rate=2.0), [recording(8)])]
    found = make_result(some, {"always": [-1, 0]}, {"dtype": "x"}, Environment.gather("cpu"))
    body: Any = found.as_json()
    first, last = body["rows"][0], body["rows"][-1]
    assert first.keys() == last.keys()
    assert (first["concurrency"], last["concurrency"]) == (1, None)
    assert body["trees"] == {"always": [-1, 0]}
    assert "| open, 50% of capacity, none |" in found.as_markdown()

"""Rows, ratios and differences follow from the runs and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from sequoia.bench.environment import Environment
from sequoia.bench.interleave import Spread
from sequoia.bench.peers.comparison import (
    OURS,
    OURS_IN_PROCESS,
    REFERENCE,
    common_length,
    find_differences,
    make_ratios,
    make_rows,
    overhead_per_step,
)
from sequoia.bench.peers.report import Comparison, make_result
from sequoia.bench.peers.runs import Run

PROMPTS = [(1, 2), (3,)]
RUNS = {
    # two prompts, two repetitions
    OURS: [Run((5, 6), 0.2, 1), Run((7, 8), 0.4, 2), Run((5, 6), 0.4, 1), Run((7, 8), 0.4, 2)],
    OURS_IN_PROCESS: [Run((5, 6), 0.1, 1), Run((7, 8), 0.2, 2)] * 2,
    REFERENCE: [Run((5, 6), 0.4, 2), Run((7, 9, 9), 0.6, 3)] * 2,
}


def test_rows_are_medians_over_prompts_and_repetitions() -> None:
    """Tokens per step are all tokens over all steps; a prompt matches if its whole text does."""
    rows = {row.name: row for row in make_rows(RUNS, prompt_count=2, greedy=True)}
    assert rows[OURS].seconds_per_token.median == pytest.approx(0.2)
    assert rows[OURS].tokens_per_step == pytest.approx(8 / 6)
    assert rows[OURS].greedy_match == 0.5
    assert rows[REFERENCE].greedy_match == 1.0
    assert rows[REFERENCE].as_json()["spread"] == rows[REFERENCE].seconds_per_token.interquartile


def test_drawn_texts_have_no_match() -> None:
    """Above temperature 0 texts differ by right."""
    assert {row.greedy_match for row in make_rows(RUNS, 2, greedy=False)} == {None}


def test_ratios_come_from_rows_and_from_pairs_of_runs() -> None:
    """Pairs of which one did not run are left out."""
    rows = make_rows(RUNS, 2, greedy=True)
    (ratio,) = make_ratios(RUNS, rows, [(OURS, REFERENCE), (OURS, "llama.cpp-f32")])
    medians = {row.name: row.seconds_per_token.median for row in rows}
    assert ratio.name == "sequoia / transformers"
    assert ratio.of_medians == medians[OURS] / medians[REFERENCE]
    assert ratio.paired.median == pytest.approx(1.0)
    assert ratio.paired.low == pytest.approx(0.875)


def test_overhead_is_the_difference_of_a_step() -> None:
    """Run by run of the same prompt and repetition."""
    overhead = overhead_per_step(RUNS[OURS], RUNS[OURS_IN_PROCESS])
    expected = Spread.of([0.1, 0.1, 0.3, 0.1])
    assert overhead.as_json() == pytest.approx(expected.as_json())


def test_differences_say_where_and_how_near_a_tie() -> None:
    """The reference is asked after the tokens that both have in common."""
    asked: list[tuple[Sequence[int], int]] = []

    def leads(before: Sequence[int], token_id: int) -> tuple[float, float]:
        asked.append((tuple(before), token_id))
        return 0.25, 0.5

    (difference, other) = find_differences(RUNS, PROMPTS, leads)
    assert difference.system == OURS
    assert (difference.prompt, difference.position) == (1, 1)
    assert (difference.token_id, difference.reference_token_id) == (8, 9)
    assert (difference.top_gap, difference.logit_gap) == (0.25, 0.5)
    assert asked[0] == ((3, 7), 8)
    assert other.system == OURS_IN_PROCESS


def test_a_text_that_ended_sooner_has_no_token_of_its_own() -> None:
    """Then only the gap of the reference's first two is told."""
    runs = {OURS: [Run((5,), 0.1, 1)], REFERENCE: [Run((5, 6), 0.1, 2)]}
    (difference,) = find_differences(runs, [(1,)], lambda _before, _token: (0.1, 0.2))
    assert difference.token_id is None
    assert difference.logit_gap is None
    assert common_length((1, 2), (1, 2, 3)) == 2


def test_the_report_has_every_promised_key() -> None:
    """Rows, ratios, match, overhead, plan and who was left out."""
    rows = make_rows(RUNS, 2, greedy=True)
    comparison = Comparison(
        rows,
        make_ratios(RUNS, rows, [(OURS, REFERENCE)]),
        {"llama.cpp": "not installed"},
        overhead_per_step(RUNS[OURS], RUNS[OURS_IN_PROCESS]),
        None,
        [2],
        find_differences(RUNS, PROMPTS, lambda _before, _token: (0.0, 0.0)),
        [],
    )
    settings = {"dtype": "float32", "temperature": 0.0, "target": "t", "threads": 1}
    found: Any = make_result(comparison, settings, Environment.gather("cpu")).as_json()
    assert [row["name"] for row in found["rows"]] == list(RUNS)
    assert found["greedy_match"] == 0.5
    assert found["overhead_ms_per_step"] == pytest.approx(100.0)
    assert found["ratios"] == {"sequoia / transformers": pytest.approx(1.0)}
    assert found["skipped"] == [{"name": "llama.cpp", "reason": "not installed"}]
    assert found["plan"] == {"versions": [2], "tree": None}

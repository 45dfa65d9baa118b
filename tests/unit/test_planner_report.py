"""A planner's report on the wire, as JSON and as tables."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from planner.accuracy import Accuracy
from planner.deliberation import Deliberation
from planner.measurements import Measurements, Overhead
from planner.reporting import report
from sequoia.cli.planner_view import as_json, as_tables
from sequoia.errors import MalformedMessageError
from sequoia.observations import Circumstance, StepKind, StepSums, StepTimes
from sequoia.planner_report import Report
from sequoia.plans import REQUEST_CLASSES, AcceptanceCounts, Plan
from sequoia.rpc.planner_codec import GET_REPORT
from sequoia.v1 import planner_pb2

MEASUREMENTS = Measurements(
    {(1, n): 30.0 + n for n in (1, 2, 4, 8)},
    {(1, w): 2.0 for w in (1, 2, 4)},
    {(1, samples): Overhead(1.0, 2.0) for samples in (False, True)},
    max_nodes=8,
)


def made() -> Report:
    """The report of a planner that has seen 300 steps of greedy requests."""
    mind, accuracy = Deliberation(MEASUREMENTS, max_levels=4), Accuracy()
    plan = Plan(7, 1_700_000_000.5, mind.plan())
    accuracy.begin(plan.trees)
    sums = StepSums()
    for _ in range(300):
        sums.record(2, StepTimes(0.050, 0.006, 0.040, 1, 90))
    steps = {
        Circumstance("greedy", 1, StepKind.PLANNED): sums,
        Circumstance("greedy", 1, StepKind.CUT): sums.scaled(0.1),
    }
    mind.observe_counts("greedy", AcceptanceCounts((400, 200), (200, 50)))
    mind.observe_steps(plan.trees, steps)
    accuracy.observe(steps)
    return report(plan, mind, accuracy)


def shown(view: Report) -> str:
    """What a wide terminal shows of it."""
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(as_tables(view))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_report_says_what_was_seen() -> None:
    """Every class and every tree, with measurements where there were steps."""
    made_up = made()
    assert [one.request_class for one in made_up.classes] == list(REQUEST_CLASSES)
    greedy = made_up.trees[0]
    assert (greedy.step_count, greedy.other_step_count) == (300, 30)
    assert greedy.tokens_per_step == pytest.approx(2.0)
    assert greedy.seconds_per_token == pytest.approx(0.025)
    assert (greedy.sessions_per_pass, greedy.prefix_length) == pytest.approx((1, 90))
    assert {one.part for one in made_up.times} == {"target", "draft", "beside"}
    assert made_up.classes[0].node_count == pytest.approx(400)
    unseen = made_up.trees[1]
    assert (unseen.step_count, unseen.tokens_per_step, unseen.cause) == (0, 0.0, "")


def test_a_report_survives_the_wire() -> None:
    """As it was, and the request is empty."""
    sent = made()
    assert GET_REPORT.decode_reply(GET_REPORT.encode_reply(sent)) == sent
    assert GET_REPORT.decode_request(GET_REPORT.encode_request(None)) is None


def test_a_report_that_lacks_measurements_is_refused() -> None:
    """There is one for every tree of the plan."""
    message = planner_pb2.GetReportResponse()
    message.ParseFromString(GET_REPORT.encode_reply(made()))
    del message.measurements[-1]
    with pytest.raises(MalformedMessageError, match="measurements: 4 for 5 trees"):
        GET_REPORT.decode_reply(message.SerializeToString())


def test_a_report_with_half_an_estimate_is_refused() -> None:
    """Every probability has its deviation."""
    message = planner_pb2.GetReportResponse()
    message.ParseFromString(GET_REPORT.encode_reply(made()))
    del message.estimates[1].deviations[-1]
    with pytest.raises(MalformedMessageError, match=r"estimates\[1\].deviations: 63 for 64"):
        GET_REPORT.decode_reply(message.SerializeToString())


def test_words_of_a_report_are_shown_as_they_are() -> None:
    """They come from elsewhere, and are no markup."""
    made_up = made()
    odd = replace(made_up.times[0], part="[/red]x")
    assert "[/red]x" in shown(replace(made_up, times=(odd,)))


def test_the_tables_show_predicted_beside_measured() -> None:
    """And a dash where nothing was measured."""
    made_up = made()
    text = shown(made_up)
    tree = made_up.trees[0].tree
    assert "plan 7, made 2023-11-14 22:13:20 UTC" in text
    assert f"{tree.expected_tokens_per_step:.2f} / 2.00" in text
    assert f"{1000 * tree.predicted_seconds_per_token:.2f} / 25.00" in text
    assert f"{made_up.trees[1].tree.expected_tokens_per_step:.2f} / -" in text
    assert "±" in text


def test_a_plan_without_speculation_has_no_tree_to_show() -> None:
    """The row says so."""
    made_up = made()
    alone = replace(made_up.trees[0], tree=replace(made_up.trees[0].tree, parents=(-1,)))
    assert "none" in shown(replace(made_up, trees=(alone,)))


def test_json_holds_every_figure() -> None:
    """The plan's trees stand beside what was measured of them, once."""
    content = json.loads(json.dumps(as_json(made()), allow_nan=False))
    assert set(content) == {"plan", "classes", "trees", "times"}
    assert set(content["plan"]) == {"version", "created_at"}
    assert len(content["trees"]) == len(REQUEST_CLASSES)
    assert content["trees"][0]["tree"]["request_class"] == "greedy"
    assert content["trees"][0]["step_count"] == 300

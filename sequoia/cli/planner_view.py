"""A planner's report as JSON and as tables."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sequoia.planner_report import ClassReport, Report, TimeReport, TreeReport

RANKS_SHOWN = 4


def as_json(report: Report) -> dict[str, object]:
    """What `--json` prints: the report's own fields, trees beside what was measured of them."""
    content = asdict(report)
    content["plan"].pop("trees")
    return content


def as_tables(report: Report) -> Group:
    """The report for a person to read."""
    created = datetime.fromtimestamp(report.plan.created_at, UTC)
    headline = f"plan {report.plan.version}, made {created:%Y-%m-%d %H:%M:%S} UTC"
    return Group(
        Text(headline, style="bold"),
        _trees(report.trees),
        _classes(report.classes),
        _times(report.times),
    )


def _trees(reports: tuple[TreeReport, ...]) -> Table:
    table = _table("trees in force: predicted / measured", "class", "load", "tree")
    for name in ("tokens a step", "ms a token", "without", "steps", "others", "off by"):
        table.add_column(name, justify="right")
    for one in reports:
        tree = one.tree
        table.add_row(
            Text(tree.request_class),
            str(tree.batch_size),
            _shape(one),
            _pair(tree.expected_tokens_per_step, one.tokens_per_step, one.step_count),
            _pair(
                1000 * tree.predicted_seconds_per_token,
                1000 * one.seconds_per_token,
                one.step_count,
            ),
            f"{1000 * tree.predicted_seconds_per_token_without_speculation:.2f}",
            str(one.step_count),
            str(one.other_step_count),
            Text(one.cause or "-"),
        )
    return table


def _shape(one: TreeReport) -> str:
    topology = one.tree.topology
    if topology.node_count == 1:
        return "none"
    return f"{topology.node_count} nodes, {topology.level_count} levels"


def _pair(predicted: float, measured: float, step_count: int) -> str:
    return f"{predicted:.2f} / " + (f"{measured:.2f}" if step_count else "-")


def _classes(reports: tuple[ClassReport, ...]) -> Table:
    table = _table("acceptance: probability that child k is the accepted one", "class")
    for rank in range(1, RANKS_SHOWN + 1):
        table.add_column(f"k = {rank}", justify="right")
    for name in ("nodes seen", "dispersion", "shifts"):
        table.add_column(name, justify="right")
    for one in reports:
        chances = [
            f"{chance:.3f} ± {deviation:.3f}"
            for chance, deviation in zip(one.vector, one.deviations, strict=True)
        ][:RANKS_SHOWN]
        table.add_row(
            Text(one.request_class),
            *chances,
            *[""] * (RANKS_SHOWN - len(chances)),
            f"{one.node_count:.0f}",
            f"{one.dispersion:.1f}",
            str(one.shift_count),
        )
    return table


def _times(reports: tuple[TimeReport, ...]) -> Table:
    table = _table("times: measured over profiled", "load", "steps", "part")
    table.add_column("ratio", justify="right")
    for one in reports:
        kind = "with a tree" if one.has_tree else "without"
        ratio = f"{one.ratio:.2f} ± {one.deviation:.2f}"
        table.add_row(str(one.batch_size), kind, Text(one.part), ratio)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="")
    for column in columns:
        table.add_column(column)
    return table

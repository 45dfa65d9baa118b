"""`sequoia bench peers` as JSON, tables and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from matplotlib.figure import Figure

from sequoia.bench.environment import Environment
from sequoia.bench.interleave import Spread
from sequoia.bench.peers.comparison import OURS, Difference, Ratio, Row
from sequoia.bench.report import Result, Table
from sequoia.bench.trees import tree_as_json
from sequoia.plans import PlannedTree


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that was measured.

    Attributes:
        skipped: reasons by the name of the system.
        overhead: seconds per step through gRPC less those in one process; None where one did not run.
        tree: that the plan in force had for one request at a time; None: it said nothing.
        plan_versions: of the plans that were in force while requests were timed.
        differences: where greedy texts part from those of `transformers`.
    """

    rows: Sequence[Row]
    ratios: Sequence[Ratio]
    skipped: Mapping[str, str]
    overhead: Spread | None
    tree: PlannedTree | None
    plan_versions: Sequence[int]
    differences: Sequence[Difference]
    notes: Sequence[str]


def make_result(
    comparison: Comparison, settings: Mapping[str, object], environment: Environment
) -> Result:
    """The report; `settings` must name `dtype` and `temperature`."""
    tables = [_systems(comparison.rows), _ratios(comparison.ratios)]
    if comparison.skipped:
        rows = list(comparison.skipped.items())
        tables.append(Table("Left out", ("system", "reason"), rows, of_numbers=False))
    if comparison.differences:
        tables.append(_differences(comparison.differences))

    def draw(figure: Figure) -> None:
        _draw(figure, comparison.rows, settings)

    return Result(
        "peers",
        f"peers-{settings['dtype']}-t{settings['temperature']:g}",
        environment,
        settings,
        _body(comparison),
        tables,
        draw,
        [*_sentences(comparison), *comparison.notes],
    )


def _body(comparison: Comparison) -> dict[str, object]:
    matches = {row.name: row.greedy_match for row in comparison.rows}
    return {
        "rows": [row.as_json() for row in comparison.rows],
        "spread_is": "interquartile range, seconds per token",
        "greedy_match": matches.get(OURS),
        "greedy_differences": [asdict(difference) for difference in comparison.differences],
        "ratios": {ratio.name: ratio.of_medians for ratio in comparison.ratios},
        "paired_ratios": {ratio.name: ratio.paired.as_json() for ratio in comparison.ratios},
        "ratios_are": "seconds per token of the first over those of the second, below 1: faster",
        "overhead_ms_per_step": comparison.overhead and comparison.overhead.median * 1000,
        "overhead_ms_per_step_quartiles": comparison.overhead
        and [comparison.overhead.low * 1000, comparison.overhead.high * 1000],
        "skipped": [
            {"name": name, "reason": reason} for name, reason in comparison.skipped.items()
        ],
        "plan": {
            "versions": list(comparison.plan_versions),
            "tree": tree_as_json(comparison.tree),
        },
    }


def _systems(rows: Sequence[Row]) -> Table:
    header = ("system", "ms per token, median", "quartiles", "tokens per step", "greedy match")
    cells = []
    for row in rows:
        ms = row.seconds_per_token.times(1000)
        match = "" if row.greedy_match is None else f"{row.greedy_match:.0%}"
        quartiles = f"{ms.low:.2f} to {ms.high:.2f}"
        cells.append((row.name, f"{ms.median:.2f}", quartiles, f"{row.tokens_per_step:.2f}", match))
    return Table("Time per token", header, cells)


def _ratios(ratios: Sequence[Ratio]) -> Table:
    header = ("time per token of / of", "medians divided", "prompt by prompt", "quartiles")
    return Table(
        "Ratios, below 1: the first is faster",
        header,
        [
            (
                ratio.name,
                f"{ratio.of_medians:.3f}",
                f"{ratio.paired.median:.3f}",
                f"{ratio.paired.low:.3f} to {ratio.paired.high:.3f}",
            )
            for ratio in ratios
        ],
    )


def _differences(differences: Sequence[Difference]) -> Table:
    header = ("system", "prompt", "after tokens", "top-2 logit gap", "gap to its token")
    return Table(
        "Greedy texts that part from transformers'",
        header,
        [
            (
                each.system,
                str(each.prompt),
                str(each.position),
                f"{each.top_gap:.4f}",
                "it ended" if each.logit_gap is None else f"{each.logit_gap:.4f}",
            )
            for each in differences
        ],
    )


def _sentences(comparison: Comparison) -> list[str]:
    said = []
    if comparison.overhead is not None:
        ms = comparison.overhead.times(1000)
        said.append(
            f"gRPC and separate processes add {ms.median:.2f} ms to a step "
            f"({ms.low:.2f} to {ms.high:.2f})."
        )
    if comparison.tree is not None:
        shape = comparison.tree.topology
        versions = ", ".join(map(str, comparison.plan_versions))
        said.append(
            f"Tree in force (plan {versions}): {shape.node_count} nodes on "
            f"{shape.level_count} levels, parents {list(comparison.tree.parents)}."
        )
    return said


def _draw(figure: Figure, rows: Sequence[Row], settings: Mapping[str, object]) -> None:
    axes = figure.add_subplot()
    names = [row.name for row in rows]
    times = [row.seconds_per_token.times(1000) for row in rows]
    errors = [[it.median - it.low for it in times], [it.high - it.median for it in times]]
    colours = ["tab:blue" if name.startswith(OURS) else "tab:gray" for name in names]
    axes.barh(names, [it.median for it in times], xerr=errors, color=colours, capsize=3)
    for place, row in enumerate(rows):
        text = f"  {row.tokens_per_step:.2f} a step"
        axes.text(0, place, text, va="center", fontsize="small", color="white")
    axes.invert_yaxis()
    axes.set_xlabel("ms per token: median and quartiles, reading the prompt included")
    axes.set_title(
        f"{settings['target']}, {settings['dtype']}, temperature {settings['temperature']:g}, "
        f"{settings['threads']} threads"
    )
    axes.grid(visible=True, axis="x", alpha=0.3)

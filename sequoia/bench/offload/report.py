"""`sequoia bench offload` as JSON, tables and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from sequoia.bench.environment import Environment
from sequoia.bench.interleave import Spread
from sequoia.bench.offload.figures import PassTime, Row, Setting, make_ratios
from sequoia.bench.offload.plot import draw_budgets, draw_rows
from sequoia.bench.offload.tables import (
    passes_table,
    ratios_table,
    settings_table,
    systems_table,
)
from sequoia.bench.peers.comparison import OURS, OURS_ALONE
from sequoia.bench.report import Result, Table
from sequoia.bench.trees import tree_as_json
from sequoia.plans import PlannedTree

NOTES = (
    (
        "Time per token: of the tokens after the first ones; reading the prompt is a column of its own. "
        "Bytes read are those that the disk delivered to the process with the target's weights."
    ),
    (
        "accelerate reads through the page cache. Its row is held to the budget: cached pages of the "
        "checkpoint are handed back after every layer, and none is cached when a text begins. "
        "accelerate-with-page-cache is the same process with the machine's whole memory for a cache; what "
        "reading the prompt put there makes the later tokens fast."
    ),
    (
        "Cached is what of the checkpoint's files the page cache holds when a text ends, page by page, "
        "whoever had it read."
    ),
    (
        "The limit of a pass is the larger of its bytes at the raw rate (direct sequential reads of the same "
        "files, between the turns) and its time with all weights in memory (timed on a few layers, "
        "counted for all)."
    ),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that was measured.

    Attributes:
        rows: of all systems, with the budget of the comparison.
        passes: of ours, beside their limits.
        raw_bytes_per_second: of direct sequential reads.
        device_memory_bytes: the budget.
        tree: that the plan in force had for one request at a time; None: it said nothing.
        drafts: every draft on the budget of the comparison; empty where there was one alone.
        budgets: every budget, ascending; empty where there was one alone.
        skipped: reasons by the name of the system.
    """

    rows: Sequence[Row]
    passes: Sequence[PassTime]
    raw_bytes_per_second: Spread
    device_memory_bytes: int
    tree: PlannedTree | None
    drafts: Sequence[Setting]
    budgets: Sequence[Setting]
    skipped: Mapping[str, str]

    @property
    def read_bandwidth_ratio(self) -> float:
        """What ours reads without speculation over the raw rate."""
        return self.row(OURS_ALONE).bytes_per_second.median / self.raw_bytes_per_second.median

    def row(self, name: str) -> Row:
        """The row of a system that took part."""
        return next(row for row in self.rows if row.name == name)


def make_result(
    comparison: Comparison, settings: Mapping[str, object], environment: Environment
) -> Result:
    """The report; `settings` must name `dtype` and `model`."""
    tables = [
        systems_table(comparison.rows, comparison.device_memory_bytes),
        ratios_table(make_ratios(comparison.rows)),
        passes_table(comparison.passes),
    ]
    if comparison.drafts:
        tables.append(settings_table("Drafts", comparison.drafts))
    if comparison.budgets:
        tables.append(settings_table("Budgets", comparison.budgets))
    if comparison.skipped:
        rows = list(comparison.skipped.items())
        tables.append(Table("Left out", ("system", "reason"), rows, of_numbers=False))

    def draw(figure: Figure) -> None:
        title = f"{settings['model']}, {settings['dtype']}, {settings['threads']} threads"
        if comparison.budgets:
            draw_budgets(figure, comparison.budgets, title)
        else:
            draw_rows(figure, comparison.rows, title)

    return Result(
        "offload",
        f"offload-{settings['model']}-{settings['dtype']}",
        environment,
        settings,
        _body(comparison),
        tables,
        draw,
        [*_sentences(comparison), *NOTES],
    )


def _body(comparison: Comparison) -> dict[str, object]:
    ours = comparison.row(OURS)
    return {
        "rows": [row.as_json() for row in comparison.rows],
        "spread_is": "interquartile range, seconds per token",
        "greedy_match": ours.greedy_match,
        "ratios": make_ratios(comparison.rows),
        "ratios_are": "seconds per token of the first over those of the second, below 1: faster",
        "raw_bytes_per_second": comparison.raw_bytes_per_second.as_json(),
        "read_bandwidth_ratio": comparison.read_bandwidth_ratio,
        "passes": [one.as_json() for one in comparison.passes],
        "device_memory_bytes": comparison.device_memory_bytes,
        "peak_memory_bytes": ours.peak_memory_bytes,
        "tree": tree_as_json(comparison.tree),
        "drafts": [setting.as_json() for setting in comparison.drafts],
        "budgets": [setting.as_json() for setting in comparison.budgets],
        "skipped": [
            {"name": name, "reason": reason} for name, reason in comparison.skipped.items()
        ],
    }


def _sentences(comparison: Comparison) -> list[str]:
    raw = comparison.raw_bytes_per_second.times(1e-9)
    share = f"{comparison.read_bandwidth_ratio:.0%}"
    said = [
        (
            f"Direct sequential reads of the checkpoint: {raw.median:.2f} GB/s ({raw.low:.2f} to "
            f"{raw.high:.2f}); without speculation ours reads {share} of that."
        )
    ]
    if comparison.tree is not None:
        shape = comparison.tree.topology
        said.append(f"Tree in force: {shape.node_count} nodes on {shape.level_count} levels.")
    return said

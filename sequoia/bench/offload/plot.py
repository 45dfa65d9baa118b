"""Plots of time per token: system by system, or against the budget."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from sequoia.bench.offload.figures import Row, Setting
from sequoia.bench.peers.comparison import OURS

AXIS = "seconds per token: median and quartiles"


def draw_rows(figure: Figure, rows: Sequence[Row], title: str) -> None:
    """A bar for every system."""
    axes = figure.add_subplot()
    times = [row.seconds_per_token for row in rows]
    errors = [[it.median - it.low for it in times], [it.high - it.median for it in times]]
    colours = ["tab:blue" if row.name.startswith(OURS) else "tab:gray" for row in rows]
    names = [row.name for row in rows]
    axes.barh(names, [it.median for it in times], xerr=errors, color=colours, capsize=3)
    for place, row in enumerate(rows):
        text = f"  {row.tokens_per_step:.2f} a step"
        axes.text(0, place, text, va="center", fontsize="small", color="white")
    axes.invert_yaxis()
    axes.set_xlabel(AXIS)
    axes.set_title(title)
    axes.grid(visible=True, axis="x", alpha=0.3)


def draw_budgets(figure: Figure, settings: Sequence[Setting], title: str) -> None:
    """A line over the budgets for every system that was measured with all of them."""
    axes = figure.add_subplot()
    budgets = [setting.device_memory_bytes / 2**30 for setting in settings]
    lines: dict[str, list[Row]] = {}
    for setting in settings:
        for row in setting.rows:
            lines.setdefault(row.name, []).append(row)
    for name, rows in lines.items():
        times = [row.seconds_per_token for row in rows]
        errors = [[it.median - it.low for it in times], [it.high - it.median for it in times]]
        axes.errorbar(
            budgets, [it.median for it in times], yerr=errors, marker="o", capsize=3, label=name
        )
    axes.set_xlabel("memory for the target's worker, GiB")
    axes.set_ylabel(AXIS)
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()

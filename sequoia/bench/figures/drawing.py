"""What the plots share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TITLES = {
    "1": "Tokens per step against the size of the tree",
    "2": "Rejection rate against the number of speculated tokens",
    "3": "Tokens per step over temperature and top-p, tree fixed",
    "4": "Forward time of the target against the number of tokens",
    "5": "On-chip: speed-up and tokens per step",
    "6": "The planner's regret",
}
RULE_NAMES = {
    "sequoia": "Sequoia",
    "specinfer": "SpecInfer",
    "spectr": "SpecTr (k-SEQ)",
    "topk": "top-k",
}


def doubling_axis(axes: Any, ticks: Sequence[int], label: str) -> None:
    """Make the x axis logarithmic, with a mark at each of the numbers."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.set_xlabel(label)
    axes.grid(visible=True, which="both", alpha=0.3)


def caption(axes: Any, y_label: str, title: str, columns: int = 1) -> None:
    """Say what the y axis, the plot and its lines are."""
    axes.set_ylabel(y_label)
    axes.set_title(title)
    axes.legend(fontsize="small", ncols=columns)


def plain_numbers(axis: Any) -> None:
    """Write the numbers of a logarithmic axis as they are."""
    for formatter in (axis.set_major_formatter, axis.set_minor_formatter):
        formatter("{x:g}")


def subplots(figure: Any, count: int, share_y: bool = True) -> Sequence[Any]:
    """So many axes side by side."""
    figure.set_size_inches(5.5 * count + (3.0 if count == 1 else 0.0), 4.8)
    axes: Sequence[Any] = figure.subplots(1, count, sharey=share_y, squeeze=False)[0]
    return axes

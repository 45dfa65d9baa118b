"""The pictures of a draft's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sequoia.distillation.history import Point
from sequoia.distillation.judging import Judgement

SIZE = (7.0, 4.5)
DPI = 120
TICKS = (1, 2, 4, 8, 16, 32)
BUCKETS = 200
"""Points of a curve at most; each is a mean of steps."""


def plot_rejection(path: Path, judgements: Sequence[Judgement]) -> None:
    """Draw how often all of k children are rejected, against k, a curve a temperature."""
    figure, axes = _figure()
    for judgement in judgements:
        rates = judgement.levels[0].rejection
        shown = [rate or np.nan for rate in rates]  # no logarithm of 0
        label = f"temperature {judgement.temperature:g}"
        axes.plot(range(1, len(rates) + 1), shown, marker=".", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(TICKS, labels=map(str, TICKS))
    if any(rate for judgement in judgements for rate in judgement.levels[0].rejection):
        axes.set_yscale("log")
        for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatter("{x:g}")
    axes.set_xlabel("children k of a node")
    axes.set_ylabel("all of k are rejected")
    axes.set_title("Rejection rate, first level of a tree")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path)


def plot_learning(path: Path, points: Sequence[Point]) -> None:
    """Draw divergence and overlaps against the tokens that were learned from."""
    figure, axes = _figure()
    groups = np.array_split(np.arange(len(points)), min(BUCKETS, len(points)))
    tokens = [points[group[-1]].tokens for group in groups]
    divergences = [np.mean([points[i].divergence for i in group]) for group in groups]
    axes.plot(tokens, divergences, color="tab:gray", label="KL(p || q)")
    axes.set_xlabel("tokens learned from")
    axes.set_ylabel("KL(p || q), nats")
    right = axes.twinx()
    for level in range(max(len(point.overlaps) for point in points)):
        shown = [[points[i].overlaps[level : level + 1] for i in group] for group in groups]
        means = [np.mean([x for some in group for x in some] or [np.nan]) for group in shown]
        right.plot(tokens, means, label=f"Σ min(p, q), level {level + 1}")
    right.set_ylabel("Σ min(p, q)")
    axes.set_title("Learning, on the batches that are learned from")
    handles = [*axes.get_lines(), *right.get_lines()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.savefig(path)


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=SIZE, dpi=DPI)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.11, right=0.89, bottom=0.12, top=0.92)
    return figure, figure.add_subplot()

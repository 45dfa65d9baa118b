"""Figure 3: tokens per step over temperature and top-p, with one tree, for three acceptance rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from sequoia.acceptance.rules import RuleName
from sequoia.bench.environment import Environment
from sequoia.bench.figures import paper
from sequoia.bench.figures.drawing import RULE_NAMES, caption, subplots
from sequoia.bench.figures.estimates import Tokens
from sequoia.bench.report import Result, Table
from sequoia.tree import Topology

STEM = "figure-3-robustness"


@dataclass(frozen=True, slots=True)
class Cell:
    """One rule under one kind of sampling."""

    rule: RuleName
    temperature: float
    top_p: float
    tokens: Tokens


def make_result(
    cells: Sequence[Cell],
    topology: Topology,
    settings: Mapping[str, object],
    environment: Environment,
) -> Result:
    """The report; at temperature 0 all rules and every top-p are one."""
    nuclei = sorted({cell.top_p for cell in cells})

    def draw(figure: Figure) -> None:
        for axes, top_p in zip(subplots(figure, len(nuclei)), nuclei, strict=True):
            for rule in _rules(cells):
                line = [cell for cell in cells if (cell.rule, cell.top_p) == (rule, top_p)]
                axes.errorbar(
                    [cell.temperature for cell in line],
                    [cell.tokens.per_step for cell in line],
                    yerr=[cell.tokens.error for cell in line],
                    marker=".",
                    capsize=2,
                    label=RULE_NAMES[rule],
                )
            axes.set_xlabel("temperature")
            caption(axes, "tokens per step", f"top-p {top_p:g}, {topology.node_count} nodes")
            axes.grid(visible=True, alpha=0.3)

    gains = {rule.value: largest_gain(cells, rule) for rule in _rules(cells)[1:]}
    return Result(
        "figures",
        STEM,
        environment,
        settings,
        {
            "tree": {"parents": list(topology.parents)},
            "cells": [
                {
                    "rule": cell.rule.value,
                    "temperature": cell.temperature,
                    "top_p": cell.top_p,
                    **cell.tokens.as_json(),
                }
                for cell in cells
            ],
            "largest_gain_over": gains,
            "paper": {
                "hardware": "A100; tokens per step do not depend on it",
                "largest_gain_over": {
                    "topk": paper.GAIN_OVER_TOPK,
                    "specinfer": paper.GAIN_OVER_SPECINFER,
                },
            },
        },
        [_table(cells, top_p) for top_p in nuclei],
        draw,
        [
            f"One tree throughout: {topology.node_count} nodes on {topology.level_count} levels. "
            + "; ".join(
                f"up to {gain:.2f} times the tokens of {RULE_NAMES[rule]}"
                for rule, gain in gains.items()
            )
            + f" (the paper, with its models: {paper.GAIN_OVER_TOPK:g} over top-k, "
            f"{paper.GAIN_OVER_SPECINFER:g} over SpecInfer)."
        ],
    )


def largest_gain(cells: Sequence[Cell], rule: RuleName) -> float:
    """Tokens per step of Sequoia's rule over those of another, where that is largest."""
    found = {(c.rule, c.temperature, c.top_p): c.tokens.per_step for c in cells}
    return max(
        found[RuleName.SEQUOIA, temperature, top_p] / tokens
        for (name, temperature, top_p), tokens in found.items()
        if name is rule
    )


def _rules(cells: Sequence[Cell]) -> list[RuleName]:
    return list(dict.fromkeys(cell.rule for cell in cells))


def _table(cells: Sequence[Cell], top_p: float) -> Table:
    temperatures = sorted({cell.temperature for cell in cells})
    rows = []
    for rule in _rules(cells):
        mine = {
            cell.temperature: f"{cell.tokens.per_step:.2f} ± {cell.tokens.error:.2f}"
            for cell in cells
            if (cell.rule, cell.top_p) == (rule, top_p)
        }
        rows.append((RULE_NAMES[rule], *(mine[temperature] for temperature in temperatures)))
    header = ("rule", *(f"temperature {temperature:g}" for temperature in temperatures))
    return Table(f"Tokens per step, top-p {top_p:g}", header, rows)

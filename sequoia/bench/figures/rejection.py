"""Figure 2: how often all of k speculated tokens are rejected, for four acceptance rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from sequoia.acceptance.rules import RuleName
from sequoia.bench.environment import Environment
from sequoia.bench.figures import paper
from sequoia.bench.figures.drawing import (
    RULE_NAMES,
    caption,
    doubling_axis,
    plain_numbers,
    subplots,
)
from sequoia.bench.figures.estimates import SMALLEST_RATE, PowerLaw
from sequoia.bench.report import Result, Table

STEM = "figure-2-rejection"
SHOWN = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Curve:
    """One rule at one temperature.

    Attributes:
        rates: probability that all of k children are rejected, k = 1, 2, ...
        positions: nodes that it is the mean over.
    """

    temperature: float
    rule: RuleName
    rates: tuple[float, ...]
    positions: int

    @property
    def law(self) -> PowerLaw:
        """The power law through the rates."""
        return PowerLaw.fitted(self.rates)


def make_result(
    curves: Sequence[Curve], settings: Mapping[str, object], environment: Environment
) -> Result:
    """The report: every rule of every temperature, over the same positions of a temperature."""
    temperatures = sorted({curve.temperature for curve in curves})

    def draw(figure: Figure) -> None:
        for axes, temperature in zip(
            subplots(figure, len(temperatures)), temperatures, strict=True
        ):
            for curve in _at(curves, temperature):
                k = range(1, len(curve.rates) + 1)
                label = f"{RULE_NAMES[curve.rule]}, k^-{curve.law.exponent:.2f}"
                axes.plot(k, _positive(curve.rates), label=label)
            law = _at(curves, temperature)[0].law
            axes.plot(k, [law.at(each) for each in k], "k:", lw=1, label="power law of the first")
            axes.plot(
                [1, 32],
                [paper.REJECTED_AFTER_ONE, paper.REJECTED_AFTER_32],
                "x",
                color="tab:gray",
                label="the authors' vector",
            )
            axes.set_yscale("log")
            plain_numbers(axes.yaxis)
            doubling_axis(axes, SHOWN, "speculated tokens k of a node")
            caption(axes, "all of k are rejected", f"temperature {temperature:g}")

    return Result(
        "figures",
        STEM,
        environment,
        settings,
        {
            "curves": [
                {
                    "temperature": curve.temperature,
                    "rule": curve.rule.value,
                    "positions": curve.positions,
                    "rejection": list(curve.rates),
                    "power_law": {
                        "first": curve.law.first,
                        "exponent": curve.law.exponent,
                        "r2": curve.law.r2,
                    },
                }
                for curve in curves
            ],
            "lowest_at": {f"{at:g}": lowest_at(_at(curves, at)) for at in temperatures},
            "largest_excess": {f"{at:g}": largest_excess(_at(curves, at)) for at in temperatures},
            "paper": {
                "hardware": "any: the authors' published acceptance vector",
                "rejection": {"1": paper.REJECTED_AFTER_ONE, "32": paper.REJECTED_AFTER_32},
            },
        },
        [_table(_at(curves, temperature)) for temperature in temperatures],
        draw,
        [_sentence(_at(curves, temperature)) for temperature in temperatures],
    )


def lowest_at(curves: Sequence[Curve]) -> list[int]:
    """Every k at which no rule rejects less often than Sequoia's, at one temperature."""
    return [k for k, excess in enumerate(_excesses(curves), start=1) if excess <= 0.0]


def largest_excess(curves: Sequence[Curve]) -> float:
    """How much more often than the best rule Sequoia's rejects where that is most; 0 where never."""
    return max(0.0, *_excesses(curves))


def _excesses(curves: Sequence[Curve]) -> list[float]:
    ours = next(curve.rates for curve in curves if curve.rule is RuleName.SEQUOIA)
    others = [curve.rates for curve in curves if curve.rule is not RuleName.SEQUOIA]
    return [mine - min(rest) for mine, *rest in zip(ours, *others, strict=True)]


def _positive(rates: Sequence[float]) -> list[float]:
    """The same with gaps where a logarithm has none."""
    return [rate if rate > SMALLEST_RATE else math.nan for rate in rates]


def _at(curves: Sequence[Curve], temperature: float) -> list[Curve]:
    return [curve for curve in curves if curve.temperature == temperature]


def _table(curves: Sequence[Curve]) -> Table:
    most = len(curves[0].rates)
    shown = [k for k in SHOWN if k <= most]
    rows = [
        (
            RULE_NAMES[curve.rule],
            *(f"{curve.rates[k - 1]:.4f}" for k in shown),
            f"{curve.law.first:.2f} k^-{curve.law.exponent:.2f} (R² {curve.law.r2:.3f})",
        )
        for curve in curves
    ]
    header = ("rule", *(f"k = {k}" for k in shown), "power law")
    return Table(f"Rejection rate at temperature {curves[0].temperature:g}", header, rows)


def _sentence(curves: Sequence[Curve]) -> str:
    best, excess = lowest_at(curves), largest_excess(curves)
    elsewhere = f", elsewhere above the lowest by at most {excess:.4f}" if excess else ""
    return (
        f"At temperature {curves[0].temperature:g} Sequoia's is the lowest at {len(best)} of "
        f"{len(curves[0].rates)} numbers of tokens{elsewhere}; {curves[0].positions} positions of "
        "texts that the target wrote. For one token all rules that draw are the same in expectation."
    )

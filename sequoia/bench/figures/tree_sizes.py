"""Figure 1: tokens per step against the size of the tree, for four kinds of trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from sequoia.bench.environment import Environment
from sequoia.bench.figures import paper
from sequoia.bench.figures.drawing import caption, doubling_axis, subplots
from sequoia.bench.figures.estimates import Tokens
from sequoia.bench.report import Result, Table

STEM = "figure-1-tree-sizes"
NOTE = (
    "Counted ± standard error, and predicted in brackets. Independent chains are as long as promises "
    "most tokens at their size. Predictions take the acceptance vector of each level, measured on texts "
    "of the target."
)


@dataclass(frozen=True, slots=True)
class Point:
    """One tree at one temperature.

    Attributes:
        kind: of tree, such as `binary tree`.
        size: nodes asked for.
        node_count: nodes that the tree has, root included.
        level_count: its levels.
        predicted: tokens per step that the acceptance vectors promise.
        measured: tokens per step counted.
    """

    temperature: float
    kind: str
    size: int
    node_count: int
    level_count: int
    predicted: float
    measured: Tokens

    def as_json(self) -> dict[str, object]:
        """For reports."""
        return {
            "temperature": self.temperature,
            "kind": self.kind,
            "size": self.size,
            "nodes": self.node_count,
            "levels": self.level_count,
            "predicted": self.predicted,
            "measured": self.measured.per_step,
            "standard_error": self.measured.error,
        }


def make_result(
    points: Sequence[Point],
    vectors: Mapping[float, Sequence[Sequence[float]]],
    settings: Mapping[str, object],
    environment: Environment,
) -> Result:
    """The report.

    Args:
        points: of every kind, size and temperature.
        vectors: acceptance vectors by temperature, then depth.
        settings: of the run.
        environment: of the run.
    """
    temperatures = sorted({point.temperature for point in points})
    sizes = sorted({point.size for point in points})

    def draw(figure: Figure) -> None:
        for axes, temperature in zip(
            subplots(figure, len(temperatures)), temperatures, strict=True
        ):
            for index, (kind, line) in enumerate(_lines(points, temperature).items()):
                x = [point.size for point in line]
                axes.errorbar(
                    x,
                    [point.measured.per_step for point in line],
                    yerr=[point.measured.error for point in line],
                    color=f"C{index}",
                    marker=".",
                    capsize=2,
                    label=kind,
                )
                axes.plot(x, [p.predicted for p in line], color=f"C{index}", linestyle="--", lw=1)
            axes.plot(
                paper.TREE_SIZES,
                paper.TREE_TOKENS,
                color="tab:gray",
                linestyle=":",
                label="best tree, the authors' vector (predicted)",
            )
            doubling_axis(axes, sizes, "nodes of the tree, root included")
            caption(
                axes,
                "tokens per step",
                f"temperature {temperature:g}: counted (solid), predicted (dashed)",
            )

    return Result(
        "figures",
        STEM,
        environment,
        settings,
        {
            "points": [point.as_json() for point in points],
            "acceptance_vectors": {
                f"{temperature:g}": [list(vector) for vector in by_depth]
                for temperature, by_depth in vectors.items()
            },
            "paper": {
                "hardware": "any: predicted from the authors' published acceptance vector",
                "size": list(paper.TREE_SIZES),
                "predicted": list(paper.TREE_TOKENS),
            },
        },
        [_table(points, temperature, sizes) for temperature in temperatures],
        draw,
        [NOTE],
    )


def _lines(points: Sequence[Point], temperature: float) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        if point.temperature == temperature:
            found.setdefault(point.kind, []).append(point)
    return found


def _table(points: Sequence[Point], temperature: float, sizes: Sequence[int]) -> Table:
    rows = []
    for kind, line in _lines(points, temperature).items():
        cells = {
            point.size: f"{point.measured.per_step:.2f} ± {point.measured.error:.2f} "
            f"({point.predicted:.2f})"
            for point in line
        }
        rows.append((kind, *(cells[size] for size in sizes)))
    if not temperature:
        known = dict(zip(paper.TREE_SIZES, paper.TREE_TOKENS, strict=True))
        cells = {size: f"({known[size]:.2f})" for size in known}
        rows.append(("best tree, authors' vector", *(cells.get(size, "") for size in sizes)))
    header = ("tree", *(f"{size} nodes" for size in sizes))
    return Table(f"Tokens per step at temperature {temperature:g}", header, rows)

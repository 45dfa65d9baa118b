"""Figure 5: the planner's choice on the running system, against SpecInfer's best of its grid of trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from sequoia.bench.environment import Environment
from sequoia.bench.figures import paper
from sequoia.bench.figures.drawing import subplots
from sequoia.bench.figures.held import Stretch
from sequoia.bench.figures.shapes import branches
from sequoia.bench.interleave import Spread
from sequoia.bench.report import Result, Table
from sequoia.tree import Topology

STEM = "figure-5-on-chip"
GRID = tuple(
    branches(count, length)
    for count in (1, 2, 4, 8)
    for length in (1, 2, 3, 4, 6, 8)
    if count * length <= 32
)
"""SpecInfer's trees: so many independent sequences of so many tokens."""
NOTE = (
    "Measured on the running system, every role a process, reading the prompt left out. SpecInfer's best: "
    "of its grid of independent sequences the tree of least time per token. Its step is timed on the same "
    "system with its tree, its tokens per step are counted under its rule over texts that it writes for "
    "the same prompts; its time per token is one over the other."
)


@dataclass(frozen=True, slots=True)
class Row:
    """One way of decoding at one temperature.

    Attributes:
        system: `sequoia` or `specinfer`.
        topology: its tree.
        tokens_per_step: counted; of SpecInfer by its rule over the texts that it writes.
        seconds_per_step: on the running system with this tree.
        seconds_per_token: one over the other.
        speedup: seconds per token without speculation over those, repetition by repetition.
    """

    system: str
    temperature: float
    topology: Topology
    tokens_per_step: float
    seconds_per_step: Spread
    seconds_per_token: Spread
    speedup: Spread

    @classmethod
    def of(
        cls,
        system: str,
        temperature: float,
        topology: Topology,
        turns: Sequence[Stretch],
        plain: Sequence[Stretch],
        tokens_per_step: float | None = None,
    ) -> Row:
        """From one total a repetition, with and without speculation.

        Args:
            system: `sequoia` or `specinfer`.
            temperature: of the requests.
            topology: the tree.
            turns: with this tree.
            plain: without speculation, in the same turns.
            tokens_per_step: where another rule than the system's decides; None takes the system's.
        """
        counted = tokens_per_step or Stretch.total(turns).tokens_per_step
        per_step = [turn.seconds_per_step for turn in turns]
        per_token = (
            [turn.seconds_per_token for turn in turns]
            if tokens_per_step is None
            else [seconds / tokens_per_step for seconds in per_step]
        )
        gains = [
            alone.seconds_per_token / mine for alone, mine in zip(plain, per_token, strict=True)
        ]
        spreads = Spread.of(per_step), Spread.of(per_token), Spread.of(gains)
        return cls(system, temperature, topology, counted, *spreads)

    def as_json(self) -> dict[str, object]:
        """For reports."""
        return {
            "system": self.system,
            "temperature": self.temperature,
            "nodes": self.topology.node_count,
            "levels": self.topology.level_count,
            "parents": list(self.topology.parents),
            "tokens_per_step": self.tokens_per_step,
            "seconds_per_step": self.seconds_per_step.as_json(),
            "seconds_per_token": self.seconds_per_token.as_json(),
            "speedup": self.speedup.as_json(),
        }


def make_result(
    rows: Sequence[Row],
    plain: Mapping[float, Spread],
    settings: Mapping[str, object],
    environment: Environment,
) -> Result:
    """The report.

    Args:
        rows: ours and SpecInfer's best, by temperature.
        plain: seconds per token without speculation, by temperature.
        settings: of the run.
        environment: of the run.
    """

    def draw(figure: Figure) -> None:
        left, right = subplots(figure, 2, share_y=False)
        names = [f"{row.system}\ntemperature {row.temperature:g}" for row in rows]
        colours = ["tab:blue" if row.system == "sequoia" else "tab:gray" for row in rows]
        errors = [
            [row.speedup.median - row.speedup.low for row in rows],
            [row.speedup.high - row.speedup.median for row in rows],
        ]
        medians = [row.speedup.median for row in rows]
        left.bar(names, medians, yerr=errors, color=colours, capsize=3)
        left.axhline(1.0, color="black", lw=1)
        left.set_ylabel("times as fast as without speculation")
        right.bar(names, [row.tokens_per_step for row in rows], color=colours)
        right.set_ylabel("tokens per step")
        for axes in (left, right):
            axes.tick_params(axis="x", labelsize="small")
            axes.grid(visible=True, axis="y", alpha=0.3)

    return Result(
        "figures",
        STEM,
        environment,
        settings,
        {
            "rows": [row.as_json() for row in rows],
            "without_speculation": {
                f"{temperature:g}": spread.as_json() for temperature, spread in plain.items()
            },
            "grid": [[tree.node_count, tree.level_count] for tree in GRID],
            "paper": {
                "hardware": "one A100",
                "rows": [
                    {"target": target, "tree": tree, "speedup": gain}
                    for target, tree, gain in paper.ON_CHIP.rows
                ],
            },
        },
        [_table(rows, plain), paper.ON_CHIP],
        draw,
        [NOTE],
    )


def _table(rows: Sequence[Row], plain: Mapping[float, Spread]) -> Table:
    header = (
        "temperature, system",
        "tree (nodes, levels)",
        "tokens per step",
        "ms per step",
        "ms per token",
        "speed-up",
        "quartiles",
    )
    cells = []
    for temperature, alone in plain.items():
        ms = f"{alone.median * 1000:.2f}"
        cells.append((f"{temperature:g}, no speculation", "1, 1", "1.00", ms, ms, "1.00", ""))
        cells += [_cells(row) for row in rows if row.temperature == temperature]
    return Table("On-chip, this machine", header, cells)


def _cells(row: Row) -> tuple[str, str, str, str, str, str, str]:
    return (
        f"{row.temperature:g}, {row.system}",
        f"{row.topology.node_count}, {row.topology.level_count}",
        f"{row.tokens_per_step:.2f}",
        f"{row.seconds_per_step.median * 1000:.2f}",
        f"{row.seconds_per_token.median * 1000:.2f}",
        f"{row.speedup.median:.2f}",
        f"{row.speedup.low:.2f} to {row.speedup.high:.2f}",
    )

"""Figure 4: forward time of the target against the number of tokens, per element type and shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from sequoia.bench.environment import Environment
from sequoia.bench.figures.drawing import caption, doubling_axis, plain_numbers, subplots
from sequoia.bench.forward.passes import MakePassTimer, Pass
from sequoia.bench.forward.times import require_context
from sequoia.bench.host import ProcessHost
from sequoia.bench.interleave import Spread, take_turns
from sequoia.bench.report import Result, Table, shown

STEM = "figure-4-forward-times"
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PREFIX = 256


@dataclass(frozen=True, slots=True)
class Line:
    """One model in one element type: seconds of a pass, by number of nodes."""

    model: str
    dtype: str
    seconds: Mapping[int, Spread]


def measure(
    makers: Sequence[MakePassTimer], repetitions: int, report: Callable[[int, int], None]
) -> list[Line]:
    """Time passes over every number of nodes behind `PREFIX` cached tokens, in turns.

    Raises:
        OptionError: the largest pass does not fit a model's context.
        HostError: a model could not be loaded.
    """
    kinds = [Pass(nodes, 1, PREFIX) for nodes in NODES]
    with ExitStack() as hosts:
        systems: dict[str, Callable[[None], float]] = {}
        for index, make in enumerate(makers):
            host = hosts.enter_context(ProcessHost(f"{make.target} in {make.dtype}", make))
            require_context("target", kinds, host.call("context_length"))
            systems |= {f"{index} {kind.nodes}": partial(_seconds, host, kind) for kind in kinds}
        take_turns(systems, [None], 1)
        times = take_turns(systems, [None], repetitions, report)
    return [
        Line(
            shown(make.target),
            make.dtype,
            {nodes: Spread.of(times[f"{index} {nodes}"]) for nodes in NODES},
        )
        for index, make in enumerate(makers)
    ]


def _seconds(host: ProcessHost, kind: Pass, _: None) -> float:
    seconds: float = host.call("seconds", kind)
    return seconds


def make_result(
    lines: Sequence[Line], settings: Mapping[str, object], environment: Environment
) -> Result:
    """The report."""

    def draw(figure: Figure) -> None:
        (axes,) = subplots(figure, 1)
        for line in lines:
            ms = [spread.times(1000) for spread in line.seconds.values()]
            errors = [[it.median - it.low for it in ms], [it.high - it.median for it in ms]]
            label = f"{line.model}, {line.dtype}"
            medians = [it.median for it in ms]
            axes.errorbar(list(line.seconds), medians, errors, marker=".", capsize=2, label=label)
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
        doubling_axis(axes, NODES, "nodes n of the tree")
        caption(
            axes,
            "ms per pass: median and quartiles",
            f"Target's pass behind {PREFIX} cached tokens",
        )

    return Result(
        "figures",
        STEM,
        environment,
        settings,
        {
            "prefix": PREFIX,
            "lines": [
                {
                    "model": line.model,
                    "dtype": line.dtype,
                    "nodes": list(line.seconds),
                    "seconds": [spread.as_json() for spread in line.seconds.values()],
                }
                for line in lines
            ],
        },
        [_table(lines)],
        draw,
        [
            "Medians of passes in turns; in brackets the quartiles. The paper plots the same on GPUs."
        ],
    )


def _table(lines: Sequence[Line]) -> Table:
    rows = []
    for line in lines:
        ms = [spread.times(1000) for spread in line.seconds.values()]
        cells = (f"{it.median:.1f} ({it.low:.1f} to {it.high:.1f})" for it in ms)
        rows.append((f"{line.model}, {line.dtype}", *cells))
    header = ("target, ms", *(f"n = {nodes}" for nodes in NODES))
    return Table("Forward time of the target", header, rows)

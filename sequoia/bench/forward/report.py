"""`sequoia bench forward` as JSON, tables and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from sequoia.bench.environment import Environment
from sequoia.bench.forward.roofline import MachineLimits
from sequoia.bench.forward.times import ForwardTimes, TimedPass
from sequoia.bench.report import Result, Table

MODELS = ("target", "draft")


def make_result(
    times: ForwardTimes, settings: Mapping[str, object], environment: Environment
) -> Result:
    """The report; `settings` must name `dtype`."""

    def draw(figure: Figure) -> None:
        _draw(figure, times.passes)

    limits = times.limits
    return Result(
        "forward",
        f"forward-{settings['dtype']}",
        environment,
        settings,
        {
            "rows": [one.as_json() for one in times.passes],
            "spread_is": "interquartile range, seconds",
            "machine": limits.as_json(),
        },
        [_table(name, times.passes) for name in MODELS],
        draw,
        [_limit_sentence(limits)],
    )


def _limit_sentence(limits: MachineLimits) -> str:
    return (
        f"Limit: the larger of bytes over {limits.bytes_per_second / 1e9:.1f} GB/s and operations "
        f"over {limits.operations_per_second / 1e12:.3f} T/s, both measured in this run. Weights that "
        "stay in a cache can be read faster than memory."
    )


def _table(name: str, passes: Sequence[TimedPass]) -> Table:
    header = ("prefix, batch", "nodes", "ms, median", "quartiles", "limit, ms", "times the limit")
    cells = []
    for one in passes:
        if one.model != name:
            continue
        ms, limit = one.seconds.times(1000), one.limit_seconds * 1000
        cells.append(
            (
                f"{one.kind.prefix}, {one.kind.batch}",
                str(one.kind.nodes),
                f"{ms.median:.3f}",
                f"{ms.low:.3f} to {ms.high:.3f}",
                f"{limit:.3f}",
                f"{ms.median / limit:.2f}",
            )
        )
    return Table(f"Pass of the {name}", header, cells)


def _draw(figure: Figure, passes: Sequence[TimedPass]) -> None:
    figure.set_size_inches(11, 4.8)
    for axes, name in zip(figure.subplots(1, len(MODELS)), MODELS, strict=True):
        mine = [one for one in passes if one.model == name]
        groups = sorted({(one.kind.prefix, one.kind.batch) for one in mine})
        for index, (prefix, batch) in enumerate(groups):
            line = [o for o in mine if (o.kind.prefix, o.kind.batch) == (prefix, batch)]
            nodes = [one.kind.nodes for one in line]
            ms = [one.seconds.times(1000) for one in line]
            errors = [[it.median - it.low for it in ms], [it.high - it.median for it in ms]]
            colour, label = f"C{index}", f"batch {batch}, prefix {prefix}"
            medians = [it.median for it in ms]
            axes.errorbar(
                nodes, medians, yerr=errors, color=colour, marker=".", capsize=2, label=label
            )
            limits = [one.limit_seconds * 1000 for one in line]
            axes.plot(nodes, limits, color=colour, linestyle="--", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatter("{x:g}")
        ticks = sorted({one.kind.nodes for one in mine})
        axes.set_xticks(ticks, labels=map(str, ticks))
        axes.set_xlabel("nodes n of each tree")
        axes.set_ylabel("ms per pass")
        axes.set_title(f"{name}: measured (solid) and limit (dashed)")
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend(fontsize="small")

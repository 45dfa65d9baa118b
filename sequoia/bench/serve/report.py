"""`sequoia bench serve` as JSON, tables and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from sequoia.bench.environment import Environment
from sequoia.bench.report import Result, Table
from sequoia.bench.serve.figures import MODES, Cell, Percentiles, make_ratios

NOTES = (
    (
        "planned: the planner's trees; none: without speculation; always: the tree planned for one "
        "stream, under every load."
    ),
    (
        "Time between tokens: time since the message before, divided by the tokens of a message; every "
        "token counts. Percentiles are over the samples of all repetitions."
    ),
    (
        "Sessions in the target's pass: steps a second times the mean seconds of a pass: the mean batch "
        "size while the target never waits, less where it does."
    ),
)


def make_result(
    cells: Sequence[Cell],
    trees: Mapping[str, object],
    settings: Mapping[str, object],
    environment: Environment,
) -> Result:
    """The report; `trees` are those in force, `settings` must name `dtype`."""
    ratios = make_ratios(cells)

    def draw(figure: Figure) -> None:
        _draw(figure, [cell for cell in cells if cell.load.clients])

    return Result(
        "serve",
        f"serve-{settings['dtype']}",
        environment,
        settings,
        {
            "rows": [cell.as_json() for cell in cells],
            "spread_is": "interquartile range, tokens per second",
            "ratios": ratios,
            "ratios_are": "tokens per second of the first over those of the second, above 1: faster",
            "trees": dict(trees),
        },
        [_table(cells), _ratio_table(ratios)],
        draw,
        NOTES,
    )


def _table(cells: Sequence[Cell]) -> Table:
    header = (
        "load, mode",
        "tokens/s",
        "quartiles",
        "first token p50/95/99, ms",
        "between tokens p50/95/99, ms",
        "tokens per step",
        "in target's pass",
        "done, refused",
    )
    rows = []
    for cell in cells:
        rate, inside = cell.tokens_per_second, cell.sessions_in_target
        rows.append(
            (
                f"{cell.load.label}, {cell.mode}",
                f"{rate.median:.1f}",
                f"{rate.low:.1f} to {rate.high:.1f}",
                _shown(cell.first_token),
                _shown(cell.between_tokens),
                f"{cell.tokens_per_step:.2f}",
                "" if inside is None else f"{inside:.2f}",
                f"{cell.finished_count}, {cell.refused_count}",
            )
        )
    return Table("Throughput and latency", header, rows)


def _ratio_table(ratios: Mapping[str, float]) -> Table:
    rows = [(name, f"{value:.3f}") for name, value in ratios.items()]
    return Table("Ratios of throughput, above 1: the first is faster", ("of / of", "ratio"), rows)


def _shown(percentiles: Percentiles | None) -> str:
    if percentiles is None:
        return ""
    return " / ".join(f"{value * 1000:.1f}" for value in percentiles.as_json().values())


def _draw(figure: Figure, cells: Sequence[Cell]) -> None:
    figure.set_size_inches(11, 4.8)
    throughput, latency = figure.subplots(1, 2)
    for mode in MODES:
        mine = [cell for cell in cells if cell.mode == mode]
        streams = [cell.load.clients for cell in mine]
        rates = [cell.tokens_per_second for cell in mine]
        errors = [[it.median - it.low for it in rates], [it.high - it.median for it in rates]]
        medians = [it.median for it in rates]
        throughput.errorbar(streams, medians, yerr=errors, marker="o", capsize=3, label=mode)
        known = [cell for cell in mine if cell.between_tokens is not None]
        waits = [1000 * cell.between_tokens.p95 for cell in known if cell.between_tokens]
        latency.plot([cell.load.clients for cell in known], waits, marker="o", label=mode)
    for axes, label in (
        (throughput, "tokens per second, all streams: median and quartiles"),
        (latency, "time between tokens, 95th percentile, ms"),
    ):
        ticks = sorted({cell.load.clients for cell in cells})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, labels=map(str, ticks))
        axes.set_xlabel("streams, each one request after another")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()

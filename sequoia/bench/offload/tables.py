"""Tables of `sequoia bench offload`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sequoia.bench.offload.figures import PassTime, Row, Setting
from sequoia.bench.peers.comparison import OURS
from sequoia.bench.report import Table, shown


def systems_table(rows: Sequence[Row], device_memory_bytes: int) -> Table:
    """Every system of the comparison."""
    header = (
        "system",
        "s per token",
        "quartiles",
        "s to first",
        "tokens per step",
        "GB/s read",
        "GiB of the files cached",
        "peak GiB",
        "same text",
    )
    budget = device_memory_bytes / 2**30
    return Table(f"Time per token with {budget:.3g} GiB", header, [*map(_cells, rows)])


def _cells(row: Row) -> tuple[str, ...]:
    per_token = row.seconds_per_token
    return (
        row.name,
        f"{per_token.median:.3g}",
        f"{per_token.low:.3g} to {per_token.high:.3g}",
        f"{row.seconds_to_first_token.median:.3g}",
        f"{row.tokens_per_step:.2f}",
        f"{row.bytes_per_second.median / 1e9:.2f}",
        f"{row.page_cache_bytes / 2**30:.2f}",
        "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**30:.2f}",
        "" if row.greedy_match is None else f"{row.greedy_match:.0%}",
    )


def ratios_table(ratios: Mapping[str, float]) -> Table:
    """Ratios by the names of what they compare."""
    rows = [(name, f"{ratio:.3f}") for name, ratio in ratios.items()]
    return Table("Ratios, below 1: the first is faster", ("time per token of / of", "ratio"), rows)


def passes_table(passes: Sequence[PassTime]) -> Table:
    """What passes took, beside their limits."""
    header = ("system", "nodes", "s a pass", "GB read", "s to read", "s to compute", "of the limit")
    rows = [
        (
            one.name,
            str(one.nodes),
            f"{one.seconds:.3g}",
            f"{one.byte_count / 1e9:.2f}",
            f"{one.read_seconds:.3g}",
            f"{one.compute_seconds:.3g}",
            f"{one.times_the_limit:.2f}",
        )
        for one in passes
    ]
    return Table("Passes of the target beside their limits", header, rows)


def settings_table(title: str, settings: Sequence[Setting]) -> Table:
    """Ours with several drafts or budgets, with the sizes of the trees."""
    header = (
        "draft",
        "GiB",
        "system",
        "nodes",
        "levels",
        "tokens per step",
        "s per token",
        "quartiles",
        "peak GiB",
    )
    rows = []
    for setting in settings:
        for row in setting.rows:
            tree = setting.tree if row.name == OURS else None
            _, per_token, quartiles, _, per_step, _, _, peak, _ = _cells(row)
            rows.append(
                (
                    shown(setting.draft),
                    f"{setting.device_memory_bytes / 2**30:.3g}",
                    row.name,
                    str(tree.topology.node_count) if tree else "",
                    str(tree.topology.level_count) if tree else "",
                    per_step,
                    per_token,
                    quartiles,
                    peak,
                )
            )
    return Table(title, header, rows)

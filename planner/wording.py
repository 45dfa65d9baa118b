"""Measurements and plans in a few words, for the log."""

from __future__ import annotations

from planner.measurements import Measurements, Times
from sequoia.plans import Plan

Table = dict[int, dict[int, float]]


def tables(measurements: Measurements) -> dict[str, Table | dict[str, tuple[float, float]]]:
    """Milliseconds of passes by batch size and number of nodes, and of what is beside them."""
    return {
        "target_ms": _table(measurements.target_ms),
        "draft_ms": _table(measurements.draft_ms),
        "overheads_ms": {
            f"{batch} {'sampled' if samples else 'greedy'}": (
                round(overhead.plain_ms, 2),
                round(overhead.tree_ms, 2),
            )
            for (batch, samples), overhead in measurements.overheads.items()
        },
    }


def summary(plan: Plan) -> dict[str, dict[int, str]]:
    """Every tree of a plan, by request class and batch size."""
    words: dict[str, dict[int, str]] = {}
    for tree in plan.trees:
        shape = f"{tree.topology.node_count} nodes, {tree.topology.level_count} levels"
        text = f"{shape}, {tree.expected_tokens_per_step:.2f} tokens"
        words.setdefault(tree.request_class, {})[tree.batch_size] = text
    return words


def _table(times: Times) -> Table:
    table: Table = {}
    for (batch, nodes), ms in times.items():
        table.setdefault(batch, {})[nodes] = round(ms, 3)
    return table

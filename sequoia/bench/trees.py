"""The planner's trees in reports."""

from __future__ import annotations

from dataclasses import asdict

from sequoia.plans import PlannedTree


def tree_as_json(tree: PlannedTree | None) -> dict[str, object] | None:
    """A tree with its sizes; None where the plan had none."""
    if tree is None:
        return None
    shape = tree.topology
    return {**asdict(tree), "node_count": shape.node_count, "level_count": shape.level_count}

"""The planner's report, from what it believes and has seen."""

from __future__ import annotations

from planner.accuracy import Accuracy, Record
from planner.deliberation import Deliberation
from sequoia.planner_report import ClassReport, Report, TimeReport, TreeReport
from sequoia.plans import REQUEST_CLASSES, Plan, PlannedTree


def report(plan: Plan, deliberation: Deliberation, accuracy: Accuracy) -> Report:
    """The plan in force, what it rests on, and what became of it."""
    return Report(
        plan,
        tuple(_class_report(name, deliberation) for name in REQUEST_CLASSES),
        tuple(
            _tree_report(tree, accuracy.records[tree.request_class, tree.batch_size])
            for tree in plan.trees
        ),
        tuple(
            TimeReport(part.value, place.batch_size, place.has_tree, ratio.mean, ratio.deviation)
            for (part, place), ratio in sorted(
                deliberation.calibration.seen().items(),
                key=lambda item: (item[0][1].batch_size, item[0][1].has_tree, item[0][0]),
            )
        ),
    )


def _class_report(name: str, deliberation: Deliberation) -> ClassReport:
    memory, estimate = deliberation.memories[name], deliberation.estimate(name)
    return ClassReport(
        name,
        memory.nodes,
        memory.shift_count,
        memory.dispersion,
        estimate.vector,
        estimate.deviations,
    )


def _tree_report(tree: PlannedTree, record: Record) -> TreeReport:
    recent = record.recent
    count = recent.count or 1.0
    return TreeReport(
        tree,
        round(record.step_count),
        round(record.other_count),
        record.tokens_per_step,
        record.seconds_per_token,
        recent.sessions / count,
        recent.prefix_tokens / count,
        record.cause,
    )

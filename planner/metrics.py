"""What a planner counts: looks, plans, what it believes, and its predictions against what was measured."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from sequoia.metrics.instruments import SECONDS, Instruments
from sequoia.planner_report import Report

RANK_LIMIT = 8  # of an acceptance vector
LOOKED, WAITED, FAILED = "looked", "waited", "failed"


class PlannerMetrics(Instruments):
    """A planner's instruments; what stands in its report is read from the last one."""

    def __init__(self) -> None:
        super().__init__()
        registry = self.registry
        self.looks = Counter(
            "sequoia_planner_looks",
            "Looks at workers and statistics: looked, waited for whatever was away, failed.",
            ("outcome",),
            registry=registry,
        )
        self._look_seconds = Histogram(
            "sequoia_planner_look_seconds",
            "Time of a look, measurements and solving included.",
            buckets=SECONDS,
            registry=registry,
        )
        self._look_timestamp = Gauge(
            "sequoia_planner_look_timestamp_seconds",
            "When it looked last, since the epoch.",
            registry=registry,
        )
        self.plans = Counter(
            "sequoia_planner_plans", "Plans published, by cause.", ("cause",), registry=registry
        )
        self._report: Report | None = None

    def has_looked(self, started: float, report: Report | None) -> None:
        """A look that began at `started` (seconds of `time.perf_counter`) has ended."""
        self.looks.labels(LOOKED).inc()
        self._look_seconds.observe(time.perf_counter() - started)
        self._look_timestamp.set_to_current_time()
        self._report = report

    def collect(self) -> Iterable[Metric]:
        """See `Instruments.collect`."""
        yield from super().collect()
        if self._report is not None:
            yield from _of_plan(self._report)
            yield from _of_classes(self._report)


def _of_plan(report: Report) -> Iterable[Metric]:
    yield GaugeMetricFamily(
        "sequoia_planner_plan_version",
        "The plan that it published last, or took over.",
        report.plan.version,
    )
    yield GaugeMetricFamily(
        "sequoia_planner_plan_created_timestamp_seconds",
        "When that was made, since the epoch.",
        report.plan.created_at,
    )
    labels = ("request_class", "batch_size")
    nodes = GaugeMetricFamily(
        "sequoia_planner_tree_nodes", "Nodes of a tree in force, the root included.", labels=labels
    )
    steps = GaugeMetricFamily(
        "sequoia_planner_tree_steps", "Steps that went as planned, under the plan.", labels=labels
    )
    per_step = GaugeMetricFamily(
        "sequoia_planner_tokens_per_step",
        "Tokens per step, predicted and measured; measured over about the last thousand steps.",
        labels=(*labels, "source"),
    )
    per_token = GaugeMetricFamily(
        "sequoia_planner_seconds_per_token",
        "Time per token: predicted, predicted without speculation, and measured likewise.",
        labels=(*labels, "source"),
    )
    for one in report.trees:
        tree = one.tree
        key = [tree.request_class, str(tree.batch_size)]
        nodes.add_metric(key, len(tree.parents))
        steps.add_metric(key, one.step_count)
        per_step.add_metric([*key, "predicted"], tree.expected_tokens_per_step)
        per_token.add_metric([*key, "predicted"], tree.predicted_seconds_per_token)
        without = tree.predicted_seconds_per_token_without_speculation
        per_token.add_metric([*key, "predicted_without_speculation"], without)
        if one.step_count:
            per_step.add_metric([*key, "measured"], one.tokens_per_step)
            per_token.add_metric([*key, "measured"], one.seconds_per_token)
    yield from (nodes, steps, per_step, per_token)


def _of_classes(report: Report) -> Iterable[Metric]:
    acceptance = GaugeMetricFamily(
        "sequoia_planner_acceptance",
        "Believed chance that the child of a rank is the accepted one.",
        labels=("request_class", "rank"),
    )
    shifts = CounterMetricFamily(
        "sequoia_planner_traffic_shifts",
        "Shifts of traffic noticed.",
        labels=("request_class",),
    )
    for one in report.classes:
        shifts.add_metric([one.request_class], one.shift_count)
        for rank, chance in enumerate(one.vector[:RANK_LIMIT], start=1):
            acceptance.add_metric([one.request_class, str(rank)], chance)
    yield from (acceptance, shifts)

"""How things stand in a coordinator, read whenever it is scraped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Gauge

from coordinator.engine import Engine
from coordinator.pool import WorkerPool


def show_state(
    registry: CollectorRegistry,
    engine: Engine,
    pools: Sequence[WorkerPool],
    request_limit: int,
    queue_limit: int,
) -> None:
    """Add gauges of an engine, its workers and its limits to a registry."""
    for name, documentation, read in (
        ("requests_active", "Requests in flight.", lambda: engine.active_count),
        ("requests_limit", "Most requests in flight.", lambda: request_limit),
        ("requests_queued", "Requests in the line.", lambda: engine.admission.queued_count),
        ("queue_limit", "Most requests in the line.", lambda: queue_limit),
        ("plan_version", "Plan in force; 0 is the built-in one.", lambda: engine.plan.version),
    ):
        Gauge(f"sequoia_{name}", documentation, registry=registry).set_function(read)
    available = Gauge(
        "sequoia_workers_available",
        "Workers of a role that the coordinator has in use.",
        ("worker",),
        registry=registry,
    )
    for pool in pools:
        available.labels(pool.role).set_function(partial(_available_count, pool))


def _available_count(pool: WorkerPool) -> int:
    return sum(worker.is_available for worker in pool.workers)

"""What it costs to count a step: `python -m benchmarks.step_recording`.

Microseconds, the median over rounds, of a step with a tree of 46 nodes, of which 4 were accepted.
docs/observability.md keeps the figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from statistics import median
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from coordinator.acceptance import Acceptance, Trial
from coordinator.metrics import CoordinatorMetrics
from coordinator.statistics import AcceptanceStatistics, StepStatistics
from coordinator.step import Step
from coordinator.tracing import traced
from sequoia.generation import GeneratedToken, GenerationChunk, GenerationRequest
from sequoia.messages import GrownTree, Verdict
from sequoia.observations import Circumstance, StepKind, StepTimes
from sequoia.rpc.codec import VERIFY_TREE
from sequoia.rpc.metrics import RpcMetrics
from sequoia.runtime.metrics import WorkerMetrics
from sequoia.tree import Topology, Tree

ROUNDS, STEPS = 20, 1000
PARENTS = (-1, *(0,) * 9, *(1,) * 9, *(10,) * 9, *(20,) * 9, *(30,) * 9)
ACCEPTED = Acceptance(
    (1, 10, 20, 30),
    tuple(GeneratedToken(7) for _ in range(5)),
    (Trial(9, 0), Trial(9, 0), Trial(9, 1), Trial(9, 2), Trial(9, None)),
)


def one_step() -> Step:
    """A step with a large tree."""
    tree = Tree(Topology(PARENTS), (7,) * len(PARENTS))
    times = StepTimes(0.03, 0.01, 0.015, 4, 300)
    circumstance = Circumstance("greedy", 4, StepKind.PLANNED)
    return Step(GrownTree(tree), Verdict((7,) * len(PARENTS)), 3, circumstance, times)


def microseconds(work: Callable[[], object]) -> float:
    """Of one call."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(STEPS):
            work()
        seconds.append((time.perf_counter() - started) / STEPS)
    return median(seconds) * 1e6


async def awaited(work: Callable[[], Coroutine[Any, Any, object]]) -> float:
    """The same of a coroutine."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(STEPS):
            await work()
        seconds.append((time.perf_counter() - started) / STEPS)
    return median(seconds) * 1e6


def main() -> None:
    """Print a line for each of the places where a step is counted."""
    step = one_step()
    metrics, worker, rpc = CoordinatorMetrics(lambda: "m"), WorkerMetrics("target"), RpcMetrics()
    acceptance, steps = AcceptanceStatistics(), StepStatistics()
    chunk = GenerationChunk("five tokens", ACCEPTED.tokens)

    def statistics() -> None:
        acceptance.record("greedy", ACCEPTED.trials)
        steps.record(step, len(ACCEPTED.tokens))

    async def nothing() -> Step:
        return step

    async def untraced() -> float:
        return await awaited(lambda: traced(3, nothing())) - await awaited(nothing)

    with metrics.request(GenerationRequest(text="x"), "anyone") as request:
        lines = {
            "coordinator: statistics for the planner": microseconds(statistics),
            "coordinator: metrics of the step": microseconds(
                lambda: metrics.steps.record("greedy", step, ACCEPTED)
            ),
            "coordinator: metrics of the piece of text": microseconds(
                lambda: request.generated(chunk)
            ),
            "coordinator: traces, turned off": asyncio.run(untraced()),
            "worker: metrics of a batch of 4": microseconds(
                lambda: worker.has_stepped(0.015, (46,) * 4)
            ),
            "every role: metrics of the call": microseconds(
                lambda: rpc.has_answered(VERIFY_TREE, 0.015)
            ),
        }
    for name, cost in lines.items():
        print(f"{cost:8.1f} us  {name}")
    registry = CollectorRegistry()
    registry.register(metrics)
    scraping = microseconds(lambda: generate_latest(registry))
    print(f"{scraping:8.1f} us  coordinator: a scrape of one request class, on another thread")


if __name__ == "__main__":
    main()

"""Measures both workers over their `Profile` call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from planner.found_worker import FoundWorker
from planner.latency import Curve, Latency
from planner.measurements import NO_OVERHEAD, Measurements, Overhead
from planner.scope import Scope, largest_tree
from planner.step_time import Load, step_ms
from sequoia.errors import Reason, SequoiaError, WorkerUnavailableError
from sequoia.messages import ProfileSpec, WorkerInfo
from sequoia.rpc.codec import PROFILE
from sequoia.tree import ROOT_ONLY, Topology

log = structlog.get_logger(__name__)

PREFIX_LENGTH = 128
# A tree like those that pay where steps are so short that what is beside their passes counts.
SHORT_STEP_TREE = (-1, 0, 0, 0, 0, 1, 1, 2, 3)
REPETITIONS = 5  # of a short pass
LEAST_REPETITIONS = 2
REPEATING_SECONDS = 1.0  # long passes vary less, and are repeated less
TOO_MANY = (Reason.INVALID_ARGUMENT, Reason.CAPACITY_EXHAUSTED)  # sequences, says the worker
PROFILE_SECONDS = 120.0  # for one kind of pass, requests for text in between included,
PROFILE_PASSES = 32  # and beside these, so many times a small pass


async def profile(draft: FoundWorker, target: FoundWorker, scope: Scope) -> Measurements:
    """Measure passes at every load, and what steps take beside them.

    One worker at a time, because they may share a machine, and one kind of pass a call, so that
    nothing goes on for long when this is cancelled. Sizes that cannot pay are not measured: a step
    yields at most `scope.max_levels` tokens, so neither worker may take that many times a plain pass.

    Raises:
        SequoiaError: a worker was lost, or what it measured is unusable.
    """
    max_nodes = tree_limit(draft.info, target.info, scope.max_nodes)
    context = min(draft.info.context_length, target.info.context_length)
    prefix = max(1, min(PREFIX_LENGTH, context - max_nodes))
    widest = max(1, max_nodes // 2)
    target_ms: dict[tuple[int, int], float] = {}
    draft_ms: dict[tuple[int, int], float] = {}
    overheads: dict[tuple[int, bool], Overhead] = {}
    for batch in scope.batch_sizes:
        try:
            most = scope.max_levels
            sizes = scope.node_counts(largest_tree(max_nodes, scope.pass_nodes, batch))
            target_row = await _row(target, sizes, batch, prefix, most)
            widths, plain = scope.node_counts(widest), target_row[1]
            draft_row = await _row(draft, widths, batch, prefix, most, plain)
            passes = _passes(draft_row, target_row)
            tree = Topology(SHORT_STEP_TREE[: sizes[-1]])
            for samples in (False, True):
                overheads[batch, samples] = (
                    await _overhead(draft, target, tree, Load(batch, prefix, samples), passes)
                    if scope.times_steps
                    else NO_OVERHEAD
                )
        except SequoiaError as error:
            if batch == 1 or error.reason not in TOO_MANY:
                raise
            log.info("load not planned for", batch_size=batch, error=error.message)
            break
        target_ms |= {(batch, nodes): ms for nodes, ms in target_row.items()}
        draft_ms |= {(batch, width): ms for width, ms in draft_row.items()}
    try:
        return Measurements(target_ms, draft_ms, overheads, max_nodes, scope.pass_nodes)
    except ValueError as error:
        raise WorkerUnavailableError(f"unusable measurements: {error}") from error


def _passes(draft_row: Mapping[int, float], target_row: Mapping[int, float]) -> Latency:
    try:
        return Latency(Curve.measured(draft_row), Curve.measured(target_row))
    except ValueError as error:
        raise WorkerUnavailableError(f"unusable measurements: {error}") from error


def tree_limit(draft: WorkerInfo, target: WorkerInfo, max_nodes: int) -> int:
    """The largest tree that both workers take, root included, within a limit."""
    limits = (
        limit for info in (draft, target) for limit in (info.node_limit, info.context_length - 1)
    )
    return max(1, min(max_nodes, *limits))


async def _overhead(
    draft: FoundWorker,
    target: FoundWorker,
    tree: Topology,
    load: Load,
    passes: Latency,
) -> Overhead:
    """What steps take beside their passes, whose times are known."""
    beside = [
        await step_ms(draft, target, shape, load)
        - passes.step_ms([len(level) for level in shape.levels])
        for shape in (ROOT_ONLY, tree)
    ]
    return Overhead(*(max(ms, 0.0) for ms in beside))


async def _row(
    worker: FoundWorker,
    node_counts: Sequence[int],
    batch: int,
    prefix: int,
    most: int,
    plain_ms: float | None = None,
) -> dict[int, float]:
    """Milliseconds of passes over so many nodes, from 1 upwards, or until one takes too long.

    That is `most` times `plain_ms`, which is the first pass if it is not given.
    """
    row: dict[int, float] = {}
    repetitions = REPETITIONS
    for nodes in node_counts:
        row[nodes] = await _pass_ms(worker, nodes, batch, prefix, repetitions)
        repetitions = _repetitions(row[nodes])
        if row[nodes] > most * (row[1] if plain_ms is None else plain_ms):
            break
    return row


def _repetitions(ms: float) -> int:
    """Of a pass, where the one before took so long."""
    fitting = int(REPEATING_SECONDS * 1000 / max(ms, 1.0))
    return min(max(fitting, LEAST_REPETITIONS), REPETITIONS)


async def _pass_ms(
    worker: FoundWorker, nodes: int, batch: int, prefix: int, repetitions: int
) -> float:
    """Milliseconds of one kind of pass, as the worker measured it."""
    spec = ProfileSpec((nodes,), (batch,), (prefix,), repetitions)
    seconds = PROFILE_SECONDS + PROFILE_PASSES * worker.info.pass_seconds
    for measured in await worker.channel.call(PROFILE, spec, timeout=seconds):
        if (measured.node_count, measured.batch_size) == (nodes, batch):
            return measured.seconds * 1000
    address = worker.channel.address
    raise WorkerUnavailableError(f"the worker at {address} did not measure what was asked")

"""Measures both workers over their `Profile` call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from planner.found_worker import FoundWorker
from planner.latency import Curve, Latency
from planner.measurements import NO_OVERHEAD, Measurements, Overhead
from planner.step_time import step_ms
from sequoia.errors import Reason, SequoiaError, WorkerUnavailableError
from sequoia.messages import ProfileSpec, WorkerInfo
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.codec import PROFILE
from sequoia.tree import ROOT_ONLY, Topology

log = structlog.get_logger(__name__)

BATCH_SIZES = (1, 2, 4, 8, 16)
PREFIX_LENGTH = 128
# A tree like those that pay where steps are so short that what is beside their passes counts.
SHORT_STEP_TREE = (-1, 0, 0, 0, 0, 1, 1, 2, 3)
SHORT_PASS_MS = 500.0  # beside longer ones the rest of a step is nothing
REPETITIONS = 5
PROFILE_SECONDS = 120.0  # for one kind of pass, requests for text in between included


async def profile(
    draft: FoundWorker, target: FoundWorker, max_nodes: int, max_levels: int
) -> Measurements:
    """Measure passes at every load, and the round trips.

    One worker at a time, because they may share a machine, and one kind of pass a call, so that
    nothing goes on for long when this is cancelled. Sizes that cannot pay are not measured: a step
    yields at most `max_levels` tokens, so neither worker may take that many times a plain pass.

    Raises:
        SequoiaError: a worker was lost, or what it measured is unusable.
    """
    max_nodes = _largest_tree(draft.info, target.info, max_nodes)
    context = min(draft.info.context_length, target.info.context_length)
    prefix = max(1, min(PREFIX_LENGTH, context - max_nodes))
    widest = max(1, max_nodes // 2)
    target_ms: dict[tuple[int, int], float] = {}
    draft_ms: dict[tuple[int, int], float] = {}
    overheads: dict[tuple[int, bool], Overhead] = {}
    for batch in BATCH_SIZES:
        try:
            target_row = await _row(target.channel, max_nodes, batch, prefix, max_levels)
            plain = target_row[1]
            draft_row = await _row(draft.channel, widest, batch, prefix, max_levels, plain)
            passes = _passes(draft_row, target_row)
            tree = Topology(SHORT_STEP_TREE[:max_nodes])
            for samples in (False, True):
                overheads[batch, samples] = await _overhead(
                    draft, target, tree, batch, samples, passes
                )
        except SequoiaError as error:
            if batch == 1 or error.reason is not Reason.INVALID_ARGUMENT:
                raise
            log.info("load not planned for", batch_size=batch, error=error.message)
            break
        target_ms |= {(batch, nodes): ms for nodes, ms in target_row.items()}
        draft_ms |= {(batch, width): ms for width, ms in draft_row.items()}
    try:
        return Measurements(target_ms, draft_ms, overheads, max_nodes)
    except ValueError as error:
        raise WorkerUnavailableError(f"unusable measurements: {error}") from error


def _passes(draft_row: Mapping[int, float], target_row: Mapping[int, float]) -> Latency:
    try:
        return Latency(Curve.measured(draft_row), Curve.measured(target_row))
    except ValueError as error:
        raise WorkerUnavailableError(f"unusable measurements: {error}") from error


async def _overhead(
    draft: FoundWorker,
    target: FoundWorker,
    tree: Topology,
    batch: int,
    samples: bool,
    passes: Latency,
) -> Overhead:
    """What steps take beside their passes, whose times are known."""
    if passes.plain_ms() > SHORT_PASS_MS:
        return NO_OVERHEAD
    beside = [
        await step_ms(draft, target, shape, batch, samples)
        - passes.step_ms([len(level) for level in shape.levels])
        for shape in (ROOT_ONLY, tree)
    ]
    return Overhead(*(max(ms, 0.0) for ms in beside))


def _largest_tree(draft: WorkerInfo, target: WorkerInfo, max_nodes: int) -> int:
    """The largest tree that both workers take, root included."""
    limits = (
        limit for info in (draft, target) for limit in (info.node_limit, info.context_length - 1)
    )
    return max(1, min(max_nodes, *limits))


async def _row(
    channel: RpcChannel,
    largest: int,
    batch: int,
    prefix: int,
    most: int,
    plain_ms: float | None = None,
) -> dict[int, float]:
    """Milliseconds of a pass over 1, 2, 4, ... `largest` nodes, or until one takes too long.

    That is `most` times `plain_ms`, which is the first pass if it is not given.
    """
    row: dict[int, float] = {}
    for nodes in doubling(largest):
        row[nodes] = await _pass_ms(channel, nodes, batch, prefix)
        if row[nodes] > most * (row[1] if plain_ms is None else plain_ms):
            break
    return row


def doubling(largest: int) -> Sequence[int]:
    """1, 2, 4, ... and at last `largest` itself."""
    return *(2**power for power in range((largest - 1).bit_length())), largest


async def _pass_ms(channel: RpcChannel, nodes: int, batch: int, prefix: int) -> float:
    """Milliseconds of one kind of pass, as the worker measured it."""
    spec = ProfileSpec((nodes,), (batch,), (prefix,), REPETITIONS)
    for measured in await channel.call(PROFILE, spec, timeout=PROFILE_SECONDS):
        if (measured.node_count, measured.batch_size) == (nodes, batch):
            return measured.seconds * 1000
    raise WorkerUnavailableError(f"the worker at {channel.address} did not measure what was asked")

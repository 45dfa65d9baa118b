"""How long steps really take, with all that is around the passes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, TypeVar

import numpy as np
import structlog

from planner.found_worker import FoundWorker
from sequoia.errors import SequoiaError
from sequoia.messages import (
    Features,
    GrownTree,
    GrowTree,
    Prefill,
    SessionSettings,
    StepHeader,
    Verdict,
    VerifyTree,
)
from sequoia.rpc.codec import CLOSE_SESSION, GROW_TREE, PREFILL, VERIFY_TREE
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology, Tree

log = structlog.get_logger(__name__)

Result = TypeVar("Result")

STEPS = 8
FIRST_TOKEN_ID = 1
# What a prompt's token may add to the time of a call: prompts are read between other sessions' steps.
READING_SECONDS_PER_TOKEN = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """What the sessions are like that take their steps.

    Attributes:
        batch_size: number of sessions.
        prefix_length: tokens that each has read.
        samples: draw tokens at temperature 1, without replacement, rather than take the likeliest.
    """

    batch_size: int
    prefix_length: int
    samples: bool


async def step_ms(draft: FoundWorker, target: FoundWorker, topology: Topology, load: Load) -> float:
    """Median milliseconds of a step while all sessions take theirs, each as fast as it can.

    Measured rather than summed up from passes and calls: after a pass has gone through all weights, a
    call finds its own code and data no longer in the caches; sessions that come a moment apart share
    no pass; and where the workers share a machine, one session's drafting slows another's pass.

    Args:
        draft: it grows the tree, unless that is the root alone.
        target: it checks the tree.
        topology: of the tree, of which nothing is accepted.
        load: the sessions.

    Raises:
        SequoiaError: a worker was lost.
    """
    sessions = [_Session(draft, target, topology, load) for _ in range(load.batch_size)]
    try:
        await _together(session.open() for session in sessions)
        seconds = await _together(session.run() for session in sessions)
    finally:
        await asyncio.gather(*(session.close() for session in sessions))
    return median(seconds) / STEPS * 1000


async def _together(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Do all of it at once; the first failure ends the rest and is raised."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class _Session:
    """A session of the planner's own on both workers."""

    def __init__(
        self, draft: FoundWorker, target: FoundWorker, topology: Topology, load: Load
    ) -> None:
        self._draft, self._target, self._topology = draft, target, topology
        self._growing = draft.channel.steps(GROW_TREE)
        self._verifying = target.channel.steps(VERIFY_TREE)
        self._settings = SessionSettings(
            SamplingSettings(temperature=1.0 if load.samples else 0.0),
            DrawRule.WITHOUT_REPLACEMENT if load.samples else DrawRule.GREEDY,
            0,
            load.prefix_length,
            target.info.vocabulary_size,
            with_features=self._has_draft and draft.info.feature_size > 0,
        )
        self._session_id = f"planner-{uuid.uuid4().hex}"
        self._prefix_length = load.prefix_length
        self._read_together = load.batch_size * load.prefix_length  # tokens, all sessions' prompts
        self._token_id = FIRST_TOKEN_ID
        self._features: Features | None = None  # of the position before the root
        self._step = 0

    @property
    def _has_draft(self) -> bool:
        return self._topology.node_count > 1

    async def open(self) -> None:
        token_ids = (self._token_id,) * self._prefix_length
        prefill = Prefill(self._session_id, token_ids, 0, self._settings)
        prefilled = await self._target.channel.call(
            PREFILL, prefill, timeout=self._reading_seconds(self._target)
        )
        if self._has_draft:
            features = prefilled.features
            own = replace(
                prefill,
                settings=replace(self._settings, with_features=False),
                features=features,
            )
            if features is not None:
                self._features = np.ascontiguousarray(features[-1:])
            seconds = self._reading_seconds(self._draft)
            await self._draft.channel.call(PREFILL, own, timeout=seconds)

    def _reading_seconds(self, worker: FoundWorker) -> float:
        """The time to give to a call that reads the prefix; clients' texts go on beside it."""
        seconds = worker.seconds_of(worker.info.prefill_passes(self._prefix_length))
        return seconds + READING_SECONDS_PER_TOKEN * self._read_together

    async def run(self) -> float:
        """Seconds of the steps after the first, which opens the calls."""
        await self._take_step()
        started = time.perf_counter()
        for _ in range(STEPS):
            await self._take_step()
        return time.perf_counter() - started

    async def _take_step(self) -> None:
        header = StepHeader(self._session_id, self._step, self._prefix_length + self._step)
        grown = await self._grow(header)
        supports = tuple(q.token_ids for q in grown.distributions)
        request = VerifyTree(header, grown.tree, supports)
        verdict = await self._verifying.take(request, self._target.call_seconds)
        self._go_on(verdict)

    async def _grow(self, header: StepHeader) -> GrownTree:
        if not self._has_draft:
            return GrownTree(Tree.root_only(self._token_id))
        request = GrowTree(header, self._token_id, self._topology, self._features)
        levels = self._topology.level_count
        return await self._growing.take(request, self._draft.seconds_of(levels))

    def _go_on(self, verdict: Verdict) -> None:
        """Commit the target's own token, as if it had accepted none of the tree's."""
        self._step += 1
        self._token_id = verdict.token_ids[0]
        if verdict.features is not None:
            self._features = np.ascontiguousarray(verdict.features[:1])

    async def close(self) -> None:
        self._growing.close()
        self._verifying.close()
        workers = [self._target, *([self._draft] if self._has_draft else [])]
        for worker in workers:
            try:
                await worker.channel.call(
                    CLOSE_SESSION, self._session_id, timeout=worker.call_seconds
                )
            except SequoiaError as error:
                log.debug("session not closed", model=worker.info.model, error=error.message)

"""What a step's call costs beside the pass: transport, encoding, and the work around the model."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from statistics import median

from planner.found_worker import CALL_SECONDS, FoundWorker
from sequoia.messages import Prefill, SessionSettings, StepHeader, Verdict, VerifyTree
from sequoia.rpc.codec import CLOSE_SESSION, PREFILL, VERIFY_TREE
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Tree

STEPS = 9
FIRST_TOKEN_ID = 1


async def call_overhead_ms(target: FoundWorker, batch_size: int) -> float:
    """Median milliseconds that `batch_size` sessions' steps without a tree take beside their pass.

    Measured on real steps: after a pass has gone through all weights, a call finds its own code and
    data no longer in the caches, and takes several times as long as an empty one among empty ones. And
    what is done for every session by itself adds up.

    Raises:
        SequoiaError: the worker was lost.
    """
    sessions = [_Session(target) for _ in range(batch_size)]
    try:
        await asyncio.gather(*(session.open() for session in sessions))
        seconds = [await _round_seconds(sessions) for _ in range(STEPS)]
    finally:
        await asyncio.gather(*(session.close() for session in sessions))
    return max(median(seconds), 0.0) * 1000


async def _round_seconds(sessions: Sequence[_Session]) -> float:
    """Seconds of one step of all sessions, less those that the device was busy with them."""
    started = time.perf_counter()
    verdicts = await asyncio.gather(*(session.step() for session in sessions))
    seconds = time.perf_counter() - started
    # Every session is told the time of the whole pass that it was in.
    return seconds - sum(verdict.device_seconds / verdict.batch_size for verdict in verdicts)


class _Session:
    """A session of the planner's own on the target worker."""

    def __init__(self, target: FoundWorker) -> None:
        self._channel = target.channel
        self._steps = target.channel.steps(VERIFY_TREE)
        self._vocabulary_size = target.info.vocabulary_size
        self._session_id = f"planner-{uuid.uuid4().hex}"
        self._token_id = FIRST_TOKEN_ID
        self._step = 0

    async def open(self) -> None:
        sampling = SamplingSettings(temperature=0.0)
        settings = SessionSettings(sampling, DrawRule.GREEDY, 0, 1, self._vocabulary_size)
        prefill = Prefill(self._session_id, (self._token_id,), 0, settings)
        await self._channel.call(PREFILL, prefill, timeout=CALL_SECONDS)

    async def step(self) -> Verdict:
        header = StepHeader(self._session_id, self._step, self._step + 1)
        request = VerifyTree(header, Tree.root_only(self._token_id))
        verdict = await self._steps.take(request, CALL_SECONDS)
        self._step += 1
        (self._token_id,) = verdict.token_ids
        return verdict

    async def close(self) -> None:
        self._steps.close()
        await self._channel.call(CLOSE_SESSION, self._session_id, timeout=CALL_SECONDS)

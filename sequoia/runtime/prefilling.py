"""Reading prompts in chunks, so that sessions that are stepping never wait for a whole one.

Every chunk is a job of its own on the device thread, and gives way to the steps that wait meanwhile.
The prompts of all sessions that are opening share its pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import structlog
from torch import Tensor

from sequoia.errors import CapacityError, SequoiaError, UnknownSessionError
from sequoia.messages import Features, Prefill, Prefilled
from sequoia.runtime.device import DeviceThread, finish
from sequoia.runtime.features import pack_features
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.metrics import WorkerMetrics
from sequoia.runtime.pace import Pace
from sequoia.runtime.segment import Segment
from sequoia.runtime.session import Session
from sequoia.runtime.sessions import SessionTable

log = structlog.get_logger(__name__)

Reply = TypeVar("Reply")

FeaturesRead = Callable[[Prefill, int, int], Tensor | None]
"""What the model reads beside the tokens `[start, end)` of a prompt; None where nothing."""

_numbers = itertools.count()


@dataclass(slots=True, eq=False)
class Prompt(Generic[Reply]):
    """A prompt on its way into a session; the session's cache says how far it is."""

    request: Prefill
    session: Session[Reply]
    number: int = field(default_factory=lambda: next(_numbers))  # in order of arrival
    device_seconds: float = 0.0
    has_begun: bool = False

    @property
    def unread_count(self) -> int:
        """Tokens to be read; the last one of the prompt is the root of the first tree."""
        return len(self.request.token_ids) - 1 - self.session.cache.length


class Prefiller(Generic[Reply]):
    """Opens sessions on one device, reading what no closed session has read already.

    Args:
        model: to read with.
        sessions: where to open them.
        device: the thread that owns the model.
        pace: how much a pass may read.
        features_read: what the model reads beside tokens.
        gives_features: whether sessions that ask for the model's own features get them.
        metrics: where to count.
    """

    def __init__(
        self,
        model: TreeModel,
        sessions: SessionTable[Reply],
        device: DeviceThread,
        pace: Pace,
        features_read: FeaturesRead,
        gives_features: bool,
        metrics: WorkerMetrics,
    ) -> None:
        self._model = model
        self._sessions = sessions
        self._device = device
        self._pace = pace
        self._features_read = features_read
        self._gives_features = gives_features
        self._metrics = metrics

    async def prefill(self, request: Prefill) -> Prefilled:
        """Open a session and read all tokens but the last, chunk by chunk.

        Those that a retained session begins with as well are not read again.

        However this ends before the last chunk, the session is freed after the chunk in hand.

        Raises:
            CapacityError: no room for the session, now or half-way.
            UnknownSessionError: the session was closed meanwhile.
        """
        with self._sessions.opening(request) as session:
            prompt = Prompt(request, session)
            if self._wants_features(prompt):
                session.features_given = []
            while prompt.unread_count:
                await self._device.submit(self._read, prompt, request.session_id)
            if session.is_closing:
                raise closed_meanwhile(session.session_id)
            self._metrics.opened.inc()
            return Prefilled(prompt.device_seconds, self._features_of(prompt))

    def _features_of(self, prompt: Prompt[Reply]) -> Features | None:
        session = prompt.session
        if session.features_given is None:
            return None
        none = np.empty((0, self._model.feature_size), dtype=np.uint16)
        features = np.concatenate(session.features_given or [none])
        session.features_given = [features] if self._sessions.retains else None
        return features

    def _wants_features(self, prompt: Prompt[Reply]) -> bool:
        return self._gives_features and prompt.session.settings.with_features

    def _read(self, prompts: Sequence[Prompt[Reply]]) -> list[SequoiaError | None]:
        """Read the next chunk of every prompt; says per prompt what went wrong, if anything."""
        failures: dict[Prompt[Reply], SequoiaError] = {}
        with ExitStack() as in_use:
            for prompt in prompts:
                in_use.enter_context(self._sessions.holding(prompt.session))
                if prompt.session.is_closing:
                    failures[prompt] = closed_meanwhile(prompt.session.session_id)
            opening = [prompt for prompt in prompts if prompt not in failures]
            for prompt in opening:
                self._begin(prompt)
            if reading := [prompt for prompt in opening if prompt.unread_count]:
                failures |= self._run_pass(reading, self._pace.token_budget())
            failures |= self._make_room([p for p in opening if p not in failures])
        return [failures.get(prompt) for prompt in prompts]

    def _begin(self, prompt: Prompt[Reply]) -> None:
        """Before its first chunk: what a closed session has read need not be read again."""
        if not prompt.has_begun:
            prompt.has_begun = True
            self._sessions.reuse(prompt.session, self._wants_features(prompt))
            self._metrics.reused.inc(prompt.session.reused_count)

    def _run_pass(
        self, prompts: Sequence[Prompt[Reply]], token_budget: int
    ) -> dict[Prompt[Reply], SequoiaError]:
        """One pass of about `token_budget` tokens, the same for every prompt that has so many left.

        Equal shares, since a pass over sessions may cost as much as if all were as long as the
        longest; and at least one token each, so that every prompt gets on.
        """
        share = max(token_budget // len(prompts), 1)
        segments = [self._segment(prompt, share) for prompt in prompts]
        self._sessions.make_room(
            (one.cache, one.cache.length + len(one.token_ids)) for one in segments
        )
        started = self._pace.clock()
        try:
            outputs = self._model.forward(segments, with_logits=False)
        except (MemoryError, RuntimeError) as error:
            if self._sessions.free_retained():
                return self._run_pass(prompts, token_budget)
            if len(prompts) > 1:  # whose fault it was shows when each is alone
                alone = [self._run_pass([prompt], share) for prompt in prompts]
                return {prompt: failure for one in alone for prompt, failure in one.items()}
            session_id = prompts[0].session.session_id
            log.exception("prefill failed", session_id=session_id)
            return {prompts[0]: CapacityError(f"prefill failed: {error}", session_id=session_id)}
        for prompt, output in zip(prompts, outputs, strict=True):
            if prompt.session.features_given is not None:
                prompt.session.features_given.append(pack_features(output.features))
        finish(self._model.device)  # the pace must be true
        seconds = self._pace.clock() - started
        token_count = sum(len(segment.token_ids) for segment in segments)
        self._pace.has_read(token_count, seconds)
        self._metrics.has_read(token_count, seconds)
        for prompt in prompts:
            prompt.device_seconds += seconds
        return {}

    def _segment(self, prompt: Prompt[Reply], share: int) -> Segment:
        start = prompt.session.cache.length
        end = start + min(share, prompt.unread_count)
        features = self._features_read(prompt.request, start, end)
        return Segment.chain(prompt.session.cache, prompt.request.token_ids[start:end], features)

    def _make_room(self, prompts: Sequence[Prompt[Reply]]) -> dict[Prompt[Reply], SequoiaError]:
        """Bring the KV cache within its limit; where eviction is not enough, the last come go."""
        failures: dict[Prompt[Reply], SequoiaError] = {}
        for latest in sorted(prompts, key=lambda prompt: -prompt.number):
            try:
                self._sessions.enforce_memory_limit()
                break
            except CapacityError as error:
                failures[latest] = error
                self._sessions.drop(latest.session)
        return failures


def closed_meanwhile(session_id: str) -> UnknownSessionError:
    """What becomes of a prefill whose session somebody has closed or replaced."""
    message = f"session {session_id} was closed during its prefill"
    return UnknownSessionError(message, session_id=session_id)

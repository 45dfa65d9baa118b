"""Clients of every kind: patient ones, and ones that change their minds, hang up or run out of time."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum

from sequoia.errors import Reason, SequoiaError
from sequoia.generation import FinishReason, GenerationRequest
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.generation_codec import GENERATE
from sequoia.settings import SamplingSettings

SessionCount = Callable[[], Awaitable[int]]

TEMPERATURES = (0.0, 0.6, 1.0)
LARGEST_SEED = 2**32
FAILURES_KEPT = 20


class Manner(StrEnum):
    """How a client ends its request."""

    PATIENT = "finished"
    CANCELS = "cancelled"
    HANGS_UP = "disconnected"
    TIMES_OUT = "timed_out"


# Of ten requests six are read to their end.
MANNERS = (*[Manner.PATIENT] * 6, *[Manner.CANCELS] * 2, Manner.HANGS_UP, Manner.TIMES_OUT)


@dataclass(frozen=True, slots=True)
class Visit:
    """One request and how its client will end it.

    Attributes:
        patience: messages that it reads before it cancels or hangs up; or, for one that times out,
            milliseconds.
    """

    request: GenerationRequest
    manner: Manner
    patience: int


@dataclass(slots=True)
class Tally:
    """How requests ended: as their clients wanted, or `failed`; the first failures in words."""

    counts: Counter[str] = field(default_factory=Counter)
    token_count: int = 0
    failures: list[str] = field(default_factory=list)

    def fail(self, error: Exception) -> None:
        """Count a request that ended otherwise than it should."""
        self.counts["failed"] += 1
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(f"{type(error).__name__}: {error}")


def draw_visit(
    generator: random.Random, prompts: Sequence[tuple[int, ...]], max_new_tokens: int
) -> Visit:
    """A request at random: prompt, temperature, seed, length, with or without speculation."""
    request = GenerationRequest(
        token_ids=generator.choice(prompts),
        sampling=SamplingSettings(temperature=generator.choice(TEMPERATURES)),
        seed=generator.choice((None, generator.randrange(LARGEST_SEED))),
        max_new_tokens=generator.randint(1, max_new_tokens),
        disable_speculation=generator.random() < 0.25,
    )
    manner = generator.choice(MANNERS)
    patience = generator.randint(1, 500) if manner is Manner.TIMES_OUT else generator.randint(1, 10)
    return Visit(request, manner, patience)


async def visit_until(
    deadline: float,
    address: str,
    generator: random.Random,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    tally: Tally,
) -> None:
    """One client's requests, one after another, until `time.monotonic()` reaches the deadline."""
    channel = RpcChannel(address)
    while time.monotonic() < deadline:
        visit = draw_visit(generator, prompts, max_new_tokens)
        try:
            outcome = await _pay(visit, channel, tally)
        except SequoiaError as error:
            tally.fail(error)
        else:
            tally.counts[outcome] += 1
        if visit.manner is Manner.HANGS_UP:
            channel = RpcChannel(address)
    await channel.close()


async def _pay(visit: Visit, channel: RpcChannel, tally: Tally) -> str:
    """One request, ended in its manner; says how it ended.

    Raises:
        SequoiaError: it failed in a way that its client did not cause.
    """
    timeout = visit.patience / 1000 if visit.manner is Manner.TIMES_OUT else None
    leaves = visit.manner in (Manner.CANCELS, Manner.HANGS_UP)
    messages = 0
    try:
        async with aclosing(channel.stream(GENERATE, visit.request, timeout)) as chunks:
            async for chunk in chunks:
                messages += 1
                tally.token_count += len(chunk.tokens)
                if chunk.completion:
                    if chunk.completion.finish_reason is FinishReason.CANCELLED:
                        raise SequoiaError("the server ended the request")
                    return Manner.PATIENT
                if leaves and messages >= visit.patience:
                    if visit.manner is Manner.HANGS_UP:
                        await channel.close()  # in the middle of the call
                    return visit.manner
    except SequoiaError as error:
        if timeout is not None and error.reason is Reason.DEADLINE_EXCEEDED:
            return Manner.TIMES_OUT
        raise
    raise SequoiaError("the stream ended without a completion")


async def wait_until_idle(seconds: float, session_counts: Sequence[SessionCount]) -> list[int]:
    """Wait until no worker holds a session, at most so long; what they hold then."""
    deadline = time.monotonic() + seconds
    while True:
        found = [await count() for count in session_counts]
        if not any(found) or time.monotonic() >= deadline:
            return found
        await asyncio.sleep(0.2)

"""Clients that load a service for a while, and what they see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from sequoia.errors import Reason, SequoiaError
from sequoia.generation import GenerationRequest, Usage
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.generation_codec import GENERATE

SETTLE_SECONDS = 0.5  # for sessions of cancelled requests to be closed before the next turn


@dataclass(slots=True)
class Recording:
    """What all clients saw in one window of time; times in seconds.

    Attributes:
        seconds: length of the window.
        step_count: messages with tokens; the service sends one for each step.
        first_token: from a request to its first tokens, for requests that came so far.
        between_tokens: for every later token the time since the message before, divided by the tokens
            that its message brought: a step that brings four after 40 ms counts four times 10 ms.
        usages: of the requests that ended within the window.
        refused_count: requests that found the service full.
    """

    seconds: float = 0.0
    token_count: int = 0
    step_count: int = 0
    first_token: list[float] = field(default_factory=list)
    between_tokens: list[float] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    refused_count: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Of all clients together."""
        return self.token_count / self.seconds

    @property
    def sessions_in_target(self) -> float | None:
        """Sessions in the target's pass at a time, on average over the window (Little's law).

        Steps a second, times the mean seconds of the passes they were in. It is the mean batch size
        where the target always runs, and less where it waits. None: no request has ended.
        """
        steps = sum(usage.step_count for usage in self.usages)
        if not steps:
            return None
        pass_seconds = sum(usage.target_seconds for usage in self.usages) / steps
        return self.step_count / self.seconds * pass_seconds


async def closed_loop(
    address: str, requests: Sequence[GenerationRequest], clients: int, seconds: float
) -> Recording:
    """So many clients, each with one request after another, until the time is over.

    Requests that still run then are cancelled; what they have brought counts.

    Raises:
        SequoiaError: a request failed otherwise than by finding the service full.
    """
    recording = Recording()
    channels = [RpcChannel(address) for _ in range(clients)]

    async def client(number: int) -> None:
        for turn in count():
            request = requests[(number + turn * clients) % len(requests)]
            await _stream(channels[number], request, recording)

    return await _during(
        seconds, recording, channels, [client(number) for number in range(clients)]
    )


async def open_loop(
    address: str, requests: Sequence[GenerationRequest], rate: float, seconds: float, seed: int
) -> Recording:
    """Requests that arrive at random, `rate` a second on average, whether others have ended or not.

    Raises:
        SequoiaError: a request failed otherwise than by finding the service full.
    """
    recording = Recording()
    channels = [RpcChannel(address)]
    times = arrival_times(rate, seconds, seed)

    async def arrive(number: int, after: float) -> None:
        await asyncio.sleep(after)
        await _stream(channels[0], requests[number % len(requests)], recording)

    arrivals = [arrive(number, after) for number, after in enumerate(times)]
    return await _during(seconds, recording, channels, arrivals)


def arrival_times(rate: float, seconds: float, seed: int) -> list[float]:
    """Of a Poisson process, in seconds from the beginning; the same seed gives the same."""
    generator = np.random.default_rng(seed)
    times: list[float] = []
    now = generator.exponential(1 / rate)
    while now < seconds:
        times.append(now)
        now += generator.exponential(1 / rate)
    return times


async def _during(
    seconds: float,
    recording: Recording,
    channels: Sequence[RpcChannel],
    work: Sequence[Coroutine[None, None, None]],
) -> Recording:
    """Run all of it until the time is over, then cancel the rest and hang up."""
    started = time.perf_counter()
    tasks = [asyncio.create_task(one) for one in work]
    waiting = asyncio.create_task(asyncio.sleep(seconds))
    try:
        pending = {*tasks, waiting}
        while waiting in pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        recording.seconds = time.perf_counter() - started
    finally:
        for task in (*tasks, waiting):
            task.cancel()
        await asyncio.gather(*tasks, waiting, return_exceptions=True)
        await asyncio.sleep(SETTLE_SECONDS)
        for channel in channels:
            await channel.close()
    return recording


async def _stream(channel: RpcChannel, request: GenerationRequest, recording: Recording) -> None:
    """One request to its end, recorded as it comes."""
    started = last = time.perf_counter()
    is_first = True
    try:
        async for chunk in channel.stream(GENERATE, request):
            now = time.perf_counter()
            tokens = len(chunk.tokens)
            if tokens:
                if is_first:
                    recording.first_token.append(now - started)
                else:
                    recording.between_tokens += [(now - last) / tokens] * tokens
                is_first, last = False, now
                recording.token_count += tokens
                recording.step_count += 1
            if chunk.completion:
                recording.usages.append(chunk.completion.usage)
    except SequoiaError as error:
        if error.reason is not Reason.CAPACITY_EXHAUSTED:
            raise
        recording.refused_count += 1

"""The running system with a tree of our choice: published to a coordinator, and held while it is timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sequoia.bench.errors import BenchmarkError
from sequoia.generation import FinishReason, GenerationRequest
from sequoia.plan_store import PlanStore
from sequoia.plans import REQUEST_CLASSES, PlannedTree
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.generation_codec import GENERATE
from sequoia.settings import SamplingSettings

CALL_SECONDS = 600.0
TRIAL_TOKENS = 8  # new tokens of the request that shows whether a plan is in force
TRIALS = 50
TRIAL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps after the first message with tokens, so without reading the prompt.

    Attributes:
        plan_version: of the plan in force at the end.
    """

    token_count: int
    step_count: int
    seconds: float
    plan_version: int = 0

    @classmethod
    def total(cls, stretches: Sequence[Stretch]) -> Stretch:
        """All of them, end to end.

        Raises:
            BenchmarkError: every text ended with its first step, so there is nothing to time.
        """
        tokens = sum(one.token_count for one in stretches)
        if not tokens:
            raise BenchmarkError("every text ended in its first step: nothing to time")
        steps = sum(one.step_count for one in stretches)
        return cls(tokens, steps, sum(one.seconds for one in stretches))

    @property
    def seconds_per_token(self) -> float:
        """Of the steps, over their tokens."""
        return self.seconds / self.token_count

    @property
    def seconds_per_step(self) -> float:
        """Of one step."""
        return self.seconds / self.step_count

    @property
    def tokens_per_step(self) -> float:
        """Of one step."""
        return self.token_count / self.step_count


class HeldTrees:
    """One request after another, each under the tree that is asked for; a context manager.

    Args:
        address: of a coordinator that follows `redis_url`, which no planner publishes to.
        redis_url: where plans are published.
    """

    def __init__(self, address: str, redis_url: str) -> None:
        self._channel_address, self._redis_url = address, redis_url
        self._runner = asyncio.Runner()
        self._held: tuple[int, ...] = ()
        self._version = 0

    def __enter__(self) -> Self:
        self._runner.run(self._open())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.run(self._close())
        self._runner.close()

    def generate(
        self,
        parents: tuple[int, ...] | None,
        temperature: float,
        max_new_tokens: int,
        token_ids: tuple[int, ...],
    ) -> Stretch:
        """Continue a prompt under a tree; None asks for no speculation.

        Raises:
            SequoiaError: the call was refused or failed.
            BenchmarkError: the server stopped early, or the tree did not come into force.
        """
        request = GenerationRequest(
            token_ids=token_ids,
            sampling=SamplingSettings(temperature=temperature),
            max_new_tokens=max_new_tokens,
            disable_speculation=parents is None,
        )
        return self._runner.run(self._generate_under(parents, request))

    async def _open(self) -> None:
        self._channel = RpcChannel(self._channel_address)
        self._store = PlanStore(self._redis_url)

    async def _close(self) -> None:
        await self._channel.close()
        await self._store.close()

    async def _generate_under(
        self, parents: tuple[int, ...] | None, request: GenerationRequest
    ) -> Stretch:
        if parents is None:
            return await self._generate(request)
        if parents != self._held:
            await self._hold(parents, request)
        stretch = await self._generate(request)
        if stretch.plan_version != self._version:
            raise BenchmarkError(f"plan {stretch.plan_version} is in force, not {self._version}")
        return stretch

    async def _hold(self, parents: tuple[int, ...], request: GenerationRequest) -> None:
        """Publish a plan of this tree alone, and wait until requests end under it."""
        trees = (PlannedTree(name, 1, parents, 0.0, 0.0, 0.0) for name in REQUEST_CLASSES)
        self._version = (await self._store.publish(tuple(trees))).version
        trial = GenerationRequest(
            token_ids=request.token_ids, sampling=request.sampling, max_new_tokens=TRIAL_TOKENS
        )
        for _ in range(TRIALS):
            if (await self._generate(trial)).plan_version == self._version:
                self._held = parents
                return
            await asyncio.sleep(TRIAL_SECONDS)
        raise BenchmarkError(f"plan {self._version} was published but did not come into force")

    async def _generate(self, request: GenerationRequest) -> Stretch:
        count = first_count = 0
        started = 0.0
        completion = None
        async for chunk in self._channel.stream(GENERATE, request, timeout=CALL_SECONDS):
            if chunk.tokens and not first_count:
                started, first_count = time.perf_counter(), len(chunk.tokens)
            count += len(chunk.tokens)
            completion = chunk.completion or completion
        seconds = time.perf_counter() - started
        if completion is None or completion.finish_reason is FinishReason.CANCELLED:
            raise BenchmarkError("the server stopped before the text was complete")
        usage = completion.usage
        return Stretch(count - first_count, usage.step_count - 1, seconds, usage.plan_version)

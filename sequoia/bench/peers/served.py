"""Ours as clients meet it: `Generate` over gRPC."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

from sequoia.bench.errors import BenchmarkError
from sequoia.bench.peers.runs import Decode, Prompt
from sequoia.generation import FinishReason, GenerationRequest
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.generation_codec import GENERATE
from sequoia.settings import SamplingSettings

CALL_SECONDS = 600.0


class ServedSystem:
    """One request after another on a connection that stays open; a context manager.

    Attributes:
        plan_versions: of the plans that were in force when the speculating requests ended.
    """

    def __init__(
        self, address: str, temperature: float, call_seconds: float = CALL_SECONDS
    ) -> None:
        self.plan_versions: set[int] = set()
        self._address = address
        self._call_seconds = call_seconds
        self._sampling = SamplingSettings(temperature=temperature)
        self._runner = asyncio.Runner()
        self._channel: RpcChannel | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._channel is not None:
            self._runner.run(self._channel.close())
        self._runner.close()

    def generate(self, speculates: bool, prompt: Prompt) -> Decode:
        """Continue a prompt.

        Raises:
            SequoiaError: the call was refused or failed.
            BenchmarkError: the server stopped before the text was complete.
        """
        return self._runner.run(self._generate(speculates, prompt))

    async def _generate(self, speculates: bool, prompt: Prompt) -> Decode:
        if self._channel is None:
            self._channel = RpcChannel(self._address)
        request = GenerationRequest(
            token_ids=prompt.token_ids,
            sampling=self._sampling,
            max_new_tokens=prompt.max_new_tokens,
            disable_speculation=not speculates,
        )
        token_ids: list[int] = []
        first: tuple[float, int] | None = None
        completion = None
        started = time.perf_counter()
        async for chunk in self._channel.stream(GENERATE, request, timeout=self._call_seconds):
            token_ids += [token.token_id for token in chunk.tokens]
            if first is None and token_ids:
                first = time.perf_counter() - started, len(token_ids)
            completion = chunk.completion or completion
        seconds = time.perf_counter() - started
        if completion is None or completion.finish_reason is FinishReason.CANCELLED:
            raise BenchmarkError("the server stopped before the text was complete")
        if speculates:
            self.plan_versions.add(completion.usage.plan_version)
        usage = completion.usage
        first_seconds, first_count = first or (seconds, 0)
        return Decode(
            tuple(token_ids),
            seconds,
            usage.step_count,
            first_seconds,
            first_count,
            usage.target_seconds / max(usage.step_count, 1),
        )

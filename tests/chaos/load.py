"""Clients that keep requests in flight, and what they saw."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import count

from sequoia.errors import NotReadyError, Reason, SequoiaError
from sequoia.generation import FinishReason, GenerationRequest
from sequoia.rpc.channel import RpcChannel
from sequoia.rpc.generation_codec import GENERATE
from tests.chaos.figures import Arrivals, Asked

Tokens = tuple[int, ...]

CLIENTS = 16
RETRY_SECONDS = 0.2
END_SECONDS = 240.0
UNAVAILABLE = frozenset({Reason.WORKER_UNAVAILABLE, Reason.NOT_READY})
FULL = frozenset({Reason.CAPACITY_EXHAUSTED})


class Load:
    """So many clients, each with one request after another from a list, until they are told to end.

    Args:
        addresses: of coordinators; clients are spread over them.
        requests: in turn.
        undisturbed: their texts; None where these are about to be found out.
        clients: requests in flight.
        repeated: reasons for which a client asks again, the next coordinator where there are several.
        rounds: requests of each client; None for no end.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        requests: Sequence[GenerationRequest],
        undisturbed: Sequence[Tokens] | None,
        clients: int = CLIENTS,
        repeated: frozenset[Reason] = frozenset(),
        rounds: int | None = None,
    ) -> None:
        self.arrivals = Arrivals()
        self.asked: list[Asked] = []
        self.refusals: list[SequoiaError] = []
        self.clients = clients
        self._addresses = addresses
        self._requests = requests
        self._undisturbed = undisturbed
        self._repeated = repeated
        self._rounds = rounds
        self._is_ending = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Clients ask while the block runs; after it each reads its last request to the end.

        Raises:
            TimeoutError: requests hang.
        """
        tasks = [asyncio.create_task(self._client(number)) for number in range(self.clients)]
        try:
            yield
            self._is_ending |= self._rounds is None
            async with asyncio.timeout(END_SECONDS):
                await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def until_all_have_text(self) -> None:
        """Wait until every client has tokens of its first request."""
        while sum(one.first_token is not None for one in self.asked) < self.clients:  # noqa: ASYNC110
            await asyncio.sleep(RETRY_SECONDS)

    def ask_no_more(self) -> None:
        """Let every client end after the request that it has in flight."""
        self._is_ending = True

    async def _client(self, client: int) -> None:
        channels = [RpcChannel(address) for address in self._addresses]
        try:
            for turn in count() if self._rounds is None else range(self._rounds):
                if self._is_ending:
                    return
                number = (client + turn * self.clients) % len(self._requests)
                asked = Asked(number, time.monotonic())
                self.asked.append(asked)
                await self._ask(asked, channels, client)
        finally:
            for channel in channels:
                await channel.close()

    async def _ask(self, asked: Asked, channels: Sequence[RpcChannel], place: int) -> None:
        """One request, repeated as long as the reasons for its refusal allow it."""
        for attempt in count():
            try:
                await self._attempt(asked, channels[(place + attempt) % len(channels)])
                return
            except SequoiaError as error:
                if error.reason not in self._repeated:
                    asked.problem, asked.reason = f"{error.reason}: {error.message}", error.reason
                    return
                asked.attempts_refused += 1
                self.refusals.append(error)
            await asyncio.sleep(RETRY_SECONDS)

    async def _attempt(self, asked: Asked, channel: RpcChannel) -> None:
        asked.tokens.clear()
        request = self._requests[asked.number]
        async with aclosing(channel.stream(GENERATE, request)) as chunks:
            async for chunk in chunks:
                if chunk.tokens:
                    now = time.monotonic()
                    tokens = [token.token_id for token in chunk.tokens]
                    asked.hear(now, tokens, self._expected(asked) or asked.tokens + tokens)
                    self.arrivals.add(now, len(tokens))
                if chunk.completion:
                    if chunk.completion.finish_reason is FinishReason.CANCELLED:
                        raise NotReadyError("the coordinator ended the text before its end")
                    asked.complete(self._expected(asked) or asked.tokens)
                    return
        raise SequoiaError("the stream ended without a completion")

    def _expected(self, asked: Asked) -> Tokens | None:
        """The undisturbed text, or the beginning of it that was asked for."""
        if self._undisturbed is None:
            return None
        return self._undisturbed[asked.number][: self._requests[asked.number].max_new_tokens]

"""A client that reads the first message of its stream, and the rest only when it is told to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import grpc

from sequoia.generation import GenerationRequest
from sequoia.rpc.generation_codec import GENERATE
from sequoia.rpc.method import encoded
from sequoia.settings import SamplingSettings
from tests.chaos.requests import TEMPERATURE

LAZY_COUNT = 4
TOKENS = 330
# Makes messages large: the server's buffer for a stream takes 64 KiB, some 270 tokens of these.
LOGPROBS = 20
# A small window, so that the client's side of the connection takes next to nothing.
CHANNEL_OPTIONS = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]

LAZY_REQUESTS = tuple(
    GenerationRequest(
        text="A long story about the sea",
        sampling=SamplingSettings(temperature=TEMPERATURE),
        seed=1000 + number,
        max_new_tokens=TOKENS,
        ignore_end_of_text=True,
        logprob_count=LOGPROBS,
    )
    for number in range(LAZY_COUNT)
)


@dataclass(slots=True)
class Lazy:
    """One such client.

    Attributes:
        goes_on: set when it may read on.
        server_seconds: how long the request took as the server says.
    """

    request: GenerationRequest
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)
    tokens: list[int] = field(default_factory=list)
    server_seconds: float = 0.0

    async def ask(self, address: str) -> None:
        """One request, to the end of its stream."""
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            method = channel.unary_stream(GENERATE.path, None, GENERATE.decode_reply)
            async for chunk in method(encoded(GENERATE, self.request)):
                self.tokens += [token.token_id for token in chunk.tokens]
                if chunk.completion:
                    self.server_seconds = chunk.completion.usage.total_seconds
                await self.goes_on.wait()

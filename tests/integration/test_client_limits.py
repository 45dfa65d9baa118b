"""Tokens and limits of clients, over real sockets."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from coordinator.clients import Clients
from sequoia.errors import Reason
from sequoia.generation import GenerationRequest
from sequoia.rpc.channel import Endpoint
from sequoia.rpc.errors import CODES, RemoteError, from_rpc_error
from sequoia.rpc.generation_codec import GENERATE
from sequoia.settings import SamplingSettings
from tests.stack import Stack, Stream, running_stack
from tests.tiny import byte_pair

TOKEN, OTHER_TOKEN = "sequoia_alice", "sequoia_bob"
FILE = f"""[clients.alice]
token_sha256 = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"
concurrency = 1
tokens_per_minute = 120
prompt_tokens = 20
[clients.bob]
token_sha256 = "{hashlib.sha256(OTHER_TOKEN.encode()).hexdigest()}"
"""
REQUEST = GenerationRequest(
    text="x" * 10,
    sampling=SamplingSettings(temperature=0.0),
    max_new_tokens=10,
    ignore_end_of_text=True,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Clock:
    """Seconds that move when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def clock() -> Clock:
    """The clients' clock."""
    return Clock()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> AsyncIterator[Stack]:
    """A system that knows Alice and Bob; its channel is Alice's."""
    folder = tmp_path_factory.mktemp("clients")
    (folder / "clients.toml").write_text(FILE)
    clients = Clients(folder / "clients.toml", clock)
    pair: tuple[Path, Path] = byte_pair(folder)
    endpoint = Endpoint("", token=TOKEN)
    async with running_stack(*pair, clients=clients, endpoint=endpoint) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh_minute(clock: Clock) -> None:
    """No test pays for another's tokens."""
    clock.seconds += 3600


async def refused(stack: Stack, request: GenerationRequest) -> RemoteError:
    """Alice's failure."""
    with pytest.raises(RemoteError) as raised:
        await stack.generate(request)
    return raised.value


async def call_raw(stack: Stack, data: bytes, *metadata: tuple[str, str]) -> RemoteError:
    """Send bytes as they are, and return the failure."""
    async with grpc.aio.insecure_channel(stack.channel.address) as channel:
        try:
            async for _ in channel.unary_stream(GENERATE.path, None, None)(data, metadata=metadata):
                pass
        except grpc.aio.AioRpcError as error:
            failed = error
    assert failed.code() is CODES[from_rpc_error(failed).reason]
    return from_rpc_error(failed)


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ((), "no token"),
        ((("authorization", "Bearer sequoia_eve"),), "no client has this token"),
        ((("authorization", f"Basic {TOKEN}"),), "not of the form"),
    ],
)
async def test_a_stranger_is_refused_before_its_request_is_read(
    stack: Stack, metadata: tuple[tuple[str, str], ...], problem: str
) -> None:
    """Bytes that are no message are not even looked at."""
    error = await call_raw(stack, b"\xff\xff\xff\xff", *metadata)

    assert error.reason is Reason.UNAUTHENTICATED
    assert problem in error.message
    assert "eve" not in error.message
    known = await call_raw(stack, b"\xff\xff\xff\xff", ("authorization", f"Bearer {TOKEN}"))
    assert known.reason is Reason.MALFORMED_MESSAGE


async def test_health_needs_no_token(stack: Stack) -> None:
    """Probes have none."""
    channel = Endpoint(stack.channel.address).open()
    assert await channel.is_serving()
    await channel.close()


async def test_a_prompt_over_the_clients_limit_is_refused(stack: Stack) -> None:
    """Though the model would take it; the client's own limit is named."""
    error = await refused(stack, replace(REQUEST, text="x" * 21))

    assert error.reason is Reason.PROMPT_TOO_LONG
    assert error.metadata == {"field": "prompt", "limit": "20", "value": "21"}


async def test_one_request_at_a_time_means_one(stack: Stack) -> None:
    """The second is refused, Bob's is not; after the first has ended the next is served."""
    stream = Stream(stack, replace(REQUEST, max_new_tokens=60))
    await stream.read(1)

    error = await refused(stack, REQUEST)

    assert error.reason is Reason.CLIENT_LIMIT_REACHED
    assert error.metadata["field"] == "concurrency"
    assert error.metadata["limit"] == "1"
    assert float(error.metadata["retry_after_seconds"]) > 0
    bobs = Endpoint(stack.channel.address, token=OTHER_TOKEN).open()
    assert [chunk async for chunk in bobs.stream(GENERATE, REQUEST)][-1].completion
    await bobs.close()
    await stream.cancel()
    await _until_served(stack, replace(REQUEST, max_new_tokens=1))


async def _until_served(stack: Stack, request: GenerationRequest) -> None:
    """The server learns of a cancelled call a moment later."""
    for _ in range(500):
        with suppress(RemoteError):
            await stack.generate(request)
            return
    raise AssertionError("still refused")


async def test_prompts_and_texts_count_until_the_minute_is_used_up(
    stack: Stack, clock: Clock
) -> None:
    """Ten and ten tokens a request, 120 a minute; then the refusal says when to come back."""
    for _ in range(6):
        assert len((await stack.generate(REQUEST)).token_ids) == 10

    error = await refused(stack, REQUEST)

    assert error.reason is Reason.CLIENT_LIMIT_REACHED
    assert error.metadata["field"] == "tokens_per_minute"
    seconds = float(error.metadata["retry_after_seconds"])
    assert seconds == pytest.approx(5.0)  # ten tokens at two a second
    clock.seconds += seconds
    assert len((await stack.generate(REQUEST)).token_ids) == 10


async def test_a_request_that_is_refused_costs_nothing(stack: Stack) -> None:
    """Neither its prompt nor a place."""
    for _ in range(20):
        await refused(stack, replace(REQUEST, stop_strings=("",)))
        await refused(stack, replace(REQUEST, text="x" * 21))
    assert len((await stack.generate(REQUEST)).token_ids) == 10

"""How large a request may be, for every RPC, and its metadata."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from sequoia.errors import NotReadyError, Reason
from sequoia.rpc.errors import from_rpc_error
from sequoia.rpc.method import Method
from sequoia.rpc.server import METADATA_LIMIT_BYTES, TRANSPORT_LIMIT_BYTES, Context, RpcServer
from tests.fuzz.inputs import rpcs
from tests.stack import HOST

LIMITS = {
    "Generate": 4 * 2**20,
    "GrowTree": 16 * 2**20,
    "VerifyTree": 16 * 2**20,
    "Prefill": 16 * 2**20,
}
SMALL = 64 * 2**10  # every other RPC
METHODS = [rpc.method for rpc in rpcs()]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _reached(_request: object, _context: Context) -> object:
    raise NotReadyError("the request was read")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    """To a server of every RPC."""
    server = RpcServer()
    for method in METHODS:
        server.add_unary(method, _reached)
    address = f"{HOST}:{await server.start(HOST, 0)}"
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield channel
    await server.kill()


async def failure(
    channel: grpc.aio.Channel, method: Method[Any, Any], data: bytes, **options: Any
) -> grpc.aio.AioRpcError:
    """How a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.unary_unary(method.path, None, None)(data, **options)
    return raised.value


def unknown_field(size: int) -> bytes:
    """A message of so many bytes, all of them in a field that nobody knows."""
    content = size - 6
    length = bytes(
        [content & 127 | 128, content >> 7 & 127 | 128, content >> 14 & 127 | 128, content >> 21]
    )
    return b"\xfa\x7f" + length + b"x" * content


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_a_request_over_its_rpcs_limit_is_refused(
    channel: grpc.aio.Channel, method: Method[Any, Any]
) -> None:
    """With the limit; one at the limit is read."""
    limit = LIMITS.get(method.name, SMALL)

    over = from_rpc_error(await failure(channel, method, unknown_field(limit + 1)))
    at = from_rpc_error(await failure(channel, method, unknown_field(limit)))

    assert over.reason is Reason.MESSAGE_TOO_LARGE
    assert over.metadata == {"field": "message", "limit": str(limit), "value": str(limit + 1)}
    assert at.reason in (Reason.NOT_READY, Reason.INVALID_ARGUMENT, Reason.MALFORMED_TREE)


async def test_what_no_rpc_takes_is_not_even_received(channel: grpc.aio.Channel) -> None:
    """The transport refuses it by its announced length."""
    error = await failure(channel, METHODS[0], bytes(TRANSPORT_LIMIT_BYTES + 1))

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (error.details() or "")


async def test_metadata_over_the_limit_is_refused(channel: grpc.aio.Channel) -> None:
    """However small the message; below the limit it is taken."""
    over = [("x-request-id", "x" * METADATA_LIMIT_BYTES)]
    under = [("x-request-id", "x" * (METADATA_LIMIT_BYTES // 2))]

    error = await failure(channel, METHODS[0], b"", metadata=over)
    taken = from_rpc_error(await failure(channel, METHODS[0], b"", metadata=under))

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert taken.reason is not Reason.MESSAGE_TOO_LARGE

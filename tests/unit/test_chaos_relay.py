"""The relay of the fault tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.chaos.relay import Relay

HOST = "127.0.0.1"


@asynccontextmanager
async def echoing() -> AsyncIterator[int]:
    """A port that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def connect(relay: Relay) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection through the relay."""
    host, port = relay.address.split(":")
    return await asyncio.open_connection(host, int(port))


async def test_it_passes_on_what_it_gets_in_order() -> None:
    """Every byte in both directions, and the end of the stream."""
    sent = bytes(range(256)) * 2000
    async with echoing() as port, Relay(port) as relay:
        reader, writer = await connect(relay)
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


async def test_each_direction_is_held_up() -> None:
    """A round trip takes twice the delay; without delay it is as before."""
    loop = asyncio.get_running_loop()
    async with echoing() as port, Relay(port) as relay:
        reader, writer = await connect(relay)
        relay.delay_seconds = 0.1
        began = loop.time()
        writer.write(b"slow")
        assert await reader.readexactly(4) == b"slow"
        assert loop.time() - began >= 0.2
        relay.delay_seconds = 0.0
        writer.write(b"fast")
        assert await reader.readexactly(4) == b"fast"
        writer.close()


async def test_a_delay_does_not_make_the_line_narrow() -> None:
    """Ten messages are on their way together: they take one round trip, not ten."""
    loop = asyncio.get_running_loop()
    async with echoing() as port, Relay(port) as relay:
        reader, writer = await connect(relay)
        relay.delay_seconds = 0.2
        began = loop.time()
        for _ in range(10):
            writer.write(b"x")
            await asyncio.sleep(0.01)
        await reader.readexactly(10)
        assert loop.time() - began < 2.0
        writer.close()


async def test_where_nobody_listens_the_connection_ends() -> None:
    """The caller sees an end at once, as without a relay."""
    async with echoing() as port:
        pass
    async with Relay(port) as relay:
        reader, writer = await connect(relay)
        assert await reader.read() == b""
        writer.close()

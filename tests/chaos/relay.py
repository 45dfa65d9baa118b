"""A TCP relay between two roles that holds up whatever passes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from sequoia.launcher import LOCALHOST

CHUNK_BYTES = 2**16


class Relay:
    """Passes bytes on to a port of this machine, in both directions, after a delay that can be changed.

    A delay holds up each direction, so a round trip takes twice as much. Bytes stay in order, and many
    may be on their way at a time: it is a long line, not a narrow one.
    """

    def __init__(self, port: int) -> None:
        self.delay_seconds = 0.0
        self._to_port = port
        self._server: asyncio.Server | None = None
        self._lines: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """HOST:PORT for whoever wants to be held up."""
        assert self._server is not None
        return f"{LOCALHOST}:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, LOCALHOST, 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.create_task(self._connect(reader, writer))
        self._lines.add(line)
        line.add_done_callback(self._lines.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        try:
            far_reader, far_writer = await asyncio.open_connection(LOCALHOST, self._to_port)
        except OSError:
            writer.close()
            return
        directions = [
            asyncio.create_task(self._pass_on(reader, far_writer)),
            asyncio.create_task(self._pass_on(far_reader, writer)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            for end in (writer, far_writer):
                end.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction: what was read at a time is written a delay later."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        writing = asyncio.create_task(self._write(waiting, writer))
        loop = asyncio.get_running_loop()
        try:
            while data := await reader.read(CHUNK_BYTES):
                waiting.put_nowait((loop.time() + self.delay_seconds, data))
            waiting.put_nowait((loop.time() + self.delay_seconds, b""))
            await writing
        except ConnectionError:
            pass
        finally:
            writing.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await writing

    async def _write(
        self, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await waiting.get()
            await asyncio.sleep(max(due - loop.time(), 0.0))
            if not data:
                return
            writer.write(data)
            await writer.drain()

"""What a worker holds while something goes on."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from tests.chaos.system import info_of

POLL_SECONDS = 0.1


class Holdings:
    """Asks a worker again and again what it holds, and remembers the most."""

    def __init__(self, address: str) -> None:
        self.most_sessions = 0
        self.most_bytes = 0
        self._address = address
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watching:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            info = await info_of(self._address)
            self.most_sessions = max(self.most_sessions, info.session_count)
            self.most_bytes = max(self.most_bytes, info.kv_cache_bytes)
            await asyncio.sleep(POLL_SECONDS)

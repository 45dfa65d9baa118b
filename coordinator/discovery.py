"""Where the workers of a role are: a name may stand for many, and their number may change."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 1.0  # with a name service; a look-up that takes longer goes on in the background


@dataclass(frozen=True, slots=True)
class Location:
    """Where one worker listens.

    Attributes:
        address: HOST:PORT, the host an IP address.
        server_name: the name that it was found under, which its certificate has to show; None where the
            operator gave the IP address itself.
    """

    address: str
    server_name: str | None = None


class Directory:
    """Looks up where workers are; what a name last stood for counts as long as it cannot be looked up.

    Before it was ever looked up it stands for itself.

    Args:
        addresses: HOST:PORT of each; a host that is a name may have any number of IP addresses.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._known = {address: [Location(address)] for address in addresses}
        self._looking: dict[str, asyncio.Task[list[Location]]] = {}
        self._trouble: set[str] = set()  # addresses that cannot be looked up, said once

    async def look_up(self) -> list[Location]:
        """All locations, each once; a name service that is slow or away holds nobody up."""
        for address in self._known:
            if address not in self._looking:
                self._looking[address] = asyncio.create_task(_look_up(address))
        done, _ = await asyncio.wait(self._looking.values(), timeout=PATIENCE_SECONDS)
        for address, task in tuple(self._looking.items()):
            if task in done:
                del self._looking[address]
                self._take_note(address, task)
        found = {one.address: one for several in self._known.values() for one in several}
        return list(found.values())

    def _take_note(self, address: str, task: asyncio.Task[list[Location]]) -> None:
        try:
            self._known[address] = task.result()
            self._trouble.discard(address)
        except (OSError, UnicodeError) as error:  # the latter: no name that there can be
            if address not in self._trouble:
                log.warning("name not found", address=address, error=str(error))
            self._trouble.add(address)


async def _look_up(address: str) -> list[Location]:
    host, _, port = address.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        ips = sorted(await _resolve(host, int(port)))
        return [Location(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}", host) for ip in ips]
    return [Location(address)]


async def _resolve(host: str, port: int) -> set[str]:
    """The IP addresses of a name, on a thread for which the process's end does not wait."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[set[str]] = loop.create_future()

    def settle(ips: set[str] | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error:
            answer.set_exception(error)
        else:
            answer.set_result(ips or set())

    def ask() -> None:
        ips, problem = None, None
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            ips = {str(where[0]) for *_, where in found}
        except (OSError, UnicodeError) as error:
            problem = error
        with suppress(RuntimeError):  # nobody waits any more: the loop is closed
            loop.call_soon_threadsafe(settle, ips, problem)

    threading.Thread(target=ask, name=f"look-up of {host}", daemon=True).start()
    return await answer

"""Where the workers of a role are: a name may stand for many, and their number may change."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)


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
        self._trouble: set[str] = set()  # addresses that cannot be looked up, said once

    async def look_up(self) -> list[Location]:
        """All locations, each once."""
        for address in self._known:
            try:
                self._known[address] = await _look_up(address)
                self._trouble.discard(address)
            except OSError as error:
                if address not in self._trouble:
                    log.warning("name not found", address=address, error=str(error))
                self._trouble.add(address)
        found = {one.address: one for several in self._known.values() for one in several}
        return list(found.values())


async def _look_up(address: str) -> list[Location]:
    host, _, port = address.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        loop = asyncio.get_running_loop()
        answers = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        hosts = sorted({str(where[0]) for *_, where in answers})
        return [Location(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}", host) for ip in hosts]
    return [Location(address)]

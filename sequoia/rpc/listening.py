"""Whether a role could listen at an address; gRPC itself does not say why it cannot."""

from __future__ import annotations

import errno
import socket


def require_bindable(host: str, port: int) -> None:
    """Check that one could listen there now; port 0 stands for any free one.

    Raises:
        OSError: naming the port that is in use, or the address and what is wrong with it.
    """
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    failures = [failure for place in found if (failure := _failure_at(*place))]
    if any(failure.errno == errno.EADDRINUSE for failure in failures):
        raise OSError(f"port {port} is in use; --port 0 takes a free one")
    if len(failures) == len(found):
        raise OSError(f"cannot listen on {host}:{port}: {failures[0].strerror}")


def _failure_at(
    family: int, kind: int, protocol: int, _name: str, address: tuple[object, ...]
) -> OSError | None:
    """What keeps a socket from being bound to an address; None where nothing does."""
    try:
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does: connections that have ended do not keep their port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None

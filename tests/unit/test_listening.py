"""Addresses at which nobody can listen are told by what is wrong with them."""

from __future__ import annotations

import socket

import pytest

from sequoia.rpc.listening import require_bindable


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])  # noqa: S104 to be tried
def test_a_free_port_is_free(host: str) -> None:
    """Also right after connections to it have ended, and zero always."""
    require_bindable(host, 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            served, _ = server.accept()
            served.close()  # first, so that the port is in TIME_WAIT
    require_bindable(host, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])  # noqa: S104 to be tried
def test_a_port_in_use_is_named(host: str) -> None:
    """With a way out."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError, match=f"^port {port} is in use; --port 0 takes a free one$"):
            require_bindable(host, port)


@pytest.mark.parametrize(
    ("host", "problem"),
    [("192.0.2.1", "Cannot assign requested address"), ("nowhere.invalid", "not known")],
)
def test_an_address_of_another_machine_is_named(host: str, problem: str) -> None:
    """In the words of the system."""
    with pytest.raises(OSError, match=rf"^cannot listen on {host}:7: .*{problem}"):
        require_bindable(host, 7)

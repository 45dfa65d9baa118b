"""`/metrics` over HTTP."""

from __future__ import annotations

import importlib
import socket
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter
from typer.testing import CliRunner

from sequoia.launcher import LaunchOptions
from sequoia.metrics.endpoint import served
from sequoia.metrics.instruments import places
from tests.scraping import HOST, free_port, get, read


def test_a_scrape_says_what_was_counted_and_what_the_process_takes() -> None:
    """In Prometheus' text format, without the times when series began."""
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(3)
    port = free_port()
    with served(registry, HOST, port):
        status, body = get(port)
    assert status == 200
    assert read(body).value("things_total") == 3
    assert read(body).value("process_resident_memory_bytes") > 0
    assert "_created" not in body


def test_without_a_port_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a socket made."""
    monkeypatch.setattr(socket, "socket", None)
    with served(CollectorRegistry(), HOST, 0):
        pass


def test_the_port_is_free_again_afterwards() -> None:
    """A role that is started again on its ports finds them free."""
    port = free_port()
    for _ in range(2):
        with served(CollectorRegistry(), HOST, port):
            assert get(port)[0] == 200
    with pytest.raises(ConnectionRefusedError):
        get(port)


@pytest.mark.parametrize("role", ["coordinator", "planner"])
def test_a_port_in_use_ends_the_role_with_its_flag(
    role: str, word_folders: tuple[Path, Path]
) -> None:
    """In one line, before the role says that it listens."""
    app = importlib.import_module(f"{role}.__main__").app
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(
            app,
            ["--port", "0", "--metrics-port", str(port), "--draft-address", "127.0.0.1:1"],
            env={"SEQUOIA_REDIS": "redis://127.0.0.1:1", "SEQUOIA_TARGET": str(word_folders[0])},
        )
    assert result.exit_code == 1
    problem = f"error: --metrics-port: cannot listen on {HOST}:{port}: Address already in use"
    assert problem in result.output
    assert "listening" not in result.output.replace("cannot listen", "")


def test_the_roles_of_a_system_have_ports_of_their_own() -> None:
    """The variable would give all of them the same."""
    roles = ("coordinator", "planner", "target_service", "draft_service")
    ports = [LaunchOptions("t", metrics_port=9464).metrics(role) for role in roles]
    assert ports == [9464, 9465, 9466, 9467]
    assert {LaunchOptions("t").metrics(role) for role in roles} == {0}


def test_the_places_of_a_label_are_bounded() -> None:
    """Whatever lies beyond the limit has one value together."""
    assert places(3) == ["1", "2", "3", "4+"]

"""Children that do not behave: deaf to signals, or not to be started."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sequoia import launcher
from sequoia.launcher import LaunchOptions, LocalSystem, RoleProcess

DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("listening 127.0.0.1:1", flush=True)
time.sleep(600)
"""
DEAF_COUNT = 4


@pytest.fixture
def deaf(tmp_path: Path) -> list[RoleProcess]:
    """Processes that do not end when they are asked to."""
    (tmp_path / "deaf.py").write_text(DEAF)
    variables = {"PYTHONPATH": str(tmp_path)}
    roles = [
        RoleProcess("deaf", [], None, "127.0.0.1", 0, variables, None) for _ in range(DEAF_COUNT)
    ]
    for role in roles:
        role.start()
        role.wait_until_listening()
    return roles


def test_all_roles_have_one_time_to_stop(
    deaf: list[RoleProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not each its own after the other; whoever is left then is killed."""
    monkeypatch.setattr(launcher, "STOP_SECONDS", 1.0)
    system = LocalSystem(LaunchOptions("target"))
    system._roles += deaf
    started = time.monotonic()

    with capture_logs() as lines:
        system.__exit__(None, None, None)

    assert 1.0 <= time.monotonic() - started < DEAF_COUNT - 1.0
    assert all(role.has_ended for role in deaf)
    assert [(line["event"], line["process"]) for line in lines] == [
        ("role killed", "deaf")
    ] * DEAF_COUNT


class Willing(RoleProcess):
    """A role that ends when it is waited for."""

    def __init__(self, module: str, events: list[str]) -> None:
        super().__init__(module, [], None, "127.0.0.1", 0, {}, None)
        self._events = events

    def terminate(self) -> None:
        self._events.append(f"end {self.module}")

    def wait(self, seconds: float) -> None:
        self._events.append(f"ended {self.module} within {seconds:.0f} s")


def test_coordinators_end_before_the_workers_that_they_need() -> None:
    """They let requests end first, for as long as the system was told."""
    events: list[str] = []
    system = LocalSystem(LaunchOptions("target", drain_seconds=20.0))
    system._roles += [Willing(name, events) for name in ("target_service", "coordinator")]
    system.__exit__(None, None, None)
    assert events == [
        "end coordinator",
        "ended coordinator within 30 s",
        "end target_service",
        "ended target_service within 10 s",
    ]


class Fallen(RoleProcess):
    """A role that has ended, and for which the machine has no process at first."""

    def __init__(self) -> None:
        super().__init__("fallen", [], None, "127.0.0.1", 0, {}, None)
        self.start_count = 0
        self.is_back = threading.Event()

    @property
    def has_ended(self) -> bool:
        return not self.is_back.is_set()

    def start(self) -> None:
        self.start_count += 1
        if self.start_count < 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")

    def wait_until_listening(self) -> None:
        self.is_back.set()


def test_a_role_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the machine has no memory or no process for it at the moment."""
    monkeypatch.setattr(launcher, "RESTART_SECONDS", 0.01)
    system, role = LocalSystem(LaunchOptions("target")), Fallen()
    system._roles.append(role)
    with capture_logs() as lines:
        system._keeper.start()
        is_back = role.is_back.wait(30.0)
        system._stopping.set()
        system._keeper.join()

    assert is_back
    assert role.start_count == 3
    refused = [line for line in lines if line["event"] == "role not started"]
    assert len(refused) == 2
    assert refused[0]["process"] == "fallen"
    assert "temporarily unavailable" in refused[0]["error"]

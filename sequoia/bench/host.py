"""A process of its own for whatever computes.

Matrix libraries keep a pool of workers for every thread that has called them and slow down once there
are more of these than cores, so systems that shared a process would be in each other's way.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from sequoia.bench.errors import HostError, UnavailableError
from sequoia.log import configure_logging

STOP_SECONDS = 5.0


class ProcessHost:
    """An object in a child process, whose methods are called from here; a context manager.

    `make` builds the object over there, so it must be something that pickles: a function or class of a
    module, or an instance of one with `__call__`.
    """

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self.name = name
        spawning = multiprocessing.get_context("spawn")
        self._connection, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(theirs, make), name=name, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def call(self, method: str, *arguments: object) -> Any:
        """Call a method of the object over there and wait for what it returns.

        Raises:
            UnavailableError: as the object raised it.
            HostError: it raised something else, or its process is gone.
        """
        try:
            self._connection.send((method, arguments))
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(STOP_SECONDS)
            raise HostError(f"{self.name}: ended with status {self._process.exitcode}") from error
        if kind == "unavailable":
            raise UnavailableError(value)
        if kind == "failed":
            raise HostError(f"{self.name}: {value}")
        return value

    def stop(self) -> None:
        """End the process, in the middle of a call if need be."""
        self._connection.close()
        self._process.terminate()
        self._process.join(STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection, make: Callable[[], Any]) -> None:
    """The child: answer calls until the parent hangs up or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this
    configure_logging("bench", "warning")
    served: Any = None
    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            served = served if served is not None else make()
            answer = "returned", getattr(served, method)(*arguments)
        except UnavailableError as error:
            answer = "unavailable", str(error)
        except Exception as error:  # any library's own errors: the parent decides what they mean
            answer = "failed", f"{type(error).__name__}: {error}".splitlines()[0]
        connection.send(answer)

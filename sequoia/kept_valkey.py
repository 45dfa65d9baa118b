"""A Valkey server that comes back: whoever kills it finds it again on its port, a second later and empty."""

from __future__ import annotations

import threading

import structlog

from sequoia.embedded_valkey import EmbeddedValkey, EmbeddedValkeyError

log = structlog.get_logger(__name__)

RESTART_SECONDS = 1.0


class KeptValkey:
    """An `EmbeddedValkey` that is started again when it dies; starting it once is enough.

    Linux ends the server with the thread that started it: one thread starts, watches and stops it.
    """

    def __init__(self, server: EmbeddedValkey | None = None) -> None:
        self._server = server or EmbeddedValkey()
        self._problem: Exception | None = None
        self._has_started = threading.Event()
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="valkey keeper", daemon=True)

    @property
    def url(self) -> str:
        """The address for Redis clients; it stays the same."""
        return self._server.url

    @property
    def pid(self) -> int | None:
        """The server's process id, another one after every death; None while none runs."""
        return self._server.pid

    def start(self) -> None:
        """Start the server, and wait until it answers.

        Raises:
            EmbeddedValkeyError: there is no binary, or it does not come up.
        """
        self._keeper.start()
        self._has_started.wait()
        if self._problem:
            raise self._problem

    def stop(self) -> None:
        """End the server for good; again is harmless."""
        self._stopping.set()
        if self._keeper.is_alive():
            self._keeper.join()

    def _keep(self) -> None:
        try:
            self._server.start()
        except Exception as error:  # the caller of `start` is told
            self._problem = error
            return
        finally:
            self._has_started.set()
        while not self._stopping.wait(RESTART_SECONDS):
            if self._server.has_ended:
                self._start_again()
        self._server.stop()

    def _start_again(self) -> None:
        log.warning("Valkey ended, starting it again", port=self._server.port)
        try:
            self._server.start()
        except (EmbeddedValkeyError, OSError) as error:
            log.error("Valkey not started", error=str(error))

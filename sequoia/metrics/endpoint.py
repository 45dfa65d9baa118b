"""`/metrics` over HTTP, on a thread of its own: a scrape waits for no call, and no call for a scrape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

log = structlog.get_logger(__name__)


@contextmanager
def served(registry: CollectorRegistry, host: str, port: int) -> Iterator[None]:
    """Answer scrapes while the block runs.

    Args:
        registry: of what is served, and of the process's own figures beside it.
        host: to listen on, as the role does.
        port: to listen on; 0 serves nothing.

    Raises:
        OSError: the address cannot be bound.
    """
    if not port:
        yield
        return
    disable_created_metrics()  # when a series began; doubles the text, and Prometheus knows
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, host.strip("[]"), registry)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"--metrics-port: cannot listen on {host}:{port}: {reason}") from error
    log.info("metrics", host=host, port=port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""The life of a role's process: listen, get ready, serve, stop on a signal."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine

import structlog
import typer

from sequoia.errors import IncompatibleModelsError
from sequoia.metrics.endpoint import served
from sequoia.rpc.server import RpcServer

log = structlog.get_logger(__name__)

PARENT_POLL_SECONDS = 1.0


async def serve(
    server: RpcServer,
    host: str,
    port: int,
    get_ready: Callable[[], Awaitable[None]],
    let_go: Callable[[], Awaitable[None]] | None = None,
    metrics_port: int = 0,
) -> None:
    """Listen at once, report SERVING when `get_ready` returns, and stop on SIGINT or SIGTERM.

    When stopping, new calls are refused first, then `let_go` ends what is running. Meanwhile scrapes are
    answered on `metrics_port`, unless that is 0.

    Prints `listening HOST:PORT` on stdout, for whoever started the process on port 0.

    Raises:
        OSError: an address cannot be bound.
        whatever `get_ready` raises, after the server has stopped.
    """
    try:
        with served(server.registry, host, metrics_port):
            await _serve(server, host, port, get_ready, let_go)
    finally:
        if server.tracer:
            await asyncio.to_thread(server.tracer.close)


async def _serve(
    server: RpcServer,
    host: str,
    port: int,
    get_ready: Callable[[], Awaitable[None]],
    let_go: Callable[[], Awaitable[None]] | None,
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    bound = await server.start(host, port)
    sys.stdout.write(f"listening {host}:{bound}\n")
    sys.stdout.flush()
    log.info("listening", host=host, port=bound, tls=server.credentials is not None)
    if server.credentials is None and not is_loopback(host):
        log.warning("reachable from other machines without TLS", host=host)
    readiness = asyncio.create_task(_become_ready(server, get_ready))
    watching = asyncio.create_task(_outlive_no_parent(stopping))
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({readiness, stop}, return_when=asyncio.FIRST_COMPLETED)
        if readiness.done():
            await readiness
            await stop
    finally:
        for task in (readiness, watching, stop):
            task.cancel()
        stopped = asyncio.create_task(server.stop())
        if let_go:
            await let_go()
        await stopped
        log.info("stopped")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on or to call is this machine's alone; names but `localhost` are not."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


async def _become_ready(server: RpcServer, get_ready: Callable[[], Awaitable[None]]) -> None:
    await get_ready()
    # What was loaded stays to the end: collections need not look through it, the one at exit least.
    gc.collect()
    gc.freeze()
    await server.set_serving(True)
    log.info("ready")


async def _outlive_no_parent(stopping: asyncio.Event) -> None:
    """Stop when the process that started this one is gone, if it asked for that."""
    parent = os.environ.get("SEQUOIA_PARENT_PID")
    while parent and parent == str(os.getppid()):  # noqa: ASYNC110 no event tells of it
        await asyncio.sleep(PARENT_POLL_SECONDS)
    if parent:
        log.warning("parent is gone", parent=parent)
        stopping.set()


def run(main: Coroutine[None, None, None]) -> None:
    """Run a role to its end; an error that the operator can mend ends it with one clear line."""
    from sequoia.runtime.catalogue import ModelError

    try:
        asyncio.run(main)
    except (ModelError, IncompatibleModelsError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error

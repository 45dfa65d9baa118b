"""A role's gRPC server: methods by codec, TLS, health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar, cast

import grpc
from grpc.aio import EOF  # type: ignore[attr-defined]
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from sequoia.errors import NotReadyError
from sequoia.rpc.call import Call, decoded, traced
from sequoia.rpc.listening import require_bindable
from sequoia.rpc.method import MESSAGE_LIMIT_BYTES, Method
from sequoia.rpc.metrics import RpcMetrics
from sequoia.tracing.spans import Tracer

TRANSPORT_LIMIT_BYTES = 4 * MESSAGE_LIMIT_BYTES
METADATA_LIMIT_BYTES = 8 * 2**10
AUTHORIZATION_KEY = "authorization"
STOP_GRACE_SECONDS = 5.0
LEAST_PING_MS = 5_000  # who asks more often whether the server is there is cut off
STOPPING = "the role is stopping"

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Context = grpc.aio.ServicerContext[Any, Any]
UnaryHandler = Callable[[Request, Context], Awaitable[Reply]]
StreamHandler = Callable[[Request, Context], AsyncGenerator[Reply, None]]
Read = Callable[[], Awaitable[Any]]
Admit = Callable[[Context], object]


def anyone(_: Context) -> None:
    """Lets every caller in."""


class RpcServer:
    """Serves methods on one port; answers health from the start.

    It reports NOT_SERVING until `set_serving(True)`. What it counts is in its `registry`, to which the
    role adds what it counts itself.

    Args:
        credentials: for TLS; None serves without it.
        reflection: whether callers may ask which services there are.
        tracer: begins spans, for streams of answers and for whatever belongs to a trace; None for none.
        drain_seconds: how long running calls may go on when the server stops, before the grace in
            which all of them have to end.
    """

    def __init__(
        self,
        credentials: grpc.ServerCredentials | None = None,
        *,
        reflection: bool = False,
        tracer: Tracer | None = None,
        drain_seconds: float = 0.0,
    ) -> None:
        self.credentials = credentials
        self.tracer = tracer
        self._reflects = reflection
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", TRANSPORT_LIMIT_BYTES),
                ("grpc.max_send_message_length", TRANSPORT_LIMIT_BYTES),
                ("grpc.max_metadata_size", METADATA_LIMIT_BYTES),
                ("grpc.absolute_max_metadata_size", METADATA_LIMIT_BYTES),
                ("grpc.so_reuseport", 0),
                # Answers may take minutes. By default gRPC allows no pings in that time, and
                # breaks the connection of a caller who sends some.
                ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_MS),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        self._handlers: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        self._health: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._reading: set[asyncio.Task[Any]] = set()  # calls that wait for their next request
        self._stopping = False
        self._grace_seconds = drain_seconds + STOP_GRACE_SECONDS
        self._metrics = RpcMetrics()
        self.registry = CollectorRegistry()
        self.registry.register(self._metrics)
        self.port = 0

    def add_unary(
        self, method: Method[Request, Reply], handler: UnaryHandler[Request, Reply]
    ) -> None:
        """Serve a method that gives one answer."""

        async def serve(data: bytes, context: Context) -> Reply | None:
            with traced(self.tracer, method, context):
                async with Call(method, context, self._metrics):
                    return await handler(decoded(method, data), context)
            return None

        self._add(method, grpc.unary_unary_rpc_method_handler, serve)

    def add_stream(
        self,
        method: Method[Request, Reply],
        handler: StreamHandler[Request, Reply],
        admit: Admit = anyone,
    ) -> None:
        """Serve a method that answers with a stream.

        `admit` raises a `SequoiaError` for a caller whose request is not even to be read.

        The answers are written from here, so that a cancelled call closes the handler's generator
        at once and not when it is collected.
        """

        async def serve(data: bytes, context: Context) -> None:
            with traced(self.tracer, method, context, begins=True):
                async with Call(method, context, self._metrics):
                    admit(context)
                    request = decoded(method, data)
                    async with aclosing(handler(request, context)) as replies:
                        async for reply in replies:
                            await context.write(reply)

        self._add(method, grpc.unary_stream_rpc_method_handler, serve)

    def add_steps(
        self, method: Method[Request, Reply], handler: UnaryHandler[Request, Reply]
    ) -> None:
        """Serve a method whose calls carry many requests, each answered before the next is read.

        The first that fails ends its call. When the server stops, calls end between two requests.
        """

        async def serve(_: Any, context: Context) -> None:
            with traced(self.tracer, method, context):
                while True:
                    data = await self._next_request(context.read)
                    if data is EOF:
                        return
                    async with Call(method, context, self._metrics):
                        if data is None:
                            raise NotReadyError(STOPPING)
                        await context.write(await handler(decoded(method, data), context))

        self._add(method, grpc.stream_stream_rpc_method_handler, serve)

    async def _next_request(self, read: Read) -> Any:
        """The next request's bytes; None once the server stops."""
        if self._stopping:
            return None
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._reading.add(task)
        try:
            return await read()
        except asyncio.CancelledError:
            if self._stopping:
                return None
            raise
        finally:
            self._reading.discard(task)

    def _add(self, method: Method[Any, Any], make: Any, serve: Any) -> None:
        self._metrics.add_method(method)
        self._handlers.setdefault(method.service, {})[method.name] = make(
            serve,
            request_deserializer=None,  # read in the call, after it has been let in
            response_serializer=method.encode_reply,
        )

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, chosen by the system for port 0.

        Raises:
            OSError: the address cannot be bound.
        """
        for service, methods in self._handlers.items():
            handler = grpc.method_handlers_generic_handler(service, methods)
            self._server.add_generic_rpc_handlers((handler,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self._reflects:
            names = [*self._handlers, health.SERVICE_NAME, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(names, self._server)
        await self.set_serving(False)
        require_bindable(host, port)
        address = f"{host}:{port}"
        try:
            self.port = (
                self._server.add_secure_port(address, self.credentials)
                if self.credentials
                else self._server.add_insecure_port(address)
            )
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error
        await self._server.start()
        return self.port

    async def set_serving(self, serving: bool) -> None:
        """Tell health checks whether this role can do its work."""
        self._metrics.serving.set(serving)
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if serving else statuses.NOT_SERVING
        for service in ("", *self._handlers):
            await self._health.set(service, status)

    async def stop(self) -> None:
        """Refuse new calls and let running ones finish for a while."""
        await self._health.enter_graceful_shutdown()
        self._metrics.serving.set(0)
        self._stopping = True
        for call in self._reading:
            call.cancel()
        await self._server.stop(self._grace_seconds)

    async def kill(self) -> None:
        """Cut every call off at once."""
        await self._server.stop(None)

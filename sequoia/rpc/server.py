"""A role's gRPC server: methods by codec, errors as statuses, health and reflection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar, cast

import grpc
import structlog
from grpc.aio import EOF  # type: ignore[attr-defined]
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from sequoia.errors import MessageTooLargeError, NotReadyError, SequoiaError
from sequoia.rpc.errors import abort
from sequoia.rpc.method import Method

log = structlog.get_logger(__name__)

MESSAGE_LIMIT_BYTES = 16 * 2**20
TRANSPORT_LIMIT_BYTES = 4 * MESSAGE_LIMIT_BYTES
REQUEST_ID_KEY = "x-request-id"
STOP_GRACE_SECONDS = 5.0
LEAST_PING_MS = 5_000  # who asks more often whether the server is there is cut off
STOPPING = "the role is stopping"

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Context = grpc.aio.ServicerContext[Any, Any]
UnaryHandler = Callable[[Request, Context], Awaitable[Reply]]
StreamHandler = Callable[[Request, Context], AsyncGenerator[Reply, None]]
Read = Callable[[], Awaitable[Any]]


class RpcServer:
    """Serves methods on one port; answers health and reflection from the start.

    It reports NOT_SERVING until `set_serving(True)`.
    """

    def __init__(self) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", TRANSPORT_LIMIT_BYTES),
                ("grpc.max_send_message_length", TRANSPORT_LIMIT_BYTES),
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
        self.port = 0

    def add_unary(
        self, method: Method[Request, Reply], handler: UnaryHandler[Request, Reply]
    ) -> None:
        """Serve a method that gives one answer."""

        async def serve(request: Any, context: Context) -> Reply | None:
            async with _Call(method, request, context):
                return await handler(request, context)
            return None

        self._add(method, grpc.unary_unary_rpc_method_handler, serve)

    def add_stream(
        self, method: Method[Request, Reply], handler: StreamHandler[Request, Reply]
    ) -> None:
        """Serve a method that answers with a stream.

        The answers are written from here, so that a cancelled call closes the handler's generator
        at once and not when it is collected.
        """

        async def serve(request: Any, context: Context) -> None:
            async with (
                _Call(method, request, context),
                aclosing(handler(request, context)) as replies,
            ):
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
            while True:
                request = await self._next_request(context.read)
                async with _Call(method, request, context):
                    if request is EOF:
                        return
                    await context.write(await handler(request, context))

        self._add(method, grpc.stream_stream_rpc_method_handler, serve)

    async def _next_request(self, read: Read) -> Any:
        """The next request of a call; a failure, as a value, once the server stops."""
        if self._stopping:
            return NotReadyError(STOPPING)
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._reading.add(task)
        try:
            return await read()
        except asyncio.CancelledError:
            if self._stopping:
                return NotReadyError(STOPPING)
            raise
        finally:
            self._reading.discard(task)

    def _add(self, method: Method[Any, Any], make: Any, serve: Any) -> None:
        self._handlers.setdefault(method.service, {})[method.name] = make(
            serve,
            request_deserializer=_tolerant(method.decode_request),
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
        names = [*self._handlers, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._server)
        await self.set_serving(False)
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error}") from error
        await self._server.start()
        return self.port

    async def set_serving(self, serving: bool) -> None:
        """Tell health checks whether this role can do its work."""
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if serving else statuses.NOT_SERVING
        for service in ("", *self._handlers):
            await self._health.set(service, status)

    async def stop(self) -> None:
        """Refuse new calls and let running ones finish for a while."""
        await self._health.enter_graceful_shutdown()
        self._stopping = True
        for call in self._reading:
            call.cancel()
        await self._server.stop(STOP_GRACE_SECONDS)

    async def kill(self) -> None:
        """Cut every call off at once."""
        await self._server.stop(None)


def request_id(context: Context) -> str:
    """The id that the caller gave its request; empty when it gave none."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY:
            return str(value)
    return ""


class _Call:
    """Around one call: logs under the request's id, and failures turned into statuses."""

    def __init__(self, method: Method[Any, Any], request: Any, context: Context) -> None:
        self._method = method
        self._request = request
        self._context = context
        self._started = time.perf_counter()

    async def __aenter__(self) -> None:
        structlog.contextvars.clear_contextvars()
        if identifier := request_id(self._context):
            structlog.contextvars.bind_contextvars(request_id=identifier)
        if isinstance(self._request, SequoiaError):
            await self._fail(self._request)

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, SequoiaError):
            await self._fail(error)
        elif error is not None and not isinstance(
            error, (asyncio.CancelledError, GeneratorExit, grpc.aio.AbortError)
        ):
            log.error("call failed", method=self._method.name, exc_info=error)
            await self._fail(SequoiaError(f"{type(error).__name__}: {error}"))

    async def _fail(self, error: SequoiaError) -> None:
        log.info(
            "call refused",
            method=self._method.name,
            reason=str(error.reason),
            error=error.message,
            seconds=round(time.perf_counter() - self._started, 4),
        )
        await abort(self._context, error)


def _tolerant(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A decoder that hands failures on as values, so that the call can answer them."""

    def decode_or_error(data: bytes) -> Any:
        if len(data) > MESSAGE_LIMIT_BYTES:
            return MessageTooLargeError(
                f"message of {len(data)} bytes exceeds the limit of {MESSAGE_LIMIT_BYTES}",
                field="message",
                limit=MESSAGE_LIMIT_BYTES,
                value=len(data),
            )
        try:
            return decode(data)
        except SequoiaError as error:
            return error

    return decode_or_error

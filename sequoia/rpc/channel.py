"""The caller's side: a channel to one role, with domain values in and out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sequoia.rpc.call import REQUEST_ID_KEY
from sequoia.rpc.errors import from_rpc_error
from sequoia.rpc.method import Method, encoded, span_attributes
from sequoia.rpc.server import AUTHORIZATION_KEY, TRANSPORT_LIMIT_BYTES
from sequoia.rpc.steps import Steps, StepStream
from sequoia.tracing import spans

Request = TypeVar("Request")
Reply = TypeVar("Reply")

# Reconnect within a second: a restarted worker should be found again at once.
_OPTIONS = [
    ("grpc.max_receive_message_length", TRANSPORT_LIMIT_BYTES),
    ("grpc.max_send_message_length", TRANSPORT_LIMIT_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # also the time that a connection may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),  # it may come back under another address
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A role's address, and what a caller needs to be let in there.

    `server_name` is what its certificate has to show; None: the host of the address.
    """

    address: str
    credentials: grpc.ChannelCredentials | None = None
    token: str | None = field(default=None, repr=False)
    server_name: str | None = None

    def open(self) -> RpcChannel:
        """A channel to it; needs a running event loop."""
        return RpcChannel(self.address, self.credentials, self.token, self.server_name)


class RpcChannel:
    """Calls methods of the role at one address; failures are raised as `RemoteError`.

    Args:
        address: HOST:PORT.
        credentials: for TLS; None speaks without it.
        token: shown with every call; None shows none.
        server_name: what the certificate has to show; None: the address's host.
    """

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        server_name: str | None = None,
    ) -> None:
        self.address = address
        named = [("grpc.ssl_target_name_override", server_name)] if server_name else []
        self._channel = (
            grpc.aio.secure_channel(address, credentials, options=[*_OPTIONS, *named])
            if credentials
            else grpc.aio.insecure_channel(address, options=_OPTIONS)
        )
        self._authorization = [(AUTHORIZATION_KEY, f"Bearer {token}")] if token else []
        self._calls: dict[str, Any] = {}

    async def call(
        self, method: Method[Request, Reply], request: Request, timeout: float | None = None
    ) -> Reply:
        """One request, one reply; `timeout` in seconds."""
        with spans.span(method.path[1:], span_attributes(method), spans.Kind.CLIENT):
            try:
                reply: Reply = await self._callable(method, self._channel.unary_unary)(
                    encoded(method, request),
                    timeout=timeout,
                    metadata=self._metadata(spans.metadata()),
                )
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error, self.address, method.service) from error
            return reply

    async def stream(
        self, method: Method[Request, Reply], request: Request, timeout: float | None = None
    ) -> AsyncGenerator[Reply, None]:
        """One request, a stream of replies; closing the iterator cancels the call."""
        call = self._callable(method, self._channel.unary_stream)(
            encoded(method, request), timeout=timeout, metadata=self._metadata(spans.metadata())
        )
        try:
            async for reply in call:
                yield reply
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.address, method.service) from error
        finally:
            call.cancel()

    def steps(self, method: Method[Request, Reply]) -> Steps[Request, Reply]:
        """Open a call for one step after another."""
        call = self._callable(method, self._channel.stream_stream)
        span = spans.lasting(method.path[1:], span_attributes(method))
        metadata = self._metadata(span.metadata if span else spans.metadata())
        return StepStream(method, call(metadata=metadata), span)

    async def is_serving(self, timeout: float = 2.0) -> bool:
        """Whether the role says that it can do its work."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        try:
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.aio.AioRpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """End all calls and the connection."""
        await self._channel.close(None)

    def _callable(self, method: Method[Any, Any], make: Any) -> Any:
        if method.path not in self._calls:
            self._calls[method.path] = make(
                method.path,
                request_serializer=None,
                response_deserializer=method.decode_reply,
            )
        return self._calls[method.path]

    def _metadata(self, trace: spans.Metadata) -> list[tuple[str, str]]:
        identifier = structlog.contextvars.get_contextvars().get("request_id")
        named = [(REQUEST_ID_KEY, identifier)] if identifier else []
        return [*named, *trace, *self._authorization]

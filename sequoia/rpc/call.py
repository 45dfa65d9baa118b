"""One call as a server sees it: its request, its id in the log, and its failures as statuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
import structlog

from sequoia.errors import MessageTooLargeError, SequoiaError
from sequoia.rpc.errors import CODES, MESSAGE_LIMIT, abort, shortened
from sequoia.rpc.method import Method, span_attributes
from sequoia.rpc.metrics import CANCELLED, OK, RpcMetrics
from sequoia.tracing import spans

log = structlog.get_logger(__name__)

REQUEST_ID_KEY = "x-request-id"
REQUEST_ID_LIMIT = 128  # characters; it stands in every line of the log
STATUS = "rpc.response.status_code"
TRACE_KEYS = ("traceparent", "tracestate")

Request = TypeVar("Request")
ServerContext = grpc.aio.ServicerContext[Any, Any]


def request_id(context: ServerContext) -> str:
    """The id that the caller gave its request; empty when it gave none."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY:
            return shortened(str(value), REQUEST_ID_LIMIT)
    return ""


@contextmanager
def traced(
    tracer: spans.Tracer | None,
    method: Method[Any, Any],
    context: ServerContext,
    *,
    begins: bool = False,
) -> Iterator[spans.Span | None]:
    """A span around a call, below its caller's; where this has none, only if the call `begins` a trace."""
    sent = (context.invocation_metadata() or ()) if tracer else ()
    parent = [(key, str(value)) for key, value in sent if key in TRACE_KEYS]
    with spans.serving(
        tracer if parent or begins else None, method.path[1:], parent, span_attributes(method)
    ) as span:
        yield span
        if span:
            span.note({STATUS: OK})


def decoded(method: Method[Request, Any], data: bytes) -> Request:
    """A request's domain value.

    Raises:
        MessageTooLargeError: more bytes than the method takes.
        SequoiaError: as the method's decoder says.
    """
    limit = method.request_limit_bytes
    if len(data) > limit:
        raise MessageTooLargeError(
            f"message of {len(data)} bytes exceeds the limit of {limit}",
            field="message",
            limit=limit,
            value=len(data),
        )
    return method.decode_request(data)


class Call:
    """Around one call: logs under the request's id, counts, and failures turned into statuses."""

    def __init__(
        self, method: Method[Any, Any], context: ServerContext, metrics: RpcMetrics
    ) -> None:
        self._method = method
        self._context = context
        self._metrics = metrics
        self._started = time.perf_counter()

    async def __aenter__(self) -> None:
        structlog.contextvars.clear_contextvars()
        if identifier := request_id(self._context):
            structlog.contextvars.bind_contextvars(request_id=identifier)

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self._metrics.has_answered(self._method, self._seconds)
        elif isinstance(error, SequoiaError):
            await self._fail(error)
        elif isinstance(error, (asyncio.CancelledError, GeneratorExit, grpc.aio.AbortError)):
            self._metrics.was_cancelled(self._method, self._seconds)
            spans.note({STATUS: CANCELLED})
        else:
            log.error("call failed", method=self._method.name, exc_info=error)
            # What a defect says may hold paths or a prompt: it stays in the log.
            await self._fail(SequoiaError(f"{type(error).__name__}; the server's log says more"))

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    async def _fail(self, error: SequoiaError) -> None:
        self._metrics.has_failed(self._method, self._seconds, error.reason)
        spans.note({STATUS: CODES[error.reason].name})
        spans.fail(error.reason)
        log.info(
            "call refused",
            method=self._method.name,
            reason=str(error.reason),
            error=shortened(error.message, MESSAGE_LIMIT),
            seconds=round(self._seconds, 4),
        )
        await abort(self._context, error)

"""Errors on the wire: `google.rpc.Status` with `ErrorInfo`, and the one table of codes.

| reason | status | who mends it |
|---|---|---|
| INVALID_ARGUMENT, PROMPT_TOO_LONG | INVALID_ARGUMENT | the caller |
| MALFORMED_MESSAGE, MALFORMED_TREE | INVALID_ARGUMENT | the caller |
| MESSAGE_TOO_LARGE, CAPACITY_EXHAUSTED | RESOURCE_EXHAUSTED | less at a time |
| CLIENT_LIMIT_REACHED | RESOURCE_EXHAUSTED | the client, `retry_after_seconds` later |
| UNAUTHENTICATED | UNAUTHENTICATED | the caller, with a token that the operator gave it |
| UNKNOWN_SESSION | NOT_FOUND | the coordinator prefills again |
| STALE_STEP, INCOMPATIBLE_MODELS | FAILED_PRECONDITION | the coordinator; the operator |
| NOT_READY, WORKER_UNAVAILABLE | UNAVAILABLE | a retry |
| DEADLINE_EXCEEDED | DEADLINE_EXCEEDED | more time |
| INTERNAL | INTERNAL | us |
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from sequoia.errors import Reason, SequoiaError

DOMAIN = "sequoia"
# Characters. Callers refuse more than 8 KiB of metadata, and would see no status at all.
MESSAGE_LIMIT = 300
FACT_LIMIT = 100
_DETAILS_KEY = "grpc-status-details-bin"

CODES: dict[Reason, grpc.StatusCode] = {
    Reason.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.MALFORMED_MESSAGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.MALFORMED_TREE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.PROMPT_TOO_LONG: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.MESSAGE_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.CAPACITY_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.CLIENT_LIMIT_REACHED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.UNKNOWN_SESSION: grpc.StatusCode.NOT_FOUND,
    Reason.STALE_STEP: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.INCOMPATIBLE_MODELS: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.NOT_READY: grpc.StatusCode.UNAVAILABLE,
    Reason.WORKER_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}
# What answers to a service, as people call it.
_ROLES = {
    "sequoia.v1.GenerationService": "coordinator",
    "sequoia.v1.WorkerService": "worker",
    "sequoia.v1.DraftService": "draft worker",
    "sequoia.v1.TargetService": "target worker",
    "sequoia.v1.PlannerService": "planner",
}
_NOT_CONNECTED = "failed to connect to all addresses"  # gRPC's words for it
_REASONS_WITHOUT_DETAILS = {
    grpc.StatusCode.UNAVAILABLE: Reason.WORKER_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.MESSAGE_TOO_LARGE,
    grpc.StatusCode.CANCELLED: Reason.WORKER_UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED: Reason.UNAUTHENTICATED,
}


class RemoteError(SequoiaError):
    """A failure that another role reported, with its reason and facts as they came."""

    def __init__(self, reason: Reason, message: str, metadata: dict[str, str]) -> None:
        super().__init__(message, **metadata)
        self.reason = reason


async def abort(context: grpc.aio.ServicerContext[object, object], error: SequoiaError) -> None:
    """End a call with an error's status and details."""
    code = CODES[error.reason]
    message = shortened(error.message, MESSAGE_LIMIT)
    facts = {key: shortened(value, FACT_LIMIT) for key, value in error.metadata.items()}
    detail = AnyMessage()
    detail.Pack(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts))
    status = Status(code=code.value[0], message=message, details=[detail])
    trailing = ((_DETAILS_KEY, status.SerializeToString()),)
    await context.abort(code, message, trailing_metadata=trailing)


def shortened(text: str, limit: int) -> str:
    """A text of at most `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def from_rpc_error(
    error: grpc.aio.AioRpcError, address: str = "", service: str = ""
) -> RemoteError:
    """The failure behind a failed call, whether our server or gRPC itself reported it.

    Args:
        error: as gRPC raised it.
        address: HOST:PORT that was called; empty where that is not known.
        service: full name of the service that was called.
    """
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            info = _error_info(value)
            if info is not None:
                return RemoteError(Reason(info.reason), error.details() or "", dict(info.metadata))
    reason = _REASONS_WITHOUT_DETAILS.get(error.code(), Reason.INTERNAL)
    message = error.details() or error.code().name
    if address and error.code() is grpc.StatusCode.UNIMPLEMENTED:
        sentence = f"{address} is no {_ROLES.get(service, service)}"
        return RemoteError(Reason.INVALID_ARGUMENT, sentence, {"field": "address"})
    if address and message.startswith(_NOT_CONNECTED) and "handshake" not in message.lower():
        message = f"nobody answers at {address}"
    return RemoteError(reason, message, {})


def _error_info(data: bytes) -> ErrorInfo | None:
    try:
        status = Status.FromString(data)
        for detail in status.details:
            info = ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN and info.reason in set(Reason):
                return info
    except DecodeError:
        pass
    return None

from __future__ import annotations

from typing import Any, NoReturn

import grpc
import pytest

from sequoia import errors
from sequoia.errors import (
    InvalidArgumentError,
    MalformedMessageError,
    Reason,
    SequoiaError,
    StaleStepError,
)
from sequoia.rpc.errors import CODES, RemoteError, abort, from_rpc_error

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, SequoiaError)
]
METADATA_LIMIT_BYTES = 8 * 1024  # what gRPC takes from a peer


class Context:
    """Stands in for a server's context: keeps what a call was ended with."""

    def __init__(self) -> None:
        self.code = grpc.StatusCode.OK
        self.details = ""
        self.trailing: tuple[tuple[str, bytes], ...] = ()

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: Any = ()
    ) -> NoReturn:
        self.code, self.details, self.trailing = code, details, trailing_metadata
        raise grpc.aio.AbortError


def failure(
    code: grpc.StatusCode, details: str | None = "", trailing: Any = ()
) -> grpc.aio.AioRpcError:
    """A failed call as the caller's gRPC raises it."""
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, empty, grpc.aio.Metadata(*trailing), details, None)


async def over_the_wire(error: SequoiaError) -> tuple[Context, RemoteError]:
    """An error as the server ends the call with it, and as the caller gets it."""
    context = Context()
    with pytest.raises(grpc.aio.AbortError):
        await abort(context, error)  # type: ignore[arg-type]
    return context, from_rpc_error(failure(context.code, context.details, context.trailing))


def test_every_reason_has_a_code() -> None:
    """The table of errors is complete, and no failure is OK."""
    assert set(CODES) == set(Reason)
    assert grpc.StatusCode.OK not in CODES.values()


def test_every_kind_of_error_has_a_reason_of_its_own() -> None:
    """Callers tell failures apart by their reason."""
    reasons = [kind.reason for kind in KINDS]
    assert len(set(reasons)) == len(reasons)


def test_an_argument_error_names_field_limit_and_value() -> None:
    """In its sentence and in its facts, which are text."""
    error = InvalidArgumentError("top_p", "1.5 is outside (0, 1]", "(0, 1]", 1.5)
    assert str(error) == error.message == "top_p: 1.5 is outside (0, 1]"
    assert error.metadata == {"field": "top_p", "limit": "(0, 1]", "value": "1.5"}


def test_a_fact_may_have_any_name() -> None:
    """Even that of the sentence itself."""
    error = MalformedMessageError("not a Tree", message="Tree")
    assert error.message == "not a Tree"
    assert error.metadata == {"message": "Tree"}


@pytest.mark.parametrize("reason", list(Reason))
async def test_an_error_crosses_the_wire_whole(reason: Reason) -> None:
    """Reason, sentence and facts arrive as they were, under the reason's status."""
    context, remote = await over_the_wire(RemoteError(reason, "it broke", {"field": "step"}))
    assert context.code is CODES[reason]
    assert remote.reason is reason
    assert remote.message == "it broke"
    assert remote.metadata == {"field": "step"}


async def test_a_relayed_error_keeps_its_reason() -> None:
    """What a worker reported can be told to the coordinator's caller."""
    _, remote = await over_the_wire(StaleStepError("stale", limit=3))
    _, again = await over_the_wire(remote)
    assert again.reason is Reason.STALE_STEP
    assert again.metadata == {"limit": "3"}


@pytest.mark.parametrize("letter", ["x", "😀"])
async def test_a_long_error_still_arrives(letter: str) -> None:
    """Sentence and facts are cut, for gRPC would drop the whole status with them."""
    long = letter * 100_000
    context, remote = await over_the_wire(InvalidArgumentError("role", long, "short", long))
    percent_encoded = len(context.details.encode()) * 3
    base64 = sum(len(value) for _, value in context.trailing) * 4 // 3
    assert percent_encoded + base64 < METADATA_LIMIT_BYTES
    assert remote.reason is Reason.INVALID_ARGUMENT
    assert remote.metadata["field"] == "role"
    assert remote.metadata["limit"] == "short"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.WORKER_UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.MESSAGE_TOO_LARGE),
        (grpc.StatusCode.CANCELLED, Reason.WORKER_UNAVAILABLE),
        (grpc.StatusCode.UNIMPLEMENTED, Reason.INTERNAL),
        (grpc.StatusCode.UNKNOWN, Reason.INTERNAL),
    ],
)
def test_failures_of_grpc_itself_have_a_reason(code: grpc.StatusCode, reason: Reason) -> None:
    """Where no server of ours answered, the status says what happened."""
    assert from_rpc_error(failure(code, "socket closed")).reason is reason


def test_a_service_that_is_not_there_is_told_by_its_role() -> None:
    """Where the address is known: it belongs to something else."""
    error = failure(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    told = from_rpc_error(error, "127.0.0.1:1", "sequoia.v1.GenerationService")
    assert (told.reason, told.message) == (
        Reason.INVALID_ARGUMENT,
        "127.0.0.1:1 is no coordinator",
    )
    assert told.metadata == {"field": "address"}


@pytest.mark.parametrize(
    ("details", "message"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: Connection refused",
            "nobody answers at host:1",
        ),
        (
            "failed to connect to all addresses; last error: UNKNOWN: Ssl handshake failed",
            "failed to connect to all addresses; last error: UNKNOWN: Ssl handshake failed",
        ),
        ("Socket closed", "Socket closed"),
    ],
)
def test_an_address_without_an_answer_is_named(details: str, message: str) -> None:
    """Unless somebody did answer there, and was not understood."""
    error = from_rpc_error(failure(grpc.StatusCode.UNAVAILABLE, details), "host:1")
    assert (error.reason, error.message) == (Reason.WORKER_UNAVAILABLE, message)


def test_a_failure_without_words_is_told_by_its_status() -> None:
    """There is always something to show."""
    assert from_rpc_error(failure(grpc.StatusCode.UNAVAILABLE, None)).message == "UNAVAILABLE"


@pytest.mark.parametrize(
    "details",
    [
        b"",
        b"\xff\xff",
        b"\x1a\x02\x0a\x00",
    ],
    ids=["empty", "garbage", "a detail of no type"],
)
def test_foreign_details_are_ignored(details: bytes) -> None:
    """Something between the roles may answer with details that are not ours."""
    error = failure(grpc.StatusCode.UNAVAILABLE, "proxy", [("grpc-status-details-bin", details)])
    assert from_rpc_error(error).reason is Reason.WORKER_UNAVAILABLE


async def test_reasons_of_a_newer_version_are_read_by_their_status() -> None:
    """An unknown reason is no crash."""
    context, _ = await over_the_wire(SequoiaError("new"))
    ((key, details),) = context.trailing
    newer = details.replace(b"INTERNAL", b"INTERNEL")
    error = failure(grpc.StatusCode.UNAVAILABLE, "new", [(key, newer)])
    assert from_rpc_error(error).reason is Reason.WORKER_UNAVAILABLE

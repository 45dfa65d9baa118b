"""The failures that a caller of any role can meet, each with its reason and its facts.

Domain code raises these; `sequoia.rpc.errors` holds the one table that maps a reason to a gRPC
status. `metadata` names the field, the limit and whatever else helps the caller to mend the call.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a call failed; stable names that clients may switch on."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"
    MALFORMED_TREE = "MALFORMED_TREE"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    UNKNOWN_SESSION = "UNKNOWN_SESSION"
    STALE_STEP = "STALE_STEP"
    CAPACITY_EXHAUSTED = "CAPACITY_EXHAUSTED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    CLIENT_LIMIT_REACHED = "CLIENT_LIMIT_REACHED"
    NOT_READY = "NOT_READY"
    WORKER_UNAVAILABLE = "WORKER_UNAVAILABLE"
    INCOMPATIBLE_MODELS = "INCOMPATIBLE_MODELS"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"


class SequoiaError(Exception):
    """A failure with a reason, a sentence for people and facts for programs."""

    reason = Reason.INTERNAL

    def __init__(self, message: str, /, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {key: str(value) for key, value in metadata.items()}


class InvalidArgumentError(SequoiaError):
    """A field of the request is outside its limits."""

    reason = Reason.INVALID_ARGUMENT

    def __init__(self, field: str, problem: str, limit: object = "", value: object = "") -> None:
        super().__init__(f"{field}: {problem}", field=field, limit=limit, value=value)


class MalformedMessageError(SequoiaError):
    """The bytes are not a message of the expected type, or a string in it is not valid UTF-8."""

    reason = Reason.MALFORMED_MESSAGE


class MalformedTreeError(SequoiaError):
    """A tree whose arrays contradict each other."""

    reason = Reason.MALFORMED_TREE


class MessageTooLargeError(SequoiaError):
    """A message over the size limit of the server."""

    reason = Reason.MESSAGE_TOO_LARGE


class PromptTooLongError(SequoiaError):
    """The prompt and the new tokens together do not fit the model's context."""

    reason = Reason.PROMPT_TOO_LONG


class UnknownSessionError(SequoiaError):
    """The worker holds no such session: never opened, closed, evicted, or lost with the worker."""

    reason = Reason.UNKNOWN_SESSION


class StaleStepError(SequoiaError):
    """The step or the base length is not the one that the session expects next."""

    reason = Reason.STALE_STEP


class CapacityError(SequoiaError):
    """No room for another session or request, and nothing idle to evict."""

    reason = Reason.CAPACITY_EXHAUSTED


class UnauthenticatedError(SequoiaError):
    """The call does not say which client it is from; the message never repeats what it says."""

    reason = Reason.UNAUTHENTICATED


class ClientLimitError(SequoiaError):
    """The client does already as much as its limits allow."""

    reason = Reason.CLIENT_LIMIT_REACHED


class NotReadyError(SequoiaError):
    """The role is still loading or has not found its workers yet."""

    reason = Reason.NOT_READY


class WorkerUnavailableError(SequoiaError):
    """A worker did not answer within its time."""

    reason = Reason.WORKER_UNAVAILABLE


class IncompatibleModelsError(SequoiaError):
    """Draft and target do not share a tokenizer, or a draft was made for another target."""

    reason = Reason.INCOMPATIBLE_MODELS

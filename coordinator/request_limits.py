"""What every request must keep to, whichever model answers it."""

from __future__ import annotations

from sequoia.errors import InvalidArgumentError
from sequoia.generation import GenerationRequest
from sequoia.randomness import MAX_SEED

STOP_STRING_LIMIT = 16
STOP_STRING_BYTES_LIMIT = 256
STOP_TOKEN_LIMIT = 64
LOGPROB_LIMIT = 20


def check_request(request: GenerationRequest, max_new_tokens: int) -> None:
    """Check the fields that need no model to be checked.

    Args:
        request: as it was asked.
        max_new_tokens: most that a request may ask for.

    Raises:
        InvalidArgumentError: a field is outside its limits.
    """
    _check_stops(request)
    if request.seed is not None and not 0 <= request.seed <= MAX_SEED:
        raise InvalidArgumentError("seed", "must fit 64 bits", MAX_SEED, request.seed)
    if request.logprob_count is not None:
        _require("logprob_count", request.logprob_count, 0, LOGPROB_LIMIT)
    if request.max_new_tokens is not None:
        _require("max_new_tokens", request.max_new_tokens, 1, max_new_tokens)
    if request.text == "":
        raise InvalidArgumentError("text", "the prompt is empty", "at least one token")
    if request.chat is not None and not any(message.content for message in request.chat):
        raise InvalidArgumentError("chat.messages", "the conversation is empty", "one message")


def _check_stops(request: GenerationRequest) -> None:
    for field, count, limit in (
        ("stop_strings", len(request.stop_strings), STOP_STRING_LIMIT),
        ("stop_token_ids", len(request.stop_token_ids), STOP_TOKEN_LIMIT),
    ):
        if count > limit:
            raise InvalidArgumentError(field, f"{count} exceed {limit}", limit, count)
    for index, stop in enumerate(request.stop_strings):
        size = len(stop.encode())
        if not 1 <= size <= STOP_STRING_BYTES_LIMIT:
            raise InvalidArgumentError(
                f"stop_strings[{index}]",
                f"{size} bytes are outside [1, {STOP_STRING_BYTES_LIMIT}]",
                STOP_STRING_BYTES_LIMIT,
                size,
            )


def _require(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidArgumentError(field, f"{value} is outside [{low}, {high}]", high, value)

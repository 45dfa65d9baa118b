from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import Message

from sequoia.errors import InvalidArgumentError, MalformedMessageError
from sequoia.generation import ChatMessage, GenerationRequest
from sequoia.rpc.codec import (
    CLOSE_SESSION,
    GET_INFO,
    GROW_TREE,
    PREFILL,
    PROFILE,
    VERIFY_TREE,
)
from sequoia.rpc.generation_codec import GENERATE
from sequoia.rpc.method import encoded, parse
from sequoia.v1 import draft_pb2, generation_pb2, worker_pb2

NOT_UTF8 = b"caf\xe9"


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a message, as the wire has it."""
    return bytes([number << 3 | 2, len(payload)]) + payload


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (GENERATE, "/sequoia.v1.GenerationService/Generate"),
        (GROW_TREE, "/sequoia.v1.DraftService/GrowTree"),
        (VERIFY_TREE, "/sequoia.v1.TargetService/VerifyTree"),
        (PREFILL, "/sequoia.v1.WorkerService/Prefill"),
        (CLOSE_SESSION, "/sequoia.v1.WorkerService/CloseSession"),
        (PROFILE, "/sequoia.v1.WorkerService/Profile"),
        (GET_INFO, "/sequoia.v1.WorkerService/GetInfo"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_method_has_its_path_on_the_wire(method: object, path: str) -> None:
    """Service and method are those of the proto files."""
    assert getattr(method, "path", None) == path


def test_bytes_become_a_message() -> None:
    """What was serialised is parsed again."""
    message = worker_pb2.CloseSessionRequest(session_id="s")
    assert parse(worker_pb2.CloseSessionRequest, message.SerializeToString()) == message


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x0b", b"\x07"])
def test_bytes_that_are_no_message_are_malformed(data: bytes) -> None:
    """The failure says what was expected."""
    with pytest.raises(MalformedMessageError, match=r"^not a CloseSessionRequest: "):
        parse(worker_pb2.CloseSessionRequest, data)


@pytest.mark.parametrize(
    ("message_type", "data", "name"),
    [
        (worker_pb2.CloseSessionRequest, field(1, NOT_UTF8), "session_id"),
        (generation_pb2.GenerateRequest, field(1, NOT_UTF8), "text"),
        (generation_pb2.GenerateRequest, field(1, b"ok") + field(7, NOT_UTF8), "stop_strings"),
        (
            generation_pb2.GenerateRequest,
            field(2, field(1, field(1, b"user") + field(2, NOT_UTF8))),
            "chat.messages.content",
        ),
        (
            generation_pb2.GenerateRequest,
            field(2, field(1, field(2, b"ok")) + field(1, field(1, NOT_UTF8))),
            "chat.messages.role",
        ),
        (draft_pb2.GrowTreeRequest, field(1, field(1, NOT_UTF8)), "header.session_id"),
    ],
)
def test_a_string_that_is_not_utf8_is_named(
    message_type: type[Message], data: bytes, name: str
) -> None:
    """The caller learns which field to mend, however deep it lies."""
    with pytest.raises(InvalidArgumentError) as caught:
        parse(message_type, data)
    assert caught.value.metadata["field"] == name
    assert caught.value.metadata["limit"] == "UTF-8"


def test_bytes_fields_need_not_be_utf8() -> None:
    """Numbers and unknown fields are left alone."""
    data = field(1, field(3, NOT_UTF8)) + field(15, NOT_UTF8)
    assert parse(draft_pb2.DraftDistribution, data).token_ids.data == NOT_UTF8


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"max_new_tokens": 2**32}, "max_new_tokens"),
        ({"stop_token_ids": (3, -7)}, "stop_token_ids[1]"),
        ({"text": "\udcff"}, "text"),
        ({"text": None, "chat": (ChatMessage("user", "\udcff"),)}, "chat[0].content"),
    ],
    ids=str,
)
def test_what_the_wire_cannot_hold_is_named(fields: dict[str, Any], name: str) -> None:
    """Protobuf says the value alone; the refusal says whose it is."""
    request = replace(GenerationRequest(text="hello"), **fields)
    with pytest.raises(InvalidArgumentError) as refused:
        encoded(GENERATE, request)
    assert refused.value.metadata["field"] == name
    assert refused.value.message.startswith(f"{name}: ")

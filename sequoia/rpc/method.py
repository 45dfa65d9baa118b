"""A gRPC method as both sides need it: its path, and the codecs between bytes and domain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from sequoia.errors import InvalidArgumentError, MalformedMessageError

MESSAGE_LIMIT_BYTES = 16 * 2**20
SMALL_LIMIT_BYTES = 64 * 2**10  # of requests that carry a name or nothing

Request = TypeVar("Request")
Reply = TypeVar("Reply")
AnyMessage = TypeVar("AnyMessage", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Reply]):
    """One method of a service, of one request or several.

    Attributes:
        request_limit_bytes: of one request; a server refuses larger ones.
    """

    service: str
    name: str
    encode_request: Callable[[Request], bytes]
    decode_request: Callable[[bytes], Request]
    encode_reply: Callable[[Reply], bytes]
    decode_reply: Callable[[bytes], Reply]
    request_limit_bytes: int = MESSAGE_LIMIT_BYTES

    @property
    def path(self) -> str:
        """The path on the wire."""
        return f"/{self.service}/{self.name}"


def span_attributes(method: Method[Any, Any]) -> dict[str, str]:
    """What a span of a call says of its method, in OpenTelemetry's words."""
    return {"rpc.system.name": "grpc", "rpc.method": method.path[1:]}


def encoded(method: Method[Request, Any], request: Request) -> bytes:
    """A request's bytes; made before gRPC has it, which would send an empty message on failure.

    Raises:
        InvalidArgumentError: a number or a text does not fit its field, which is named.
    """
    try:
        return method.encode_request(request)
    except ValueError as error:
        parts = _parts(request, "")
        unfit = (path for path, value in parts if not _is_encodable(value, error))
        raise InvalidArgumentError(
            next(unfit, method.name), str(error), "the field's type"
        ) from error


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every value in a request that holds no others, with its path."""
    if is_dataclass(value):
        for field in fields(value):
            inner = f"{path}.{field.name}" if path else field.name
            yield from _parts(getattr(value, field.name), inner)
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _parts(item, f"{path}[{index}]")
    else:
        yield path, value


def _is_encodable(value: Any, error: ValueError) -> bool:
    """Whether a value is not the one that protobuf complains of; it names the value alone."""
    if isinstance(value, str) and isinstance(error, UnicodeEncodeError):
        return value != error.object
    return not isinstance(value, int) or not str(error).endswith(f": {value}")


def parse(message_type: type[AnyMessage], data: bytes) -> AnyMessage:
    """Parse bytes as a message.

    Raises:
        InvalidArgumentError: a string field, which is named, is not valid UTF-8.
        MalformedMessageError: the bytes are no such message.
    """
    try:
        return message_type.FromString(data)
    except DecodeError as error:
        field = _field_with_invalid_text(message_type.DESCRIPTOR, data)
        if field:
            raise InvalidArgumentError(field, "not valid UTF-8", "UTF-8") from error
        name = message_type.DESCRIPTOR.name
        raise MalformedMessageError(f"not a {name}: {error}", expected=name) from error


def nothing(message_type: type[Message], data: bytes) -> None:
    """Parse a message that carries nothing; raises as `parse` does."""
    parse(message_type, data)


def _field_with_invalid_text(descriptor: Any, data: bytes) -> str | None:
    """Path of the first string field whose bytes are not UTF-8."""
    try:
        unknown = UnknownFieldSet(Empty.FromString(data))
    except DecodeError:
        return None
    for item in unknown:  # type: ignore[attr-defined]
        field = descriptor.fields_by_number.get(item.field_number)
        if field is None or not isinstance(item.data, bytes):
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            try:
                item.data.decode("utf-8")
            except UnicodeDecodeError:
                return str(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            inner = _field_with_invalid_text(field.message_type, item.data)
            if inner:
                return f"{field.name}.{inner}"
    return None

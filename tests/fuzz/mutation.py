"""Inputs that are nearly right: valid ones, damaged as bytes or in one of their fields."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

INTEGERS = (
    0,
    1,
    2,
    -1,
    127,
    128,
    511,
    512,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e308, math.inf, -math.inf, math.nan)
TEXTS = (
    "",
    "s",
    "user",
    "\x00",
    "é",
    "🙂" * 9,
    "w1 w2",
    "x" * 700,
    "{{ 7 * 7 }}",
    "\u202e",
    "\r\n",
)
CHUNKS = (
    b"\x00",
    b"\xff" * 9 + b"\x01",
    b"\x80" * 12,
    b"{",
    b"}",
    b'"',
    b"[" * 50,
    b"e999",
    b"-1",
    b"\xc3",
)
REPEATS = (1, 2, 5, 65, 300)
Range = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


def damaged(data: bytes, others: Sequence[bytes], generator: random.Random) -> bytes:
    """The bytes with one to four random faults; some of them from other inputs."""
    result = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        start = generator.randint(0, len(result))
        end = min(start + generator.choice((1, 1, 2, 8, 64)), len(result))
        match generator.randrange(7):
            case 0 if result:
                place = generator.randrange(len(result))
                result[place] ^= 1 << generator.randrange(8)
            case 1 if result:
                result[generator.randrange(len(result))] = generator.randrange(256)
            case 2:
                del result[start:end]
            case 3:
                result[start:start] = result[start:end] * generator.choice((1, 3, 40))
            case 4:
                result[start:start] = generator.choice(CHUNKS)
            case 5:
                other = generator.choice(others)
                cut = generator.randint(0, len(other))
                result[start:end] = other[cut : cut + generator.choice((1, 4, 32))]
            case _:
                result[start:end] = generator.randbytes(end - start)
    return bytes(result)


def alter(message: Message, generator: random.Random) -> None:
    """Give one field of a message, however deep, a value from the edges of its type."""
    fields: Sequence[Any] = message.DESCRIPTOR.fields
    field = generator.choice(fields)
    if field.is_repeated:
        _alter_list(getattr(message, field.name), field, generator)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        inner = getattr(message, field.name)
        if not inner.DESCRIPTOR.fields or generator.random() < 0.1:
            message.ClearField(field.name)
        else:
            inner.SetInParent()
            alter(inner, generator)
    elif generator.random() < 0.1:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _edge(field, generator))


def _alter_list(values: Any, field: FieldDescriptor, generator: random.Random) -> None:
    is_message = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
    choice = generator.random()
    if choice < 0.15:
        del values[:]
    elif choice < 0.3 and values:
        del values[generator.randrange(len(values))]
    elif choice < 0.5 and values:
        values.extend([values[generator.randrange(len(values))]] * generator.choice(REPEATS))
    elif is_message:
        alter(values[generator.randrange(len(values))] if values else values.add(), generator)
    elif values:
        values[generator.randrange(len(values))] = _edge(field, generator)
    else:
        values.append(_edge(field, generator))


def _edge(field: FieldDescriptor, generator: random.Random) -> Any:
    if field.cpp_type in Range:
        low, high = Range[field.cpp_type]
        fitting = [value for value in (*INTEGERS, low, high) if low <= value <= high]
        return generator.choice((*fitting, generator.randint(0, 300)))
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return generator.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return generator.choice(FLOATS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return generator.randbytes(generator.choice((0, 1, 2, 7, 64)))
    return generator.choice(TEXTS)

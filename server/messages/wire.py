"""Bytes to messages, and what is wrong with bytes that are none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from tailorbird.engine.errors import CallerError

M = TypeVar("M", bound=Message)

VARINT, LENGTH_DELIMITED = 0, 2
VARINT_BYTES_MAX = 10


def decode(message_type: type[M], data: bytes) -> M:
    """Return the message of `data`. Raises `CallerError` BAD_UTF8 or BAD_MESSAGE."""
    try:
        return message_type.FromString(data)
    except DecodeError as error:
        name = message_type.DESCRIPTOR.full_name
        if "UTF-8" in str(error):
            raise CallerError(
                "BAD_UTF8", f"expected UTF-8 in every text of {name}, got other bytes; encode texts as UTF-8"
            ) from None
        raise CallerError(
            "BAD_MESSAGE", f"expected {len(data)} bytes of {name}, got bytes that are none; compare the .proto files"
        ) from None


def split_repeated(data: bytes, field_number: int) -> tuple[list[bytes], bytes]:
    """Return the encoded elements of a repeated message, and `data` without them.

    For a batch in which one element cannot be read: the others still can. Raises `CallerError` BAD_MESSAGE, also for a message
    with fields of other wire types than texts, messages and integers.
    """
    elements: list[bytes] = []
    rest = b""
    place = 0
    while place < len(data):
        start = place
        key, place = _varint(data, place)
        if key & 7 == VARINT:
            _, place = _varint(data, place)
            rest += data[start:place]
            continue
        if key & 7 != LENGTH_DELIMITED:
            raise _damaged(place)
        length, place = _varint(data, place)
        if length > len(data) - place:
            raise _damaged(place)
        if key == field_number << 3 | LENGTH_DELIMITED:
            elements.append(data[place : place + length])
        else:
            rest += data[start : place + length]
        place += length
    return elements, rest


def join_repeated(elements: Iterable[bytes], field_number: int) -> bytes:
    """Return encoded elements as a repeated message: what `split_repeated` takes apart."""
    key = _encoded_varint(field_number << 3 | LENGTH_DELIMITED)
    return b"".join([part for element in elements for part in (key, _encoded_varint(len(element)), element)])


def _encoded_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return the number at `place`, and the place after it."""
    value = 0
    for index in range(min(VARINT_BYTES_MAX, len(data) - place)):
        byte = data[place + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, place + index + 1
    raise _damaged(place)


def _damaged(place: int) -> CallerError:
    return CallerError("BAD_MESSAGE", f"expected a field, got other bytes at {place} of the message")

"""The wire between workers and the writer: frames of a length, a kind and the id of a call, over a Unix socket.

A frame is u32 length of the body, u8 kind, u64 id, little endian, then the body. Both ends are of one release: there is no version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from typing import cast

import msgspec

from tailorbird.engine import errors
from tailorbird.engine.errors import InternalError, TailorbirdError
from tailorbird.server.statuses import CallFailed, CallStatus, Code, status_of

HEADER = Struct("<IBQ")
POSITION = Struct("<qq")  # of the log, and the version of the configuration


class Kind(IntEnum):
    """What a frame is: a call, to the writer; the others, from it, say what came of one, or where the state stands."""

    CALL = 1  # u16 length of the method's path, the path, the request
    ANSWER = 2  # the only one, or one of several
    END = 3  # of several
    FAILED = 4  # JSON: class, reason, message
    STANDS = 5  # POSITION
    LEAVING = 6  # the text of why


Receive = Callable[[Kind, int, bytes], None]


class Frames(asyncio.Protocol):
    """One end of a connection: `receive` gets every frame, `lost` is called when the connection ends."""

    def __init__(self, bytes_max: int, receive: Receive, lost: Callable[[], None]) -> None:
        self._bytes_max = bytes_max
        self._receive = receive
        self._lost = lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= HEADER.size:
            length, kind, call_id = HEADER.unpack_from(buffer, start)
            if length > self._bytes_max:
                self.close()
                break
            end = start + HEADER.size + length
            if len(buffer) < end:
                break
            self._receive(Kind(kind), call_id, bytes(buffer[start + HEADER.size : end]))
            start = end
        del buffer[:start]

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._lost()

    def send(self, kind: Kind, call_id: int, *body: bytes) -> None:
        """Send a frame, unless the other side is gone."""
        if self._transport is not None:
            self._transport.write(b"".join((HEADER.pack(sum(map(len, body)), kind, call_id), *body)))

    def close(self) -> None:
        """End the connection once what was sent is on its way."""
        if self._transport is not None:
            self._transport.close()


def pack_call(path: str, request: bytes) -> tuple[bytes, ...]:
    """Return the body of a call, in parts."""
    name = path.encode()
    return len(name).to_bytes(2, "little"), name, request


def unpack_call(body: bytes) -> tuple[str, bytes]:
    """Return path and request of a call."""
    end = 2 + int.from_bytes(body[:2], "little")
    return body[2:end].decode(), body[end:]


# ---- errors ----------------------------------------------------------------------------------------------------------

_CLASSES: dict[str, type[TailorbirdError]] = {
    name: found
    for name, found in vars(errors).items()
    if isinstance(found, type) and issubclass(found, TailorbirdError) and not issubclass(found, InternalError)
}


def pack_error(error: Exception, method: str) -> bytes:
    """Return an error for the other side. Of our own bugs it learns an id, under which this side has logged the rest."""
    if type(error).__name__ in _CLASSES and isinstance(error, TailorbirdError):
        return msgspec.json.encode((type(error).__name__, error.reason, error.message))
    status = status_of(error, method)
    return msgspec.json.encode(("", status.reason, status.message))


def unpack_error(body: bytes) -> Exception:
    """Return the error that was packed, of its class; a bug of the other side as the status callers get."""
    name, reason, message = msgspec.json.decode(body, type=tuple[str, str, str])
    if name:
        return _CLASSES[name](reason, message)
    return CallFailed(CallStatus(Code.INTERNAL, message, reason))

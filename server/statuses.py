"""The one place where errors become gRPC statuses.

What the caller did wrong is told in full. Of our own bugs the caller learns an id, and the log has the rest under it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from enum import IntEnum

from tailorbird.engine.errors import (
    CallerError,
    ConfigurationError,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    ResourceExhausted,
    TailorbirdError,
    Unauthenticated,
    Unavailable,
)

LOG = logging.getLogger(__name__)

REASON_KEY = "tailorbird-reason"
# A message travels percent-encoded in a header; clients refuse header lists above 8 KiB.
MESSAGE_BYTES_MAX = 1_024
DEADLINE_REASON = "DEADLINE_EXCEEDED"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
# When to ask again, by reason, where that is known: a writer that died is back in a second or two.
PUSHBACK_MS = {"WRITER_GONE": 400}


class Code(IntEnum):
    """The gRPC status codes in use, by their numbers on the wire."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class CallStatus:
    """How a call failed: the code, a text for people, and the machine's `reason`, sent as trailing metadata."""

    code: Code
    message: str
    reason: str

    def trailers(self) -> tuple[tuple[str, str], ...]:
        """Return the trailing metadata."""
        pushback_ms = PUSHBACK_MS.get(self.reason)
        if pushback_ms is None:
            return ((REASON_KEY, self.reason),)
        return (REASON_KEY, self.reason), (PUSHBACK_KEY, str(pushback_ms))


class CallFailed(Exception):
    """What a handler raises that knows the status itself."""

    def __init__(self, status: CallStatus) -> None:
        super().__init__(status.message)
        self.status = status


# The first class that fits decides, so a class stands before its base.
_CODES: tuple[tuple[type[TailorbirdError], Code], ...] = (
    (NotFound, Code.NOT_FOUND),
    (Unauthenticated, Code.UNAUTHENTICATED),
    (PermissionDenied, Code.PERMISSION_DENIED),
    (PreconditionFailed, Code.FAILED_PRECONDITION),
    # A call cannot send a configuration, so it is the server's state that does not fit.
    (ConfigurationError, Code.FAILED_PRECONDITION),
    (CallerError, Code.INVALID_ARGUMENT),
    (ResourceExhausted, Code.RESOURCE_EXHAUSTED),
    (Unavailable, Code.UNAVAILABLE),
)


def code_of(error: BaseException) -> Code:
    """Return the code that tells a caller about `error`."""
    if isinstance(error, TailorbirdError):
        if error.reason == DEADLINE_REASON:
            return Code.DEADLINE_EXCEEDED
        for kind, code in _CODES:
            if isinstance(error, kind):
                return code
    if isinstance(error, asyncio.CancelledError):
        return Code.CANCELLED
    return error.status.code if isinstance(error, CallFailed) else Code.INTERNAL


def status_of(error: Exception, method: str = "") -> CallStatus:
    """Return the status that tells a caller about `error`; internal errors are logged under the id the caller gets."""
    code = code_of(error)
    if code is not Code.INTERNAL and isinstance(error, TailorbirdError):
        return CallStatus(code, clipped(error.message), error.reason)
    if isinstance(error, CallFailed):
        return error.status
    incident = secrets.token_hex(8)
    LOG.error("internal error %s in %s", incident, method or "a call", exc_info=error)
    return CallStatus(
        Code.INTERNAL, f"internal error {incident}; the server's log has its cause under this id", "INTERNAL"
    )


def clipped(message: str) -> str:
    """Return `message` cut to `MESSAGE_BYTES_MAX` bytes of UTF-8, at a character."""
    encoded = message.encode("utf-8", "replace")
    if len(encoded) <= MESSAGE_BYTES_MAX:
        return encoded.decode("utf-8")
    return encoded[: MESSAGE_BYTES_MAX - 3].decode("utf-8", "ignore") + "..."

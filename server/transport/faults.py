"""What the native session finds wrong with a request, as the status the caller gets."""

from __future__ import annotations

from typing import Any

from tailorbird.native import http2
from tailorbird.server.statuses import DEADLINE_REASON, CallStatus, Code
from tailorbird.server.transport import ServerLimits

# Refused in HTTP's own terms as well, for whoever asks and does not speak gRPC.
HTTP_STATUSES = {http2.WRONG_METHOD: 405, http2.WRONG_CONTENT_TYPE: 415}


def fault_status(fault: int, detail: Any, limits: ServerLimits) -> CallStatus:
    """Return the status for a FAULT event of `native/http2`."""
    if fault == http2.MESSAGE_TOO_LARGE:
        got = "more once it was decompressed" if detail is None else detail
        return CallStatus(
            Code.RESOURCE_EXHAUSTED,
            f"expected a message of at most message_bytes_max = {limits.message_bytes_max} bytes, got {got}; "
            "send several smaller ones",
            "MESSAGE_TOO_LARGE",
        )
    if fault == http2.HEADERS_TOO_LARGE:
        return CallStatus(
            Code.RESOURCE_EXHAUSTED,
            f"expected at most headers_bytes_max = {limits.connection.headers_bytes_max} bytes of headers, got {detail}; "
            "send less metadata",
            "HEADERS_TOO_LARGE",
        )
    if fault == http2.BUFFERS_FULL:
        return CallStatus(
            Code.RESOURCE_EXHAUSTED,
            f"expected at most buffered_bytes_max = {limits.connection.buffered_bytes_max} bytes of unfinished requests "
            "on one connection; send fewer large requests at once",
            "BUFFERS_FULL",
        )
    return _STATUSES[fault]


DEADLINE = CallStatus(
    Code.DEADLINE_EXCEEDED, "expected an answer within the call's deadline; allow more time", DEADLINE_REASON
)
STOPPING = CallStatus(Code.UNAVAILABLE, "the server stops and its grace time is over; send it again", "STOPPING")
AGED = CallStatus(
    Code.UNAVAILABLE, "the connection is old and its grace time is over; send it again on a new one", "CONNECTION_AGED"
)
CANCELLED = CallStatus(Code.CANCELLED, "the server gave the call up; send it again", "CANCELLED")

_STATUSES = {
    http2.WRONG_METHOD: CallStatus(
        Code.INTERNAL, "expected the HTTP method POST; gRPC has no other, use a gRPC client", "WRONG_METHOD"
    ),
    http2.WRONG_CONTENT_TYPE: CallStatus(
        Code.INVALID_ARGUMENT, "expected content-type application/grpc; use a gRPC client", "WRONG_CONTENT_TYPE"
    ),
    http2.UNKNOWN_PATH: CallStatus(
        Code.UNIMPLEMENTED, "expected a method of this server; its reflection service lists them", "UNKNOWN_METHOD"
    ),
    http2.BAD_TIMEOUT: CallStatus(
        Code.INVALID_ARGUMENT,
        "expected grpc-timeout of 1 to 8 digits and one of H M S m u n, got another",
        "BAD_TIMEOUT",
    ),
    http2.BAD_METADATA: CallStatus(
        Code.INVALID_ARGUMENT, "expected base64 in metadata whose name ends in -bin, got other text", "BAD_METADATA"
    ),
    http2.UNKNOWN_ENCODING: CallStatus(
        Code.UNIMPLEMENTED, "expected grpc-encoding identity, gzip or deflate, got another", "UNKNOWN_ENCODING"
    ),
    http2.BAD_FRAMING: CallStatus(
        Code.INTERNAL, "expected gRPC messages behind 5-byte prefixes, got a bad flag or half a message", "BAD_FRAMING"
    ),
    http2.BAD_COMPRESSION: CallStatus(
        Code.INTERNAL, "expected a message compressed as grpc-encoding says, got other bytes", "BAD_COMPRESSION"
    ),
    http2.WRONG_COUNT: CallStatus(
        Code.INTERNAL, "expected exactly one request message in this call, got none or several", "WRONG_COUNT"
    ),
}

"""What every transport serves: a table from method path to handler, in bytes.

A handler sees a request's bytes and a `CallContext`; it answers with bytes, or raises a `TailorbirdError`, which the
transport turns into a status by `server/statuses.py`. Nothing here knows HTTP/2 or a gRPC library.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """One call as its handler sees it. `deadline_s` is on the clock of `time.monotonic()`, None without a deadline.

    `metadata` holds the caller's pairs in their order; values of keys ending in `-bin` are bytes.
    """

    method: str
    peer: str
    metadata: Metadata = ()
    deadline_s: float | None = None

    def remaining_s(self) -> float | None:
        """Return the seconds left, at least 0, or None without a deadline."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - time.monotonic())


UnaryFunction = Callable[[bytes, CallContext], Awaitable[bytes]]
ClientStreamFunction = Callable[[AsyncIterator[bytes], CallContext], Awaitable[bytes]]
ServerStreamFunction = Callable[[bytes, CallContext], AsyncIterator[bytes]]
BidirectionalFunction = Callable[[AsyncIterator[bytes], CallContext], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Unary:
    """One request, one answer."""

    function: UnaryFunction


@dataclass(frozen=True, slots=True)
class ClientStream:
    """Many requests, one answer."""

    function: ClientStreamFunction


@dataclass(frozen=True, slots=True)
class ServerStream:
    """One request, many answers."""

    function: ServerStreamFunction


@dataclass(frozen=True, slots=True)
class Bidirectional:
    """Many requests, many answers."""

    function: BidirectionalFunction


Handler = Unary | ClientStream | ServerStream | Bidirectional
HandlerTable = Mapping[str, Handler]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """The bounds of the service itself; the engine's are in the configuration under `limits`.

    `message_bytes_max` is large enough for a million candidate ids to arrive and be refused by name.
    """

    message_bytes_max: int = 32 * 1024**2
    calls_max: int = 1_000
    pending_write_bytes_max: int = 256 * 1024**2
    grace_s: float = 10.0

"""What every transport serves: a table from method path to handler, in bytes.

A handler sees a request's bytes and a `CallContext`; it answers with bytes, or raises a `TailorbirdError`, which the
transport turns into a status by `server/statuses.py`. Nothing here knows HTTP/2 or a gRPC library.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(slots=True, kw_only=True)
class CallContext:
    """One call as its handler sees it. `deadline_s` is on the clock of `time.monotonic()`, None without a deadline.

    `metadata` holds the caller's pairs in their order; values of keys ending in `-bin` are bytes. A handler may set up
    to 16 pairs each of `initial`, sent ahead of its first answer, and `trailing`, sent behind the last one of a call
    that succeeds. Whoever lets a call in sets `caller`, the name of its key, `tenant`, and `may_ingest`, whether the key is for
    ingest too; whoever traces it, `trace_id`.
    """

    method: str
    peer: str
    metadata: Metadata = ()
    deadline_s: float | None = None
    initial: Metadata = ()
    trailing: Metadata = ()
    caller: str = ""
    tenant: str = ""
    trace_id: str = ""
    may_ingest: bool = True

    def remaining_s(self) -> float | None:
        """Return the seconds left, at least 0, or None without a deadline."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - time.monotonic())


UnaryFunction = Callable[[bytes, CallContext], Awaitable[bytes]]
ClientStreamFunction = Callable[[AsyncIterator[bytes], CallContext], Awaitable[bytes]]
ServerStreamFunction = Callable[[bytes, CallContext], AsyncIterator[bytes]]
BidirectionalFunction = Callable[[AsyncIterator[bytes], CallContext], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Unary:
    """One request, one answer.

    `prompt` says that it mostly answers without waiting: a transport may then run it up to its first wait outside any
    task, so before that it must not ask for `asyncio.current_task()`, as `asyncio.timeout` does.
    """

    function: UnaryFunction
    prompt: bool = False


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
class ConnectionLimits:
    """The bounds of each connection, and of their number. The native transport keeps them; grpcio has its own.

    Past a rate (`_per_s_max`) the peer is told ENHANCE_YOUR_CALM and its connection ends: `resets` are streams reset by
    it or, for breaking rules, by us (an honest caller resets what is past its deadline, up to `streams_max` at once);
    `idle_frames` are frames that do nothing: empty data, priorities, unknown kinds.
    A request may have `headers_bytes_max` of headers as HTTP/2 weighs them (32 bytes each beside name and value).
    `window_bytes` may arrive on a stream beyond what its handler has taken, and `buffered_bytes_max` of unfinished
    requests on a connection. `drain_bytes` of a stream's answers wait before its handler does. A connection without
    calls ends after `idle_s`, any is asked to end after `age_s`, and
    cut `age_grace_s` later whatever still runs; a peer silent for `keepalive_s` is asked for a sign
    of life and given `keepalive_answer_s`. A TLS handshake may take `handshake_s`.
    """

    connections_max: int = 1_000
    streams_max: int = 100
    headers_bytes_max: int = 16 * 1024
    continuations_max: int = 8
    window_bytes: int = 256 * 1024
    buffered_bytes_max: int = 64 * 1024**2
    drain_bytes: int = 64 * 1024
    resets_per_s_max: int = 1_000
    settings_per_s_max: int = 20
    pings_per_s_max: int = 100
    idle_frames_per_s_max: int = 200
    window_updates_per_s_max: int = 100_000
    idle_s: float = 1_800.0
    age_s: float = 7_200.0
    age_grace_s: float = 60.0
    keepalive_s: float = 60.0
    keepalive_answer_s: float = 20.0
    handshake_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """The bounds of the service itself; the engine's are in the configuration under `limits`.

    `message_bytes_max` is large enough for a million candidate ids to arrive and be refused by name. `calls_max` calls may run
    at once, and on the native transport `waiting_calls_max` more, `waiting_bytes_max` together, wait for their turn. Of each lane
    of the writer (lanes.py) that many bytes may wait; of each worker process `relay_bytes_max` of requests may be on their way
    to the writer.
    """

    message_bytes_max: int = 32 * 1024**2
    calls_max: int = 1_000
    waiting_calls_max: int = 1_000
    waiting_bytes_max: int = 64 * 1024**2
    live_lane_bytes_max: int = 64 * 1024**2
    bulk_lane_bytes_max: int = 256 * 1024**2
    relay_bytes_max: int = 128 * 1024**2
    grace_s: float = 10.0
    connection: ConnectionLimits = field(default_factory=ConnectionLimits)

"""One attempt of a call, and the session all attempts on a connection share. No I/O: both faces of the client drive it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from grpc import StatusCode

from tailorbird.client.errors import CallError, Metadata
from tailorbird.client.options import ChannelOptions
from tailorbird.native import http2_client
from tailorbird.native.http2_client import DONE, FAULT, INITIAL, MESSAGE, timeout_text

PULL_BYTES = 256 * 1024

_HTTP = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
# HTTP/2's error codes (RFC 9113, 7) in gRPC's terms; others are INTERNAL.
_RESETS = {0x7: 14, 0x8: 1, 0xB: 8, 0xC: 7}
_FAULTS = {
    http2_client.MESSAGE_TOO_LARGE: (8, "expected an answer within message_bytes_max, got a larger one"),
    http2_client.BUFFERS_FULL: (8, "expected unfinished answers within buffered_bytes_max, got more"),
    http2_client.HEADERS_TOO_LARGE: (8, "expected headers within headers_bytes_max, got more"),
}


class Outcome(NamedTuple):
    """How an attempt ended, with the faces of a call of grpcio's. `is_unprocessed`: the service certainly did not begin it."""

    code: int
    details: str = ""
    initial: Metadata = ()
    trailing: Metadata = ()
    message: bytes | None = None
    is_unprocessed: bool = False

    def error(self) -> CallError:
        """Return the failure as callers get it."""
        return CallError(self.code, self.details, self.initial, self.trailing)

    def initial_metadata(self) -> Metadata:
        """Return what came ahead of the answer."""
        return self.initial

    def trailing_metadata(self) -> Metadata:
        """Return what came behind it."""
        return self.trailing


class Start(NamedTuple):
    """What an attempt sends first. `deadline_s` is on the clock of `time.monotonic()`; `message` None: they follow."""

    path: bytes
    metadata: list[tuple[bytes, bytes]]
    deadline_s: float | None
    message: bytes | None
    has_one_answer: bool


class Exchange:
    """An attempt in progress: what arrived of it. `wake`, where set, is called whenever more did."""

    __slots__ = ("inbox", "initial", "outcome", "stream_id", "wake")

    def __init__(self) -> None:
        self.stream_id = 0
        self.inbox: deque[bytes] = deque()
        self.initial: Metadata | None = None
        self.outcome: Outcome | None = None
        self.wake: Callable[[], None] | None = None

    def has_news(self) -> bool:
        """Tell whether an answer waits to be taken, or none will come any more."""
        return bool(self.inbox) or self.outcome is not None

    def end(self, outcome: Outcome) -> None:
        """Note how it ended, and tell."""
        self.outcome = outcome
        if self.initial is None:
            self.initial = outcome.initial
        if self.wake is not None:
            self.wake()


class Link:
    """One connection's session and its exchanges. Not safe for threads: whoever drives it takes turns."""

    def __init__(self, authority: str, options: ChannelOptions) -> None:
        self._exchanges: dict[int, Exchange] = {}
        self.session = http2_client.ClientSession(
            authority=authority.encode("idna" if not authority.isascii() else "ascii"),
            scheme=b"http" if options.tls is None else b"https",
            agent=options.user_agent.encode(),
            message_bytes_max=options.message_bytes_max,
            header_bytes_max=options.headers_bytes_max,
            window_bytes=options.window_bytes,
            buffered_bytes_max=options.buffered_bytes_max,
            drain_bytes=options.drain_bytes,
        )
        self.is_lost = False

    @property
    def in_flight(self) -> int:
        """How many attempts run."""
        return len(self._exchanges)

    @property
    def is_open(self) -> bool:
        """Whether more calls may begin here."""
        return not self.is_lost and self.session.can_request

    @property
    def is_idle(self) -> bool:
        """Whether more calls may begin here and none runs."""
        return not (self._exchanges or self.is_lost) and self.session.can_request

    def begin(self, start: Start) -> Exchange:
        """Begin an attempt; its bytes are then to be pulled."""
        exchange = Exchange()
        timeout = None if start.deadline_s is None else timeout_text(start.deadline_s - time.monotonic())
        exchange.stream_id = self.session.request(
            start.path,
            start.metadata,
            timeout,
            start.message,
            single=start.has_one_answer,
            last=start.message is not None,
        )
        self._exchanges[exchange.stream_id] = exchange
        return exchange

    def receive(self, data: bytes, now_s: float) -> bool:
        """Take what came; every exchange concerned learns of it. Tell whether the peer still speaks HTTP/2, else all is lost."""
        try:
            events = self.session.receive(data, now_s)
        except http2_client.ProtocolError as error:
            self.lose(f"expected HTTP/2 of the service, got something else: {error}")
            return False
        self._dispatch(events)
        return True

    def pull(self) -> bytes:
        """Return bytes to write now, b"" if there are none."""
        data = self.session.pull(PULL_BYTES)
        if events := self.session.more_events():
            self._dispatch(events)
        return data

    def cancel(self, exchange: Exchange, outcome: Outcome) -> None:
        """Give an attempt up, if it still runs."""
        if exchange.outcome is None:
            self.session.cancel(exchange.stream_id)
            self._exchanges.pop(exchange.stream_id, None)
            exchange.end(outcome)

    def lose(self, why: str) -> None:
        """The connection is gone, and so is every attempt on it."""
        self.is_lost = True
        exchanges, self._exchanges = self._exchanges, {}
        for exchange in exchanges.values():
            exchange.end(Outcome(StatusCode.UNAVAILABLE.value[0], why))

    def _dispatch(self, events: object) -> None:
        for event in events:  # type: ignore[attr-defined]
            kind = event[0]
            exchange = self._exchanges.get(event[1])
            if exchange is None:
                continue
            if kind == DONE:
                del self._exchanges[event[1]]
                exchange.end(outcome_of(event))
            elif kind == FAULT:
                code, text = _FAULTS.get(event[2], (13, "expected an answer as gRPC frames it, got a broken one"))
                self.cancel(exchange, Outcome(code, text))
            else:
                if kind == MESSAGE:
                    exchange.inbox.append(event[2])
                elif kind == INITIAL:
                    exchange.initial = event[2]
                if exchange.wake is not None:
                    exchange.wake()


def outcome_of(event: tuple[object, ...]) -> Outcome:
    """Return how a DONE event says that a call ended."""
    _, _, http_status, code, details, initial, trailing, message, error_code = event
    if code == 0 and error_code == 0:
        return Outcome(0, "", initial, trailing, message)  # type: ignore[arg-type]
    if code != -1:
        return Outcome(code, details, initial, trailing)  # type: ignore[arg-type]
    if error_code:
        refused = error_code == http2_client.REFUSED_STREAM
        text = f"expected an answer, got the stream reset with HTTP/2's error {error_code}"
        return Outcome(_RESETS.get(error_code, 13), text, is_unprocessed=refused)  # type: ignore[call-overload]
    if http_status == 200:
        return Outcome(2, "expected a grpc-status behind the answer, got none")
    return Outcome(_HTTP.get(http_status, 2), f"expected HTTP status 200, got {http_status}")  # type: ignore[call-overload]

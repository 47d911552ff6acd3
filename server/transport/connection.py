"""One client's connection to the native transport: a session of native/http2 between a socket and the handlers."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any, Protocol, cast

from tailorbird.engine.errors import ResourceExhausted
from tailorbird.native import http2
from tailorbird.server.statuses import CallStatus, status_of
from tailorbird.server.transport import (
    Bidirectional,
    CallContext,
    ClientStream,
    Handler,
    HandlerTable,
    ServerLimits,
    ServerStream,
    Unary,
)
from tailorbird.server.transport.backlog import Backlog
from tailorbird.server.transport.call import Call, run_promptly, wire_pairs
from tailorbird.server.transport.faults import AGED, CANCELLED, DEADLINE, HTTP_STATUSES, STOPPING, fault_status

LOG = logging.getLogger(__name__)

PULL_BYTES = 64 * 1024
# How long a connection that ends may take to swallow its last bytes, and a peer to confirm that it knows of the end.
LINGER_S = 2.0
# The same of a peer that does not read while it has no calls, as blocking clients do: what it sends later it may repeat elsewhere.
SILENT_S = 0.4
NOT_HTTP2 = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\ncontent-type: text/plain\r\n\r\n"
    b"expected HTTP/2, got HTTP/1; this port serves gRPC, use a gRPC client\n"
)
HTTP1_METHODS = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"OPTIONS ", b"DELETE ", b"PATCH ", b"CONNECT ", b"TRACE ")


@dataclass(frozen=True, slots=True)
class Method:
    """An entry of the handler table as CALL events carry it."""

    path: str
    handler: Handler


def session_methods(table: HandlerTable) -> dict[bytes, tuple[bool, Method]]:
    """Return a handler table as a session wants it: by path, with whether a call has exactly one request."""
    return {
        path.encode(): (isinstance(handler, Unary | ServerStream), Method(path, handler))
        for path, handler in table.items()
    }


class ConnectionOwner(Protocol):
    """The server as its connections see it."""

    limits: ServerLimits
    methods: dict[bytes, tuple[bool, Method]]
    call_count: int
    backlog: Backlog

    def admit(self, connection: Connection) -> bool: ...

    def release(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """Reads, dispatches and writes; whatever is ready to be written goes out in one piece."""

    def __init__(self, owner: ConnectionOwner) -> None:
        limits = owner.limits.connection
        self._owner = owner
        self._backlog = owner.backlog
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._calls: dict[int, Call] = {}
        self._is_paused = False
        self._is_flush_due = False
        self._unsent_bytes = 0
        self._pings_out = 0
        self._ping_s = 0.0
        self._drain_s: float | None = None
        self._aged_s: float | None = None
        self._has_refused = False
        self._is_silent = False
        self._closing_s: float | None = None
        self._began_s = self._heard_s = self._busy_s = time.monotonic()
        self.session = http2.ServerSession(
            owner.methods,
            owner.backlog.intake,
            message_bytes_max=owner.limits.message_bytes_max,
            streams_max=limits.streams_max,
            header_bytes_max=limits.headers_bytes_max,
            window_bytes=limits.window_bytes,
            buffered_bytes_max=limits.buffered_bytes_max,
            drain_bytes=limits.drain_bytes,
            continuations_max=limits.continuations_max,
            resets_per_s_max=limits.resets_per_s_max,
            settings_per_s_max=limits.settings_per_s_max,
            pings_per_s_max=limits.pings_per_s_max,
            idle_frames_per_s_max=limits.idle_frames_per_s_max,
            window_updates_per_s_max=limits.window_updates_per_s_max,
        )

    # ---- what asyncio calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        tls = transport.get_extra_info("ssl_object")
        # HTTP/2 over TLS must be agreed on (RFC 9113, 3.2).
        if not self._owner.admit(self) or (tls is not None and tls.selected_alpn_protocol() != "h2"):
            self._transport.abort()
            return
        self._peer = _peer_text(transport.get_extra_info("peername"))
        self._transport.set_write_buffer_limits(high=PULL_BYTES)
        # Our settings wait for the peer's first bytes: one that speaks HTTP/1 then gets an answer it can read.

    def data_received(self, data: bytes) -> None:
        if self._closing_s is not None:
            return
        self._heard_s = now_s = time.monotonic()
        try:
            events = self.session.receive(data, now_s)
        except http2.ProtocolError as error:
            self._reject(error, data)
            return
        if events:
            self._dispatch(events, now_s)
        self.flush()

    def pause_writing(self) -> None:
        # What the peer does not read, it need not ask for: its requests wait in its own socket.
        self._is_paused = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        for call in list(self._calls.values()):
            call.end(None)
        self._owner.release(self)

    # ---- events ------------------------------------------------------------------------------------------------------

    def _dispatch(self, events: list[tuple[Any, ...]] | tuple[()], now_s: float) -> None:
        for event in events:
            kind, stream_id = event[0], event[1]
            if kind == http2.CALL:
                if event[5] is None:
                    self.begin(event, now_s)
                else:
                    self._backlog.run(self, event, now_s)
            elif kind == http2.FAULT:
                self._refuse(stream_id, event[2], event[3])
            elif kind == http2.PONG:
                self._pings_out -= 1
                if self._drain_s is not None and self._pings_out == 0 and not self._has_refused:
                    self._has_refused = True
                    self.session.refuse_new()
            elif (call := self._calls.get(stream_id)) is not None:
                if kind == http2.MESSAGE:
                    call.receive(event[2])
                elif kind == http2.END:
                    call.receive(None)
                elif kind == http2.DRAINED:
                    call.wake()
                else:
                    call.end(None)

    def waits(self, stream_id: int) -> bool:
        """Tell whether a call that has not begun still can: its peer is there and has not given it up."""
        return self._transport is not None and self.session.has(stream_id)

    def begin(self, event: tuple[Any, ...], read_s: float) -> None:
        """Begin a call that was read at `read_s`, unless its deadline is over."""
        _, stream_id, method, metadata, timeout_ns, message = event
        owner = self._owner
        if owner.call_count >= owner.limits.calls_max:
            busy = ResourceExhausted(
                "TOO_MANY_CALLS",
                f"expected at most calls_max = {owner.limits.calls_max} calls at once; send it again a little later",
            )
            self.finish(stream_id, status_of(busy))
            return
        deadline_s = None
        if timeout_ns >= 0:
            deadline_s = read_s + timeout_ns * 1e-9
            # Calls that came before have taken their time.
            if time.monotonic() >= deadline_s:
                self.finish(stream_id, DEADLINE)
                return
        context = CallContext(method=method.path, peer=self._peer, metadata=metadata, deadline_s=deadline_s)
        handler = method.handler
        if isinstance(handler, Unary) and handler.prompt:
            self._answer_promptly(stream_id, handler, cast("bytes", message), context)
            return
        call = self._open(stream_id, context)
        request = cast("bytes", message)
        match handler:
            case Unary(unary):
                work = call.answer_once(lambda: unary(request, context))
            case ServerStream(server_stream):
                work = call.answer_each(lambda: server_stream(request, context))
            case ClientStream(client_stream):
                work = call.answer_once(lambda: client_stream(call.requests(), context))
            case Bidirectional(bidirectional):
                work = call.answer_each(lambda: bidirectional(call.requests(), context))
        call.run(work, context.remaining_s())

    def _answer_promptly(self, stream_id: int, handler: Unary, message: bytes, context: CallContext) -> None:
        try:
            answer = run_promptly(handler.function(message, context))  # type: ignore[arg-type]
        except asyncio.CancelledError:
            self.finish(stream_id, CANCELLED)
        except Exception as error:  # every failure becomes a status; the caller never sees a Python text
            self.finish(stream_id, status_of(error, context.method))
        else:
            if isinstance(answer, bytes):
                self.answer(stream_id, answer, context)
            else:
                rest = answer
                call = self._open(stream_id, context)
                call.run(call.answer_once(lambda: rest, is_new=False), context.remaining_s())

    def _open(self, stream_id: int, context: CallContext) -> Call:
        call = self._calls[stream_id] = Call(self, stream_id, context)
        self._owner.call_count += 1
        return call

    def _refuse(self, stream_id: int, fault: int, detail: Any) -> None:
        status = fault_status(fault, detail, self._owner.limits)
        if fault in HTTP_STATUSES:
            self.session.refuse(stream_id, HTTP_STATUSES[fault], status.code, status.message.encode())
        elif (call := self._calls.get(stream_id)) is not None:
            call.end(status)
        else:
            self.finish(stream_id, status)

    def _reject(self, error: http2.ProtocolError, data: bytes) -> None:
        """Tell a peer that does not speak HTTP/2 so, and close."""
        LOG.info("closing a connection: %s", str(error))  # one of libnghttp2's own texts, nothing of the peer's
        if self._transport is None:
            return
        if error.is_magic and data.startswith(HTTP1_METHODS):
            self._transport.write(NOT_HTTP2)
            self.close()
            return
        self.session.terminate(True)
        self.flush()
        self.close()

    # ---- what calls use ----------------------------------------------------------------------------------------------

    def answer(self, stream_id: int, message: bytes, context: CallContext) -> None:
        """Send the only answer of a call that succeeds."""
        if not (context.initial or context.trailing):
            self.session.answer(stream_id, message)
            return
        self.session.announce(stream_id, wire_pairs(context.initial))
        self.session.send(stream_id, message)
        self.session.finish(stream_id, 0, None, wire_pairs(context.trailing))

    def finish(self, stream_id: int, status: CallStatus) -> None:
        """End a call with a failure."""
        trailers = [(name.encode(), value.encode()) for name, value in status.trailers()]
        self.session.finish(stream_id, status.code, status.message.encode(), trailers)

    def forget(self, call: Call) -> None:
        """A call's task has ended."""
        self._owner.call_count -= 1
        if self._calls.get(call.stream_id) is call:
            del self._calls[call.stream_id]
        self._busy_s = time.monotonic()

    def flush_soon(self) -> None:
        """Flush once what is ready now has run, so that answers of one moment share a write."""
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is ready, as far as the peer reads."""
        self._is_flush_due = False
        session, transport = self.session, self._transport
        if transport is None or self._closing_s is not None:
            return
        while not self._is_paused:
            try:
                data = session.pull(PULL_BYTES)
            except http2.ProtocolError:
                LOG.exception("closing a connection")
                transport.abort()
                return
            if not data:
                break
            transport.write(data)
            if events := session.more_events():
                self._dispatch(events, time.monotonic())
            if len(data) < PULL_BYTES:
                break
        if session.is_over and (self._has_refused or self._drain_s is None):
            self.close()

    # ---- the connection's life ---------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Ask the peer to open no more calls; end once it knows, and those that are open have been answered."""
        if self._drain_s is None and self._closing_s is None:
            self._drain_s = time.monotonic()
            self.session.announce_end()
            self._ping(self._drain_s)
            self.flush()
            self._check_in(SILENT_S)

    def give_up(self, status: CallStatus = STOPPING) -> None:
        """Tell the callers that wait why, and close."""
        for call in list(self._calls.values()):
            call.end(status)
        self.flush()  # libnghttp2 sends nothing behind the GOAWAY of a termination
        self.session.terminate(False)
        self.flush()
        self.close()

    def close(self) -> None:
        """Close once what was written has gone out; calls that still run are cancelled."""
        if self._closing_s is None and self._transport is not None:
            self._closing_s = time.monotonic()
            if self._transport.can_write_eof():
                # The peer closes then, or `check` does: closing on bytes it has just sent would reset what it has still to read.
                self._transport.write_eof()
            else:
                self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def check(self, now_s: float) -> None:
        """Look after silence, idleness and age; called every so often."""
        if self._transport is None:
            return
        unsent_bytes = self._transport.get_write_buffer_size()
        if unsent_bytes != self._unsent_bytes:
            # A slow reader is alive; only one that takes nothing may be gone.
            self._unsent_bytes, self._heard_s = unsent_bytes, now_s
        if self.session.stream_count:
            self._busy_s = now_s
        if self._closing_s is not None:
            if now_s - self._closing_s > (SILENT_S if self._is_silent else LINGER_S):
                self.abort()
        elif self._aged_s is not None and now_s - self._aged_s > self._limits.age_grace_s:
            LOG.info("closing a connection: calls still run age_grace_s after it was asked to end")
            self.give_up(AGED)
        elif self._drain_s is not None and not self._has_refused:
            if now_s - self._drain_s > (LINGER_S if self.session.stream_count else SILENT_S):
                self._is_silent = True
                self._refuse_new()
                self._check_in(SILENT_S)
        elif now_s - self._heard_s > self._limits.keepalive_s + self._limits.keepalive_answer_s:
            LOG.info("closing a connection: no sign of life")
            self.abort()
        elif now_s - self._heard_s > self._limits.keepalive_s:
            if now_s - self._ping_s > self._limits.keepalive_s:
                self._ping(now_s)
                self.flush()
        elif now_s - self._busy_s > self._limits.idle_s or now_s - self._began_s > self._limits.age_s:
            if self._aged_s is None:
                self._aged_s = now_s
            self.drain()

    def _check_in(self, wait_s: float) -> None:
        """Look again a little after `wait_s`; what it finds by then may be nothing."""
        self._loop.call_later(wait_s + 0.01, lambda: self.check(time.monotonic()))

    def _ping(self, now_s: float) -> None:
        self._ping_s = now_s
        self._pings_out += 1
        self.session.ping()

    def _refuse_new(self) -> None:
        self._has_refused = True
        self.session.refuse_new()
        self.flush()


def _peer_text(name: Any) -> str:
    """Return an address as grpcio writes it."""
    if isinstance(name, tuple) and len(name) == 4:
        return f"ipv6:[{name[0]}]:{name[1]}"
    if isinstance(name, tuple) and len(name) == 2:
        return f"ipv4:{name[0]}:{name[1]}"
    return f"unix:{name or ''}"

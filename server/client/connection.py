"""A blocking connection that any number of threads call on: one of those that wait reads for all of them."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from tailorbird.client.exchange import Exchange, Link, Outcome, Start
from tailorbird.client.options import ChannelOptions
from tailorbird.client.target import Target

RECEIVE_BYTES = 32 * 1024  # larger ones are mapped and unmapped by each call
# A connection that was read a moment ago is taken to be as it was; where it is not, the call is tried again elsewhere.
IDLE_S = 0.005
DEADLINE = Outcome(4, "the deadline passed before the answer came")
CANCELLED = Outcome(1, "the caller gave the call up")
_IN, _OUT = select.POLLIN, select.POLLOUT


class ConnectFailed(Exception):
    """No connection could be made; the text says to where and why."""


class Connection:
    """A socket and its link. Everything but waiting happens under one lock, and no operation on the socket blocks."""

    def __init__(self, target: Target, options: ChannelOptions, timeout_s: float) -> None:
        self._socket = connect(target, options, timeout_s)
        self.link = Link(target.authority, options)
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._has_reader = False
        self._waiting_count = 0
        self._heard_s = 0.0
        self._unsent = b""
        # What the one that reads must know of while it waits: a call given up, bytes the socket did not take.
        self._nudged, self._nudge = socket.socketpair()
        self._nudged.setblocking(False)
        self._nudge.setblocking(False)
        self._socket_fd = self._socket.fileno()
        self._poll = select.poll()
        self._poll.register(self._socket, _IN)
        self._poll.register(self._nudged, _IN)
        self._polled = _IN

    def begin(self, start: Start) -> Exchange | None:
        """Begin an attempt, or return None where the service takes no more calls here."""
        with self._lock:
            return self._begin(start)

    def call(self, start: Start) -> Outcome | None:
        """Make an attempt that has one answer, or return None where the service takes no more calls here."""
        with self._lock:
            exchange = self._begin(start)
            return None if exchange is None else self._finish(exchange, start.deadline_s)

    def finish(self, exchange: Exchange, deadline_s: float | None) -> Outcome:
        """Wait for the end of an attempt that has one answer, or end it at its deadline."""
        with self._lock:
            return self._finish(exchange, deadline_s)

    def send(self, exchange: Exchange, message: bytes) -> bool:
        """Queue one request more; tell whether to wait for `has_room`."""
        with self._lock:
            must_wait = self.link.session.send(exchange.stream_id, message)
            self._flush()
        return must_wait

    def has_room(self, exchange: Exchange) -> bool:
        """Tell whether few enough requests of a call wait to be sent."""
        return exchange.outcome is not None or not self.link.session.must_wait(exchange.stream_id)

    def end(self, exchange: Exchange) -> None:
        """Tell that no request follows."""
        with self._lock:
            self.link.session.end(exchange.stream_id)
            self._flush()

    def take(self, exchange: Exchange) -> bytes:
        """Take an answer that came, and make room for another."""
        with self._lock:
            message = exchange.inbox.popleft()
            self.link.session.take(exchange.stream_id)
            self._flush()
        return message

    def cancel(self, exchange: Exchange, outcome: Outcome = CANCELLED) -> None:
        """Give an attempt up, if it still runs."""
        with self._lock:
            self._cancel(exchange, outcome)

    def wait(self, is_ready: Callable[[], bool], deadline_s: float | None) -> bool:
        """Return whether `is_ready` came true before the deadline; read for everybody if nobody does."""
        with self._lock:
            while not is_ready():
                if not self._turn(deadline_s):
                    return False
        return True

    def close(self) -> None:
        """End what runs, and the socket."""
        with self._lock:
            if not self.link.is_lost:
                self.link.session.leave()
                self._flush()
            self._lose("the channel was closed")

    # ---- under the lock ----------------------------------------------------------------------------------------------

    def _begin(self, start: Start) -> Exchange | None:
        # A connection that nobody reads may have been told to end, or be asked for a sign of life.
        if not self._has_reader and time.monotonic() - self._heard_s > IDLE_S and self._poll.poll(0):
            self._receive()
        if not self.link.is_open:
            return None
        exchange = self.link.begin(start)
        self._flush()
        return exchange

    def _finish(self, exchange: Exchange, deadline_s: float | None) -> Outcome:
        try:
            while exchange.outcome is None:
                if not self._turn(deadline_s):
                    self._cancel(exchange, DEADLINE)
        except BaseException:  # KeyboardInterrupt among them: nobody waits for this answer any more
            self._cancel(exchange, CANCELLED)
            raise
        return exchange.outcome

    def _cancel(self, exchange: Exchange, outcome: Outcome) -> None:
        self.link.cancel(exchange, outcome)
        self._flush()
        self._tell()

    def _turn(self, deadline_s: float | None) -> bool:
        """Let what comes next come: read for everybody, or wait for who reads. Tell whether the deadline is still ahead."""
        remaining_s = None if deadline_s is None else deadline_s - time.monotonic()
        if remaining_s is not None and remaining_s <= 0:
            return False
        if self._has_reader:
            self._waiting_count += 1
            self._news.wait(remaining_s)
            self._waiting_count -= 1
            return True
        self._has_reader = True
        try:
            self._read(None if remaining_s is None else max(1.0, remaining_s * 1_000))
        finally:
            self._has_reader = False
            if self._waiting_count:
                self._news.notify_all()
            if self.link.is_lost:
                self._close_sockets()
        return True

    def _read(self, timeout_ms: float | None) -> None:
        """Wait for the socket once, without the lock, and do what it is ready for."""
        if self.link.is_lost:
            return
        wanted = _IN | _OUT if self._unsent else _IN
        if wanted != self._polled:
            self._poll.modify(self._socket, wanted)
            self._polled = wanted
        self._lock.release()
        try:
            # Bytes that TLS has decrypted already make no socket ready; _receive leaves none of them behind.
            ready = self._poll.poll(timeout_ms)
        finally:
            self._lock.acquire()
        for fd, events in ready:
            if fd != self._socket_fd:
                with suppress(BlockingIOError):
                    self._nudged.recv(RECEIVE_BYTES)
            elif events & ~_OUT:
                self._receive()
        if ready and self._unsent:
            self._flush()

    def _receive(self) -> None:
        """Read all that is there."""
        while not self.link.is_lost:
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                self._lose(f"the connection broke: {error.strerror or error}")
                return
            if not data:
                self._lose("the service closed the connection")
                return
            self._heard_s = time.monotonic()
            if not self.link.receive(data, self._heard_s):
                self._lose("")
                return
            self._flush()
            if len(data) < RECEIVE_BYTES and not isinstance(self._socket, ssl.SSLSocket):
                return

    def _flush(self) -> None:
        """Write what is to be written, as far as the socket takes it; whoever waits next writes the rest."""
        while not self.link.is_lost:
            data = self._unsent or self.link.pull()
            if not data:
                return
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                sent = 0
            except OSError as error:
                self._lose(f"the connection broke: {error.strerror or error}")
                return
            self._unsent = data[sent:]
            if self._unsent:
                self._tell()
                return

    def _tell(self) -> None:
        """Let those who wait look again."""
        if self._has_reader:
            with suppress(BlockingIOError):
                self._nudge.send(b"!")
        self._news.notify_all()

    def _lose(self, why: str) -> None:
        if not self.link.is_lost:
            self.link.lose(why)
        self._tell()
        if not self._has_reader:
            self._close_sockets()

    def _close_sockets(self) -> None:
        for end in (self._socket, self._nudge, self._nudged):
            with suppress(OSError):
                end.close()


def connect(target: Target, options: ChannelOptions, timeout_s: float) -> socket.socket:
    """Return a connected socket that does not block, through TLS where that was asked for. Raises `ConnectFailed`."""
    try:
        if target.path:
            plain = socket.socket(socket.AF_UNIX)
            plain.settimeout(timeout_s)
            plain.connect(target.path)
        else:
            plain = socket.create_connection((target.host, target.port), timeout_s)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected: socket.socket = plain
        if options.tls is not None:
            connected = options.tls.context().wrap_socket(plain, server_hostname=options.tls.server_name or target.host)
        connected.setblocking(False)
    except OSError as error:  # ssl.SSLError is one
        raise ConnectFailed(f"expected a connection to {target.authority}, got: {error.strerror or error}") from error
    return connected

"""A connection on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

from tailorbird.client.connection import ConnectFailed
from tailorbird.client.exchange import Exchange, Link, Outcome, Start
from tailorbird.client.options import ChannelOptions
from tailorbird.client.target import Target


class AsyncConnection(asyncio.Protocol):
    """A transport and its link; whatever is ready to be written in one turn of the loop goes out in one piece."""

    def __init__(self, target: Target, options: ChannelOptions) -> None:
        self._loop = asyncio.get_running_loop()
        self.link = Link(target.authority, options)
        self._transport: asyncio.Transport | None = None
        self._is_paused = False
        self._is_flush_due = False

    @classmethod
    async def open(cls, target: Target, options: ChannelOptions, timeout_s: float) -> AsyncConnection:
        """Return a connected one. Raises `ConnectFailed`."""
        loop = asyncio.get_running_loop()
        tls = None if options.tls is None else options.tls.context()
        name = None if options.tls is None else options.tls.server_name or target.host
        try:
            async with asyncio.timeout(timeout_s):
                if target.path:
                    _, made = await loop.create_unix_connection(
                        lambda: cls(target, options), target.path, ssl=tls, server_hostname=name
                    )
                else:
                    _, made = await loop.create_connection(
                        lambda: cls(target, options), target.host, target.port, ssl=tls, server_hostname=name
                    )
        except OSError as error:  # TimeoutError and ssl.SSLError are among them
            text = error.strerror or str(error) or type(error).__name__
            raise ConnectFailed(f"expected a connection to {target.authority}, got: {text}") from error
        return made

    def begin(self, start: Start) -> Exchange:
        """Begin an attempt."""
        exchange = self.link.begin(start)
        self._flush_soon()
        return exchange

    def send(self, exchange: Exchange, message: bytes) -> bool:
        """Queue one request more; tell whether to wait for `has_room`."""
        must_wait = self.link.session.send(exchange.stream_id, message)
        self._flush_soon()
        return must_wait

    def has_room(self, exchange: Exchange) -> bool:
        """Tell whether few enough requests of a call wait to be sent."""
        return exchange.outcome is not None or not self.link.session.must_wait(exchange.stream_id)

    def end(self, exchange: Exchange) -> None:
        """Tell that no request follows."""
        self.link.session.end(exchange.stream_id)
        self._flush_soon()

    def take(self, exchange: Exchange) -> bytes:
        """Take an answer that came, and make room for another."""
        message = exchange.inbox.popleft()
        self.link.session.take(exchange.stream_id)
        self._flush_soon()
        return message

    def cancel(self, exchange: Exchange, outcome: Outcome) -> None:
        """Give an attempt up, if it still runs."""
        self.link.cancel(exchange, outcome)
        self._flush_soon()

    def close(self) -> None:
        """End what runs, and the transport once it has written."""
        if not self.link.is_lost:
            self.link.session.leave()
            self._flush()
            self.link.lose("the channel was closed")
        if self._transport is not None:
            self._transport.close()

    # ---- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        self._transport = cast(asyncio.Transport, transport)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Read, and answer what the protocol itself asks for."""
        if not self.link.receive(data, self._loop.time()) and self._transport is not None:
            self._transport.close()
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell every attempt."""
        self.link.lose(f"the connection broke: {error}" if error else "the service closed the connection")

    def pause_writing(self) -> None:
        """The socket is full."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """It has room again."""
        self._is_paused = False
        self._flush()

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        while not (self._is_paused or self.link.is_lost or self._transport is None):
            data = self.link.pull()
            if not data:
                return
            self._transport.write(data)


class News:
    """Waits for an exchange to change."""

    def __init__(self, exchange: Exchange) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiters: list[asyncio.Future[None]] = []
        exchange.wake = self._wake

    async def wait(self, is_ready: Callable[[], bool], deadline_s: float | None) -> bool:
        """Return whether `is_ready` came true before the deadline, which is on the clock of `time.monotonic()`."""
        timer: asyncio.TimerHandle | None = None
        if deadline_s is not None and not is_ready():
            timer = self._loop.call_later(deadline_s - time.monotonic() + 0.001, self._wake)
        try:
            while not is_ready():
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    return False
                waiter = self._loop.create_future()
                self._waiters.append(waiter)
                await waiter
        finally:
            if timer is not None:
                timer.cancel()
        return True

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

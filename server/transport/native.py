"""The native transport: any handler table over HTTP/2 framed by libnghttp2, on the event loop itself.

No call changes threads and none waits in a queue of ours: bytes are read, the handler runs, its answer is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

from tailorbird.engine.errors import CallerError
from tailorbird.server.transport import HandlerTable, ServerLimits
from tailorbird.server.transport.connection import LINGER_S, Connection, Method, session_methods

BACKLOG = 1_024
# The shortest of the times a connection is looked after is noticed at most a quarter late, and never more often than that.
CHECK_S_MIN, CHECK_S_MAX = 0.02, 1.0


class NativeServer:
    """Serves one handler table on one address. `start` returns the port; `stop` lets calls in flight finish."""

    def __init__(self, table: HandlerTable, limits: ServerLimits) -> None:
        self.limits = limits
        self.methods: dict[bytes, tuple[bool, Method]] = session_methods(table)
        self.call_count = 0
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        self._listeners: list[asyncio.Server] = []
        self._checking: asyncio.Task[None] | None = None

    async def start(self, address: str) -> int:
        """Bind `host:port` (port 0: any) and serve. Raises `CallerError` LISTEN_FAILED when it cannot be had."""
        loop = asyncio.get_running_loop()
        try:
            sockets = _bound(address)
        except OSError as error:
            raise CallerError(
                "LISTEN_FAILED",
                f"expected a free address to listen on, got {address}: {error}; choose another with --listen",
            ) from None
        for each in sockets:
            self._listeners.append(await loop.create_server(lambda: Connection(self), sock=each, backlog=BACKLOG))
        self._checking = loop.create_task(self._check())
        port: int = sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Refuse new calls, wait for those in flight for the grace time, then cancel them."""
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.drain()
        if not await self._emptied(self.limits.grace_s):
            for connection in list(self._connections):
                connection.give_up()
            if not await self._emptied(LINGER_S):
                for connection in list(self._connections):
                    connection.abort()
                await self._emptied(LINGER_S)
        if self._checking is not None:
            self._checking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._checking

    def admit(self, connection: Connection) -> bool:
        """Count a new connection, unless there are too many."""
        if len(self._connections) >= self.limits.connection.connections_max:
            return False
        self._connections.add(connection)
        return True

    def release(self, connection: Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    async def _emptied(self, timeout_s: float) -> bool:
        self._empty.clear()
        if self._connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout_s)
        return not self._connections

    async def _check(self) -> None:
        limits = self.limits.connection
        shortest_s = min(limits.idle_s, limits.age_s, limits.keepalive_s, limits.keepalive_answer_s)
        while True:
            await asyncio.sleep(min(max(shortest_s / 4, CHECK_S_MIN), CHECK_S_MAX))
            now_s = time.monotonic()
            for connection in list(self._connections):
                connection.check(now_s)


def _bound(address: str) -> list[socket.socket]:
    """Return listening sockets on every address of a host, all on one port. Raises OSError."""
    host, _, port_text = address.rpartition(":")
    host, port = host.strip("[]"), int(port_text)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, where in dict.fromkeys(found):
            listener = socket.create_server(
                (str(where[0]), port), family=family, backlog=BACKLOG, dualstack_ipv6=where[0] == "::"
            )
            sockets.append(listener)
            port = listener.getsockname()[1]
    except OSError:
        for each in sockets:
            each.close()
        raise
    for each in sockets:
        each.setblocking(False)
    return sockets

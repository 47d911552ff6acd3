"""The native transport: any handler table over HTTP/2 framed by libnghttp2, on the event loop itself.

No call changes threads: bytes are read, the handler runs, its answer is written. Where more is read than can be run, calls
wait in the one queue of `backlog`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from pathlib import Path

from tailorbird.engine.errors import CallerError
from tailorbird.server.transport import HandlerTable, ServerLimits
from tailorbird.server.transport.backlog import Backlog
from tailorbird.server.transport.connection import LINGER_S, Connection, Method, session_methods
from tailorbird.server.transport.listeners import BACKLOG, PLAIN, UNIX, ListenOptions, bound, listen_failed

LOG = logging.getLogger(__name__)

# The shortest of the times a connection is looked after is noticed at most a quarter late, and never more often than that.
CHECK_S_MIN, CHECK_S_MAX = 0.02, 1.0
# In which connections that were accepted just before the listeners closed become known, so that they are drained too.
SETTLE_S = 0.01


class NativeServer:
    """Serves one handler table on one address. `start` returns the port; `stop` lets calls in flight finish."""

    def __init__(self, table: HandlerTable, limits: ServerLimits, listen: ListenOptions = PLAIN) -> None:
        self.limits = limits
        self._listen_options = listen
        self._sockets: list[socket.socket] = []
        self._tls_stamp: object = None
        # Of a Unix socket that is ours; an inherited one may serve others still.
        self._path: Path | None = None
        self.methods: dict[bytes, tuple[bool, Method]] = session_methods(table)
        self.call_count = 0
        self.backlog = Backlog(limits)
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        self._listeners: list[asyncio.Server] = []
        self._checking: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self, address: str) -> int:
        """Bind an address as of `listeners.bound` (port 0: any) and serve; return the port, 0 of a Unix socket.

        Raises `CallerError` LISTEN_FAILED when it cannot be had, BAD_TLS_FILES.
        """
        tls = self._listen_options.tls
        self._tls_stamp = None if tls is None else tls.stamp()
        context = None if tls is None else tls.context()
        try:
            self._sockets = bound(address, reuse_port=self._listen_options.reuse_port)
        except OSError as error:
            raise listen_failed(address, error) from None
        if address.startswith(UNIX):
            self._path = Path(address.removeprefix(UNIX))
        self._listeners = await self._listen(context)
        self._checking = asyncio.get_running_loop().create_task(self._check())
        name = self._sockets[0].getsockname()
        port: int = name[1] if isinstance(name, tuple) else 0
        return port

    async def _listen(self, context: ssl.SSLContext | None) -> list[asyncio.Server]:
        """Accept on the bound sockets; each listener has a descriptor of its own, so that one can follow another."""
        loop = asyncio.get_running_loop()
        handshake_s = None if context is None else self.limits.connection.handshake_s
        return [
            await loop.create_server(
                lambda: Connection(self),
                sock=each.dup(),
                backlog=BACKLOG,
                ssl=context,
                ssl_handshake_timeout=handshake_s,
            )
            for each in self._sockets
        ]

    async def _reload(self) -> None:
        """Take new TLS files for new connections; open ones go on, and so does the old certificate if these are bad."""
        tls = self._listen_options.tls
        if tls is None or self._stopping or (stamp := tls.stamp()) == self._tls_stamp:
            return
        self._tls_stamp = stamp
        try:
            context = tls.context()
        except CallerError as error:
            LOG.error("the TLS files changed and cannot be used, the former ones stay: %s", error)
            return
        former, self._listeners = self._listeners, await self._listen(context)
        for listener in former:
            listener.close()
        LOG.info("the TLS files changed: new connections get the new ones")

    async def stop(self) -> None:
        """Refuse new calls, wait for those in flight for the grace time, then cancel them."""
        self._stopping = True
        for listener in self._listeners:
            listener.close()
        for each in self._sockets:
            each.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        await asyncio.sleep(SETTLE_S)
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
        if self._stopping:  # It came as the listeners closed.
            asyncio.get_running_loop().call_soon(connection.drain)
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
            self.backlog.tell(now_s)
            await self._reload()

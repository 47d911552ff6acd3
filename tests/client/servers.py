"""Servers for the client's tests: real transports on loops of their own threads, and a socket that says what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

import uvloop

from tailorbird.server.transport import HandlerTable, ServerLimits
from tailorbird.server.transport.grpcio import GrpcioServer
from tailorbird.server.transport.listeners import ListenOptions
from tailorbird.server.transport.native import NativeServer

T = TypeVar("T")
LIMITS = ServerLimits(message_bytes_max=8_000_000, grace_s=5)


class Server(Protocol):
    """A transport's server."""

    async def start(self, address: str) -> int: ...

    async def stop(self) -> None: ...


class Running:
    """A server that runs on a loop of its own thread until `stop`."""

    def __init__(
        self,
        table: HandlerTable,
        kind: str = "native",
        address: str = "127.0.0.1:0",
        sockets: ListenOptions | None = None,
        limits: ServerLimits = LIMITS,
    ) -> None:
        self._table, self._kind, self._address, self._sockets, self._limits = table, kind, address, sockets, limits
        self._loop = uvloop.new_event_loop() if kind == "native" else asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"{kind}-server")
        self._thread.start()
        self._server: Server | None = None
        self.port = self._do(self._begin)
        self.target = address if address.startswith("unix:") else f"127.0.0.1:{self.port}"

    async def _begin(self) -> int:
        make = NativeServer if self._kind == "native" else GrpcioServer
        server: Server = make(self._table, self._limits, self._sockets or ListenOptions())
        self._server = server
        return await server.start(self._address)

    async def _end(self) -> None:
        if self._server is not None:
            await self._server.stop()

    def _do(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(30)

    def stop(self) -> None:
        """Stop it and its thread; idempotent."""
        if self._thread.is_alive():
            self._do(self._end)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


@contextlib.contextmanager
def running(table: HandlerTable, kind: str = "native", **options: object) -> Iterator[Running]:
    """Run a server for a block."""
    server = Running(table, kind, **options)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def scripted(speak: Callable[[socket.socket], None]) -> Iterator[str]:
    """Accept connections, each handed to `speak` in a thread, and give the target; for peers that misbehave."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(10)
                    speak(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()

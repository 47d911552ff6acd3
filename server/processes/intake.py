"""The writer's end: answers the calls that workers relay, and tells every worker where the state stands."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from tailorbird.engine import Engine
from tailorbird.engine.errors import InternalError
from tailorbird.server.lanes import Lane
from tailorbird.server.processes.frames import POSITION, Frames, Kind, pack_error, unpack_call
from tailorbird.server.processes.relay import frame_bytes_max
from tailorbird.server.transport import (
    Bidirectional,
    CallContext,
    Handler,
    HandlerTable,
    ServerLimits,
    ServerStream,
    Unary,
)
from tailorbird.server.writer import GroupWriter

# No method of the API: what a worker has served.
SERVINGS = "servings"
PEER = "relay"


class Intake:
    """Serves a handler table to workers. Made and used on one event loop.

    How much it has to hold is bounded by the workers' `relay_bytes_max`, and by the writer's lanes behind the handlers.
    """

    def __init__(self, engine: Engine, writer: GroupWriter, table: HandlerTable, limits: ServerLimits) -> None:
        self._engine = engine
        self._writer = writer
        self._table = {**table, SERVINGS: Unary(self._write_servings)}
        self._bytes_max = frame_bytes_max(limits)
        self._connections: set[Frames] = set()
        self._calls: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._stands = (0, 0)
        self._server: asyncio.Server | None = None
        writer.positions.listen(self._tell)

    async def start(self, path: Path) -> None:
        """Take connections at a Unix socket; one that a killed writer left is replaced."""
        self._stands = self._engine.position, self._engine.configuration_version
        path.unlink(missing_ok=True)
        self._server = await asyncio.get_running_loop().create_unix_server(self._connection, str(path))
        os.chmod(path, 0o600)

    async def stop(self, grace_s: float, why: str) -> None:
        """Take no more connections; wait until no worker is there and no call runs; then tell the rest why, and go."""
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._emptied(), grace_s)
        for connection in list(self._connections):
            connection.send(Kind.LEAVING, 0, why.encode())
            connection.close()

    async def _emptied(self) -> None:
        while self._connections or self._calls:
            self._empty.clear()
            await self._empty.wait()

    def _connection(self) -> Frames:
        connection = Frames(
            self._bytes_max,
            lambda kind, call_id, body: self._receive(connection, kind, call_id, body),
            lambda: self._lose(connection),
        )
        self._connections.add(connection)
        # Once it is there; the transport is made after the protocol.
        asyncio.get_running_loop().call_soon(lambda: connection.send(Kind.STANDS, 0, POSITION.pack(*self._stands)))
        return connection

    def _lose(self, connection: Frames) -> None:
        self._connections.discard(connection)
        self._empty.set()

    def _tell(self) -> None:
        stands = self._engine.position, self._engine.configuration_version
        if stands != self._stands:
            self._stands = stands
            packed = POSITION.pack(*stands)
            for connection in self._connections:
                connection.send(Kind.STANDS, 0, packed)

    def _receive(self, connection: Frames, kind: Kind, call_id: int, body: bytes) -> None:
        assert kind is Kind.CALL
        task = asyncio.get_running_loop().create_task(self._answer(connection, call_id, *unpack_call(body)))
        self._calls.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        self._empty.set()

    async def _answer(self, connection: Frames, call_id: int, path: str, request: bytes) -> None:
        context = CallContext(method=path, peer=PEER)
        try:
            async for answer in _answers(self._table[path], request, context):
                connection.send(Kind.ANSWER, call_id, answer)
            connection.send(Kind.END, call_id)
        except Exception as error:  # told to the worker, which tells its caller
            connection.send(Kind.FAILED, call_id, pack_error(error, path))

    async def _write_servings(self, request: bytes, context: CallContext) -> bytes:
        taken = msgspec.msgpack.decode(request, type=list[tuple[int, bytes]])
        position = await self._writer.call(lambda: self._engine.write_servings(taken), len(request), Lane.LIVE)
        return POSITION.pack(position, 0)


async def _answers(handler: Handler, request: bytes, context: CallContext) -> AsyncIterator[bytes]:
    """Yield what a handler answers to one request; of a stream in both directions that is its whole life here."""
    match handler:
        case Unary(unary):
            yield await unary(request, context)
        case ServerStream(server_stream):
            async for answer in server_stream(request, context):
                yield answer
        case Bidirectional(bidirectional):
            async for answer in bidirectional(_only(request), context):
                yield answer
        case _:
            raise InternalError("NOT_RELAYED", f"expected a method that is relayed, got {context.method}")


async def _only(request: bytes) -> AsyncIterator[bytes]:
    yield request

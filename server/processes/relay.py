"""The worker's end: hands calls that write to the writer, and hears from it where the state stands."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

from tailorbird.engine.errors import ResourceExhausted, Unavailable
from tailorbird.server.lanes import WRITES
from tailorbird.server.processes.frames import POSITION, Frames, Kind, pack_call, unpack_error
from tailorbird.server.transport import (
    Bidirectional,
    CallContext,
    Handler,
    HandlerTable,
    ServerLimits,
    ServerStream,
    Unary,
)

LOG = logging.getLogger(__name__)

AGAIN_S = 0.05  # between attempts to reach the writer
CALL_BYTES = 256  # that a call counts beside its request

_END = None  # of a stream's answers


def method_of(path: str) -> MethodDescriptor:
    """Return the descriptor of a method by its path."""
    service, _, name = path[1:].partition("/")
    return descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]


def frame_bytes_max(limits: ServerLimits) -> int:
    """Return the largest frame between workers and writer: a message as the portable transport takes it, and its path."""
    return 2 * limits.message_bytes_max + 64 * 1024


class Relay:
    """Calls on the writer, by whatever connection there is. Made and used on one event loop.

    `stands` is told of each new position of the log and version of the configuration; `connected` of each new connection.
    """

    def __init__(
        self, path: Path, limits: ServerLimits, stands: Callable[[int, int], None], connected: Callable[[], None]
    ) -> None:
        self._path = path
        self._bytes_max = limits.relay_bytes_max
        self._frame_bytes_max = frame_bytes_max(limits)
        self._stands = stands
        self._connected = connected
        self._frames: Frames | None = None
        self._lost = asyncio.Event()
        self._calls: dict[int, asyncio.Queue[bytes | Exception | None]] = {}
        self._next_id = 0
        self._why_gone = "not there yet"
        self.waiting_bytes = 0

    @property
    def is_connected(self) -> bool:
        """Whether there is a writer."""
        return self._frames is not None

    async def run(self) -> None:
        """Be connected, or try to, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            self._lost.clear()
            try:
                _, frames = await loop.create_unix_connection(
                    lambda: Frames(self._frame_bytes_max, self._receive, self._lose), str(self._path)
                )
            except OSError:
                await asyncio.sleep(AGAIN_S)
                continue
            self._frames, self._why_gone = frames, "it has ended"
            self._connected()
            try:
                await self._lost.wait()
            finally:
                frames.close()
            LOG.warning("the writer is gone (%s): decisions go on, writes are refused until it is back", self._why_gone)

    async def call(self, path: str, request: bytes) -> bytes:
        """Return the writer's answer. Raises what it raised; `Unavailable` WRITER_GONE, `ResourceExhausted` RELAY_FULL."""
        async with contextlib.aclosing(self.stream(path, request)) as answers:
            async for answer in answers:
                return answer
        raise self._gone()

    async def stream(self, path: str, request: bytes) -> AsyncGenerator[bytes, None]:
        """Yield the writer's answers. Raises as `call`."""
        if self._frames is None:
            raise self._gone()
        size_bytes = len(request) + CALL_BYTES
        if self._calls and self.waiting_bytes + size_bytes > self._bytes_max:
            raise ResourceExhausted(
                "RELAY_FULL",
                f"expected at most relay_bytes_max = {self._bytes_max} bytes on their way from this worker to the writer, got "
                f"{self.waiting_bytes + size_bytes}; send it again a little later",
            )
        self._next_id += 1
        call_id = self._next_id
        answers: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self._calls[call_id] = answers
        self.waiting_bytes += size_bytes
        try:
            self._frames.send(Kind.CALL, call_id, *pack_call(path, request))
            while (answer := await answers.get()) is not _END:
                if isinstance(answer, Exception):
                    raise answer
                yield answer
        finally:
            # Whoever gave up does not stop the write: the writer's answer is dropped.
            del self._calls[call_id]
            self.waiting_bytes -= size_bytes

    def table(self) -> HandlerTable:
        """Return handlers that relay every method that writes."""
        return {path: self._relayed(path) for path in WRITES}

    def _relayed(self, path: str) -> Handler:
        method = method_of(path)

        async def unary(request: bytes, context: CallContext) -> bytes:
            return await self.call(path, request)

        async def server_stream(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
            async for answer in self.stream(path, request):
                yield answer

        # Each request of a stream has one answer, so each is a call of its own: it outlives a writer that is restarted.
        async def bidirectional(requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
            async for request in requests:
                yield await self.call(path, request)

        if method.client_streaming:
            return Bidirectional(bidirectional)
        return ServerStream(server_stream) if method.server_streaming else Unary(unary)

    def _receive(self, kind: Kind, call_id: int, body: bytes) -> None:
        if kind is Kind.STANDS:
            self._stands(*POSITION.unpack(body))
        elif kind is Kind.LEAVING:
            self._why_gone = body.decode(errors="replace")
        elif (answers := self._calls.get(call_id)) is not None:
            answers.put_nowait(body if kind is Kind.ANSWER else _END if kind is Kind.END else unpack_error(body))

    def _lose(self) -> None:
        if self._frames is not None:
            self._frames = None
            for answers in self._calls.values():
                answers.put_nowait(self._gone("; it may have been written all the same"))
        self._lost.set()

    def _gone(self, detail: str = "") -> Unavailable:
        return Unavailable(
            "WRITER_GONE",
            f"expected a writer, got none: {self._why_gone}{detail}; send it again, which is safe, in a moment",
        )

"""Servers with known answers, on threads of their own: ours with any handlers, and one that sends what a script says."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator

from tailorbird.bench.load import Target
from tailorbird.server.transport import HandlerTable, ServerLimits
from tailorbird.server.transport.choice import NATIVE, make_server
from tests.http2_frames import END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, Frame, block, data, frame, frames_of

PATH = "/t.S/Known"
START_S = 30.0
TURNS = 10
# What a frame is answered by; None closes the connection.
Script = Callable[[Frame], bytes | None]


def target(port: int, *messages: bytes) -> Target:
    return Target(port, [(PATH, message) for message in messages or (b"asked",)])


# The port of a server that listens, and what ends it.
Serving = tuple[int, Callable[[], Awaitable[None]]]


@contextlib.contextmanager
def running(serve: Callable[[], Awaitable[Serving]]) -> Iterator[int]:
    """Run a server on a thread's loop until the block is left; yield its port."""
    ports: list[int] = []
    ready = threading.Event()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def whole() -> None:
        ending = asyncio.Event()
        loops.append((asyncio.get_running_loop(), ending))
        try:
            port, stop = await serve()
            ports.append(port)
        finally:
            ready.set()
        await ending.wait()
        # Whoever connected last is taken first: asyncio leaves connections open that it accepted as their server closed.
        await _turns()
        await stop()
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            _, pending = await asyncio.wait(others, timeout=START_S)
            assert not pending, pending
        await _turns()

    thread = threading.Thread(target=asyncio.run, args=(whole(),), daemon=True)
    thread.start()
    try:
        assert ready.wait(START_S)
        assert ports, "the server did not start"
        yield ports[0]
    finally:
        loop, ending = loops[0]
        loop.call_soon_threadsafe(ending.set)
        thread.join(START_S)
        assert not thread.is_alive()


async def _turns() -> None:
    """Let the loop do what is ready, and what follows from that."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


@contextlib.contextmanager
def handlers(table: HandlerTable, limits: ServerLimits | None = None) -> Iterator[int]:
    """Serve handlers on the native transport; yield the port."""

    async def serve() -> Serving:
        server, _ = make_server(NATIVE, table, limits or ServerLimits(grace_s=0.1))
        return await server.start("127.0.0.1:0"), server.stop

    with running(serve) as port:
        yield port


@contextlib.contextmanager
def scripted(script: Script) -> Iterator[int]:
    """Serve a script: after our settings, each frame of the peer is answered by what it returns."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(frame(SETTINGS))
            received = b""
            while more := await reader.read(1 << 16):
                received += more
                if not received.startswith(PREFACE[: len(received)]) and received.startswith(b"PRI"):
                    raise AssertionError(received)
                begun = received.removeprefix(PREFACE)
                frames = frames_of(begun)
                received = begun[sum(9 + len(each.payload) for each in frames) :]
                for each in frames:
                    answer = script(each)
                    if answer is None:
                        writer.transport.abort()
                        return
                    writer.write(answer)
                await writer.drain()
        writer.close()

    async def serve() -> Serving:
        server = await asyncio.start_server(converse, "127.0.0.1", 0)

        async def stop() -> None:
            server.close()

        return server.sockets[0].getsockname()[1], stop

    with running(serve) as port:
        yield port


def answer(
    stream_id: int, *trailers: tuple[str, str], message: bytes | None = b"\0\0\0\0\0", http: str = "200"
) -> bytes:
    """Return a whole answer: headers, a message or none, trailers."""
    head = frame(HEADERS, END_HEADERS, stream_id, block((":status", http), ("content-type", "application/grpc")))
    body = b"" if message is None else data(stream_id, message)
    return head + body + frame(HEADERS, END_HEADERS | END_STREAM, stream_id, block(*trailers))

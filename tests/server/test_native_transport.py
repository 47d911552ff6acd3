"""The native transport against peers no gRPC library would be: each gets its answer, and nobody else notices."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc.aio
import pytest

from tailorbird.server.transport import (
    Bidirectional,
    CallContext,
    ConnectionLimits,
    HandlerTable,
    ServerLimits,
    ServerStream,
    Unary,
)
from tests.http2_frames import (
    ACK,
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    block,
    data,
    frame,
    frames_of,
    hello,
    message,
    request,
    request_block,
    unary,
)

pytest.importorskip("tailorbird.native.http2", reason="libnghttp2 was missing when the kernels were built")
from tailorbird.server.transport.native import NativeServer

LONG_S = 30.0
PATH = "/t.S/Echo"
LIMITS = ServerLimits(message_bytes_max=100_000, grace_s=0.2)


async def echo(request: bytes, context: CallContext) -> bytes:
    return request


async def wait(request: bytes, context: CallContext) -> bytes:
    await asyncio.Event().wait()
    return b""


async def shout(requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
    async for each in requests:
        yield each.upper()


TABLE: HandlerTable = {PATH: Unary(echo, prompt=True), "/t.S/Wait": Unary(wait), "/t.S/Shout": Bidirectional(shout)}


class Peer:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.received = b""

    async def send(self, sent: bytes) -> None:
        self.writer.write(sent)
        await self.writer.drain()

    async def until(self, found: Callable[[Frame], bool]) -> Frame:
        """Read up to a frame; a closed connection fails."""
        while True:
            for each in frames_of(self.received):
                if found(each):
                    return each
            more = await asyncio.wait_for(self.reader.read(65_536), LONG_S)
            assert more, f"closed after {frames_of(self.received)}"
            self.received += more

    async def answer(self, stream_id: int = 1) -> bytes:
        """Return what the server's headers for a stream hold, whether its answer has a body or not."""
        await self.until(lambda each: each.stream_id == stream_id and bool(each.flags & END_STREAM))
        return b"".join(each.payload for each in frames_of(self.received) if each.stream_id == stream_id)

    async def rest(self) -> list[Frame]:
        """Return all frames up to the end of the connection."""
        try:
            while more := await asyncio.wait_for(self.reader.read(65_536), LONG_S):
                self.received += more
        except ConnectionError:
            pass
        return frames_of(self.received)

    async def goaway(self) -> int:
        """Return the error code of the last GOAWAY before the end."""
        return [each.error_code for each in await self.rest() if each.kind == GOAWAY][-1]


Connect = Callable[[], Awaitable[Peer]]


def against(
    work: Callable[[Connect, NativeServer], Awaitable[None]], limits: ServerLimits = LIMITS, table: HandlerTable = TABLE
) -> None:
    """Run `work` against a server that serves a healthy client before, during and after."""

    async def main() -> None:
        server = NativeServer(table, limits)
        port = await server.start("127.0.0.1:0")
        peers: list[Peer] = []

        async def connect() -> Peer:
            peers.append(Peer(*await asyncio.open_connection("127.0.0.1", port)))
            return peers[-1]

        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            talk = channel.stream_stream("/t.S/Shout")()
            await talk.write(b"a")
            assert await talk.read() == b"A"
            await work(connect, server)
            assert await channel.unary_unary(PATH)(b"b", timeout=LONG_S) == b"b"
            await talk.write(b"c")
            assert await talk.read() == b"C"
            await talk.done_writing()
            assert await talk.read() is grpc.aio.EOF
        for peer in peers:
            peer.writer.close()
        await asyncio.wait_for(server.stop(), LONG_S)
        assert server.call_count == 0

    asyncio.run(main())


def limited(**changes: float) -> ServerLimits:
    return ServerLimits(message_bytes_max=100_000, grace_s=0.2, connection=ConnectionLimits(**changes))  # type: ignore[arg-type]


# ---- not HTTP/2 ------------------------------------------------------------------------------------------------------


def test_http_1_is_told_which_protocol_this_is() -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        await peer.send(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        await peer.rest()
        assert peer.received.startswith(b"HTTP/1.1 505 ")
        assert b"gRPC" in peer.received

    against(work)


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 100, b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n", b"\xff"]
)
def test_garbage_gets_a_goaway(garbage: bytes) -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        await peer.send(garbage)
        assert await peer.goaway() == PROTOCOL_ERROR

    against(work)


@pytest.mark.parametrize(
    "bad",
    [
        frame(DATA, 0, 1, b"x"),
        frame(HEADERS, END_HEADERS, 2, request_block(PATH)),
        frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),
        frame(SETTINGS, 0, 0, b"x"),
        frame(PING, 0, 0, b"x"),
        frame(WINDOW_UPDATE, 0, 0, b"\x00\x00\x00\x00"),
        frame(CONTINUATION, END_HEADERS, 1, b""),
        b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
        frame(HEADERS, 0, 1, request_block(PATH)) + frame(PING, 0, 0, b"12345678"),
    ],
    ids=["data", "even", "hpack", "settings", "ping", "window", "continuation", "size", "interrupted"],
)
def test_a_malformed_frame_gets_a_goaway(bad: bytes) -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        await peer.send(hello() + bad)
        assert await peer.goaway() > 0

    against(work)


# ---- HTTP/2, not gRPC ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (request_block(PATH, base=(("content-type", "application/json"),)), (b"415", b"\x013")),
        (request_block(PATH, base=(("content-type", "application/grpc-web"),)), (b"415", b"\x013")),
        (request_block(PATH, base=()), (b"415", b"\x013")),
        (request_block(PATH, method="GET"), (b"405", b"\x0213")),
        (request_block("/t.S/Nothing"), (b"\x0212",)),
        (request_block(PATH, ("grpc-timeout", "soon")), (b"\x013",)),
        (request_block(PATH, ("grpc-encoding", "snappy")), (b"\x0212",)),
        (request_block(PATH, ("a-bin", "!")), (b"\x013",)),
        (request_block(PATH, ("x", "y" * 16_000)), (b"\x018",)),
        (request_block(PATH, ("grpc-timeout", "0n")), (b"\x014",)),
    ],
    ids=["json", "grpc-web", "untyped", "get", "path", "timeout", "encoding", "metadata", "headers", "late"],
)
def test_a_request_that_breaks_a_rule_gets_its_status(sent: bytes, expected: tuple[bytes, ...]) -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        body = data(1, message(b"x"), end=True)
        head = frame(HEADERS, 0, 1, sent[:10_000]) + frame(CONTINUATION, END_HEADERS, 1, sent[10_000:])
        await peer.send(hello() + head + body + unary(3, PATH, b"still here"))
        # Status values are short, so that HPACK leaves them readable: a length and the digits.
        answer = await peer.answer()
        assert all(part in answer for part in expected), answer
        assert message(b"still here") in await peer.answer(3)

    against(work, limited(headers_bytes_max=8_192))


def test_content_types_with_a_suffix_are_grpc() -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        await peer.send(hello())
        for n, kind in enumerate(["application/grpc+proto", "application/grpc;charset=utf-8"]):
            head = request_block(PATH, base=(("content-type", kind),))
            await peer.send(frame(HEADERS, END_HEADERS, 2 * n + 1, head) + data(2 * n + 1, message(b"a"), end=True))
            assert message(b"a") in await peer.answer(2 * n + 1)

    against(work)


def test_an_oversized_message_is_refused_before_it_has_arrived() -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        await peer.send(hello() + request(1, PATH) + data(1, message(b"x" * 100_001)[:100]))
        assert b"\x018" in await peer.answer()
        reset = await peer.until(lambda each: each.kind == RST_STREAM)
        assert reset.error_code == 0
        await peer.send(data(1, b"x" * 1_000) + unary(3, PATH, b"ok"))
        assert message(b"ok") in await peer.answer(3)

    against(work)


def test_a_prefix_split_over_frames_and_packets_is_put_together() -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        await peer.send(hello() + request(1, PATH))
        for byte in message(b"abc"):
            await peer.send(data(1, bytes([byte])))
            await asyncio.sleep(0.002)
        await peer.send(data(1, b"", end=True))
        assert message(b"abc") in await peer.answer()

    against(work)


# ---- floods ----------------------------------------------------------------------------------------------------------

ZERO_WINDOW = b"\x00\x00\x00\x00"


def cancelled(n: int) -> bytes:
    return request(2 * n + 1, "/t.S/Wait") + frame(RST_STREAM, 0, 2 * n + 1, CANCEL.to_bytes(4, "big"))


def made_to_reset(n: int) -> bytes:
    return unary(2 * n + 1, "/t.S/Wait", b"") + frame(WINDOW_UPDATE, 0, 2 * n + 1, ZERO_WINDOW)


@pytest.mark.parametrize(
    ("flood", "limits"),
    [
        (lambda n: cancelled(n), limited(resets_per_s_max=50)),
        (lambda n: made_to_reset(n), limited(resets_per_s_max=50)),
        (lambda n: frame(PING, 0, 0, b"12345678"), limited(pings_per_s_max=50)),
        (lambda n: frame(SETTINGS), limited(settings_per_s_max=50)),
        (lambda n: frame(PRIORITY, 0, 1, b"\x00\x00\x00\x03\x10"), limited(idle_frames_per_s_max=50)),
        (lambda n: (request(1, "/t.S/Shout") if n == 0 else b"") + data(1, b""), limited(idle_frames_per_s_max=50)),
        (lambda n: frame(0x4A, 0, 0, b"what?"), limited(idle_frames_per_s_max=50)),
        (lambda n: frame(WINDOW_UPDATE, 0, 0, b"\x00\x00\x00\x01"), limited(window_updates_per_s_max=50)),
    ],
    ids=["resets", "made-resets", "pings", "settings", "priorities", "empty-data", "unknown", "window-updates"],
)
def test_a_flood_ends_its_connection(flood: Callable[[int], bytes], limits: ServerLimits) -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        await peer.send(hello())
        # The server's reader sees several pieces, as from a peer that goes on while it is answered.
        for n in range(400):
            try:
                await peer.send(flood(n))
            except ConnectionError:
                break
            if n % 20 == 0:
                await asyncio.sleep(0)
        codes = [each.error_code for each in await peer.rest() if each.kind == GOAWAY]
        # [] where the kernel drops what a reset connection had received; a zero window for a stream that is closed by then is
        # an error of the connection, RFC 9113 6.9.
        assert codes in ([ENHANCE_YOUR_CALM], [PROTOCOL_ERROR], [])
        await asyncio.sleep(0)

    against(work, limits)


@pytest.mark.parametrize("part", [b"", block(("x", "y"))], ids=["empty", "small"])
def test_continuations_without_end_end_the_connection(part: bytes) -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        await peer.send(hello() + frame(HEADERS, 0, 1, request_block(PATH)) + frame(CONTINUATION, 0, 1, part) * 20)
        assert await peer.goaway() > 0

    against(work)


def test_an_hpack_bomb_is_refused_in_bounded_memory() -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        # One entry of the dynamic table, 3,900 bytes, and then a byte for each time it is said again: 15 KB for 58 MB.
        value = b"y" * 3_900
        entry = b"\x40\x01x" + b"\x7f" + bytes([(len(value) - 127) & 0x7F | 0x80, (len(value) - 127) >> 7]) + value
        bomb = request_block(PATH) + entry + b"\xbe" * 10_000
        await peer.send(hello() + frame(HEADERS, END_HEADERS, 1, bomb) + data(1, message(b"a"), end=True))
        assert b"\x018" in await peer.answer() or GOAWAY in {each.kind for each in frames_of(peer.received)}

    tracemalloc.start()
    try:
        against(work)
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024**2
    finally:
        tracemalloc.stop()


def test_more_streams_than_the_limit_are_refused() -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        await peer.send(hello() + b"".join(unary(n, "/t.S/Wait", b"") for n in (1, 3, 5)))
        reset = await peer.until(lambda each: each.kind == RST_STREAM)
        assert (reset.stream_id, reset.error_code) == (5, REFUSED_STREAM)

    against(work, limited(streams_max=2))


def test_more_connections_than_the_limit_are_closed() -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        first, second = await connect(), await connect()
        await first.send(hello() + unary(1, PATH, b"a"))
        assert message(b"a") in await first.answer()
        assert await second.rest() == []

    against(work, limited(connections_max=2))


# ---- time ------------------------------------------------------------------------------------------------------------


def test_a_vanished_peer_is_noticed_and_its_call_cancelled() -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        await peer.send(hello() + unary(1, "/t.S/Wait", b""))
        assert (await peer.until(lambda each: each.kind == PING)).flags == 0
        assert server.call_count == 2
        await peer.rest()
        assert server.call_count == 1

    against(work, limited(keepalive_s=0.1, keepalive_answer_s=0.1))


def test_a_peer_that_answers_pings_stays() -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        await peer.send(hello() + unary(1, "/t.S/Wait", b""))
        for _ in range(3):
            ping = await peer.until(lambda each: each.kind == PING)
            peer.received = b""
            await peer.send(frame(PING, ACK, 0, ping.payload))
        await peer.send(unary(3, PATH, b"a"))
        assert message(b"a") in await peer.answer(3)

    against(work, limited(keepalive_s=0.1, keepalive_answer_s=0.3))


@pytest.mark.parametrize("limits", [limited(idle_s=0.1), limited(age_s=0.1)], ids=["idle", "age"])
def test_a_connection_that_is_idle_or_old_is_asked_to_end(limits: ServerLimits) -> None:
    async def main() -> None:
        server = NativeServer(TABLE, limits)
        peer = Peer(*await asyncio.open_connection("127.0.0.1", await server.start("127.0.0.1:0")))
        await peer.send(hello() + unary(1, PATH, b"a"))
        assert message(b"a") in await peer.answer()
        ping = await peer.until(lambda each: each.kind == PING)
        await peer.send(frame(PING, ACK, 0, ping.payload))
        assert await peer.goaway() == 0
        peer.writer.close()
        await server.stop()

    asyncio.run(main())


def test_an_old_connection_whose_calls_never_end_is_cut() -> None:
    async def main() -> None:
        server = NativeServer(TABLE, limited(age_s=0.1, age_grace_s=0.1))
        peer = Peer(*await asyncio.open_connection("127.0.0.1", await server.start("127.0.0.1:0")))
        await peer.send(hello() + unary(1, "/t.S/Wait", b""))
        # UNAVAILABLE, so that the client sends the call again elsewhere.
        assert b"\x0214" in await peer.answer()
        await peer.rest()
        assert server.call_count == 0
        peer.writer.close()
        await server.stop()

    asyncio.run(main())


def test_what_is_no_grpc_gets_a_text_once_its_request_has_ended_or_is_long() -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        head = request_block(PATH, method="GET")
        await peer.send(hello() + frame(HEADERS, END_HEADERS, 1, head) + data(1, b"x" * 10) + unary(3, PATH, b"a"))
        assert message(b"a") in await peer.answer(3)
        assert [each for each in frames_of(peer.received) if each.stream_id == 1 and each.kind == HEADERS] == []
        await peer.send(data(1, b"y", end=True))
        assert b"expected the HTTP method POST" in await peer.answer(1)
        long = b"".join(data(5, b"z" * 16_000) for _ in range(5))
        await peer.send(frame(HEADERS, END_HEADERS, 5, head) + long)
        assert b"expected the HTTP method POST" in await peer.answer(5)
        # An answer to HEAD has no content.
        await peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 7, request_block(PATH, method="HEAD")))
        await peer.answer(7)
        assert [each for each in frames_of(peer.received) if each.stream_id == 7 and each.kind == DATA] == []

    against(work)


def test_a_peer_that_leaves_in_the_middle_is_no_trouble() -> None:
    async def work(connect: Connect, server: NativeServer) -> None:
        for sent in (
            b"",
            PREFACE[:7],
            hello(),
            hello() + request(1, PATH) + data(1, b"\x00\x00"),
            hello() + unary(1, "/t.S/Wait", b""),
        ):
            peer = await connect()
            await peer.send(sent)
            await asyncio.sleep(0.01)
            peer.writer.transport.abort()
        for _ in range(200):
            if server.call_count == 1:
                break
            await asyncio.sleep(0.01)
        assert server.call_count == 1

    against(work)


def test_a_reader_that_stops_holds_a_bounded_part_of_memory() -> None:
    made = 0

    async def flood(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield b"x" * 10_000

    async def work(connect: Connect, server: NativeServer) -> None:
        peer = await connect()
        wide = (0x7FFF0000).to_bytes(4, "big")
        await peer.send(
            hello() + unary(1, "/t.S/Flood", b"") + frame(WINDOW_UPDATE, 0, 0, wide) + frame(WINDOW_UPDATE, 0, 1, wide)
        )
        await asyncio.sleep(0.5)
        stood_at = made
        await asyncio.sleep(0.2)
        # What the kernel's socket buffers hold, and little of ours.
        assert made == stood_at
        assert made < 2_000

    against(work, table={**TABLE, "/t.S/Flood": ServerStream(flood)})


def test_a_stop_says_goaway_and_answers_what_came_before_the_peer_knew() -> None:
    async def main() -> None:
        leave = asyncio.Event()

        async def slow(request: bytes, context: CallContext) -> bytes:
            await leave.wait()
            return request

        server = NativeServer({**TABLE, "/t.S/Slow": Unary(slow)}, ServerLimits(grace_s=5))
        peer = Peer(*await asyncio.open_connection("127.0.0.1", await server.start("127.0.0.1:0")))
        await peer.send(hello() + unary(1, "/t.S/Slow", b"first"))
        await peer.until(lambda each: each.kind == SETTINGS)
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(server.stop())
        ping = await peer.until(lambda each: each.kind == PING)
        assert [each.error_code for each in frames_of(peer.received) if each.kind == GOAWAY] == [0]
        await peer.send(unary(3, PATH, b"crossed") + frame(PING, ACK, 0, ping.payload))
        assert message(b"crossed") in await peer.answer(3)
        leave.set()
        assert message(b"first") in await peer.answer(1)
        last = [each for each in await peer.rest() if each.kind == GOAWAY][-1]
        assert int.from_bytes(last.payload[:4], "big") == 3
        await asyncio.wait_for(stopping, LONG_S)
        peer.writer.close()

    asyncio.run(main())

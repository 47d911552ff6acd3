"""What every transport does for any table, asked by grpcio's own client: calls of all kinds, statuses, deadlines, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
import pytest
import uvloop

from tailorbird.engine.errors import CallerError, NotFound
from tailorbird.server.statuses import REASON_KEY
from tailorbird.server.transport import (
    Bidirectional,
    CallContext,
    ClientStream,
    HandlerTable,
    ServerLimits,
    ServerStream,
    Unary,
)
from tailorbird.server.transport.grpcio import GrpcioServer

LIMITS = ServerLimits(message_bytes_max=1_000, grace_s=5)
LONG_S = 30.0


class Server(Protocol):
    """A transport's server."""

    async def start(self, address: str) -> int: ...

    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Start:
    """How a transport's server is made, and the event loop it runs on."""

    make: Callable[[HandlerTable, ServerLimits], Server]
    new_loop: Callable[[], asyncio.AbstractEventLoop]

    def __call__(self, table: HandlerTable, limits: ServerLimits) -> Server:
        return self.make(table, limits)

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            runner.run(main)


@pytest.fixture(params=["grpcio", "native", "native-uvloop"])
def start(request: pytest.FixtureRequest) -> Start:
    """Return what makes a server, of each transport in turn."""
    if request.param == "grpcio":
        return Start(GrpcioServer, asyncio.new_event_loop)
    pytest.importorskip("tailorbird.native.http2", reason="libnghttp2 was missing when the kernels were built")
    from tailorbird.server.transport.native import NativeServer

    return Start(NativeServer, uvloop.new_event_loop if request.param == "native-uvloop" else asyncio.new_event_loop)


async def echo(request: bytes, context: CallContext) -> bytes:
    return request


async def describe(request: bytes, context: CallContext) -> bytes:
    remaining = context.remaining_s()
    pairs = dict(context.metadata)
    return repr((context.method, pairs["x-one"], pairs["x-two-bin"], remaining is not None and remaining > 5)).encode()


async def fail(request: bytes, context: CallContext) -> bytes:
    if request == b"ours":
        raise RuntimeError("secret")
    raise NotFound("NO_SUCH_THING", "expected ä thing")


async def wait_a_little(request: bytes, context: CallContext) -> bytes:
    for _ in range(3):
        await asyncio.sleep(0.001)
    if request == b"fail":
        raise NotFound("NO_SUCH_THING", "gone meanwhile")
    return request + b"!"


async def join(requests: AsyncIterator[bytes], context: CallContext) -> bytes:
    return b"+".join([request async for request in requests])


async def count(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
    for number in range(int(request)):
        yield b"%d" % number
    if request == b"2":
        raise NotFound("NO_MORE", "that was all")


async def shout(requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.upper()


async def tell(request: bytes, context: CallContext) -> bytes:
    context.initial = (("x-first", request.decode()), ("x-first-bin", b"\x00\xff"))
    context.trailing = (("x-last-bin", b"\xff\x00"),)
    return request


async def tell_each(requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
    async for request in requests:
        await tell(request, context)
        yield request


TABLE: HandlerTable = {
    "/t.S/Echo": Unary(echo),
    "/t.S/PromptEcho": Unary(echo, prompt=True),
    "/t.S/PromptWait": Unary(wait_a_little, prompt=True),
    "/t.S/PromptFail": Unary(fail, prompt=True),
    "/t.S/Describe": Unary(describe),
    "/t.S/Fail": Unary(fail),
    "/t.S/Join": ClientStream(join),
    "/t.S/Count": ServerStream(count),
    "/t.S/Shout": Bidirectional(shout),
    "/t.S/Tell": Unary(tell),
    "/t.S/PromptTell": Unary(tell, prompt=True),
    "/t.S/TellEach": Bidirectional(tell_each),
}


def against(
    start: Start,
    work: Callable[[grpc.aio.Channel], Awaitable[None]],
    table: HandlerTable = TABLE,
    limits: ServerLimits = LIMITS,
) -> None:
    """Run `work` with a channel to a server of `table`."""

    async def main() -> None:
        server = start(table, limits)
        port = await server.start("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await work(channel)
        await server.stop()

    start.run(main())


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def reason(error: grpc.aio.AioRpcError) -> object:
    return dict(error.trailing_metadata()).get(REASON_KEY)


def test_the_four_kinds_of_call(start: Start) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        assert await channel.unary_unary("/t.S/Echo")(b"") == b""
        assert await channel.unary_unary("/t.S/Echo")(b"x" * 1_000) == b"x" * 1_000
        assert await channel.stream_unary("/t.S/Join")(iter([b"a", b"", b"c"])) == b"a++c"
        assert [answer async for answer in channel.unary_stream("/t.S/Count")(b"3")] == [b"0", b"1", b"2"]
        assert [answer async for answer in channel.unary_stream("/t.S/Count")(b"0")] == []
        assert [answer async for answer in channel.stream_stream("/t.S/Shout")(iter([b"a", b"b"]))] == [b"A", b"B"]

    against(start, work)


def test_metadata_and_deadline_reach_the_handler(start: Start) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        metadata = (("x-one", "1"), ("x-two-bin", b"\x00\xff"))
        answer = await channel.unary_unary("/t.S/Describe")(b"", metadata=metadata, timeout=60)
        assert answer == repr(("/t.S/Describe", "1", b"\x00\xff", True)).encode()
        answer = await channel.unary_unary("/t.S/Describe")(b"", metadata=metadata)
        assert answer.endswith(b"False)")

    against(start, work)


def test_a_handler_sends_metadata_ahead_of_its_answers_and_behind(start: Start) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        for path in ("/t.S/Tell", "/t.S/PromptTell", "/t.S/TellEach"):
            if path == "/t.S/TellEach":
                call = channel.stream_stream(path)(iter([b"a", b"b"]))
                assert [answer async for answer in call] == [b"a", b"b"]
            else:
                call = channel.unary_unary(path)(b"a")
                assert await call == b"a"
            initial, trailing = dict(await call.initial_metadata()), dict(await call.trailing_metadata())
            assert (initial["x-first"], initial["x-first-bin"]) == ("a", b"\x00\xff")
            assert trailing == {"x-last-bin": b"\xff\x00"}

    against(start, work)


def test_failures_carry_code_text_and_reason(start: Start) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        error = await failure(channel.unary_unary("/t.S/Fail")(b""))
        assert (error.code(), error.details(), reason(error)) == (
            grpc.StatusCode.NOT_FOUND,
            "expected ä thing",
            "NO_SUCH_THING",
        )
        error = await failure(channel.unary_unary("/t.S/Fail")(b"ours"))
        assert (error.code(), reason(error)) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "secret" not in (error.details() or "")
        error = await failure(channel.unary_unary("/t.S/Nothing")(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED

    against(start, work)


def test_a_stream_that_fails_keeps_what_it_said_before(start: Start) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        answers = []

        async def collect() -> None:
            async for answer in channel.unary_stream("/t.S/Count")(b"2"):
                answers.append(answer)  # noqa: PERF401 — a comprehension would lose them with the error

        error = await failure(collect())
        assert answers == [b"0", b"1"]
        assert reason(error) == "NO_MORE"

    against(start, work)


def test_an_oversized_message_is_refused_with_the_limit(start: Start) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        error = await failure(channel.unary_unary("/t.S/Echo")(b"x" * 1_001))
        assert (error.code(), reason(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
        assert "message_bytes_max = 1000" in (error.details() or "")
        error = await failure(channel.unary_unary("/t.S/Echo")(b"x" * 100_000))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = await failure(channel.stream_unary("/t.S/Join")(iter([b"a", b"x" * 1_001])))
        assert reason(error) == "MESSAGE_TOO_LARGE"

    against(start, work)


def test_calls_in_flight_finish_before_the_server_stops(start: Start) -> None:
    async def main() -> None:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def slow(request: bytes, context: CallContext) -> bytes:
            entered.set()
            await leave.wait()
            return b"done"

        server = start({"/t.S/Slow": Unary(slow)}, LIMITS)
        port = await server.start("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/t.S/Slow")(b"")
            await entered.wait()
            stopping = asyncio.create_task(server.stop())
            await asyncio.sleep(0)
            leave.set()
            assert await call == b"done"
            await stopping

    start.run(main())


def test_an_address_in_use_is_a_clear_error(start: Start) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        first, second = start(TABLE, LIMITS), start(TABLE, LIMITS)
        port = await first.start("127.0.0.1:0")
        with pytest.raises(CallerError) as caught:
            await second.start(f"127.0.0.1:{port}")
        assert caught.value.reason == "LISTEN_FAILED"
        await first.stop()
        await second.stop()

    against(start, work)


def test_handlers_that_are_prompt_answer_wait_and_fail_like_others(start: Start) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        assert await channel.unary_unary("/t.S/PromptEcho")(b"a") == b"a"
        assert await channel.unary_unary("/t.S/PromptWait")(b"a") == b"a!"
        assert reason(await failure(channel.unary_unary("/t.S/PromptWait")(b"fail"))) == "NO_SUCH_THING"
        error = await failure(channel.unary_unary("/t.S/PromptFail")(b"ours"))
        assert (error.code(), reason(error)) == (grpc.StatusCode.INTERNAL, "INTERNAL")

    against(start, work)


def test_many_calls_at_once_get_their_own_answers(start: Start) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        methods = [channel.unary_unary(f"/t.S/{name}") for name in ("Echo", "PromptEcho")]
        requests = [b"%d" % n for n in range(300)]
        found = await asyncio.gather(*(methods[n % 2](request) for n, request in enumerate(requests)))
        assert list(found) == requests

    against(start, work)


def test_large_messages_pass_in_both_directions(start: Start) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        for size in (16_379, 65_536, 1_000_003, 3_900_000):
            message = bytes(range(256)) * (size // 256)
            assert await channel.unary_unary("/t.S/Echo")(message) == message
        parts = [b"%d" % n * 30_000 for n in range(1, 9)]
        assert await channel.stream_unary("/t.S/Join")(iter(parts)) == b"+".join(parts)
        answers = [
            answer async for answer in channel.stream_stream("/t.S/Shout")(iter([part + b"x" for part in parts]))
        ]
        assert answers == [part + b"X" for part in parts]

    against(start, work, limits=ServerLimits(message_bytes_max=4_000_000))


def test_a_compressed_request_is_read_and_bounded_by_its_plain_size(start: Start) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            echoed = await channel.unary_unary("/t.S/Echo")(b"x" * 1_000, compression=compression)
            assert echoed == b"x" * 1_000
            error = await failure(channel.unary_unary("/t.S/Echo")(b"x" * 100_000, compression=compression))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    against(start, work)


def test_work_past_its_deadline_is_stopped(start: Start) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        for path in ("/t.S/Forever", "/t.S/PromptForever"):
            error = await failure(channel.unary_unary(path)(b"", timeout=0.05))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert await asyncio.wait_for(stopped.get(), LONG_S) is None

    stopped: asyncio.Queue[None] = asyncio.Queue()

    async def forever(request: bytes, context: CallContext) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.put_nowait(None)
        return b""

    against(start, work, {"/t.S/Forever": Unary(forever), "/t.S/PromptForever": Unary(forever, prompt=True)})


def test_a_call_that_is_given_up_stops_its_handler(start: Start) -> None:
    entered: asyncio.Queue[None] = asyncio.Queue()
    stopped: asyncio.Queue[None] = asyncio.Queue()

    async def until_stopped() -> None:
        entered.put_nowait(None)
        try:
            await asyncio.Event().wait()
        finally:
            stopped.put_nowait(None)

    async def unary(request: bytes, context: CallContext) -> bytes:
        await until_stopped()
        return b""

    async def stream(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        yield b"first"
        await until_stopped()

    async def collect(requests: AsyncIterator[bytes], context: CallContext) -> bytes:
        entered.put_nowait(None)
        try:
            async for _ in requests:
                pass
        finally:
            stopped.put_nowait(None)
        return b""

    async def work(channel: grpc.aio.Channel) -> None:
        for path in ("/t.S/Unary", "/t.S/Prompt"):
            call = channel.unary_unary(path)(b"")
            await asyncio.wait_for(entered.get(), LONG_S)
            call.cancel()
            await asyncio.wait_for(stopped.get(), LONG_S)
        answers = channel.unary_stream("/t.S/Stream")(b"")
        assert await answers.read() == b"first"
        await asyncio.wait_for(entered.get(), LONG_S)
        answers.cancel()
        await asyncio.wait_for(stopped.get(), LONG_S)
        sending = channel.stream_unary("/t.S/Collect")()
        await sending.write(b"a")
        await asyncio.wait_for(entered.get(), LONG_S)
        sending.cancel()
        await asyncio.wait_for(stopped.get(), LONG_S)

    table: HandlerTable = {
        "/t.S/Unary": Unary(unary),
        "/t.S/Prompt": Unary(unary, prompt=True),
        "/t.S/Stream": ServerStream(stream),
        "/t.S/Collect": ClientStream(collect),
    }
    against(start, work, table)


def test_a_slow_reader_holds_the_handler_back(start: Start) -> None:
    made = 0

    async def flood(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(2_000):
            made += 1
            yield b"x" * 50_000

    async def work(channel: grpc.aio.Channel) -> None:
        call = channel.unary_stream("/t.S/Flood")(b"")
        assert len(await call.read()) == 50_000
        await asyncio.sleep(0.3)
        assert made < 1_000
        received = 1
        while (answer := await call.read()) is not grpc.aio.EOF:
            assert len(answer) == 50_000
            received += 1
        assert received == made == 2_000

    against(start, work, {"/t.S/Flood": ServerStream(flood)}, ServerLimits(message_bytes_max=100_000))


def test_a_slow_handler_holds_the_sender_back(start: Start) -> None:
    taken = 0
    go_on = asyncio.Event()

    async def slow(requests: AsyncIterator[bytes], context: CallContext) -> bytes:
        nonlocal taken
        async for _ in requests:
            taken += 1
            await go_on.wait()
        return b"%d" % taken

    async def work(channel: grpc.aio.Channel) -> None:
        sent = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(1_000):
                await call.write(b"x" * 50_000)
                sent += 1
            await call.done_writing()

        call = channel.stream_unary("/t.S/Slow")()
        sending = asyncio.create_task(send())
        await asyncio.sleep(0.5)
        assert sent < 500
        go_on.set()
        await sending
        assert await call == b"1000"

    against(start, work, {"/t.S/Slow": ClientStream(slow)}, ServerLimits(message_bytes_max=100_000))


def test_a_conversation_takes_turns(start: Start) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream("/t.S/Shout")()
        for word in (b"a", b"b", b"", b"c"):
            await call.write(word)
            assert await call.read() == word.upper()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK

    against(start, work)


def test_a_handler_may_answer_before_the_requests_end(start: Start) -> None:
    async def first(requests: AsyncIterator[bytes], context: CallContext) -> bytes:
        async for request in requests:
            return request
        return b""

    async def work(channel: grpc.aio.Channel) -> None:
        call = channel.stream_unary("/t.S/First")()
        await call.write(b"a")
        assert await call == b"a"
        assert await channel.stream_unary("/t.S/First")(iter([b"x"])) == b"x"

    against(start, work, {"/t.S/First": ClientStream(first)})


def test_more_calls_than_the_limit_are_refused(start: Start) -> None:
    leave = asyncio.Event()
    entered = asyncio.Semaphore(0)

    async def hold(request: bytes, context: CallContext) -> bytes:
        entered.release()
        await leave.wait()
        return b"done"

    async def work(channel: grpc.aio.Channel) -> None:
        held = [channel.unary_unary("/t.S/Hold")(b"") for _ in range(2)]
        for _ in held:
            await entered.acquire()
        error = await failure(channel.unary_unary("/t.S/Hold")(b""))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        leave.set()
        assert [await call for call in held] == [b"done", b"done"]

    against(start, work, {"/t.S/Hold": Unary(hold)}, ServerLimits(calls_max=2))


def test_calls_that_outlast_the_grace_time_are_cancelled(start: Start) -> None:
    async def main() -> None:
        entered, stopped = asyncio.Event(), asyncio.Event()

        async def stubborn(request: bytes, context: CallContext) -> bytes:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
            return b""

        server = start({"/t.S/Stubborn": Unary(stubborn)}, ServerLimits(grace_s=0.1))
        port = await server.start("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/t.S/Stubborn")(b"")
            await asyncio.wait_for(entered.wait(), LONG_S)
            failing = asyncio.create_task(failure(call))
            await asyncio.wait_for(server.stop(), LONG_S)
            await asyncio.wait_for(stopped.wait(), LONG_S)
            assert (await failing).code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}

    start.run(main())

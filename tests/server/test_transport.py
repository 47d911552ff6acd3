"""The grpcio transport serves any table: all four kinds of call, limits, statuses, deadlines, metadata."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

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


TABLE: HandlerTable = {
    "/t.S/Echo": Unary(echo),
    "/t.S/Describe": Unary(describe),
    "/t.S/Fail": Unary(fail),
    "/t.S/Join": ClientStream(join),
    "/t.S/Count": ServerStream(count),
    "/t.S/Shout": Bidirectional(shout),
}


def against(work: Callable[[grpc.aio.Channel], Awaitable[None]], table: HandlerTable = TABLE) -> None:
    """Run `work` with a channel to a server of `table`."""

    async def main() -> None:
        server = GrpcioServer(table, LIMITS)
        port = await server.start("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await work(channel)
        await server.stop()

    asyncio.run(main())


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def reason(error: grpc.aio.AioRpcError) -> object:
    return dict(error.trailing_metadata()).get(REASON_KEY)


def test_the_four_kinds_of_call() -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        assert await channel.unary_unary("/t.S/Echo")(b"") == b""
        assert await channel.unary_unary("/t.S/Echo")(b"x" * 1_000) == b"x" * 1_000
        assert await channel.stream_unary("/t.S/Join")(iter([b"a", b"", b"c"])) == b"a++c"
        assert [answer async for answer in channel.unary_stream("/t.S/Count")(b"3")] == [b"0", b"1", b"2"]
        assert [answer async for answer in channel.stream_stream("/t.S/Shout")(iter([b"a", b"b"]))] == [b"A", b"B"]

    against(work)


def test_metadata_and_deadline_reach_the_handler() -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        metadata = (("x-one", "1"), ("x-two-bin", b"\x00\xff"))
        answer = await channel.unary_unary("/t.S/Describe")(b"", metadata=metadata, timeout=60)
        assert answer == repr(("/t.S/Describe", "1", b"\x00\xff", True)).encode()
        answer = await channel.unary_unary("/t.S/Describe")(b"", metadata=metadata)
        assert answer.endswith(b"False)")

    against(work)


def test_failures_carry_code_text_and_reason() -> None:
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

    against(work)


def test_a_stream_that_fails_keeps_what_it_said_before() -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        answers = []

        async def collect() -> None:
            async for answer in channel.unary_stream("/t.S/Count")(b"2"):
                answers.append(answer)  # noqa: PERF401 — a comprehension would lose them with the error

        error = await failure(collect())
        assert answers == [b"0", b"1"]
        assert reason(error) == "NO_MORE"

    against(work)


def test_an_oversized_message_is_refused_with_the_limit() -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        error = await failure(channel.unary_unary("/t.S/Echo")(b"x" * 1_001))
        assert (error.code(), reason(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
        assert "message_bytes_max = 1000" in (error.details() or "")
        error = await failure(channel.unary_unary("/t.S/Echo")(b"x" * 100_000))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = await failure(channel.stream_unary("/t.S/Join")(iter([b"a", b"x" * 1_001])))
        assert reason(error) == "MESSAGE_TOO_LARGE"

    against(work)


def test_calls_in_flight_finish_before_the_server_stops() -> None:
    async def main() -> None:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def slow(request: bytes, context: CallContext) -> bytes:
            entered.set()
            await leave.wait()
            return b"done"

        server = GrpcioServer({"/t.S/Slow": Unary(slow)}, LIMITS)
        port = await server.start("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/t.S/Slow")(b"")
            await entered.wait()
            stopping = asyncio.create_task(server.stop())
            await asyncio.sleep(0)
            leave.set()
            assert await call == b"done"
            await stopping

    asyncio.run(main())


def test_an_address_in_use_is_a_clear_error() -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        first, second = GrpcioServer(TABLE, LIMITS), GrpcioServer(TABLE, LIMITS)
        port = await first.start("127.0.0.1:0")
        with pytest.raises(CallerError) as caught:
            await second.start(f"127.0.0.1:{port}")
        assert caught.value.reason == "LISTEN_FAILED"
        await first.stop()
        await second.stop()

    against(work)

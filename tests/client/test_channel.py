"""What a channel does against a real server of either transport, blocking and awaited alike."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
import trustme

pytest.importorskip("tailorbird.native.http2_client", reason="libnghttp2 was missing when the kernels were built")

from tailorbird.client import NEVER, CallError, ChannelOptions, RetryPolicy, Tls
from tailorbird.engine.errors import NotFound, Unavailable
from tailorbird.server.transport import (
    Bidirectional,
    CallContext,
    ClientStream,
    HandlerTable,
    ServerStream,
    Unary,
)
from tailorbird.server.transport.listeners import ListenOptions, TlsFiles
from tests.client.faces import Awaited, Blocking, Face
from tests.client.servers import Running, running, scripted

LONG_S = 30
MakeFace = Callable[..., Face]


@pytest.fixture(params=[Blocking, Awaited], ids=["blocking", "awaited"])
def face(request: pytest.FixtureRequest) -> Iterator[MakeFace]:
    """Return what makes a channel; all are closed at the end."""
    made: list[Face] = []

    def make(target: str, **options: object) -> Face:
        made.append(request.param(target, ChannelOptions(**options)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for channel in made:
        channel.close()


async def echo(request: bytes, context: CallContext) -> bytes:
    return request


async def describe(request: bytes, context: CallContext) -> bytes:
    pairs = dict(context.metadata)
    context.initial = (("x-first", "1"), ("x-first-bin", b"\x00\xff"))
    context.trailing = (("x-last", "2"),)
    remaining = context.remaining_s()
    return repr(
        (pairs.get("x-one"), pairs.get("x-two-bin"), pairs.get("authorization"), remaining and round(remaining))
    ).encode()


async def fail(request: bytes, context: CallContext) -> bytes:
    raise NotFound("NO_SUCH_THING", "expected ä thing")


async def forever(request: bytes, context: CallContext) -> bytes:
    await asyncio.Event().wait()
    return b""


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
    "/t.S/PromptEcho": Unary(echo, prompt=True),
    "/t.S/Describe": Unary(describe),
    "/t.S/Fail": Unary(fail),
    "/t.S/Forever": Unary(forever),
    "/t.S/Join": ClientStream(join),
    "/t.S/Count": ServerStream(count),
    "/t.S/Shout": Bidirectional(shout),
}


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Return a server of each transport."""
    with running(TABLE, request.param) as started:
        yield started


def failure(work: Callable[[], object]) -> CallError:
    with pytest.raises(CallError) as caught:
        work()
    return caught.value


def test_the_four_kinds_of_call(face: MakeFace, server: Running) -> None:
    channel = face(server.target)
    assert channel.unary("/t.S/Echo") == b""
    assert channel.unary("/t.S/PromptEcho", b"a") == b"a"
    assert channel.client_stream("/t.S/Join", [b"a", b"", b"c"]) == b"a++c"
    assert channel.client_stream("/t.S/Join", []) == b""
    assert channel.server_stream("/t.S/Count", b"3") == [b"0", b"1", b"2"]
    assert channel.server_stream("/t.S/Count", b"0") == []
    assert channel.bidirectional("/t.S/Shout", iter([b"a", b"b"])) == [b"A", b"B"]


def test_metadata_deadline_and_key_travel_both_ways(face: MakeFace, server: Running) -> None:
    channel = face(server.target, key="secret")
    answer, call = channel.with_call("/t.S/Describe", timeout=50, metadata=[("x-one", "1"), ("x-two-bin", b"\x00\xff")])
    assert answer == repr(("1", b"\x00\xff", "Bearer secret", 50)).encode()
    initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
    assert (initial["x-first"], initial["x-first-bin"], trailing["x-last"]) == ("1", b"\x00\xff", "2")


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Upper", "a"), ("grpc-mine", "a"), ("x a", "a"), ("x-a", "ä"), ("x-a", "a\n"), ("x-a-bin", "text"), ("", "a")],
)
def test_metadata_that_cannot_travel_is_refused_before_the_call(
    face: MakeFace, server: Running, name: str, value: str
) -> None:
    with pytest.raises(ValueError, match="expected"):
        face(server.target).unary("/t.S/Echo", metadata=[(name, value)])
    with pytest.raises(ValueError, match="at most 16 pairs"):
        face(server.target).unary("/t.S/Echo", metadata=[("x-a", "a")] * 17)


def test_failures_have_grpcios_faces_and_the_reason(face: MakeFace, server: Running) -> None:
    channel = face(server.target)
    error = failure(lambda: channel.unary("/t.S/Fail"))
    assert isinstance(error, grpc.RpcError)
    assert (error.code(), error.details(), error.reason) == (
        grpc.StatusCode.NOT_FOUND,
        "expected ä thing",
        "NO_SUCH_THING",
    )
    assert failure(lambda: channel.unary("/t.S/Nothing")).code() is grpc.StatusCode.UNIMPLEMENTED
    came: list[bytes] = []
    assert failure(lambda: channel.server_stream("/t.S/Count", b"2", came)).reason == "NO_MORE"
    assert came == [b"0", b"1"]


def test_a_deadline_ends_the_call_here_and_there(face: MakeFace, server: Running) -> None:
    channel = face(server.target)
    assert failure(lambda: channel.unary("/t.S/Forever", timeout=0.05)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert channel.unary("/t.S/Echo", b"after") == b"after"


def test_large_messages_pass_in_both_directions(face: MakeFace, server: Running) -> None:
    channel = face(server.target)
    for size in (16_379, 65_536, 3_900_000):
        message = bytes(range(256)) * (size // 256)
        assert channel.unary("/t.S/Echo", message) == message
    parts = [b"%d" % n * 30_000 for n in range(1, 30)]
    assert channel.client_stream("/t.S/Join", iter(parts)) == b"+".join(parts)
    assert channel.bidirectional("/t.S/Shout", (part + b"x" for part in parts)) == [part + b"X" for part in parts]


def test_an_answer_past_the_limit_is_refused_and_the_connection_lives(face: MakeFace, server: Running) -> None:
    channel = face(server.target, message_bytes_max=1_000)
    assert failure(lambda: channel.unary("/t.S/Echo", b"x" * 1_001)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert channel.unary("/t.S/Echo", b"x" * 1_000) == b"x" * 1_000


def test_many_calls_at_once_get_their_own_answers(face: MakeFace, server: Running) -> None:
    requests = [b"%d" % n for n in range(600)]
    for path in ("/t.S/Echo", "/t.S/PromptEcho"):
        assert face(server.target).many(path, requests) == requests


def test_an_iterator_that_fails_ends_the_call_with_its_error(face: MakeFace, server: Running) -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        raise KeyError("gone")

    error = failure(lambda: face(server.target).bidirectional("/t.S/Shout", broken()))
    assert error.code() is grpc.StatusCode.CANCELLED
    assert "KeyError" in error.details()


def test_a_call_given_up_stops_its_handler(face: MakeFace) -> None:
    stopped = threading.Event()

    async def flood(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            stopped.set()

    with running({"/t.S/Flood": ServerStream(flood)}) as server:
        channel = face(server.target)
        assert channel.first_then_cancel("/t.S/Flood") == b"first"
        if isinstance(channel, Awaited):  # its loop runs only inside calls
            failure(lambda: channel.unary("/t.S/Nothing"))
        assert stopped.wait(LONG_S)


def test_a_slow_reader_holds_the_service_back() -> None:
    made = 0

    async def flood(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(500):
            made += 1
            yield b"x" * 50_000

    with running({"/t.S/Flood": ServerStream(flood)}) as server, closing(Blocking(server.target)) as channel:
        answers = iter(channel.channel.unary_stream("/t.S/Flood")(b""))
        assert len(next(answers)) == 50_000
        time.sleep(0.3)
        assert made < 400
        assert sum(1 for _ in answers) == made - 1 == 499


def test_compressed_answers_are_read(face: MakeFace) -> None:
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: request * 1_000)
    from concurrent.futures import ThreadPoolExecutor

    for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        peer = grpc.server(ThreadPoolExecutor(1), compression=compression)
        peer.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.S", {"Echo": handler}),))
        port = peer.add_insecure_port("127.0.0.1:0")
        peer.start()
        assert face(f"127.0.0.1:{port}").unary("/t.S/Echo", b"abc") == b"abc" * 1_000
        peer.stop(None).wait()


def test_a_service_that_comes_back_is_found_again(face: MakeFace) -> None:
    with running(TABLE) as first:
        channel = face(first.target)
        assert channel.unary("/t.S/Echo", b"a") == b"a"
        port = first.port
    # The attempts end long before the deadline, which would have a word of its own.
    assert failure(lambda: channel.unary("/t.S/Echo", timeout=LONG_S)).code() is grpc.StatusCode.UNAVAILABLE
    started: list[Running] = []
    late = threading.Timer(0.1, lambda: started.append(Running(TABLE, address=f"127.0.0.1:{port}")))
    late.start()
    try:
        # Within its attempts the call outlives the gap.
        patient = face(f"127.0.0.1:{port}", retry=RetryPolicy(attempts_max=100, backoff_max_s=0.05))
        assert patient.unary("/t.S/Echo", b"b") == b"b"
        assert channel.unary("/t.S/Echo", b"c") == b"c"
    finally:
        late.join()
        for server in started:
            server.stop()


def test_calls_are_repeated_as_the_policy_says_and_no_more(face: MakeFace) -> None:
    calls = 0

    async def flaky(request: bytes, context: CallContext) -> bytes:
        nonlocal calls
        calls += 1
        if calls % 3:
            raise Unavailable("BUSY", "come back")
        return b"done"

    async def never(request: bytes, context: CallContext) -> bytes:
        nonlocal calls
        calls += 1
        raise NotFound("NO_SUCH_THING", "never there")

    with running({"/t.S/Flaky": Unary(flaky), "/t.S/Never": Unary(never)}) as server:
        quick = RetryPolicy(attempts_max=3, backoff_s=0.001)
        assert face(server.target, retry=quick).unary("/t.S/Flaky") == b"done"
        assert calls == 3
        assert failure(lambda: face(server.target, retry=NEVER).unary("/t.S/Flaky")).reason == "BUSY"
        assert calls == 4
        assert failure(lambda: face(server.target, retry=quick).unary("/t.S/Never")).reason == "NO_SUCH_THING"
        assert calls == 5


def test_a_service_in_trouble_is_soon_asked_once_a_call(face: MakeFace) -> None:
    calls = 0

    async def busy(request: bytes, context: CallContext) -> bytes:
        nonlocal calls
        calls += 1
        raise Unavailable("BUSY", "come back")

    with running({"/t.S/Busy": Unary(busy)}) as server:
        channel = face(server.target, retry=RetryPolicy(attempts_max=3, backoff_s=0.0001, budget=10))
        for _ in range(30):
            assert failure(lambda: channel.unary("/t.S/Busy")).reason == "BUSY"
        # Five failures are free; from then on no call is repeated.
        assert calls < 30 + 5


def test_a_rolling_stop_loses_no_call(face: MakeFace) -> None:
    """Calls go on while the server they run on says that it ends, and another takes over the port."""
    options = ListenOptions(reuse_port=True)
    first = Running(TABLE, sockets=options)
    second = Running(TABLE, address=f"127.0.0.1:{first.port}", sockets=options)
    channel = face(first.target)
    stopping = threading.Timer(0.2, first.stop)
    stopping.start()
    try:
        until = time.monotonic() + 1.0
        made = 0
        while time.monotonic() < until:
            requests = [b"%d" % n for n in range(20)]
            assert channel.many("/t.S/Echo", requests) == requests
            made += 1
        assert made
    finally:
        stopping.join()
        first.stop()
        second.stop()


def test_unix_sockets(face: MakeFace, tmp_path: Path) -> None:
    with running(TABLE, address=f"unix:{tmp_path}/socket") as server:
        assert face(server.target).unary("/t.S/Echo", b"a") == b"a"


def test_tls_and_mutual_tls(face: MakeFace, tmp_path: Path) -> None:
    root = trustme.CA()
    served, mine = root.issue_cert("127.0.0.1", "service.example"), root.issue_cert("caller@example.org")
    paths = {name: tmp_path / f"{name}.pem" for name in ("root", "chain", "key", "mine", "mine-key")}
    root.cert_pem.write_to_path(str(paths["root"]))
    for certificate, chain, key in ((served, "chain", "key"), (mine, "mine", "mine-key")):
        certificate.cert_chain_pems[0].write_to_path(str(paths[chain]))
        certificate.private_key_pem.write_to_path(str(paths[key]))
    files = TlsFiles(paths["chain"], paths["key"], paths["root"])
    with running(TABLE, sockets=ListenOptions(tls=files)) as server:
        known = Tls(authorities=paths["root"], certificate=paths["mine"], key=paths["mine-key"])
        channel = face(server.target, tls=known)
        assert channel.unary("/t.S/Echo", b"a" * 100_000) == b"a" * 100_000
        assert channel.many("/t.S/Echo", [b"%d" % n for n in range(100)]) == [b"%d" % n for n in range(100)]
        named = Tls(
            authorities=paths["root"], certificate=paths["mine"], key=paths["mine-key"], server_name="service.example"
        )
        assert face(server.target, tls=named).unary("/t.S/Echo", b"a") == b"a"
        for wrong in (Tls(authorities=paths["root"]), Tls(), None):
            error = failure(
                lambda wrong=wrong: face(server.target, tls=wrong, retry=NEVER, timeout_s=5.0).unary("/t.S/Echo")
            )  # type: ignore[misc]
            assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 100, b"", os.urandom(1) * 64],
    ids=["http1", "zeros", "end", "noise"],
)
def test_a_peer_that_speaks_something_else_is_unavailable(face: MakeFace, said: bytes) -> None:
    with scripted(lambda connection: connection.sendall(said)) as target:
        error = failure(lambda: face(target, retry=NEVER, timeout_s=5.0).unary("/t.S/Echo"))
        assert error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}


def test_a_silent_peer_ends_at_the_deadline(face: MakeFace) -> None:
    with scripted(lambda connection: threading.Event().wait(0.3)) as target:  # type: ignore[arg-type,return-value]
        error = failure(lambda: face(target, retry=NEVER).unary("/t.S/Echo", timeout=0.1))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("target", ["", "host", "host:0", "host:99999", ":1", "unix:", "host:x"])
def test_a_target_that_is_none_is_refused(face: MakeFace, target: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        face(target or " ")


def test_a_closed_channel_says_so(server: Running) -> None:
    channel = Blocking(server.target)
    assert channel.unary("/t.S/Echo", b"a") == b"a"
    channel.close()
    channel.close()
    with pytest.raises(ValueError, match="closed"):
        channel.unary("/t.S/Echo")


def test_threads_share_few_connections(server: Running) -> None:
    with closing(Blocking(server.target, ChannelOptions(connections_max=2))) as channel:
        assert channel.many("/t.S/Echo", [b"%d" % n for n in range(400)]) == [b"%d" % n for n in range(400)]
        assert len(channel.channel._connections) <= 2


def test_a_forked_child_does_not_speak_on_its_parents_sockets(server: Running) -> None:
    with closing(Blocking(server.target)) as channel:
        assert channel.unary("/t.S/Echo", b"a") == b"a"
        channel.channel._process = -1  # as a child finds it
        before = channel.channel._connections[0]
        assert channel.unary("/t.S/Echo", b"b") == b"b"
        assert channel.channel._connections != [before]
        before.close()

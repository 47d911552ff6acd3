"""Calls that wait: in their order, within bounds, and none begins past its deadline."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import pytest

pytest.importorskip("tailorbird.native.http2", reason="libnghttp2 was missing when the kernels were built")
from tailorbird.bench.load import LoadPlan, run_plan
from tailorbird.native import http2
from tailorbird.server.transport import CallContext, ServerLimits, Unary
from tailorbird.server.transport.backlog import MEAN_CALLS, PAUSE_S, SLICE_S, TELL_S, Backlog
from tests.bench.known_servers import PATH, handlers, target
from tests.http2_frames import HEADERS, data, frames_of, hello, message, request, unary
from tests.native.test_http2 import LIMITS, METHODS

LONG_S = 30.0
LARGE = 1_000


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


class Clock:
    """Time that passes only when something takes some."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Connection:
    """Stands in for a connection: a call takes `takes_s` of the clock's."""

    def __init__(self, clock: Clock, takes_s: float = 0.0) -> None:
        self.clock, self.takes_s = clock, takes_s
        self.begun: list[int] = []
        self.gone: set[int] = set()
        self.flushes = 0

    def waits(self, stream_id: int) -> bool:
        return stream_id not in self.gone

    def begin(self, event: tuple[Any, ...], read_s: float) -> None:
        self.begun.append(event[1])
        self.clock.now_s += self.takes_s

    def flush(self) -> None:
        self.flushes += 1


def read(backlog: Backlog, connection: Connection, *stream_ids: int) -> None:
    """Let calls be read, as a session counts them."""
    for stream_id in stream_ids:
        session = http2.ServerSession(METHODS, backlog.intake, **LIMITS)
        (event,) = session.receive(hello() + unary(1, "/one", b"x" * LARGE), 0.0)
        backlog.run(connection, (event[0], stream_id, *event[2:]), connection.clock())


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not is_so():
            await asyncio.sleep(0)


@on_a_loop
async def test_calls_begin_at_once_while_there_is_time_and_wait_in_their_order_behind_it() -> None:
    clock = Clock()
    backlog = Backlog(ServerLimits(), clock)
    slow, other = Connection(clock, takes_s=2 * SLICE_S), Connection(clock)
    read(backlog, slow, 1)
    assert slow.begun == [1]
    read(backlog, slow, 3, 5)
    read(backlog, other, 1)
    assert (slow.begun, other.begun) == ([1], [])
    assert (backlog.intake.calls, backlog.intake.size_bytes) == (3, 3 * LARGE)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while not other.begun:
            turns += 1
            await asyncio.sleep(0)

    await count()
    assert slow.begun == [1, 3, 5]
    # The loop had its turn between the slices.
    assert turns >= 3
    assert (backlog.intake.calls, backlog.intake.size_bytes) == (0, 0)
    assert slow.flushes >= 2
    assert other.flushes == 1


@on_a_loop
async def test_a_call_whose_peer_has_gone_never_begins_and_leaves_its_place() -> None:
    clock = Clock()
    backlog = Backlog(ServerLimits(), clock)
    connection = Connection(clock, takes_s=2 * SLICE_S)
    read(backlog, connection, 1, 3, 5)
    connection.gone.add(3)
    await until(lambda: 5 in connection.begun)
    assert connection.begun == [1, 5]
    assert backlog.intake.calls == 0


@on_a_loop
async def test_a_call_that_fails_badly_holds_up_no_other() -> None:
    class Broken(Connection):
        def begin(self, event: tuple[Any, ...], read_s: float) -> None:
            raise ZeroDivisionError

    caught: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: caught.append(context))
    clock = Clock()
    backlog = Backlog(ServerLimits(), clock)
    connection = Connection(clock, takes_s=2 * SLICE_S)
    read(backlog, connection, 1)
    read(backlog, Broken(clock), 1)
    read(backlog, connection, 3)
    await until(lambda: 3 in connection.begun)
    assert isinstance(caught[0]["exception"], ZeroDivisionError)
    assert backlog.intake.calls == 0


@on_a_loop
async def test_what_a_call_takes_is_learned() -> None:
    clock = Clock()
    backlog = Backlog(ServerLimits(), clock)
    connection = Connection(clock, takes_s=SLICE_S)
    assert backlog.intake.call_ns == 0
    read(backlog, connection, *range(1, MEAN_CALLS + 2))
    await until(lambda: len(connection.begun) == MEAN_CALLS + 1)
    assert backlog.intake.call_ns == pytest.approx(SLICE_S * 1e9, rel=1e-3)


@on_a_loop
async def test_once_the_loop_has_slept_calls_begin_at_once_again() -> None:
    clock = Clock()
    backlog = Backlog(ServerLimits(), clock)
    connection = Connection(clock, takes_s=SLICE_S / 4)
    read(backlog, connection, 1, 3, 5, 7)
    assert connection.begun == [1, 3, 5, 7]
    read(backlog, connection, 9)
    assert connection.begun == [1, 3, 5, 7]
    await until(lambda: 9 in connection.begun)
    clock.now_s += 2 * PAUSE_S
    read(backlog, connection, 11, 13, 15)
    assert connection.begun[-3:] == [11, 13, 15]


def test_refusals_are_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    backlog = Backlog(ServerLimits(waiting_calls_max=0))
    session = http2.ServerSession(METHODS, backlog.intake, **LIMITS)
    backlog.tell(0.0)
    assert session.receive(hello() + unary(1, "/one", b"") + unary(3, "/one", b""), 0.0) == []
    for now_s in (1.0, 2.0):
        backlog.tell(now_s)
    session.receive(unary(5, "/one", b""), 0.0)
    backlog.tell(3.0)
    backlog.tell(1.0 + TELL_S)
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == [2, 1]


def busy_session(calls_max: int, bytes_max: int, call_ns: int = 0) -> tuple[Any, Any]:
    intake = http2.Intake(calls_max, bytes_max, (8, b"busy", [(b"tailorbird-reason", b"OVERLOADED")]))
    intake.call_ns = call_ns
    server = http2.ServerSession(METHODS, intake, **LIMITS)
    server.receive(hello(), 0.0)
    server.pull(1 << 20)
    return intake, server


def test_calls_beyond_the_bound_are_refused_where_they_are_read() -> None:
    intake, server = busy_session(2, 1 << 20)
    events = server.receive(b"".join(unary(stream, "/one", b"abc") for stream in (1, 3, 5, 7)), 0.0)
    assert [event[1] for event in events] == [1, 3]
    assert (intake.calls, intake.size_bytes, intake.refused_count) == (2, 6, 2)
    refused = frames_of(server.pull(1 << 20))
    assert [(each.kind, each.stream_id) for each in refused] == [(HEADERS, 5), (HEADERS, 7)]
    assert not server.has(5)
    assert server.has(1)
    intake.leave(3)
    assert [event[1] for event in server.receive(unary(9, "/one", b"abc"), 0.0)] == [9]


def test_a_stock_client_is_told_why_its_call_was_refused() -> None:
    async def echo(request: bytes, context: CallContext) -> bytes:
        return request

    with (
        handlers({PATH: Unary(echo, prompt=True)}, ServerLimits(grace_s=0.1, waiting_calls_max=0)) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PATH)
        with pytest.raises(grpc.RpcError) as refused:
            call(b"asked", timeout=LONG_S)
    error: Any = refused.value
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "waiting_calls_max = 0" in error.details()
    assert ("tailorbird-reason", "OVERLOADED") in [(pair.key, pair.value) for pair in error.trailing_metadata()]


def test_bytes_beyond_the_bound_are_refused_but_never_the_only_call() -> None:
    intake, server = busy_session(10, 100)
    assert len(server.receive(unary(1, "/one", b"x" * 5_000), 0.0)) == 1
    assert server.receive(unary(3, "/one", b"y"), 0.0) == []
    intake.leave(5_000)
    assert len(server.receive(unary(5, "/one", b"x" * 60) + unary(7, "/one", b"x" * 60), 0.0)) == 1
    assert intake.refused_count == 2


def test_a_deadline_that_the_calls_before_leave_no_time_for_is_refused() -> None:
    _, server = busy_session(100, 1 << 20, call_ns=10_000_000)
    received = b"".join(unary(stream, "/one", b"") for stream in range(1, 11, 2))  # 50 ms
    received += unary(11, "/one", b"", ("grpc-timeout", "49m")) + unary(13, "/one", b"", ("grpc-timeout", "51m"))
    received += unary(15, "/one", b"")
    assert [event[1] for event in server.receive(received, 0.0)] == [1, 3, 5, 7, 9, 13, 15]


def test_calls_of_many_requests_are_no_part_of_it() -> None:
    intake, server = busy_session(0, 0)
    events = server.receive(request(1, "/many") + data(1, message(b"a"), end=True), 0.0)
    assert [event[0] for event in events] == [http2.CALL, http2.MESSAGE, http2.END]
    assert intake.refused_count == 0


@pytest.mark.parametrize("prompt", [True, False])
def test_no_call_begins_past_its_deadline_and_too_many_are_refused(prompt: bool) -> None:
    began_late = []
    began = 0

    async def slow(request: bytes, context: CallContext) -> bytes:
        nonlocal began
        began += 1
        assert context.deadline_s is not None
        began_late.append(time.monotonic() - context.deadline_s)
        time.sleep(0.004)
        return b""

    limits = ServerLimits(grace_s=0.1, waiting_calls_max=50)
    with handlers({PATH: Unary(slow, prompt=prompt)}, limits) as port:
        # Five times what it can.
        plan = LoadPlan(connections=8, streams=100, phases=((1_250.0, 1.0),), timeout_s=0.2, drain_s=LONG_S)
        done = run_plan(target(port), plan)
    statuses = done.statuses()
    assert set(statuses) <= {"OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
    assert statuses["OK"] > 0
    assert statuses["RESOURCE_EXHAUSTED"] > 0
    # The machine may turn to others between the look at the clock and the handler's.
    assert max(began_late) <= 0.05
    assert began < done.counters["started"]


def test_every_call_that_waits_is_answered_where_there_is_no_deadline() -> None:
    async def slow(request: bytes, context: CallContext) -> bytes:
        time.sleep(0.003)
        return request

    with handlers({PATH: Unary(slow, prompt=True)}) as port:
        plan = LoadPlan(connections=4, streams=25, seconds=LONG_S, calls_max=300)
        assert run_plan(target(port), plan).all_answered().statuses() == {"OK": 300}

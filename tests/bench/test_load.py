"""The load generator against servers whose answers are known: what it counts and times is what they did."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("tailorbird.native.load", reason="libnghttp2 was missing when the kernels were built")
from tailorbird.bench.load import UNIFORM, Generator, LoadPlan, due_ns, run_plan
from tailorbird.bench.load_results import LoadResults
from tailorbird.engine.errors import CallerError, InternalError, NotFound, ResourceExhausted
from tailorbird.server.transport import CallContext, ConnectionLimits, ServerLimits, Unary
from tests.bench.known_servers import PATH, answer, handlers, scripted, target
from tests.http2_frames import (
    DATA,
    END_STREAM,
    GOAWAY,
    REFUSED_STREAM,
    RST_STREAM,
    Frame,
    frame,
)

LONG_S = 30.0
# A bucket's middle may lie so far below what was recorded.
BUCKET = 1 - 1 / 256


def calls(count: int, **more: object) -> LoadPlan:
    """Return a closed loop of so many calls."""
    return LoadPlan(**{"seconds": LONG_S, "calls_max": count, **more})  # type: ignore[arg-type]


async def echo(request: bytes, context: CallContext) -> bytes:
    return request


def test_messages_are_sent_in_turn_and_no_more_than_asked_for() -> None:
    seen: list[bytes] = []

    async def note(request: bytes, context: CallContext) -> bytes:
        seen.append(request)
        return b""

    with handlers({PATH: Unary(note, prompt=True)}) as port:
        done = run_plan(target(port, b"", b"b", b"c" * 40_000), calls(37, connections=1, streams=1))
    assert seen == [(b"", b"b", b"c" * 40_000)[number % 3] for number in range(37)]
    assert done.all_answered().statuses() == {"OK": 37}
    assert done.counters["connections"] == 1
    assert done.counters["failures"] == done.counters["unfinished"] == 0


def test_so_many_calls_are_in_flight_as_asked_for() -> None:
    running, most = 0, 0

    async def count(request: bytes, context: CallContext) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return b""

    with handlers({PATH: Unary(count)}) as port:
        run_plan(target(port), calls(200, connections=4, streams=5)).all_answered()
    assert most == 20


def test_the_peers_own_limit_of_streams_is_kept() -> None:
    running, most = 0, 0

    async def count(request: bytes, context: CallContext) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return b""

    limits = ServerLimits(grace_s=0.1, connection=ConnectionLimits(streams_max=7))
    with handlers({PATH: Unary(count)}, limits) as port:
        plan = LoadPlan(connections=1, streams=10_000, phases=((3_000.0, 0.1),), schedule=UNIFORM, drain_s=LONG_S)
        done = run_plan(target(port), plan)
    assert done.all_answered().statuses() == {"OK": 300}
    assert most == 7
    assert done.counters["held"] > 0


def test_known_delays_are_told() -> None:
    delays_s = {b"short": 0.005, b"long": 0.05}

    async def delay(request: bytes, context: CallContext) -> bytes:
        await asyncio.sleep(delays_s[request])
        return b""

    with handlers({PATH: Unary(delay)}) as port:
        done = run_plan(target(port, *delays_s), calls(100, connections=1, streams=2)).all_answered()
    assert done.latency__wb.sum() == done.service__b.sum() == 100
    assert done.quantile_us(0.0) >= 5_000 * BUCKET
    assert done.quantile_us(0.505) >= 50_000 * BUCKET


def test_a_server_that_stalls_once_shows_in_the_open_loops_tail() -> None:
    count, stall_s, rate = 0, 0.4, 500.0

    async def stall(request: bytes, context: CallContext) -> bytes:
        nonlocal count
        count += 1
        if count == 100:
            time.sleep(stall_s)
        return b""

    with handlers({PATH: Unary(stall, prompt=True)}) as port:
        plan = LoadPlan(connections=1, streams=1, phases=((rate, 1.0),), schedule=UNIFORM)
        done = run_plan(target(port), plan).all_answered()
    # 200 of 500 were due meanwhile, every other of them 0.2 s or more before its end. Timed from when they were sent, all
    # but one look quick: that is the omission.
    assert done.quantile_us(1 - 98 / 500) >= stall_s / 2 * 1e6 * BUCKET
    assert done.service_quantile_us(1 - 98 / 500) < done.quantile_us(1 - 98 / 500)
    assert done.counters["late"] >= 190
    assert done.counters["held"] >= 190


def test_statuses_are_counted() -> None:
    async def fail(request: bytes, context: CallContext) -> bytes:
        if request == b"none":
            raise NotFound("NO_ITEM", "as the test has it")
        if request == b"much":
            raise ResourceExhausted("TOO_MUCH", "as the test has it")
        return request

    with handlers({PATH: Unary(fail, prompt=True)}) as port:
        done = run_plan(target(port, b"fine", b"none", b"much", b"none"), calls(400))
    assert done.statuses() == {"OK": 100, "NOT_FOUND": 200, "RESOURCE_EXHAUSTED": 100}
    assert done.latency__wb.sum() == done.good__w.sum() == done.done__w.sum() == 100
    with pytest.raises(InternalError, match="LOAD_FAILED.*NOT_FOUND"):
        done.all_answered()


def test_deadlines_are_sent_and_kept() -> None:
    told: list[float | None] = []

    async def never(request: bytes, context: CallContext) -> bytes:
        told.append(context.remaining_s())
        await asyncio.Event().wait()
        return b""

    with handlers({PATH: Unary(never)}) as port:
        plan = LoadPlan(
            connections=2, streams=5, phases=((100.0, 0.5),), timeout_s=0.3, schedule=UNIFORM, drain_s=LONG_S
        )
        done = run_plan(target(port), plan)
    assert done.statuses() == {"DEADLINE_EXCEEDED": 50}
    assert not done.good__w.any()
    assert told
    assert all(remaining is not None and remaining <= 0.3 for remaining in told)


def test_what_is_not_answered_is_told() -> None:
    async def never(request: bytes, context: CallContext) -> bytes:
        await asyncio.Event().wait()
        return b""

    with handlers({PATH: Unary(never)}) as port:
        done = run_plan(target(port), calls(8, seconds=0.1, connections=2, streams=4, drain_s=0.1))
    assert done.statuses() == {"broken": 8}
    assert done.counters["unfinished"] == 8


def test_connections_end_and_others_open_without_a_call_lost() -> None:
    with handlers({PATH: Unary(echo, prompt=True)}) as port:
        done = run_plan(target(port), calls(500, connections=5, streams=3, life_calls=10))
    assert done.all_answered().statuses() == {"OK": 500}
    assert done.counters["connections"] >= 50


def test_a_connection_the_server_ends_is_opened_again() -> None:
    ended = 0

    def script(seen: Frame) -> bytes | None:
        nonlocal ended
        if seen.kind == DATA and seen.flags & END_STREAM:
            if ended < 3 and seen.stream_id == 5:
                ended += 1
                return None
            return answer(seen.stream_id, ("grpc-status", "0"))
        return b""

    with scripted(script) as port:
        done = run_plan(target(port), calls(30, connections=1, streams=1))
    assert ended == 3
    assert done.statuses() == {"OK": 27, "UNAVAILABLE": 3}
    assert done.counters["lost"] == done.counters["failures"] == 3
    assert done.counters["connections"] == 4


def test_resets_and_goaways_are_counted() -> None:
    def script(seen: Frame) -> bytes | None:
        if seen.kind != DATA or not seen.flags & END_STREAM:
            return b""
        if seen.stream_id == 3:
            return frame(RST_STREAM, 0, 3, REFUSED_STREAM.to_bytes(4, "big"))
        if seen.stream_id == 5:
            return frame(RST_STREAM, 0, 5, (2).to_bytes(4, "big"))
        farewell = frame(GOAWAY, 0, 0, (7).to_bytes(4, "big") + bytes(4)) if seen.stream_id == 7 else b""
        return farewell + answer(seen.stream_id, ("grpc-status", "0"))

    with scripted(script) as port:
        done = run_plan(target(port), calls(8, connections=1, streams=1))
    assert done.statuses() == {"OK": 4, "UNAVAILABLE": 2, "broken": 2}
    assert done.counters["resets"] == 4
    assert done.counters["goaways"] == 2


@pytest.mark.parametrize(
    ("answered", "status"),
    [
        ((("grpc-status", "5"),), "NOT_FOUND"),
        ((("grpc-message", "none"),), "broken"),
        ((("grpc-status", "17"),), "broken"),
        ((("grpc-status", "0x"),), "broken"),
        ((("grpc-status", ""),), "broken"),
    ],
)
def test_answers_are_read_as_grpc_has_them(answered: tuple[tuple[str, str], ...], status: str) -> None:
    with scripted(
        lambda seen: answer(seen.stream_id, *answered) if seen.flags & END_STREAM and seen.kind == DATA else b""
    ) as port:
        assert run_plan(target(port), calls(1, connections=1, streams=1)).statuses() == {status: 1}


@pytest.mark.parametrize("odd", [{"message": None}, {"http": "503"}])
def test_an_ok_without_a_message_or_of_another_http_status_is_broken(odd: dict[str, object]) -> None:
    def script(seen: Frame) -> bytes:
        if seen.kind != DATA or not seen.flags & END_STREAM:
            return b""
        return answer(seen.stream_id, ("grpc-status", "0"), **odd)  # type: ignore[arg-type]

    with scripted(script) as port:
        assert run_plan(target(port), calls(1, connections=1, streams=1)).statuses() == {"broken": 1}


def test_a_peer_that_is_no_server_is_an_error() -> None:
    with scripted(lambda _: None) as port:
        done = run_plan(target(port), calls(5, seconds=0.2, connections=1, streams=1, drain_s=0.1))
    assert "OK" not in done.statuses()
    assert done.counters["failures"] >= 1


def test_windows_keep_times_apart() -> None:
    with handlers({PATH: Unary(echo, prompt=True)}) as port:
        plan = LoadPlan(phases=((100.0, 0.5), (400.0, 0.5)), schedule=UNIFORM, window_s=0.25)
        done = run_plan(target(port), plan).all_answered()
    assert done.statuses__ws[:, 0].tolist() == [25, 25, 100, 100]
    assert done.latency__wb.sum(axis=1).tolist() == [25, 25, 100, 100]
    assert done.done__w.sum() == 250


def test_what_is_too_much_in_flight_is_dropped_and_counted() -> None:
    async def never(request: bytes, context: CallContext) -> bytes:
        await asyncio.Event().wait()
        return b""

    with handlers({PATH: Unary(never)}) as port:
        plan = LoadPlan(phases=((500.0, 0.2),), schedule=UNIFORM, in_flight_max=30, drain_s=0.1)
        done = run_plan(target(port), plan)
    assert done.counters["dropped"] == 70
    assert done.counters["started"] == 30


def test_schedules_are_seeded_ascending_and_of_their_rate() -> None:
    plan = LoadPlan(phases=((1_000.0, 2.0), (3_000.0, 1.0)), seed=7)
    due = due_ns(plan)
    assert (due == due_ns(plan)).all()
    assert not np.array_equal(due, due_ns(LoadPlan(phases=plan.phases, seed=8)))
    assert (np.diff(due) >= 0).all()
    assert due[0] >= 0
    assert due[-1] < 3e9
    by_phase = Counter("first" if each < 2e9 else "second" for each in due.tolist())
    for name, expected in (("first", 2_000), ("second", 3_000)):
        assert abs(by_phase[name] - expected) < 6 * math.sqrt(expected)
    gaps_ns = np.diff(due_ns(LoadPlan(phases=((100_000.0, 1.0),))))
    # Of a Poisson process the gaps vary as much as they are long.
    assert np.std(gaps_ns) == pytest.approx(np.mean(gaps_ns), rel=0.05)
    assert np.std(np.diff(due_ns(LoadPlan(phases=((1_000.0, 1.0),), schedule=UNIFORM)))) < 2
    assert len(due_ns(LoadPlan())) == 0


def test_plans_out_of_bounds_are_refused() -> None:
    nowhere = target(1)
    with pytest.raises(CallerError, match="TOO_MANY_CALLS"):
        run_plan(nowhere, LoadPlan(phases=((1e6, 1e3),)))
    with pytest.raises(CallerError, match="UNKNOWN_SCHEDULE"):
        run_plan(nowhere, LoadPlan(phases=((10, 1),), schedule="sometimes"))
    with pytest.raises(CallerError, match="NO_CALLS"):
        run_plan(nowhere, LoadPlan(phases=((0.0, 1.0),)))
    with pytest.raises(ValueError, match="expected connections from 1 to 10000, got 0"):
        run_plan(nowhere, LoadPlan(connections=0))
    with pytest.raises(ValueError, match="expected at least one request"):
        run_plan(target(1).__class__(1, []), LoadPlan())
    with pytest.raises(ConnectionError, match="Connection refused"):
        run_plan(nowhere, LoadPlan())


def test_the_generators_process_runs_plan_after_plan() -> None:
    with handlers({PATH: Unary(echo, prompt=True)}) as port, Generator(min(os.sched_getaffinity(0))) as generator:
        asked = target(port)
        first = generator.run(asked, calls(50)).all_answered()
        second = generator.run(asked, LoadPlan(phases=((200.0, 0.2),), schedule=UNIFORM, window_s=0.1)).all_answered()
        with pytest.raises(InternalError, match="LOAD_FAILED.*expected connections"):
            generator.run(asked, LoadPlan(connections=0))
        assert generator.run(target(port, b"other"), calls(10)).all_answered().counters["started"] == 10
    assert first.counters["started"] == 50
    assert second.statuses__ws[:, 0].tolist() == [20, 20]
    report = LoadResults.merged([second, second]).report()
    assert report["statuses"] == {"OK": 80}
    counts = report["histogram_counts"]
    assert isinstance(counts, list)
    assert sum(counts) == 80


def test_headers_reach_the_server_as_grpc_wants_them() -> None:
    seen: list[CallContext] = []

    async def note(request: bytes, context: CallContext) -> bytes:
        seen.append(context)
        return b""

    with handlers({PATH: Unary(note, prompt=True)}) as port:
        run_plan(target(port), calls(3, connections=1, streams=1)).all_answered()
    assert [context.metadata for context in seen] == [(("user-agent", "tailorbird-load"),)] * 3
    assert all(context.deadline_s is None and context.method == PATH for context in seen)

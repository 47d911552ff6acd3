"""The writer groups what arrives while it writes, keeps everyone's outcomes apart, and is bounded.

The engine here only notes what it is given: what is tested is the order and the grouping, which a real one hides.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from tailorbird.engine import Engine
from tailorbird.engine.configuration import Limits
from tailorbird.engine.errors import CallerError, ResourceExhausted, Unavailable
from tailorbird.engine.signals import IngestReport, Outcome, Signal, Status
from tailorbird.server.lanes import Lane
from tailorbird.server.transport import ServerLimits
from tailorbird.server.writer import LIVE_IN_A_ROW, GroupWriter


class NotingEngine:
    """Takes signals as an engine does; `gate` holds every write back until it is set."""

    def __init__(self, batch_signals_max: int = 100) -> None:
        self.configuration = SimpleNamespace(limits=Limits(batch_signals_max=batch_signals_max))
        self.position = 0
        self.groups: list[list[str]] = []
        self.threads: set[str] = set()
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def ingest(self, signals: Sequence[Signal]) -> IngestReport:
        self.entered.set()
        assert self.gate.wait(10)
        names = [signal.type for signal in signals]
        self.groups.append(names)
        self.threads.add(threading.current_thread().name)
        if "full" in names:
            raise ResourceExhausted("DISK_FULL", "expected room")
        if "poison" in names:
            raise CallerError("POISON", "expected no poison")
        self.position += len(signals)
        return IngestReport(tuple(Outcome(Status.APPLIED, message=name) for name in names), self.position)


def batch(*names: str) -> list[Signal]:
    return [Signal(type=name, event_time=0, identifiers={}) for name in names]


def names(report: IngestReport) -> list[str]:
    return [outcome.message for outcome in report.outcomes]


def with_writer(
    engine: NotingEngine, work: Callable[[GroupWriter], Awaitable[None]], lane_bytes_max: int = 1_000
) -> None:
    async def main() -> None:
        limits = ServerLimits(live_lane_bytes_max=lane_bytes_max, bulk_lane_bytes_max=2 * lane_bytes_max)
        writer = GroupWriter(cast(Engine, engine), limits)
        try:
            await work(writer)
        finally:
            engine.gate.set()
            await writer.close()

    asyncio.run(main())


async def held(engine: NotingEngine, writer: GroupWriter) -> asyncio.Task[IngestReport]:
    """Start a write and return once the writer's thread is inside it."""
    engine.gate.clear()
    first = asyncio.create_task(writer.ingest(batch("first")))
    await asyncio.to_thread(engine.entered.wait, 10)
    return first


def test_what_arrives_during_a_write_is_the_next_group() -> None:
    engine = NotingEngine()

    async def work(writer: GroupWriter) -> None:
        first = await held(engine, writer)
        later = [asyncio.create_task(writer.ingest(batch(f"{n}a", f"{n}b"))) for n in range(3)]
        await asyncio.sleep(0)
        engine.gate.set()
        assert names(await first) == ["first"]
        assert [names(await task) for task in later] == [[f"{n}a", f"{n}b"] for n in range(3)]

    with_writer(engine, work)
    assert engine.groups == [["first"], ["0a", "0b", "1a", "1b", "2a", "2b"]]
    assert len(engine.threads) == 1


def test_a_group_stays_within_the_engines_limit() -> None:
    engine = NotingEngine(batch_signals_max=3)

    async def work(writer: GroupWriter) -> None:
        first = await held(engine, writer)
        later = [asyncio.create_task(writer.ingest(batch("a", "b"))) for _ in range(2)]
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, *later)

    with_writer(engine, work)
    assert [len(group) for group in engine.groups] == [1, 2, 2]


def test_other_writes_keep_their_place_between_batches() -> None:
    engine = NotingEngine()

    async def work(writer: GroupWriter) -> None:
        first = await held(engine, writer)
        before = asyncio.create_task(writer.ingest(batch("before")))
        await asyncio.sleep(0)
        call = asyncio.create_task(writer.call(lambda: engine.groups.append(["call"])))
        await asyncio.sleep(0)
        after = asyncio.create_task(writer.ingest(batch("after")))
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, before, call, after)

    with_writer(engine, work)
    assert engine.groups == [["first"], ["before"], ["call"], ["after"]]


def test_live_writes_go_first_and_bulk_ones_do_not_starve() -> None:
    engine = NotingEngine(batch_signals_max=1)

    async def work(writer: GroupWriter) -> None:
        first = await held(engine, writer)
        bulk = [asyncio.create_task(writer.ingest(batch(f"bulk{n}"), lane=Lane.BULK)) for n in range(3)]
        await asyncio.sleep(0)
        live = [asyncio.create_task(writer.ingest(batch(f"live{n}"))) for n in range(LIVE_IN_A_ROW + 1)]
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, *bulk, *live)

    with_writer(engine, work)
    live = [f"live{n}" for n in range(LIVE_IN_A_ROW + 1)]
    # The first was a turn of the live lane as well.
    expected = ["first", *live[: LIVE_IN_A_ROW - 1], "bulk0", *live[LIVE_IN_A_ROW - 1 :], "bulk1", "bulk2"]
    assert [name for group in engine.groups for name in group] == expected


def test_one_bad_batch_does_not_stop_its_neighbours() -> None:
    engine = NotingEngine()

    async def work(writer: GroupWriter) -> None:
        first = await held(engine, writer)
        tasks = [asyncio.create_task(writer.ingest(batch(name))) for name in ("good", "poison", "fine")]
        await asyncio.sleep(0)
        engine.gate.set()
        good, bad, fine = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(good, IngestReport)
        assert isinstance(fine, IngestReport)
        assert isinstance(bad, CallerError)
        await first

    with_writer(engine, work)
    assert engine.groups == [["first"], ["good", "poison", "fine"], ["good"], ["poison"], ["fine"]]


def test_a_full_disk_reaches_everyone_in_the_group_and_the_writer_goes_on() -> None:
    engine = NotingEngine()

    async def work(writer: GroupWriter) -> None:
        with pytest.raises(ResourceExhausted, match="DISK_FULL"):
            await writer.ingest(batch("full"))
        with pytest.raises(ZeroDivisionError):
            await writer.call(lambda: 1 // 0)
        assert names(await writer.ingest(batch("later"))) == ["later"]

    with_writer(engine, work)


def test_what_waits_is_bounded() -> None:
    engine = NotingEngine()

    async def work(writer: GroupWriter) -> None:
        first = await held(engine, writer)
        waiting = asyncio.create_task(writer.ingest(batch("waiting"), 900))
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted, match="live_lane_bytes_max = 1000") as caught:
            await writer.ingest(batch("more"), 200)
        assert caught.value.reason == "WRITER_BUSY"
        # The other lane has room of its own.
        bulk = [asyncio.create_task(writer.ingest(batch("bulk"), 900, Lane.BULK)) for _ in range(2)]
        await asyncio.sleep(0)
        assert writer.waiting_bytes(Lane.BULK) == 1_800
        with pytest.raises(ResourceExhausted, match="in the bulk lane, got 2100"):
            await writer.ingest(batch("more"), 300, Lane.BULK)
        engine.gate.set()
        await asyncio.gather(first, waiting, *bulk)
        assert [writer.waiting_bytes(lane) for lane in Lane] == [0, 0]
        await writer.ingest(batch("again"), 900)

    with_writer(engine, work)


def test_a_position_is_waited_for() -> None:
    engine = NotingEngine()

    async def work(writer: GroupWriter) -> None:
        first = await held(engine, writer)
        reached = asyncio.create_task(writer.positions.reach(1, 10))
        await asyncio.sleep(0)
        assert not reached.done()
        engine.gate.set()
        await asyncio.gather(first, reached)
        await writer.positions.reach(1, 0)
        with pytest.raises(Unavailable, match="min_position 2") as caught:
            await writer.positions.reach(2, 0.01)
        assert caught.value.reason == "POSITION_NOT_REACHED"

    with_writer(engine, work)


def test_closing_writes_what_waits_and_takes_no_more() -> None:
    engine = NotingEngine()

    async def work(writer: GroupWriter) -> None:
        first = await held(engine, writer)
        waiting = asyncio.create_task(writer.ingest(batch("waiting")))
        await asyncio.sleep(0)
        closing = asyncio.create_task(writer.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="STOPPING"):
            await writer.ingest(batch("late"))
        engine.gate.set()
        await closing
        assert names(await waiting) == ["waiting"]
        await first

    with_writer(engine, work)


def test_a_caller_who_gave_up_does_not_stop_the_write() -> None:
    engine = NotingEngine()

    async def work(writer: GroupWriter) -> None:
        first = await held(engine, writer)
        gone = asyncio.create_task(writer.ingest(batch("gone")))
        await asyncio.sleep(0)
        gone.cancel()
        engine.gate.set()
        await first
        assert names(await writer.ingest(batch("next"))) == ["next"]

    with_writer(engine, work)
    assert [name for group in engine.groups for name in group] == ["first", "gone", "next"]

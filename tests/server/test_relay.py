"""Between worker and writer, over a real socket and engine: every method is read here or relayed, lanes and relay are bounded,
errors arrive as they were raised, and what was served is written once it can be."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf import descriptor_pool

from tailorbird.engine import Engine
from tailorbird.engine.errors import (
    CallerError,
    Damaged,
    NotFound,
    PreconditionFailed,
    ResourceExhausted,
    TailorbirdError,
    Unavailable,
)
from tailorbird.engine.items import Item
from tailorbird.server.handlers import SERVICES, read_table, write_table
from tailorbird.server.handlers.served import LeftBehind
from tailorbird.server.lanes import INGEST, WRITES, Lane
from tailorbird.server.positions import Positions
from tailorbird.server.processes.frames import pack_error, unpack_error
from tailorbird.server.processes.intake import Intake
from tailorbird.server.processes.relay import Relay
from tailorbird.server.processes.servings import ServingsRelay
from tailorbird.server.statuses import CallFailed, Code
from tailorbird.server.transport import Bidirectional, Handler, ServerLimits, ServerStream, Unary
from tailorbird.server.writer import GroupWriter
from tailorbird.v1 import catalog_service_pb2, feature_service_pb2, signal_service_pb2
from tests.server.processes import order
from tests.server.test_processes import CONFIGURATION

PUT = "/tailorbird.v1.CatalogService/PutItems"
BACKFILL = "/tailorbird.v1.FeatureService/BackfillFeatures"
LIMITS = ServerLimits(live_lane_bytes_max=1_000, bulk_lane_bytes_max=2_000, relay_bytes_max=20_000)


class Ends:
    """A writer with its intake, and a worker's engine with its relay, in one process."""

    def __init__(self, writes: Engine, reads: Engine, folder: Path) -> None:
        self.writes, self.reads, self.path = writes, reads, folder / "writer.sock"
        self.stood: list[tuple[int, int]] = []
        self.connected = asyncio.Event()
        self.writer = GroupWriter(writes, LIMITS)
        self.intake = Intake(writes, self.writer, write_table(writes, self.writer), LIMITS)
        self.relay = Relay(self.path, LIMITS, lambda *stands: self.stood.append(stands), self.connected.set)
        self.servings = ServingsRelay(reads, self.relay)
        reads.collect_servings()

    async def start(self) -> None:
        await self.intake.start(self.path)
        self._running = asyncio.create_task(self.relay.run())
        await self.connected.wait()

    async def stop(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self.intake.stop(5.0, "the test is over")
        await self.writer.close()

    async def lose(self) -> None:
        """End the connection as a killed writer does, and wait for the next one."""
        self.connected.clear()
        for connection in list(self.intake._connections):
            assert connection._transport is not None
            connection._transport.abort()
        await self.connected.wait()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the writer's engine, so that writes wait."""
        leave, entered = threading.Event(), threading.Event()

        def hold() -> None:
            with self.writes._turn:
                entered.set()
                leave.wait(30)

        thread = threading.Thread(target=hold)
        thread.start()
        assert entered.wait(30)
        try:
            yield
        finally:
            leave.set()
            thread.join()


def with_ends(tmp_path: Path, work: Callable[[Ends], Awaitable[None]]) -> None:
    async def main(writes: Engine, reads: Engine) -> None:
        ends = Ends(writes, reads, tmp_path)
        await ends.start()
        try:
            await asyncio.wait_for(work(ends), 60)
        finally:
            await ends.stop()

    with Engine.open(tmp_path / "shop", CONFIGURATION) as writes:
        writes.put_items([Item(id=f"item{n:03d}") for n in range(30)])
        with Engine.open(tmp_path / "shop", read_only=True) as reads:
            asyncio.run(main(writes, reads))


def ingest_bytes(*message_ids: str) -> bytes:
    request = signal_service_pb2.IngestRequest(signals=[order(each, "u1") for each in message_ids])
    return request.SerializeToString()


# ---- the table ---------------------------------------------------------------------------------------------------


def test_every_method_of_the_api_is_read_or_relayed_as_what_it_is() -> None:
    engine = cast(Engine, SimpleNamespace(configuration=SimpleNamespace(limits=SimpleNamespace(candidates_max=1))))

    class Any_(SimpleNamespace):
        def __getattr__(self, name: str) -> Any:
            return 1

    engine = cast(Engine, SimpleNamespace(configuration=SimpleNamespace(limits=Any_())))
    nothing = cast(Any, None)
    reads = read_table(engine, Positions(lambda: 0), LeftBehind(nothing, nothing))
    writes = write_table(engine, nothing)
    relayed = Relay(Path("none"), LIMITS, nothing, nothing).table()
    assert set(writes) == set(WRITES) == set(relayed)
    assert not set(reads) & set(writes)
    kinds: dict[tuple[bool, bool], type[Handler]] = {
        (False, False): Unary,
        (False, True): ServerStream,
        (True, True): Bidirectional,
    }
    found = set()
    for name in SERVICES:
        for method in descriptor_pool.Default().FindServiceByName(name).methods:
            path = f"/{name}/{method.name}"
            found.add(path)
            for table in (reads, writes, relayed):
                if path in table:
                    assert type(table[path]) is kinds[method.client_streaming, method.server_streaming], path
    assert found == set(reads) | set(writes)


# ---- calls -------------------------------------------------------------------------------------------------------


def test_a_write_is_answered_by_the_writer_and_seen_here(tmp_path: Path) -> None:
    async def work(ends: Ends) -> None:
        answer = signal_service_pb2.IngestResponse.FromString(await ends.relay.call(INGEST, ingest_bytes("m1")))
        assert answer.outcomes[0].status == signal_service_pb2.SIGNAL_STATUS_APPLIED
        assert ends.reads.position == answer.position
        while (answer.position, 1) not in ends.stood:
            await asyncio.sleep(0.01)
        assert ends.relay.waiting_bytes == 0

    with_ends(tmp_path, work)


def test_a_stream_of_answers_arrives_in_order_to_its_end(tmp_path: Path) -> None:
    async def work(ends: Ends) -> None:
        answers = [answer async for answer in ends.relay.stream(BACKFILL, b"")]
        assert feature_service_pb2.BackfillFeaturesResponse.FromString(answers[-1]).finished

    with_ends(tmp_path, work)


def test_what_is_wrong_with_a_request_is_said_as_in_one_process(tmp_path: Path) -> None:
    async def work(ends: Ends) -> None:
        with pytest.raises(CallerError, match="expected a message_id") as caught:
            await ends.relay.call(PUT, b"")
        assert caught.value.reason == "MISSING_MESSAGE_ID"

    with_ends(tmp_path, work)


@pytest.mark.parametrize("kind", [CallerError, NotFound, PreconditionFailed, Unavailable, ResourceExhausted])
def test_errors_keep_class_reason_and_message(kind: type[TailorbirdError]) -> None:
    found = unpack_error(pack_error(kind("WHY", "expected ü"), "m"))
    assert type(found) is kind
    assert isinstance(found, TailorbirdError)
    assert (found.reason, found.message) == ("WHY", "expected ü")


@pytest.mark.parametrize("error", [Damaged("WHY", "a secret"), ZeroDivisionError("a secret")])
def test_of_a_bug_of_the_writer_a_caller_learns_an_id(error: Exception) -> None:
    found = unpack_error(pack_error(error, "m"))
    assert isinstance(found, CallFailed)
    assert found.status.code is Code.INTERNAL
    assert "secret" not in found.status.message


# ---- bounds ------------------------------------------------------------------------------------------------------


def test_a_full_lane_is_named_and_the_other_goes_on(tmp_path: Path) -> None:
    big = ingest_bytes(*(f"m{n}" for n in range(10)))
    item = catalog_service_pb2.PutItemsRequest(message_id="p", items=[catalog_service_pb2.Item(id="x")])
    assert len(big) > LIMITS.live_lane_bytes_max / 2

    async def work(ends: Ends) -> None:
        with ends.held():
            # One is being written, one waits whatever its size, and there is no room for a third.
            taken = [asyncio.create_task(ends.relay.call(INGEST, big)) for _ in range(2)]
            while ends.writer.waiting_bytes(Lane.LIVE) < 2 * len(big):
                await asyncio.sleep(0.01)
            with pytest.raises(ResourceExhausted, match="live_lane_bytes_max = 1000") as caught:
                await ends.relay.call(INGEST, big)
            assert caught.value.reason == "WRITER_BUSY"
            assert "in the live lane" in caught.value.message
            bulk = asyncio.create_task(ends.relay.call(PUT, item.SerializeToString()))
            while not ends.writer.waiting_bytes(Lane.BULK):
                await asyncio.sleep(0.01)
        await asyncio.gather(*taken, bulk)

    with_ends(tmp_path, work)


def test_what_a_worker_has_on_its_way_is_bounded(tmp_path: Path) -> None:
    async def work(ends: Ends) -> None:
        with ends.held():
            first = asyncio.create_task(ends.relay.call(INGEST, ingest_bytes("m1")))
            await asyncio.sleep(0)
            with pytest.raises(ResourceExhausted, match="relay_bytes_max = 20000") as caught:
                await ends.relay.call(INGEST, bytes(LIMITS.relay_bytes_max))
            assert caught.value.reason == "RELAY_FULL"
        await first

    with_ends(tmp_path, work)


# ---- a writer that is gone ---------------------------------------------------------------------------------------


def test_a_call_whose_connection_is_lost_is_told_so_and_can_be_sent_again(tmp_path: Path) -> None:
    async def work(ends: Ends) -> None:
        with ends.held():
            lost = asyncio.create_task(ends.relay.call(INGEST, ingest_bytes("m1")))
            while not ends.writer.waiting_bytes(Lane.LIVE):
                await asyncio.sleep(0.01)
            await ends.lose()
            with pytest.raises(Unavailable, match="it may have been written all the same") as caught:
                await lost
            assert caught.value.reason == "WRITER_GONE"
        answer = signal_service_pb2.IngestResponse.FromString(await ends.relay.call(INGEST, ingest_bytes("m1")))
        assert answer.outcomes[0].status == signal_service_pb2.SIGNAL_STATUS_DUPLICATE

    with_ends(tmp_path, work)


# ---- servings ----------------------------------------------------------------------------------------------------


def decided(engine: Engine) -> list[str]:
    return [item.id for item in engine.decide(placement="home", identifiers={"user_id": "u1"}).items]


def test_what_a_worker_served_stands_in_the_state_of_all_once_it_is_written(tmp_path: Path) -> None:
    async def work(ends: Ends) -> None:
        await ends.relay.call(INGEST, ingest_bytes("m1"))
        served = decided(ends.reads)
        assert decided(ends.writes) == served  # which nobody has told it yet
        served += decided(ends.reads)
        position = await ends.servings.write()
        assert position == ends.writes.position
        assert ends.reads.servings_waiting_count == 0
        assert not set(decided(ends.writes)) & set(served)
        assert not set(decided(ends.reads)) & set(served)
        assert await ends.servings.write() >= position

    with_ends(tmp_path, work)


def test_servings_that_were_lost_on_the_way_wait_are_not_served_again_and_are_sent_again(tmp_path: Path) -> None:
    async def work(ends: Ends) -> None:
        await ends.relay.call(INGEST, ingest_bytes("m1"))
        served = decided(ends.reads)
        with ends.held():
            lost = asyncio.create_task(ends.servings.write())
            while not ends.writer.waiting_bytes(Lane.LIVE):
                await asyncio.sleep(0.01)
            served += decided(ends.reads)  # while they are on their way
            await ends.lose()
            with pytest.raises(Unavailable):
                await lost
            assert ends.reads.servings_waiting_count == 2
            served += decided(ends.reads)
        await ends.servings.write()
        assert len(served) == len(set(served)) == 9
        assert not set(decided(ends.reads)) & set(served)
        await ends.servings.write()
        assert not set(decided(ends.writes)) & set(served)

    with_ends(tmp_path, work)


def test_those_who_ask_while_a_batch_is_under_way_share_the_next(tmp_path: Path) -> None:
    async def work(ends: Ends) -> None:
        await ends.relay.call(INGEST, ingest_bytes("m1"))
        written: list[int] = []
        take = ends.reads.take_servings
        ends.reads.take_servings = lambda: written.append(1) or take()  # type: ignore[method-assign,func-returns-value]
        with ends.held():
            decided(ends.reads)
            asked = [asyncio.create_task(ends.servings.write())]
            while not ends.writer.waiting_bytes(Lane.LIVE):
                await asyncio.sleep(0.01)
            for _ in range(3):
                decided(ends.reads)
                asked.append(asyncio.create_task(ends.servings.write()))
        positions = await asyncio.gather(*asked)
        assert len(written) == 2
        assert positions[0] < positions[1] == positions[2] == positions[3]

    with_ends(tmp_path, work)


def test_positions_and_append_times_do_not_go_back_with_the_clock(tmp_path: Path) -> None:
    now = time.time_ns() // 1_000_000
    clock = iter([now + offset for offset in (0, 50_000, -3_600_000, 10, -7_200_000, 60_000, *[61_000] * 20)])
    with Engine.open(tmp_path / "shop", CONFIGURATION, clock=lambda: next(clock)) as engine:
        positions = [engine.put_items([Item(id=f"item{n}")]) for n in range(6)]
        assert positions == sorted(positions)
        records = list(engine._log.read(0, positions[-1]))
    assert [record.append_time for record in records] == sorted(record.append_time for record in records)
    assert len({record.append_time for record in records}) > 1

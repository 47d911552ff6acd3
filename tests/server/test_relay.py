"""Between worker and writer, over a real socket and engine: every method is read here or relayed, lanes and relay are bounded,
errors arrive as they were raised, and what was served is written once it can be."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf import descriptor_pool

from tailorbird.engine import Engine
from tailorbird.engine.configuration import Limits
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
from tailorbird.server.face import ServeOptions
from tailorbird.server.handlers import SERVICES, read_table, write_table
from tailorbird.server.handlers.served import LeftBehind
from tailorbird.server.lanes import INGEST, WRITES
from tailorbird.server.positions import Positions
from tailorbird.server.processes.child import Child
from tailorbird.server.processes.frames import pack_error, unpack_error
from tailorbird.server.processes.plan import NO_DESCRIPTOR, WRITER, Plan
from tailorbird.server.processes.relay import Relay
from tailorbird.server.processes.servings import ServingsRelay
from tailorbird.server.statuses import CallFailed, Code
from tailorbird.server.transport import Bidirectional, Handler, ServerLimits, ServerStream, Unary
from tailorbird.v1 import catalog_service_pb2, feature_service_pb2, signal_service_pb2
from tests.server.processes import order
from tests.server.test_processes import CONFIGURATION

PUT = "/tailorbird.v1.CatalogService/PutItems"
BACKFILL = "/tailorbird.v1.FeatureService/BackfillFeatures"
LIMITS = ServerLimits(live_lane_bytes_max=1_000, bulk_lane_bytes_max=2_000, relay_bytes_max=20_000)


# Holds the lock that every write of the state takes, until standard input ends.
HOLD = """
import sys, lmdb
environment = lmdb.open(sys.argv[1], map_size=int(sys.argv[2]), max_dbs=99, max_readers=2048, lib_version=0)
with environment.begin(write=True):
    print("held", flush=True)
    sys.stdin.read()
"""


class Ends:
    """A worker's engine with its relay, and the writer in a process of its own, without a supervisor."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.plan = Plan(
            role=WRITER,
            name=WRITER,
            number=0,
            tenants={"default": engine.directory.root},
            tenant="default",
            run=folder,
            options=ServeOptions(limits=LIMITS),
            parent=NO_DESCRIPTOR,
        )
        self.child = Child(self.plan, lambda: None)
        self.stood: list[tuple[int, int]] = []
        self.connected = asyncio.Event()
        self.relay = Relay(
            self.plan.relay("default"), LIMITS, lambda *stands: self.stood.append(stands), self.connected.set
        )
        self.servings = ServingsRelay(engine, self.relay)

    async def start(self) -> None:
        """Start the writer, and find it."""
        self.connected.clear()
        self.child = Child(self.plan, lambda: None)
        await self.child.start(())
        await self.child.ready()
        await self.connected.wait()

    async def kill(self) -> None:
        """Kill the writer."""
        self.child.kill()
        await self.child.ended()
        while self.relay.is_connected:
            await asyncio.sleep(0.01)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let writes wait."""
        state, map_bytes = self.engine.directory.state, self.engine.configuration.limits.map_bytes
        command = [sys.executable, "-c", HOLD, str(state), str(map_bytes)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            try:
                yield
            finally:
                holder.stdin.close()

    async def arrived(self) -> None:
        """Wait until the writer has taken what was sent to it: it answers in order what is wrong at first sight."""
        with pytest.raises(CallerError):
            await self.relay.call(PUT, b"")


def with_ends(tmp_path: Path, work: Callable[[Ends], Awaitable[None]]) -> None:
    """Do some work between a worker's engine and a writer, over a shop of 30 items."""
    with Engine.open(tmp_path / "shop", CONFIGURATION) as writes:
        writes.put_items([Item(id=f"item{n:03d}") for n in range(30)])

    async def main(engine: Engine) -> None:
        engine.collect_servings()
        ends = Ends(engine, tmp_path)
        running = asyncio.create_task(ends.relay.run())
        await ends.start()
        try:
            await asyncio.wait_for(work(ends), 60)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            ends.child.stop()
            await ends.child.ended()

    with Engine.open(tmp_path / "shop", read_only=True) as engine:
        asyncio.run(main(engine))


def ingest_bytes(*message_ids: str) -> bytes:
    request = signal_service_pb2.IngestRequest(signals=[order(each, "u1") for each in message_ids])
    return request.SerializeToString()


# ---- the table ---------------------------------------------------------------------------------------------------


def test_every_method_of_the_api_is_read_or_relayed_as_what_it_is() -> None:
    engine = cast(Engine, SimpleNamespace(configuration=SimpleNamespace(limits=Limits())))
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
        assert ends.engine.position == answer.position
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
    batches = [ingest_bytes(*(f"m{n}.{batch}" for n in range(20))) for batch in range(5)]
    item = catalog_service_pb2.PutItemsRequest(message_id="p", items=[catalog_service_pb2.Item(id="x")])
    assert len(batches[0]) > LIMITS.live_lane_bytes_max

    async def work(ends: Ends) -> None:
        with ends.held():
            # One is written, one may wait whatever its size.
            live = [asyncio.create_task(ends.relay.call(INGEST, batch)) for batch in batches]
            while sum(task.done() for task in live) < 3:
                await asyncio.sleep(0.01)
            await ends.arrived()
            bulk = asyncio.create_task(ends.relay.call(PUT, item.SerializeToString()))
            refused = [task.exception() for task in live if task.done()]
            assert 3 <= len(refused) <= 4
            for error in refused:
                assert isinstance(error, ResourceExhausted)
                assert error.reason == "WRITER_BUSY"
                assert "live_lane_bytes_max = 1000 bytes waiting to be written in the live lane" in error.message
        await bulk
        assert len(
            [answer for answer in await asyncio.gather(*live, return_exceptions=True) if type(answer) is bytes]
        ) == (5 - len(refused))

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


def test_a_call_whose_writer_is_killed_is_told_so_and_can_be_sent_again(tmp_path: Path) -> None:
    async def work(ends: Ends) -> None:
        with ends.held():
            lost = asyncio.create_task(ends.relay.call(INGEST, ingest_bytes("m1")))
            await ends.arrived()
            await ends.kill()
            with pytest.raises(Unavailable, match="it may have been written all the same") as caught:
                await lost
            assert caught.value.reason == "WRITER_GONE"
            with pytest.raises(
                Unavailable, match="WRITER_GONE: expected a writer, got none: it has ended; send it again"
            ):
                await ends.relay.call(INGEST, ingest_bytes("m1"))
        await ends.start()
        answer = signal_service_pb2.IngestResponse.FromString(await ends.relay.call(INGEST, ingest_bytes("m1")))
        assert answer.outcomes[0].status == signal_service_pb2.SIGNAL_STATUS_APPLIED
        assert ends.engine.position == answer.position

    with_ends(tmp_path, work)


# ---- servings ----------------------------------------------------------------------------------------------------


def decided(engine: Engine) -> list[str]:
    return [item.id for item in engine.decide(placement="home", identifiers={"user_id": "u1"}).items]


def test_what_a_worker_served_is_forgotten_here_once_the_state_has_it(tmp_path: Path) -> None:
    async def work(ends: Ends) -> None:
        before = signal_service_pb2.IngestResponse.FromString(
            await ends.relay.call(INGEST, ingest_bytes("m1"))
        ).position
        served = [*decided(ends.engine), *decided(ends.engine)]
        position = await ends.servings.write()
        assert before < position == ends.engine.position
        assert ends.engine.servings_waiting_count == 0
        assert [len(log) for log in ends.engine._servings.logs] == [0]
        assert not set(decided(ends.engine)) & set(served)
        assert await ends.servings.write() > position
        assert await ends.servings.write() == ends.engine.position

    with_ends(tmp_path, work)


def test_servings_whose_writer_is_killed_are_not_served_again_and_are_sent_again(tmp_path: Path) -> None:
    async def work(ends: Ends) -> None:
        await ends.relay.call(INGEST, ingest_bytes("m1"))
        served = decided(ends.engine)
        with ends.held():
            lost = asyncio.create_task(ends.servings.write())
            await asyncio.sleep(0)
            await ends.arrived()
            served += decided(ends.engine)  # while they are on their way
            await ends.kill()
            with pytest.raises(Unavailable):
                await lost
            assert ends.engine.servings_waiting_count == 2
            served += decided(ends.engine)
        await ends.start()
        assert await ends.servings.write() == ends.engine.position
        assert ends.engine.servings_waiting_count == 0
        served += decided(ends.engine)
        assert len(served) == len(set(served)) == 12

    with_ends(tmp_path, work)


def test_those_who_ask_while_a_batch_is_under_way_share_the_next(tmp_path: Path) -> None:
    async def work(ends: Ends) -> None:
        await ends.relay.call(INGEST, ingest_bytes("m1"))
        with ends.held():
            decided(ends.engine)
            asked = [asyncio.create_task(ends.servings.write())]
            await asyncio.sleep(0)
            await ends.arrived()
            for _ in range(3):
                decided(ends.engine)
                asked.append(asyncio.create_task(ends.servings.write()))
            await asyncio.sleep(0)
        first, *rest = await asyncio.gather(*asked)
        assert {position - first for position in rest} == {1}

    with_ends(tmp_path, work)

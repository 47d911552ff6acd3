"""FeatureService and ConfigurationService."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from tailorbird.engine import Engine
from tailorbird.engine.backfill import BackfillProgress
from tailorbird.engine.feature_table import FeatureTable
from tailorbird.engine.signals import IngestReport
from tailorbird.server.handlers.waiting import reach
from tailorbird.server.lanes import lane_of
from tailorbird.server.messages.consent import choice_from
from tailorbird.server.messages.features import progress_message, rows_from, table_message
from tailorbird.server.messages.signals import write_report
from tailorbird.server.messages.wire import decode
from tailorbird.server.positions import Positions
from tailorbird.server.transport import CallContext
from tailorbird.server.writer import GroupWriter
from tailorbird.v1 import configuration_service_pb2, feature_service_pb2


class FeatureReads:
    """Reads features on the event loop."""

    def __init__(
        self, engine: Engine, positions: Positions, observe: Callable[[FeatureTable], None] | None = None
    ) -> None:
        """`observe` is told of every table that is read."""
        self._engine = engine
        self._positions = positions
        self._observe = observe

    async def get_features(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer GetFeatures."""
        message = decode(feature_service_pb2.GetFeaturesRequest, request_bytes)
        await reach(self._positions, message.min_position, context)
        table = self._engine.get_features(message.namespace, message.people, message.features, at=message.at_ms)
        if self._observe is not None:
            self._observe(table)
        stale = [category.name.lower() for category in self._engine.stale_categories(table.at)]
        return table_message(table, stale).SerializeToString()

    async def watch_segments(self, request_bytes: bytes, context: CallContext) -> AsyncIterator[bytes]:
        """Answer WatchSegments, until the caller leaves."""
        message = decode(feature_service_pb2.WatchSegmentsRequest, request_bytes)
        first = max(0, message.first_sequence)
        while True:
            changes = self._engine.segment_changes(first)
            for change in changes:
                yield feature_service_pb2.WatchSegmentsResponse(
                    sequence=change.sequence,
                    person_id=change.person_id,
                    segment=change.segment,
                    entered=change.entered,
                    at_ms=change.at,
                    position=change.position,
                ).SerializeToString()
                first = change.sequence + 1
            if not changes:
                await self._positions.changed()


class FeatureWrites:
    """Writes through the writer; backfills on a thread that takes turns with it."""

    def __init__(self, engine: Engine, writer: GroupWriter) -> None:
        self._engine = engine
        self._writer = writer

    async def push_features(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer PushFeatures."""
        message = decode(feature_service_pb2.PushFeaturesRequest, request_bytes)
        rows = rows_from(message)
        consent = choice_from(message.consent) if message.HasField("consent") else None

        def push() -> IngestReport:
            return self._engine.push_features(message.namespace, rows, source=message.source, consent=consent)

        report = await self._writer.call(push, len(request_bytes), lane_of(context.method))
        return write_report(report.outcomes, report.position)

    async def backfill_features(self, request_bytes: bytes, context: CallContext) -> AsyncIterator[bytes]:
        """Answer BackfillFeatures. A caller that leaves does not stop it."""
        decode(feature_service_pb2.BackfillFeaturesRequest, request_bytes)
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[BackfillProgress] = asyncio.Queue()
        running = asyncio.ensure_future(
            asyncio.to_thread(self._engine.backfill, lambda progress: _hand_over(loop, told, progress))
        )
        running.add_done_callback(lambda _: None if running.cancelled() else running.exception())
        while not running.done():
            waiting = asyncio.ensure_future(told.get())
            await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                yield progress_message(waiting.result()).SerializeToString()
            else:
                waiting.cancel()
        names = running.result()
        yield feature_service_pb2.BackfillFeaturesResponse(features=names, finished=True).SerializeToString()

    async def put_configuration(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer PutConfiguration."""
        message = decode(configuration_service_pb2.PutConfigurationRequest, request_bytes)
        position = await self._writer.call(lambda: self._engine.configure(message.configuration), len(request_bytes))
        return configuration_service_pb2.PutConfigurationResponse(
            position=position, warming_features=self._engine.warming_features()
        ).SerializeToString()


def _hand_over(
    loop: asyncio.AbstractEventLoop, told: asyncio.Queue[BackfillProgress], progress: BackfillProgress
) -> None:
    """Hand progress from the backfill's thread to the loop, which may be gone by then."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(told.put_nowait, progress)

"""SignalService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from tailorbird.engine import Engine
from tailorbird.engine.errors import CallerError
from tailorbird.engine.signals import IngestReport, Outcome, Signal, Status
from tailorbird.server.lanes import Lane, lane_of
from tailorbird.server.messages.signals import read_batch, write_report
from tailorbird.server.transport import CallContext
from tailorbird.server.writer import GroupWriter
from tailorbird.v1 import signal_service_pb2


class SignalHandlers:
    """Turns messages into signals; what is wrong with one is that one's outcome."""

    def __init__(self, engine: Engine, writer: GroupWriter) -> None:
        self._engine = engine
        self._writer = writer
        self._batch_max = engine.configuration.limits.batch_signals_max

    async def ingest(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer Ingest."""
        signals, _ = read_batch(signal_service_pb2.IngestRequest, request_bytes, self._batch_max)
        report = await self._write(signals, len(request_bytes), lane_of(context.method))
        return write_report(report.outcomes, report.position)

    async def ingest_stream(self, requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
        """Answer IngestStream. The next batch is taken once one is stored: none of a source can overtake one that failed."""
        async for request_bytes in requests:
            signals, source = read_batch(signal_service_pb2.IngestStreamRequest, request_bytes, self._batch_max)
            report = await self._write(signals, len(request_bytes), lane_of(context.method))
            offset = self._engine.source_offset(source)
            yield write_report(report.outcomes, report.position, offset if offset >= 0 else None)

    async def _write(self, batch: Sequence[Signal | CallerError], size_bytes: int, lane: Lane) -> IngestReport:
        """Write what can be, and return one outcome per signal."""
        signals = [signal for signal in batch if isinstance(signal, Signal)]
        if signals:
            report = await self._writer.ingest(signals, size_bytes, lane)
        else:
            report = IngestReport((), self._engine.position)
        if len(signals) == len(batch):
            return report
        admitted = iter(report.outcomes)
        outcomes = tuple(
            next(admitted) if isinstance(signal, Signal) else Outcome(Status.REJECTED, signal.reason, signal.message)
            for signal in batch
        )
        return IngestReport(outcomes, report.position)

"""SignalService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

from tailorbird.engine import Engine
from tailorbird.engine.errors import CallerError
from tailorbird.engine.signals import IngestReport, Outcome, Signal, Status
from tailorbird.server.messages.signals import report_message, signal_from
from tailorbird.server.messages.wire import decode, split_repeated
from tailorbird.server.transport import CallContext
from tailorbird.server.writer import GroupWriter
from tailorbird.v1 import signal_pb2, signal_service_pb2

Parsed = list[signal_pb2.Signal | CallerError]
B = TypeVar("B", signal_service_pb2.IngestRequest, signal_service_pb2.IngestStreamRequest)
SIGNALS_FIELD = signal_service_pb2.IngestRequest.SIGNALS_FIELD_NUMBER


class SignalHandlers:
    """Turns messages into signals; what is wrong with one is that one's outcome."""

    def __init__(self, engine: Engine, writer: GroupWriter) -> None:
        self._engine = engine
        self._writer = writer
        self._batch_max = engine.configuration.limits.batch_signals_max

    async def ingest(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer Ingest."""
        _, messages = _parse(signal_service_pb2.IngestRequest, request_bytes)
        return report_message(await self._write(messages, len(request_bytes))).SerializeToString()

    async def ingest_stream(self, requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
        """Answer IngestStream. The next batch is taken once one is stored: none of a source can overtake one that failed."""
        async for request_bytes in requests:
            request, messages = _parse(signal_service_pb2.IngestStreamRequest, request_bytes)
            report = report_message(await self._write(messages, len(request_bytes)))
            offset = self._engine.source_offset(request.source)
            yield signal_service_pb2.IngestStreamResponse(
                outcomes=report.outcomes, position=report.position, source_offset=offset if offset >= 0 else None
            ).SerializeToString()

    async def _write(self, messages: Parsed, size_bytes: int) -> IngestReport:
        """Write what can be, and return one outcome per message."""
        if len(messages) > self._batch_max:
            raise CallerError(
                "BATCH_TOO_LARGE",
                f"expected at most limits.batch_signals_max = {self._batch_max} signals, got {len(messages)}; "
                "send several batches",
            )
        signals: list[Signal] = []
        refused: dict[int, Outcome] = {}
        for index, message in enumerate(messages):
            try:
                if isinstance(message, CallerError):
                    raise message
                signals.append(signal_from(message))
            except CallerError as error:
                refused[index] = Outcome(Status.REJECTED, error.reason, error.message)
        if signals:
            report = await self._writer.ingest(signals, size_bytes)
        else:
            report = IngestReport((), self._engine.position)
        admitted = iter(report.outcomes)
        outcomes = tuple(refused[index] if index in refused else next(admitted) for index in range(len(messages)))
        return IngestReport(outcomes, report.position)


def _parse(message_type: type[B], data: bytes) -> tuple[B, Parsed]:
    """Return a batch, and each of its signals or what is wrong with its bytes."""
    try:
        batch = decode(message_type, data)
        return batch, list(batch.signals)
    except CallerError:
        # protobuf refuses the whole batch for one bad text, so the signals are read one by one.
        elements, rest = split_repeated(data, SIGNALS_FIELD)
        return decode(message_type, rest), [_parse_one(element) for element in elements]


def _parse_one(element: bytes) -> signal_pb2.Signal | CallerError:
    try:
        return decode(signal_pb2.Signal, element)
    except CallerError as error:
        return error

"""SignalService."""

from __future__ import annotations

from tailorbird.engine import Engine
from tailorbird.engine.errors import CallerError
from tailorbird.engine.signals import IngestReport, Outcome, Signal, Status
from tailorbird.server.messages.signals import report_message, signal_from
from tailorbird.server.messages.wire import decode, split_repeated
from tailorbird.server.transport import CallContext
from tailorbird.server.writer import GroupWriter
from tailorbird.v1 import signal_pb2, signal_service_pb2

SIGNALS_FIELD = signal_service_pb2.IngestRequest.SIGNALS_FIELD_NUMBER


class SignalHandlers:
    """Turns messages into signals; what is wrong with one is that one's outcome."""

    def __init__(self, engine: Engine, writer: GroupWriter) -> None:
        self._engine = engine
        self._writer = writer
        self._batch_max = engine.configuration.limits.batch_signals_max

    async def ingest(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer Ingest."""
        parsed = _parse(request_bytes)
        if len(parsed) > self._batch_max:
            raise CallerError(
                "BATCH_TOO_LARGE",
                f"expected at most limits.batch_signals_max = {self._batch_max} signals, got {len(parsed)}; "
                "send several batches",
            )
        signals: list[Signal] = []
        refused: dict[int, Outcome] = {}
        for index, message in enumerate(parsed):
            try:
                if isinstance(message, CallerError):
                    raise message
                signals.append(signal_from(message))
            except CallerError as error:
                refused[index] = Outcome(Status.REJECTED, error.reason, error.message)
        if signals:
            report = await self._writer.ingest(signals, len(request_bytes))
        else:
            report = IngestReport((), self._engine.position)
        admitted = iter(report.outcomes)
        outcomes = tuple(refused[index] if index in refused else next(admitted) for index in range(len(parsed)))
        return report_message(IngestReport(outcomes, report.position)).SerializeToString()


def _parse(request_bytes: bytes) -> list[signal_pb2.Signal | CallerError]:
    """Return each signal of the batch, or what is wrong with its bytes."""
    try:
        return list(decode(signal_service_pb2.IngestRequest, request_bytes).signals)
    except CallerError:
        # protobuf refuses the whole batch for one bad text, so the signals are read one by one.
        return [_parse_one(element) for element in split_repeated(request_bytes, SIGNALS_FIELD)]


def _parse_one(element: bytes) -> signal_pb2.Signal | CallerError:
    try:
        return decode(signal_pb2.Signal, element)
    except CallerError as error:
        return error

"""Signals in, outcomes out."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tailorbird.engine.errors import CallerError
from tailorbird.engine.signals import IngestReport, Outcome, Signal, Status
from tailorbird.server.messages.consent import choice_from
from tailorbird.server.messages.pairs import context_from, duplicate_name, identifiers_from
from tailorbird.v1 import feature_service_pb2, signal_pb2, signal_service_pb2

Scalar = str | float | int | bool

_LINE_TEXTS = ("product_id", "sku", "name", "category", "brand", "variant", "coupon")
_LINE_NUMBERS = ("price", "quantity", "position")
_STATUSES = {
    Status.APPLIED: signal_service_pb2.SIGNAL_STATUS_APPLIED,
    Status.DUPLICATE: signal_service_pb2.SIGNAL_STATUS_DUPLICATE,
    Status.WITHHELD: signal_service_pb2.SIGNAL_STATUS_WITHHELD,
    Status.REJECTED: signal_service_pb2.SIGNAL_STATUS_REJECTED,
}


def signal_from(message: signal_pb2.Signal) -> Signal:
    """Return the engine's signal. Raises `CallerError` for what the message alone shows to be wrong."""
    if message.HasField("source_offset") and message.source_offset < 0:
        raise CallerError(
            "BAD_SOURCE_OFFSET",
            f"expected a source_offset of at least 0, got {message.source_offset}; leave it out instead",
        )
    properties: dict[str, object] = dict(_properties(message.properties, "properties"))
    if message.products:
        if "products" in properties:
            raise duplicate_name("products", "properties and Signal.products")
        properties["products"] = [_line(line, index) for index, line in enumerate(message.products)]
    return Signal(
        type=message.type,
        event_time=message.event_time_ms,
        identifiers=identifiers_from(message.identifiers),
        message_id=message.message_id,
        properties=properties,
        context=context_from(message.context),
        source=message.source,
        source_offset=message.source_offset if message.HasField("source_offset") else -1,
        consent=choice_from(message.consent) if message.HasField("consent") else None,
    )


def report_message(report: IngestReport) -> signal_service_pb2.IngestResponse:
    """Return the answer of a batch."""
    return signal_service_pb2.IngestResponse(
        outcomes=[_outcome(outcome) for outcome in report.outcomes], position=report.position
    )


def report_from(message: signal_service_pb2.IngestResponse | feature_service_pb2.PushFeaturesResponse) -> IngestReport:
    """Return the report an answer tells of."""
    statuses = {number: status for status, number in _STATUSES.items()}
    outcomes = (Outcome(statuses[o.status], o.reason, o.message, o.position) for o in message.outcomes)
    return IngestReport(tuple(outcomes), message.position)


def _outcome(outcome: Outcome) -> signal_service_pb2.SignalOutcome:
    return signal_service_pb2.SignalOutcome(
        status=_STATUSES[outcome.status],
        reason=outcome.reason,
        message=outcome.message,
        position=outcome.position,
    )


def _properties(messages: Iterable[signal_pb2.Property], where: str) -> dict[str, Scalar]:
    result: dict[str, Scalar] = {}
    for message in messages:
        kind = message.WhichOneof("value")
        if kind is None:
            raise CallerError(
                "MISSING_VALUE",
                f"expected a value, got none in {where}, property {message.name[:64]!r}; leave it out instead",
            )
        if message.name in result:
            raise duplicate_name(message.name, where)
        if not math.isfinite(message.double_value):
            raise CallerError(
                "NOT_FINITE",
                f"expected a finite number, got {message.double_value} in {where}, property {message.name[:64]!r}",
            )
        result[message.name] = getattr(message, kind)
    return result


def _line(message: signal_pb2.ProductLine, index: int) -> dict[str, Scalar]:
    """Return a product line with the fields that are there; an empty text is one that is not."""
    where = f"products[{index}]"
    line: dict[str, Scalar] = {name: text for name in _LINE_TEXTS if (text := getattr(message, name))}
    if not math.isfinite(message.price):
        raise CallerError("NOT_FINITE", f"expected a finite number, got {message.price} in {where}.price")
    line |= {name: getattr(message, name) for name in _LINE_NUMBERS if message.HasField(name)}
    for name, value in _properties(message.extra, f"{where}.extra").items():
        if name in _LINE_TEXTS or name in _LINE_NUMBERS:
            raise CallerError(
                "DUPLICATE_NAME", f"expected the field {name} of ProductLine, got it among {where}.extra; use the field"
            )
        line[name] = value
    return line

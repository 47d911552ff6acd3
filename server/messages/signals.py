"""Signals in, outcomes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from tailorbird.engine.consent import ConsentChoice
from tailorbird.engine.errors import CallerError
from tailorbird.engine.signals import IngestReport, Outcome, Signal, Status
from tailorbird.native.signal_wire import OutcomeEncoder, SignalDecoder
from tailorbird.server.messages.consent import choice_from
from tailorbird.server.messages.pairs import context_from, duplicate_name, identifiers_from
from tailorbird.server.messages.wire import decode, split_repeated
from tailorbird.v1 import consent_pb2, feature_service_pb2, signal_pb2, signal_service_pb2

B = TypeVar("B", signal_service_pb2.IngestRequest, signal_service_pb2.IngestStreamRequest)
A = TypeVar("A")
R = TypeVar("R")

Scalar = str | float | int | bool

_LINE_TEXTS = ("product_id", "sku", "name", "category", "brand", "variant", "coupon")
_LINE_NUMBERS = ("price", "quantity", "position")
# In the order of their numbers in signal_service.proto, from 1.
STATUSES = (Status.APPLIED, Status.DUPLICATE, Status.WITHHELD, Status.REJECTED)
SIGNALS_FIELD = signal_service_pb2.IngestRequest.SIGNALS_FIELD_NUMBER
write_report = OutcomeEncoder(STATUSES).encode  # of IngestResponse, IngestStreamResponse and PushFeaturesResponse


def read_batch(message_type: type[B], data: bytes, signals_max: int) -> tuple[Sequence[Signal | CallerError], str]:
    """Return each signal of a batch, or what is wrong with it, and the source a stream asks about.

    Raises `CallerError` BAD_MESSAGE, BAD_UTF8, BATCH_TOO_LARGE.
    """
    is_stream = message_type is signal_service_pb2.IngestStreamRequest
    found = _DECODER.decode_batch(data, signals_max, is_stream)
    return found if found is not None else _batch_by_protobuf(message_type, data, signals_max)


def read_signal(data: bytes) -> Signal:
    """Return the engine's signal. Raises protobuf's `DecodeError`, and `CallerError` as `signal_from` does."""
    found = _DECODER.decode(data)
    return found if found is not None else signal_from(signal_pb2.Signal.FromString(data))


def _batch_by_protobuf(
    message_type: type[B], data: bytes, signals_max: int
) -> tuple[Sequence[Signal | CallerError], str]:
    """Return a batch as `read_batch` does; for what our own codec leaves to protobuf's."""
    messages: list[signal_pb2.Signal | CallerError]
    try:
        batch = decode(message_type, data)
        messages = list(batch.signals)
    except CallerError:
        # protobuf refuses the whole batch for one bad text, so the signals are read one by one.
        elements, rest = split_repeated(data, SIGNALS_FIELD)
        batch = decode(message_type, rest)
        messages = [_or_error(partial(decode, signal_pb2.Signal), element) for element in elements]
    if batch.acknowledgement not in signal_service_pb2.Acknowledgement.values():
        raise CallerError(
            "BAD_ACKNOWLEDGEMENT",
            f"expected one of {', '.join(signal_service_pb2.Acknowledgement.keys())}, got {batch.acknowledgement} in "
            "acknowledgement",
        )
    if len(messages) > signals_max:
        raise CallerError(
            "BATCH_TOO_LARGE",
            f"expected at most limits.batch_signals_max = {signals_max} signals, got {len(messages)}; send several batches",
        )
    signals = [message if isinstance(message, CallerError) else _or_error(signal_from, message) for message in messages]
    return signals, batch.source if isinstance(batch, signal_service_pb2.IngestStreamRequest) else ""


def _or_error(read: Callable[[A], R], data: A) -> R | CallerError:
    try:
        return read(data)
    except CallerError as error:
        return error


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


def report_from(message: signal_service_pb2.IngestResponse | feature_service_pb2.PushFeaturesResponse) -> IngestReport:
    """Return the report an answer tells of."""
    outcomes = (Outcome(STATUSES[o.status - 1], o.reason, o.message, o.position) for o in message.outcomes)
    return IngestReport(tuple(outcomes), message.position)


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


def _choice(encoded: bytes) -> ConsentChoice:
    return choice_from(decode(consent_pb2.ConsentChoice, encoded))


_DECODER = SignalDecoder(Signal, _choice, (CallerError,))

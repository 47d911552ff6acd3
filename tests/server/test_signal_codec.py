"""Our own codec of signals against protobuf's: the same signals read, the same bytes refused, the same answers written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailorbird.engine.errors import CallerError
from tailorbird.engine.signals import Outcome, Signal, Status
from tailorbird.server.messages import signals
from tailorbird.server.messages.signals import STATUSES, read_batch, read_signal, write_report
from tailorbird.v1 import consent_pb2, identity_pb2, signal_pb2, signal_service_pb2

SIGNALS_MAX = 4
STREAM = signal_service_pb2.IngestStreamRequest
UNARY = signal_service_pb2.IngestRequest
TEXTS = st.one_of(st.text(max_size=5), st.sampled_from(["", "products", "price", "sku", "é", "日本語", "a" * 200]))
INT64 = st.integers(-(2**63), 2**63 - 1)
DOUBLES = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1.5]))
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), max_size=3)
PROPERTIES = st.lists(
    st.one_of(
        st.builds(signal_pb2.Property, name=TEXTS),
        st.builds(signal_pb2.Property, name=TEXTS, string_value=TEXTS),
        st.builds(signal_pb2.Property, name=TEXTS, double_value=DOUBLES),
        st.builds(signal_pb2.Property, name=TEXTS, int_value=INT64),
        st.builds(signal_pb2.Property, name=TEXTS, bool_value=st.booleans()),
    ),
    max_size=3,
)
LINES = st.builds(
    signal_pb2.ProductLine,
    product_id=TEXTS,
    sku=TEXTS,
    brand=TEXTS,
    coupon=TEXTS,
    price=st.none() | DOUBLES,
    quantity=st.none() | INT64,
    position=st.none() | INT64,
    extra=PROPERTIES,
)
CHOICES = st.builds(
    consent_pb2.ConsentChoice,
    entries=st.lists(
        st.builds(
            consent_pb2.ConsentEntry,
            data_type=st.integers(0, 9),
            purposes=st.lists(st.integers(0, 9), max_size=2),
            state=st.integers(0, 4),
        ),
        max_size=2,
    ),
    basis=st.integers(0, 6),
    notice=TEXTS,
)
SIGNALS = st.builds(
    lambda identifiers, context, **fields: signal_pb2.Signal(
        identifiers=[identity_pb2.Identifier(namespace=name, value=value) for name, value in identifiers],
        context=[identity_pb2.ContextEntry(name=name, value=value) for name, value in context],
        **fields,
    ),
    identifiers=PAIRS,
    context=PAIRS,
    type=TEXTS,
    event_time_ms=INT64,
    message_id=TEXTS,
    properties=PROPERTIES,
    products=st.lists(LINES, max_size=2),
    source=TEXTS,
    source_offset=st.none() | INT64,
    consent=st.none() | CHOICES,
)
ACKNOWLEDGEMENTS = st.integers(0, 3)  # the last is none
BATCHES = st.one_of(
    st.builds(UNARY, signals=st.lists(SIGNALS, max_size=SIGNALS_MAX + 1), acknowledgement=ACKNOWLEDGEMENTS),
    st.builds(
        STREAM, signals=st.lists(SIGNALS, max_size=SIGNALS_MAX + 1), source=TEXTS, acknowledgement=ACKNOWLEDGEMENTS
    ),
)


def plain(found: Signal | CallerError) -> object:
    """Return a signal with its properties in their order, which is that of the log, or how it was refused."""
    if isinstance(found, CallerError):
        return found.reason, found.message
    products = found.properties.get("products")
    lines = [list(line.items()) for line in products] if isinstance(products, list) else []
    return repr((found, list(found.properties), lines))


def outcome(read: Any, kind: Any, data: bytes) -> object:
    try:
        batch, source = read(kind, data, SIGNALS_MAX)
    except CallerError as error:
        return error.reason, error.message
    return [plain(signal) for signal in batch], source


def check(kind: Any, data: bytes) -> None:
    assert outcome(read_batch, kind, data) == outcome(signals._batch_by_protobuf, kind, data)


@given(batch=BATCHES)
def test_a_batch_is_read_as_protobuf_reads_it(batch: Any) -> None:
    check(type(batch), batch.SerializeToString())


@given(batch=BATCHES, cuts=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=3))
def test_fields_in_any_order_and_number_are_read_as_protobuf_reads_them(
    batch: Any, cuts: list[tuple[int, int]]
) -> None:
    data = batch.SerializeToString()
    for start, end in cuts:
        data += data[start:end]
    check(type(batch), data)


@given(signal=SIGNALS, cuts=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=3))
def test_fields_of_a_signal_in_any_order_are_read_as_protobuf_reads_them(
    signal: signal_pb2.Signal, cuts: list[tuple[int, int]]
) -> None:
    data = signal.SerializeToString()
    for start, end in cuts:
        data += data[start:end]
    element = b"\x0a" + varint(len(data)) + data
    check(UNARY, element)


@given(batch=BATCHES, edits=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_batches_are_read_or_refused_as_by_protobuf(batch: Any, edits: list[tuple[int, int]]) -> None:
    data = bytearray(batch.SerializeToString() or b"\0")
    for place, byte in edits:
        data[place % len(data)] = byte
    check(type(batch), bytes(data))


@given(data=st.binary(max_size=60), is_stream=st.booleans())
@example(data=b"\x0a\x0b\x52\x02\x10\x01\x52\x05\x0a\x03\x08\x01\x18", is_stream=False)
@example(data=b"\x0a\x06\x2a\x04\x0a\x00\x28\x80", is_stream=False)
@example(data=b"\x0a\x07\x2a\x05\x28\xff\x01\x20\x00", is_stream=True)
@example(data=b"\x12\x01a\x12\x01b", is_stream=True)
@example(data=b"\x12\x01a", is_stream=False)
def test_any_bytes_are_read_or_refused_as_by_protobuf(data: bytes, is_stream: bool) -> None:
    check(STREAM if is_stream else UNARY, data)


def varint(number: int) -> bytes:
    found = b""
    while number >= 0x80:
        found, number = found + bytes([number & 0x7F | 0x80]), number >> 7
    return found + bytes([number])


def test_the_common_batch_needs_no_message_object(monkeypatch: pytest.MonkeyPatch) -> None:
    signal = signal_pb2.Signal(
        type="order_completed",
        event_time_ms=7,
        identifiers=[identity_pb2.Identifier(namespace="user_id", value="ü")],
        properties=[signal_pb2.Property(name="gift", bool_value=True)],
        products=[
            signal_pb2.ProductLine(product_id="a", price=2.5, extra=[signal_pb2.Property(name="c", int_value=-1)])
        ],
        consent=consent_pb2.ConsentChoice(entries=[consent_pb2.ConsentEntry(data_type=1, state=1)]),  # type: ignore[arg-type]
    )
    monkeypatch.setattr(signals, "_batch_by_protobuf", None)
    monkeypatch.setattr(signals, "signal_from", None)
    batch, source = read_batch(STREAM, STREAM(signals=[signal], source="till").SerializeToString(), 1)
    assert source == "till"
    assert batch == [read_signal(signal.SerializeToString())]
    assert isinstance(batch[0], Signal)
    assert batch[0].properties == {"gift": True, "products": [{"product_id": "a", "price": 2.5, "c": -1}]}
    assert batch[0].consent is not None


def test_choices_are_kept_for_the_same_bytes_only() -> None:
    for round_ in range(2):
        for number in range(300):
            choice = consent_pb2.ConsentChoice(
                entries=[consent_pb2.ConsentEntry(data_type=1, state=1)],  # type: ignore[arg-type]
                notice=f"notice-{number}",
            )
            found = read_signal(signal_pb2.Signal(type="t", consent=choice).SerializeToString())
            assert found.consent is not None, round_
            assert found.consent.notice == f"notice-{number}", round_


OUTCOMES = st.builds(Outcome, st.sampled_from(STATUSES), TEXTS, TEXTS, st.integers(-1, 2**63 - 1))


@given(
    outcomes=st.lists(OUTCOMES, max_size=4), position=st.integers(0, 2**63 - 1), offset=st.none() | st.integers(0, 9)
)
def test_outcomes_are_written_as_protobuf_writes_them(
    outcomes: list[Outcome], position: int, offset: int | None
) -> None:
    expected = signal_service_pb2.IngestStreamResponse(
        outcomes=[
            signal_service_pb2.SignalOutcome(
                status=1 + STATUSES.index(outcome.status),  # type: ignore[arg-type]
                reason=outcome.reason,
                message=outcome.message,
                position=outcome.position,
            )
            for outcome in outcomes
        ],
        position=position,
        source_offset=offset,
    )
    assert write_report(outcomes, position, offset) == expected.SerializeToString(deterministic=True)


def test_a_status_that_is_none_is_refused() -> None:
    assert set(STATUSES) == set(Status)
    with pytest.raises(ValueError, match="expected one of .*, got 'lost'"):
        write_report([Outcome("lost")], 1)  # type: ignore[arg-type]

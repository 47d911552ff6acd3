"""Bytes that are no message are told from texts that are no UTF-8, and one bad element does not spoil the others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.engine.errors import CallerError
from tailorbird.server.messages.wire import decode, split_repeated
from tailorbird.v1 import identity_pb2, signal_pb2, signal_service_pb2

FIELD = signal_service_pb2.IngestRequest.SIGNALS_FIELD_NUMBER


def test_a_text_that_is_no_utf8_is_named_so() -> None:
    data = identity_pb2.Identifier(namespace="email", value="XXXX").SerializeToString().replace(b"XXXX", b"X\xff\xfeX")
    with pytest.raises(CallerError) as caught:
        decode(identity_pb2.Identifier, data)
    assert caught.value.reason == "BAD_UTF8"


def test_bytes_that_are_no_message_are_named_so() -> None:
    with pytest.raises(CallerError) as caught:
        decode(identity_pb2.Identifier, b"\x0a\x7fabc")
    assert caught.value.reason == "BAD_MESSAGE"


@given(st.lists(st.text(max_size=200), max_size=5))
def test_elements_are_found_where_protobuf_put_them(types: list[str]) -> None:
    signals = [signal_pb2.Signal(type=name, event_time_ms=1) for name in types]
    batch = signal_service_pb2.IngestRequest(signals=signals).SerializeToString()
    assert split_repeated(batch, FIELD) == ([signal.SerializeToString() for signal in signals], b"")
    other = signal_service_pb2.IngestStreamRequest(source="till").SerializeToString()
    assert split_repeated(other + batch, FIELD) == ([signal.SerializeToString() for signal in signals], other)


@given(st.binary(max_size=64))
def test_any_bytes_are_split_or_refused(data: bytes) -> None:
    reason, elements, rest = "", list[bytes](), b""
    try:
        elements, rest = split_repeated(data, FIELD)
    except CallerError as error:
        reason = error.reason
    assert reason in {"", "BAD_MESSAGE"}
    # Every element stood in the data, each behind a key and a length.
    assert sum(len(element) + 2 for element in elements) + len(rest) <= len(data)

"""The HTTP/2 session: the same events however bytes are cut, nothing from the wire believed, whole answers in one piece."""

from __future__ import annotations

import gzip
import itertools
import random
import urllib.parse
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http2_frames import (
    CANCEL,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    data,
    frame,
    frames_of,
    hello,
    message,
    request,
    unary,
)

http2 = pytest.importorskip("tailorbird.native.http2", reason="libnghttp2 was missing when the kernels were built")

METHODS = {b"/one": (True, "one"), b"/many": (False, "many")}
LIMITS = {
    "message_bytes_max": 100_000,
    "streams_max": 100,
    "header_bytes_max": 4_096,
    "window_bytes": 65_536,
    "buffered_bytes_max": 1_000_000,
    "drain_bytes": 10_000,
    "continuations_max": 8,
    "resets_per_s_max": 50,
    "settings_per_s_max": 10,
    "pings_per_s_max": 10,
    "idle_frames_per_s_max": 10,
    "window_updates_per_s_max": 1_000,
}
Events = list[tuple[Any, ...]]


def session(**changes: int) -> Any:
    return http2.ServerSession(METHODS, **{**LIMITS, **changes})


def events_of(received: bytes, cuts: list[int] | None = None, **changes: int) -> Events:
    """Return all events of what a client sends after its hello, cut at `cuts`."""
    server, whole = session(**changes), hello() + received
    places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts or [])})
    events: Events = []
    for begin, end in itertools.pairwise(places):
        events += server.receive(whole[begin:end], 0.0)
        server.pull(1 << 20)
        events += server.more_events()
    return events


def pulled(server: Any) -> list[Frame]:
    return frames_of(server.pull(1 << 20))


def everything() -> bytes:
    """Return a client's bytes with every kind of event in them."""
    large = random.Random(1).randbytes(50_000)
    return b"".join(
        [
            unary(1, "/one", b""),
            unary(3, "/one", large, ("grpc-timeout", "5S"), ("x-one", "1"), ("x-two-bin", "AP8")),
            request(5, "/many"),
            data(5, message(b"a") + message(b"") + message(large)[:7]),
            unary(7, "/one", b"between"),
            data(5, message(large)[7:] + message(b"last"), end=True),
            request(9, "/one", ("grpc-encoding", "gzip")),
            data(9, message(gzip.compress(b"z" * 1_000), compressed=True), end=True),
            unary(11, "/nothing", b"x"),
            request(13, "/many"),
            frame(RST_STREAM, 0, 13, CANCEL.to_bytes(4, "big")),
            request(15, "/one"),
            data(15, message(b"half")[:6], end=True),
            unary(17, "/one", b"after"),
        ]
    )


def test_every_kind_of_request_is_told() -> None:
    events = events_of(everything())
    by_stream = {stream: [event for event in events if event[1] == stream] for stream in range(1, 18, 2)}
    assert by_stream[1] == [(http2.CALL, 1, "one", (), -1, b"")]
    call = by_stream[3][0]
    assert call[2:5] == ("one", (("x-one", "1"), ("x-two-bin", b"\x00\xff")), 5_000_000_000)
    assert len(call[5]) == 50_000
    assert [event[0] for event in by_stream[5]] == [http2.CALL, *[http2.MESSAGE] * 4, http2.END]
    assert [len(event[2]) for event in by_stream[5][1:5]] == [1, 0, 50_000, 4]
    assert by_stream[9][0][5] == b"z" * 1_000
    assert by_stream[11] == [(http2.FAULT, 11, http2.UNKNOWN_PATH, None)]
    assert by_stream[13] == [(http2.CALL, 13, "many", (), -1, None), (http2.RESET, 13, CANCEL)]
    assert by_stream[15] == [(http2.FAULT, 15, http2.BAD_FRAMING, None)]
    assert by_stream[17][0][5] == b"after"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1 << 20), max_size=60))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    assert events_of(everything(), cuts) == events_of(everything())


def test_events_are_the_same_byte_by_byte() -> None:
    received = b"".join(
        [unary(1, "/one", b"abc"), request(3, "/many"), data(3, message(b"d") + message(b""), end=True)]
    )
    assert events_of(received, list(range(1_000))) == events_of(received)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_garbage_is_refused_and_never_more(garbage: bytes, after_hello: bool) -> None:
    server = session()
    try:
        server.receive((hello() if after_hello else b"") + garbage, 0.0)
        server.pull(1 << 20)
    except http2.ProtocolError as error:
        assert str(error)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=5))
def test_damaged_traffic_is_refused_and_never_more(damage: list[tuple[int, int]]) -> None:
    received = bytearray(hello() + everything())
    for place, value in damage:
        received[place % len(received)] = value
    server = session()
    try:
        for event in server.receive(bytes(received), 0.0):
            if event[0] == http2.CALL:
                server.answer(event[1], b"x" * 20_000)
        server.pull(1 << 20)
    except http2.ProtocolError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("1n", 1),
        ("2u", 2_000),
        ("3m", 3_000_000),
        ("4S", 4_000_000_000),
        ("5M", 300_000_000_000),
        ("6H", 21_600_000_000_000),
        ("0S", 0),
        ("99999999H", (1 << 63) - 1),
    ],
)
def test_a_timeout_is_read_in_every_unit(text: str, expected_ns: int) -> None:
    assert events_of(unary(1, "/one", b"", ("grpc-timeout", text)))[0][4] == expected_ns


@pytest.mark.parametrize("text", ["", "1", "S", "123456789S", "1s", "-1S", "1.5S", " 1S", "1SS"])
def test_a_bad_timeout_is_a_fault(text: str) -> None:
    events = events_of(unary(1, "/one", b"", ("grpc-timeout", text)))
    assert events in ([(http2.FAULT, 1, http2.BAD_TIMEOUT, None)], [])


def test_binary_metadata_comes_with_and_without_padding_and_joined() -> None:
    pairs = [("a-bin", "AP8="), ("b-bin", "AP8"), ("c-bin", "AA,AQ==, Ag"), ("d-bin", ""), ("e", "AP8,x")]
    (call,) = events_of(unary(1, "/one", b"", *pairs))
    assert call[3] == (
        ("a-bin", b"\x00\xff"),
        ("b-bin", b"\x00\xff"),
        ("c-bin", b"\x00"),
        ("c-bin", b"\x01"),
        ("c-bin", b"\x02"),
        ("d-bin", b""),
        ("e", "AP8,x"),
    )
    assert events_of(unary(1, "/one", b"", ("a-bin", "!!")))[0][2] == http2.BAD_METADATA


@pytest.mark.parametrize(
    ("received", "fault"),
    [
        (request(1, "/one", ("grpc-encoding", "snappy")), "UNKNOWN_ENCODING"),
        (request(1, "/one") + data(1, message(b"x", compressed=True)), "BAD_COMPRESSION"),
        (request(1, "/one", ("grpc-encoding", "gzip")) + data(1, message(b"x", compressed=True)), "BAD_COMPRESSION"),
        (request(1, "/one", ("grpc-encoding", "gzip")) + data(1, message(b"", compressed=True)), "BAD_COMPRESSION"),
        (request(1, "/one") + data(1, b"\x02\x00\x00\x00\x00"), "BAD_FRAMING"),
        (request(1, "/one") + data(1, b"\x00\xff\xff\xff\xff"), "MESSAGE_TOO_LARGE"),
        (request(1, "/one") + data(1, message(b"x" * 100_001)[:10]), "MESSAGE_TOO_LARGE"),
        (request(1, "/one") + data(1, message(b"") + message(b""), end=True), "WRONG_COUNT"),
        (request(1, "/one", end=True), "WRONG_COUNT"),
        (request(1, "/many") + data(1, b"\x00\x00", end=True), "BAD_FRAMING"),
        (request(1, "/one", ("x", "y" * 4_096)), "HEADERS_TOO_LARGE"),
    ],
)
def test_what_breaks_a_rule_is_one_fault(received: bytes, fault: str) -> None:
    faults = [event for event in events_of(received) if event[0] == http2.FAULT]
    assert [event[2] for event in faults] == [getattr(http2, fault)]


def test_a_small_message_that_unpacks_to_a_large_one_is_refused() -> None:
    bomb = message(gzip.compress(b"\x00" * 50_000_000), compressed=True)
    assert len(bomb) < 50_000
    (event,) = events_of(request(1, "/one", ("grpc-encoding", "gzip")) + data(1, bomb, end=True))
    assert event[:3] == (http2.FAULT, 1, http2.MESSAGE_TOO_LARGE)


def test_unfinished_requests_of_a_connection_are_bounded_together() -> None:
    half = b"".join(request(n, "/one") + data(n, message(b"x" * 60_000)[:30_000]) for n in range(1, 21, 2))
    faults = [event for event in events_of(half, buffered_bytes_max=100_000) if event[0] == http2.FAULT]
    assert faults
    assert {event[2] for event in faults} == {http2.BUFFERS_FULL}
    each = [unary(n, "/one", b"x" * 60_000) for n in range(1, 101, 2)]
    cuts = [len(hello()) + n * len(each[0]) for n in range(50)]
    assert [event[0] for event in events_of(b"".join(each), cuts, buffered_bytes_max=100_000)] == [http2.CALL] * 50


def test_an_answer_goes_out_in_one_piece() -> None:
    server = session()
    server.receive(hello() + unary(1, "/one", b"a"), 0.0)
    server.pull(1 << 20)
    server.answer(1, b"b" * 100)
    first, second, third = pulled(server)
    assert (first.kind, first.flags & END_STREAM) == (HEADERS, 0)
    assert (second.kind, second.payload) == (DATA, message(b"b" * 100))
    assert (third.kind, third.flags & END_STREAM) == (HEADERS, END_STREAM)
    assert server.stream_count == 0


def test_a_failure_is_headers_alone() -> None:
    server = session()
    server.receive(hello() + unary(1, "/one", b"a"), 0.0)
    server.pull(1 << 20)
    server.finish(1, 5, "ä%".encode(), [(b"x-reason", b"why"), (b"x-raw-bin", b"\x00\xff")])
    (only,) = pulled(server)
    assert (only.kind, only.flags & END_STREAM) == (HEADERS, END_STREAM)


def test_what_comes_after_the_end_of_a_stream_is_nothing() -> None:
    server = session()
    server.receive(hello() + unary(1, "/one", b"a"), 0.0)
    server.answer(1, b"b")
    server.answer(1, b"c")
    server.finish(1, 13)
    assert server.send(1, b"d") is False
    server.pull(1 << 20)
    for stream_id in (1, 3, 0, -1):
        server.answer(stream_id, b"c")
        server.finish(stream_id, 13)
        server.refuse(stream_id, 405, 13, b"")
        server.take(stream_id)
        assert server.must_wait(stream_id) is False
    assert pulled(server) == []


def test_the_window_opens_as_messages_are_taken() -> None:
    server = session()
    server.receive(hello() + request(1, "/many"), 0.0)
    server.receive(data(1, message(b"x" * 20_000) * 3), 0.0)
    assert [update for update in pulled(server) if update.kind == WINDOW_UPDATE and update.stream_id == 1] == []
    for _ in range(3):
        server.take(1)
    assert [update.stream_id for update in pulled(server) if update.kind == WINDOW_UPDATE] == [1]


def test_a_sender_past_its_window_is_told() -> None:
    server = session()
    server.receive(hello() + request(1, "/many"), 0.0)
    server.receive(data(1, message(b"x" * 30_000) * 3), 0.0)
    assert [found.kind for found in pulled(server) if found.kind in {GOAWAY, RST_STREAM}] != []


def test_answers_wait_for_the_readers_window() -> None:
    server = session()
    server.receive(hello() + unary(1, "/one", b""), 0.0)
    assert [server.send(1, b"x" * 8_000) for _ in range(12)] == [False, *[True] * 11]
    sent = sum(len(each.payload) for each in pulled(server) if each.kind == DATA)
    assert sent == 65_535
    assert server.more_events() == ()
    assert server.must_wait(1)
    window = (100_000).to_bytes(4, "big")
    server.receive(frame(WINDOW_UPDATE, 0, 0, window) + frame(WINDOW_UPDATE, 0, 1, window), 0.0)
    server.finish(1, 0)
    assert sum(len(each.payload) for each in pulled(server) if each.kind == DATA) == 12 * 8_005 - 65_535
    assert server.more_events() == [(http2.DRAINED, 1)]


def test_a_pull_is_bounded() -> None:
    server = session()
    window = (10_000_000).to_bytes(4, "big")
    server.receive(hello() + unary(1, "/one", b""), 0.0)
    server.receive(frame(WINDOW_UPDATE, 0, 0, window) + frame(WINDOW_UPDATE, 0, 1, window), 0.0)
    server.answer(1, b"x" * 1_000_000)
    pieces = []
    while piece := server.pull(40_000):
        pieces.append(piece)
    assert max(len(piece) for piece in pieces) < 40_000 + 16_384 + 9
    assert sum(len(each.payload) for each in frames_of(b"".join(pieces)) if each.kind == DATA) == 1_000_005


@pytest.mark.parametrize(
    "each",
    [frame(SETTINGS), frame(PING, payload=b"12345678"), frame(2, 0, 1, b"\x00\x00\x00\x00\x10")],
    ids=["settings", "pings", "priorities"],
)
def test_a_rate_is_of_one_second(each: bytes) -> None:
    server = session()
    server.receive(hello(), 0.0)
    server.pull(1 << 20)
    for second in range(1, 5):
        server.receive(each * 10, float(second))
        assert not server.is_calmed
    server.receive(each * 11, 5.0)
    assert server.is_calmed


@given(st.binary(max_size=200))
def test_percent_encoding_equals_its_twin(text: bytes) -> None:
    printable = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
    assert http2.percent_encoded(text) == urllib.parse.quote_from_bytes(text, safe=printable).encode()


def test_a_session_refuses_types_it_cannot_send() -> None:
    server = session()
    with pytest.raises(TypeError):
        server.answer(1, None)
    with pytest.raises(TypeError):
        server.receive("text", 0.0)

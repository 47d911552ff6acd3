"""The HTTP/2 client session against frames by hand: the same events however bytes are cut, and every way a call can end."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http2_frames import (
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    block,
    data,
    frame,
    frames_of,
    message,
)

http2_client = pytest.importorskip(
    "tailorbird.native.http2_client", reason="libnghttp2 was missing when the kernels were built"
)
Events = list[tuple[Any, ...]]
OK = ((":status", "200"), ("content-type", "application/grpc"))


def session(**changes: int) -> Any:
    limits = {
        "message_bytes_max": 100_000,
        "header_bytes_max": 4_096,
        "window_bytes": 65_536,
        "buffered_bytes_max": 1_000_000,
        "drain_bytes": 10_000,
    }
    return http2_client.ClientSession(authority=b"here", scheme=b"http", agent=b"test", **{**limits, **changes})


def begun(single: bool = True, **changes: int) -> Any:
    """Return a session with one call on stream 1, its bytes sent."""
    made = session(**changes)
    assert made.request(b"/t.S/M", [], None, b"hello", single=single, last=True) == 1
    made.pull(1 << 20)
    return made


def headers(*pairs: tuple[str, str], end: bool = False, stream_id: int = 1) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream_id, block(*pairs))


def answer(payload: bytes, code: int = 0, stream_id: int = 1) -> bytes:
    return (
        headers(*OK, ("x-a", "1"), stream_id=stream_id)
        + data(stream_id, message(payload))
        + headers(("grpc-status", str(code)), ("x-b", "2"), end=True, stream_id=stream_id)
    )


def events_of(made: Any, received: bytes, cuts: list[int] | None = None) -> Events:
    edges = [0, *sorted({cut % (len(received) + 1) for cut in cuts or []}), len(received)]
    found: Events = []
    for start, end in itertools.pairwise(edges):
        found += made.receive(received[start:end], 0.0)
    return found


@given(st.binary(max_size=300), st.lists(st.integers(0, 10_000), max_size=12), st.booleans())
@settings(max_examples=200)
def test_events_are_the_same_however_the_bytes_are_cut(payload: bytes, cuts: list[int], single: bool) -> None:
    received = frame(SETTINGS) + answer(payload)
    whole, cut = events_of(begun(single), received), events_of(begun(single), received, cuts)
    assert whole == cut
    done = (http2_client.DONE, 1, 200, 0, "", (("x-a", "1"),), (("x-b", "2"),))
    if single:
        assert whole == [(*done, payload, 0)]
    else:
        assert whole == [
            (http2_client.INITIAL, 1, (("x-a", "1"),)),
            (http2_client.MESSAGE, 1, payload),
            (*done, None, 0),
        ]


def kinds_sent(made: Any, stream_id: int) -> list[int]:
    return [found.kind for found in frames_of(made.pull(1 << 20)) if found.stream_id == stream_id]


# What HTTP/2 takes for frames, of any kind but SETTINGS, which may rightly keep a call waiting: any flags, the connection or the
# call's stream.
KINDS = st.sampled_from([kind for kind in range(10) if kind != SETTINGS])
FRAMES = st.builds(frame, KINDS, st.integers(0, 255), st.integers(0, 1), st.binary(max_size=40))
NOISE = st.binary(max_size=400) | st.lists(FRAMES, max_size=10).map(b"".join)


@given(NOISE)
@settings(max_examples=500)
def test_nothing_from_the_wire_is_believed(noise: bytes) -> None:
    """Whatever comes, a call's end is told once at most; then the session says goodbye, or begins another call."""
    made = begun()
    events = events_of(made, frame(SETTINGS) + noise)
    assert {event[1] for event in events if event[0] != http2_client.GOAWAY} <= {0, 1}
    assert sum(event[0] == http2_client.DONE for event in events) <= 1
    if made.can_request:
        assert made.request(b"/t.S/M", [], None, b"more", single=True, last=True) == 3
        assert kinds_sent(made, 3) == [HEADERS, DATA]
    else:
        assert GOAWAY in kinds_sent(made, 0) or http2_client.GOAWAY in {event[0] for event in events}


@given(st.lists(FRAMES, max_size=10))
@settings(max_examples=500)
def test_after_any_frames_another_call_is_answered_or_the_session_ends(frames: list[bytes]) -> None:
    made = begun()
    events_of(made, frame(SETTINGS) + b"".join(frames))
    if made.can_request:
        made.request(b"/t.S/M", [], None, b"more", single=True, last=True)
        made.pull(1 << 20)
        events = events_of(made, answer(b"yes", stream_id=3))
        ends = [event for event in events if event[:2] == (http2_client.DONE, 3)]
        assert [event[7] for event in ends] == [b"yes"] or GOAWAY in kinds_sent(made, 0)


def done(events: Events) -> tuple[Any, ...]:
    found = [event for event in events if event[0] == http2_client.DONE]
    assert len(found) == 1
    return found[0]


def test_a_call_is_sent_as_grpc_asks() -> None:
    made = session()
    made.request(b"/t.S/M", [(b"x-a", b"1")], b"5000m", b"hello", single=True, last=True)
    sent = made.pull(1 << 20)
    assert sent.startswith(PREFACE)
    kinds = [(found.kind, found.flags & END_STREAM) for found in frames_of(sent[len(PREFACE) :]) if found.stream_id]
    assert kinds == [(HEADERS, 0), (0, END_STREAM)]
    assert message(b"hello") in sent


def test_statuses_alone_resets_and_http_errors_end_a_call() -> None:
    alone = headers(*OK, ("grpc-status", "5"), ("grpc-message", "no %C3%A4 thing"), ("x-b", "2"), end=True)
    assert done(events_of(begun(), frame(SETTINGS) + alone))[3:7] == (5, "no ä thing", (), (("x-b", "2"),))
    plain = headers((":status", "503"), ("content-type", "text/plain"), end=True)
    assert done(events_of(begun(), frame(SETTINGS) + plain))[2:4] == (503, -1)
    for code in (CANCEL, REFUSED_STREAM):
        reset = frame(RST_STREAM, 0, 1, code.to_bytes(4, "big"))
        assert done(events_of(begun(), frame(SETTINGS) + reset))[8] == code


def test_a_goaway_refuses_what_came_after_its_last_stream() -> None:
    made = begun()
    made.request(b"/t.S/M", [], None, b"b", single=True, last=True)
    made.pull(1 << 20)
    away = frame(GOAWAY, 0, 0, (1).to_bytes(4, "big") + (0).to_bytes(4, "big"))
    events = events_of(made, frame(SETTINGS) + away)
    assert done(events)[1:2] + done(events)[8:] == (3, REFUSED_STREAM)
    assert not made.can_request
    assert done(events_of(made, answer(b"still")))[7] == b"still"


def test_a_call_past_the_peers_limit_of_streams_waits_and_can_be_given_up() -> None:
    made = session()
    made.pull(1 << 20)
    events_of(made, frame(SETTINGS, 0, 0, (3).to_bytes(2, "big") + (1).to_bytes(4, "big")))
    made.pull(1 << 20)
    for _ in range(3):
        made.request(b"/t.S/M", [], None, b"a", single=True, last=True)
    assert {found.stream_id for found in frames_of(made.pull(1 << 20)) if found.kind == HEADERS} == {1}
    made.cancel(3)
    events = events_of(made, answer(b"first"))
    sent = {found.stream_id for found in frames_of(made.pull(1 << 20)) if found.kind == HEADERS}
    assert done(events)[7] == b"first"
    assert sent == {5}
    assert made.stream_count == 1


def test_two_answers_where_one_is_due_and_cut_ones_are_faults() -> None:
    two = headers(*OK) + data(1, message(b"a") + message(b"b"))
    assert events_of(begun(), frame(SETTINGS) + two)[0][0] == http2_client.FAULT
    cut = headers(*OK) + data(1, message(b"abc")[:-1], end=True)
    assert events_of(begun(), frame(SETTINGS) + cut)[0][0] == http2_client.FAULT
    large = begun(message_bytes_max=10)
    fault = events_of(large, frame(SETTINGS) + headers(*OK) + data(1, message(b"x" * 11)))[0]
    assert fault[:3] == (http2_client.FAULT, 1, http2_client.MESSAGE_TOO_LARGE)
    heavy = headers(*OK, ("x-a", "a" * 5_000))
    assert events_of(begun(), frame(SETTINGS) + heavy)[0][2] == http2_client.HEADERS_TOO_LARGE


def test_an_answer_before_the_last_request_ends_the_call_and_frees_the_stream() -> None:
    made = session()
    made.request(b"/t.S/M", [], None, b"a", single=False, last=False)
    made.pull(1 << 20)
    alone = headers(*OK, ("grpc-status", "9"), end=True)
    assert done(events_of(made, frame(SETTINGS) + alone))[3] == 9
    assert RST_STREAM in {found.kind for found in frames_of(made.pull(1 << 20))}
    assert made.stream_count == 0
    assert made.send(1, b"late") is False

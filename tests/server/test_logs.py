"""Logs: a line an event, the same again in bounds, and nothing about a person whatever is sent."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tailorbird.engine import Engine, Item
from tailorbird.engine.errors import CallerError, NotFound
from tailorbird.server import health
from tailorbird.server.access_log import AccessLog, checked_ratio, trace_parent
from tailorbird.server.handlers import SERVICES
from tailorbird.server.keys import KeyFile, Scope
from tailorbird.server.log_lines import LINE_CHARACTERS_MAX, LogLines
from tailorbird.server.logs import (
    REPEATING_MAX,
    REPEATS_MAX,
    REPEATS_WINDOW_S,
    LineHandler,
    LineWriter,
    LogFormat,
    Logging,
    RepeatLimit,
    format_for,
    rendered,
)
from tailorbird.server.statuses import status_of
from tailorbird.server.transport import CallContext, ServerStream, Unary
from tailorbird.server.watching import watched
from tailorbird.v1 import decision_service_pb2
from tests.server.conftest import Process, serving_process

PERSON = "alice.private@example.com"
TEXTS = (PERSON, "203.0.113.77", "SecretBrowser/9.9", "+44 20 7946 0958")
LOG = logging.getLogger("tailorbird.test")


@contextmanager
def captured(form: LogFormat = LogFormat.JSON, level: str = "info") -> Iterator[list[Any]]:
    """Give a list that holds, once the block is left, the lines that were written in it."""
    stream, lines = io.StringIO(), list[Any]()
    found = Logging(form, level, stream)
    try:
        yield lines
    finally:
        found.close()
        text = stream.getvalue().splitlines()
        lines += [json.loads(line) for line in text] if form is LogFormat.JSON else text


# ---- a line ----------------------------------------------------------------------------------------------------------


def test_a_line_is_one_object_with_time_level_logger_message_and_named_fields() -> None:
    with captured() as lines:
        LOG.info("took %d of\n%s", 3, "them", extra={"position": 7, "name_of_it": "a" * 1_000})
        LOG.debug("not at this level")
    (line,) = lines
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line.pop("name_of_it") == "a" * 300 + "..."
    assert line == {"level": "INFO", "logger": "tailorbird.test", "message": "took 3 of\nthem", "position": 7}


def test_text_is_one_line_as_well_and_the_default_on_a_terminal_alone() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    told = rendered(LogFormat.TEXT, 1.5, "INFO", "a.b", "two\nlines", {"count": 2, "name": 'x"y'})
    assert told == '1970-01-01T00:00:01.500Z INFO a.b: two lines count=2 name="x\\"y"'
    assert format_for("", Terminal()) is LogFormat.TEXT
    assert format_for("", io.StringIO()) is LogFormat.JSON
    assert format_for("json", Terminal()) is LogFormat.JSON


def test_an_exception_is_told_by_type_reason_and_frames_and_never_by_its_text() -> None:
    def fails(person: str) -> None:
        try:
            raise KeyError(person)
        except KeyError as error:
            raise NotFound("UNKNOWN_PLACEMENT", f"expected one, got {person}") from error

    with captured() as lines:
        try:
            fails(PERSON)
        except NotFound as error:
            LOG.error("it failed: %s", error, exc_info=error)
            status_of(ZeroDivisionError(PERSON), "/t.S/M")
    first, second = lines
    assert first["message"] == "it failed: NotFound UNKNOWN_PLACEMENT"
    assert (first["error"], first["reason"], first["caused_by"]) == ("NotFound", "UNKNOWN_PLACEMENT", "KeyError")
    assert [frame.rpartition(" ")[2] for frame in first["frames"]][-1] == "fails"
    assert all(len(frame.partition(":")[0].split("/")) <= 3 for frame in first["frames"])
    assert second["error"] == "ZeroDivisionError"
    assert PERSON not in json.dumps(lines)


def test_libraries_say_no_more_than_what_they_always_say() -> None:
    with captured() as lines:
        logging.getLogger("some.library").warning(f"cannot parse {PERSON}")
        logging.getLogger("some.library").warning("cannot parse %s", PERSON, extra={"who": PERSON})
        logging.getLogger("asyncio").error(f"Exception in callback call({PERSON!r})\nhandle: <Handle {PERSON}>")
        LOG.info("a wrong format %d", PERSON)
    assert [line["message"] for line in lines[:3]] == [
        "(the text of a library, withheld)",
        "cannot parse %s",
        "Exception in callback call",
    ]
    assert "could not be written" in lines[3]["message"]
    assert PERSON not in json.dumps(lines)


def test_what_nobody_catches_is_logged_without_its_text() -> None:
    def fails() -> None:
        raise ValueError(PERSON)

    former = sys.excepthook, threading.excepthook
    with captured() as lines:
        thread = threading.Thread(target=fails)
        thread.start()
        thread.join()
        sys.excepthook(ValueError, ValueError(PERSON), None)
    assert [(line["level"], line["error"]) for line in lines] == [("CRITICAL", "ValueError")] * 2
    assert PERSON not in json.dumps(lines)
    assert (sys.excepthook, threading.excepthook) == former


# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_the_same_line_again_is_held_back_and_counted() -> None:
    now = [0.0]
    limit = RepeatLimit(lambda: now[0])
    passed = [limit.pass_count("a", 1, 20) for _ in range(REPEATS_MAX + 5)]
    assert passed == [0] * REPEATS_MAX + [-1] * 5
    assert limit.pass_count("a", 2, 20) == 0
    now[0] = REPEATS_WINDOW_S
    assert [limit.pass_count("a", 1, 20) for _ in range(2)] == [5, 0]
    for line in range(2 * REPEATING_MAX):
        limit.pass_count("b", line, 20)
    assert len(limit._seen) == REPEATING_MAX


def test_a_repeated_line_says_how_many_were_held_back() -> None:
    now = [0.0]
    stream = io.StringIO()
    lines = LogLines(stream)
    handler = LineHandler(LineWriter(lines, LogFormat.JSON, "worker 1"), RepeatLimit(lambda: now[0]))
    record = logging.LogRecord("tailorbird.test", logging.INFO, __file__, 1, "again", (), None)
    for _ in range(REPEATS_MAX + 3):
        handler.emit(record)
    now[0] = REPEATS_WINDOW_S
    handler.emit(record)
    lines.close()
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(told) == REPEATS_MAX + 1
    assert {line["process"] for line in told} == {"worker 1"}
    assert [line.get("held_back_count", 0) for line in told] == [0] * REPEATS_MAX + [3]


def test_lines_past_the_bound_are_dropped_and_nobody_waits() -> None:
    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            entered.set()
            release.wait(30)
            return super().write(text)

    entered, release, stream = threading.Event(), threading.Event(), Stuck()
    lines = LogLines(stream, lines_max=3)
    lines.put("x" * (LINE_CHARACTERS_MAX + 100))
    assert entered.wait(30)
    for number in range(10):
        lines.put(str(number))
    assert lines.dropped_count == 7
    release.set()
    lines.close()
    assert stream.getvalue().splitlines() == ["x" * LINE_CHARACTERS_MAX, "0", "1", "2"]


def test_how_many_lines_were_dropped_is_told_once_there_is_room() -> None:
    stream = io.StringIO()
    lines = LogLines(stream)
    lines.dropped_count = 7
    writer = LineWriter(lines, LogFormat.JSON)
    for _ in range(2):
        writer.write(0.0, "INFO", "tailorbird.test", "said", {})
    writer.close()
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["level"], line.get("dropped_count")) for line in told] == [
        ("INFO", None),
        ("WARNING", 7),
        ("INFO", None),
    ]


def test_a_reader_that_left_stops_nothing() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    lines = LogLines(Gone())
    lines.put("a")
    lines.close()
    assert lines.dropped_count > 0


# ---- the access log --------------------------------------------------------------------------------------------------


def access_lines(ratio: float, draws: Iterator[float] | None = None) -> tuple[AccessLog, LogLines, io.StringIO]:
    stream = io.StringIO()
    lines = LogLines(stream)
    draw = (lambda: next(draws)) if draws is not None else (lambda: 0.5)
    return AccessLog(LineWriter(lines, LogFormat.JSON), ratio, "shop", draw), lines, stream


def test_a_call_is_one_line_with_its_sizes_and_how_it_ended() -> None:
    async def unary(request: bytes, context: CallContext) -> bytes:
        context.caller, context.tenant = "web", "other"
        if not request:
            raise NotFound("NOTHING", f"got {PERSON}")
        return request * 2

    async def scatter(request: bytes, context: CallContext) -> Any:
        for byte in request:
            yield bytes([byte])
        raise asyncio.CancelledError

    access, lines, stream = access_lines(1.0)
    table = watched({"/u": Unary(unary, prompt=True), "/s": ServerStream(scatter)}, access.begin)
    one, out = table["/u"], table["/s"]
    assert isinstance(one, Unary)
    assert one.prompt
    assert isinstance(out, ServerStream)
    parent = ("traceparent", f"00-{'a1' * 16}-{'b2' * 8}-00")

    async def calls() -> None:
        assert (
            await one.function(b"abc", CallContext(method="/u", peer="ipv4:1.2.3.4:5", metadata=(parent,))) == b"abcabc"
        )
        with pytest.raises(NotFound):
            await one.function(b"", CallContext(method="/u", peer=""))
        with pytest.raises(asyncio.CancelledError):
            _ = [each async for each in out.function(b"ab", CallContext(method="/s", peer="", deadline_s=0.0))]

    asyncio.run(calls())
    lines.close()
    first, second, third = (json.loads(line) for line in stream.getvalue().splitlines())
    told = ("method", "status", "request_bytes", "answer_bytes", "key", "tenant", "trace_id")
    assert [first[name] for name in told] == ["/u", "OK", 3, 6, "web", "other", "a1" * 16]
    assert first["duration_us"] >= 0
    assert "reason" not in first
    assert (second["status"], second["reason"], second["answer_bytes"]) == ("NOT_FOUND", "NOTHING", 0)
    assert (third["status"], third["answer_bytes"], third["tenant"]) == ("DEADLINE_EXCEEDED", 2, "shop")
    assert "1.2.3.4" not in stream.getvalue()


def test_a_part_of_all_calls_is_logged() -> None:
    access, lines, _ = access_lines(0.5, iter([0.1, 0.5, 0.9, 0.49]))
    context = CallContext(method="/u", peer="")
    assert [access.begin(context) is not None for _ in range(4)] == [True, False, False, True]
    lines.close()
    assert checked_ratio("0.25", "--access-log") == 0.25
    for wrong in ("-0.1", "1.5", "nan", "some"):
        with pytest.raises(CallerError, match="a part of all calls from 0 to 1.*--access-log"):
            checked_ratio(wrong, "--access-log")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"00-{'0' * 31}1-{'0' * 15}1-01", ("0" * 31 + "1", "0" * 15 + "1", True)),
        (f"00-{'a' * 32}-{'b' * 16}-00", ("a" * 32, "b" * 16, False)),
        (f"01-{'a' * 32}-{'b' * 16}-03-more", ("a" * 32, "b" * 16, True)),
        (f"ff-{'a' * 32}-{'b' * 16}-01", None),
        (f"00-{'0' * 32}-{'b' * 16}-01", None),
        (f"00-{'A' * 32}-{'b' * 16}-01", None),
        (PERSON, None),
    ],
)
def test_a_traceparent_is_taken_as_the_standard_has_it(text: str, found: object) -> None:
    assert trace_parent(CallContext(method="/u", peer="", metadata=(("traceparent", text),))) == found


# ---- personal data through every method ------------------------------------------------------------------------------


def filled(message: Message, text: str, depth: int = 4) -> Message:
    """Fill every field there is, texts and bytes with `text`."""
    for field in message.DESCRIPTOR.fields:
        value: Any
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            if depth:
                inner = getattr(message, field.name)
                filled(inner.add() if field.is_repeated else inner, text, depth - 1)
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            value = text
        elif field.type == FieldDescriptor.TYPE_BYTES:
            value = text.encode()
        elif field.type == FieldDescriptor.TYPE_ENUM:
            value = field.enum_type.values[-1].number
        else:
            value = True if field.type == FieldDescriptor.TYPE_BOOL else 1
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    return message


def send_to_every_method(process: Process, key: str) -> int:
    """Call each method with messages full of a person, with damaged ones, and with wrong keys; return how many unary ones."""
    pool, count = descriptor_pool.Default(), 0  # type: ignore[no-untyped-call]
    headers = [("x-forwarded-for", TEXTS[1]), ("user-agent-of-visitor", TEXTS[2]), ("traceparent", PERSON)]
    options = [("grpc.primary_user_agent", TEXTS[2])]
    with grpc.insecure_channel(process.address, options) as channel:
        for service in (*SERVICES, health.SERVICE):
            for method in pool.FindServiceByName(service).methods:
                kind = message_factory.GetMessageClass(method.input_type)
                sent = [filled(kind(), text).SerializeToString() for text in TEXTS] + [PERSON.encode(), b"\x0a\xff"]
                shape = ("stream" if method.client_streaming else "unary") + "_"
                shape += "stream" if method.server_streaming else "unary"
                for request in sent:
                    for shown in (key, f"tb_{PERSON}", f"{key[:-1]}?"):
                        made = getattr(channel, shape)(f"/{service}/{method.name}")
                        given = iter([request]) if method.client_streaming else request
                        with_key = [*headers, ("authorization", f"Bearer {shown}")]
                        is_stream = method.client_streaming or method.server_streaming
                        count += not is_stream
                        try:
                            answers = made(given, metadata=with_key, timeout=0.5 if is_stream else 30)
                            if method.server_streaming:
                                next(iter(answers), None)
                                answers.cancel()
                        except grpc.RpcError:
                            pass
    return count


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_nothing_about_a_person_reaches_a_log_whatever_is_sent(shop: Path, tmp_path: Path, transport: str) -> None:
    if transport == "native":
        pytest.importorskip("tailorbird.native.http2", reason="libnghttp2 was missing when the kernels were built")
    with Engine.open(shop) as engine:
        engine.put_items([Item(id="mug"), Item(id="lamp")])
    key, kept = KeyFile(shop).create(tuple(Scope), 1, name="till 7")
    arguments = ("--data", str(shop), "--transport", transport, "--log-level", "debug", "--access-log")
    with serving_process(tmp_path, *arguments) as process:
        count = send_to_every_method(process, key)
        # Our own bug, as far as a caller can tell: the frames are logged, and what the file held is not.
        KeyFile(shop).path.write_text(f'[{{"{PERSON}":')
        decide = decision_service_pb2.DecideRequest(placement=PERSON).SerializeToString()
        with grpc.insecure_channel(process.address) as channel:
            codes = set()
            for _ in range(200):
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary("/tailorbird.v1.DecisionService/Decide")(
                        decide, metadata=[("authorization", f"Bearer {key}")], timeout=5
                    )
                count += 1
                codes.add(caught.value.code())
                if grpc.StatusCode.INTERNAL in codes:
                    break
                threading.Event().wait(0.05)
        assert grpc.StatusCode.INTERNAL in codes
    told = process.told()
    secret = key.split("_")[2]
    for text in (*TEXTS, "alice", secret, secret[:16], "ipv4:", "SecretBrowser"):
        assert text not in told, re.findall(f".*{re.escape(text)}.*", told)[:3]
    lines = [json.loads(line) for line in process.errors.read_text().splitlines()]
    assert all(set(line) >= {"time", "level", "logger", "message"} for line in lines)
    calls = [line for line in lines if line["logger"] == "tailorbird.access"]
    streams = {"IngestStream", "BackfillFeatures", "WatchSegments", "Watch"}
    assert {line["method"].rpartition("/")[2] for line in calls} >= streams
    assert sum(line["method"].rpartition("/")[2] not in streams for line in calls) == count
    assert {line["key"] for line in calls} == {"", "till 7"}
    assert {line["tenant"] for line in calls} == {kept.tenant}
    bugs = [line for line in lines if line.get("error") == "Damaged"]
    assert bugs
    assert bugs[0]["reason"] == "DAMAGED_KEYS"
    assert any(frame.endswith(" read") for frame in bugs[0]["frames"])

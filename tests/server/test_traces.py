"""Traces, as a real collector gets them."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from tailorbird.engine.errors import CallerError, NotFound, PreconditionFailed
from tailorbird.server.traces import Traces
from tailorbird.server.transport import Bidirectional, CallContext, HandlerTable, Unary
from tailorbird.server.watching import watched
from tests.server.conftest import Running, running_service, serving_process
from tests.server.test_logs import PERSON

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
LONG_S = 30.0


class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []
        self.resources: list[dict[str, Any]] = []
        self.got = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self.got:
            for part in request.resource_spans:
                self.resources.append(attributes(part.resource))
                self.spans += [span for scope in part.scope_spans for span in scope.spans]
            self.got.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait(self, count: int) -> list[trace_pb2.Span]:
        """Return the spans once there are that many."""
        with self.got:
            assert self.got.wait_for(lambda: len(self.spans) >= count, LONG_S), self.spans
            return list(self.spans)


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    servicer = Collector()
    with collecting(servicer) as address:
        yield servicer, f"http://{address}"


@contextmanager
def collecting(servicer: Collector) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def attributes(holder: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes}


async def unary(request: bytes, context: CallContext) -> bytes:
    context.tenant = "shop"
    if request == b"missing":
        raise NotFound("NOTHING", f"got {PERSON}")
    if request == b"bug":
        raise ZeroDivisionError(PERSON)
    return request * 2


async def echo(requests: Any, context: CallContext) -> Any:
    async for each in requests:
        yield each


TABLE: HandlerTable = {"/t.S/One": Unary(unary, prompt=True), "/t.S/Both": Bidirectional(echo)}


async def call(table: HandlerTable, request: bytes, *metadata: tuple[str, str]) -> CallContext:
    handler = table["/t.S/One"]
    assert isinstance(handler, Unary)
    context = CallContext(method="/t.S/One", peer="ipv4:192.0.2.1:9", metadata=metadata)
    with suppress(NotFound, ZeroDivisionError):
        await handler.function(request, context)
    return context


def test_a_call_is_a_span_below_its_callers(collector: tuple[Collector, str]) -> None:
    servicer, url = collector

    async def calls() -> None:
        with Traces(url, 0.0, "worker 1") as traces:
            table = watched(TABLE, traces.begin)
            context = await call(table, b"abc", ("traceparent", SAMPLED))
            assert context.trace_id == TRACE
            await call(table, b"missing", ("traceparent", SAMPLED))
            await call(table, b"bug", ("traceparent", SAMPLED))
            both = table["/t.S/Both"]
            assert isinstance(both, Bidirectional)

            async def requests() -> Any:
                yield b"12"
                yield b"3"

            context = CallContext(method="/t.S/Both", peer="", metadata=(("traceparent", SAMPLED),))
            assert [each async for each in both.function(requests(), context)] == [b"12", b"3"]

    asyncio.run(calls())
    spans = servicer.wait(4)
    assert len(spans) == 4
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert {span.parent_span_id.hex() for span in spans} == {PARENT}
    assert {span.kind for span in spans} == {trace_pb2.Span.SPAN_KIND_SERVER}
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in spans)
    fine, missing, bug, both = spans
    assert fine.name == "t.S/One"
    assert attributes(fine) == {
        "rpc.system": "grpc",
        "rpc.service": "t.S",
        "rpc.method": "One",
        "rpc.grpc.status_code": 0,
        "tailorbird.request_bytes": 3,
        "tailorbird.answer_bytes": 6,
        "tailorbird.tenant": "shop",
    }
    # What the caller did wrong is no failure of the server, by the conventions.
    assert (attributes(missing)["rpc.grpc.status_code"], attributes(missing)["tailorbird.reason"]) == (5, "NOTHING")
    unset, failed = trace_pb2.Status.STATUS_CODE_UNSET, trace_pb2.Status.STATUS_CODE_ERROR
    assert [span.status.code for span in spans] == [unset, unset, failed, unset]
    assert attributes(bug)["rpc.grpc.status_code"] == 13
    assert (attributes(both)["tailorbird.request_bytes"], attributes(both)["tailorbird.answer_bytes"]) == (3, 3)
    assert servicer.resources[0]["service.name"] == "tailorbird"
    assert servicer.resources[0]["service.instance.id"] == "worker 1"
    told = str(spans)
    assert PERSON not in told
    assert "192.0.2.1" not in told


def test_the_caller_says_what_is_kept_and_a_part_of_the_rest_is(collector: tuple[Collector, str]) -> None:
    servicer, url = collector
    draws = iter([0.1, 0.9])

    async def calls() -> list[str]:
        with Traces(url, 0.5, draw=lambda: next(draws)) as traces:
            table = watched(TABLE, traces.begin)
            found = [
                await call(table, b"kept"),
                await call(table, b"not"),
                await call(table, b"not", ("traceparent", UNSAMPLED)),
                await call(table, b"kept", ("traceparent", SAMPLED)),
            ]
            return [context.trace_id for context in found]

    begun, none, unsampled, sampled = asyncio.run(calls())
    assert (none, unsampled, sampled) == ("", "", TRACE)
    assert len(begun) == 32
    spans = servicer.wait(2)
    assert [span.trace_id.hex() for span in spans] == [begun, TRACE]
    assert spans[0].parent_span_id == b""


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:4317", "ftp://x:1", "http://", "http://user:secret@x:1"])
def test_an_endpoint_that_is_none_is_refused_and_not_repeated(endpoint: str) -> None:
    with pytest.raises(CallerError, match="BAD_ARGUMENT.*--traces") as caught:
        Traces(endpoint, 1.0)
    assert "secret" not in caught.value.message


def test_without_the_extra_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(PreconditionFailed, match=r"NO_TRACES.*tailorbird\[traces\]"):
        Traces("http://127.0.0.1:9", 1.0)


def test_calls_go_on_where_no_collector_answers(shop: Path) -> None:
    with (
        Traces("http://127.0.0.1:9", 1.0) as traces,
        running_service(shop, watchers=(traces.begin,)) as running,
    ):
        assert decide_code(running) is grpc.StatusCode.NOT_FOUND


def decide_code(running: Running, *metadata: tuple[str, str]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        running.channel.unary_unary("/tailorbird.v1.DecisionService/Decide")(b"", metadata=metadata, timeout=LONG_S)
    code = caught.value.code()
    assert isinstance(code, grpc.StatusCode)
    return code


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_serve_sends_its_calls_to_the_collector(
    shop: Path, tmp_path: Path, collector: tuple[Collector, str], transport: str
) -> None:
    if transport == "native":
        pytest.importorskip("tailorbird.native.http2", reason="libnghttp2 was missing when the kernels were built")
    servicer, url = collector
    arguments = ("--data", str(shop), "--transport", transport, "--traces", url, "--traces-ratio", "0", "--access-log")
    with serving_process(tmp_path, *arguments) as process:
        with grpc.insecure_channel(process.address) as channel:
            decide_code(Running(channel, process.address), ("traceparent", SAMPLED))
            decide_code(Running(channel, process.address))
        spans = servicer.wait(1)
    assert len(servicer.spans) == 1
    assert (spans[0].name, spans[0].trace_id.hex()) == ("tailorbird.v1.DecisionService/Decide", TRACE)
    assert attributes(spans[0])["tailorbird.reason"] == "UNKNOWN_PLACEMENT"
    assert f'"trace_id":"{TRACE}"' in process.errors.read_text()

"""What Prometheus is told: every kind of call by how it ended, and where the engine stands."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tailorbird.engine import Engine, Item
from tailorbird.engine.errors import CallerError, NotFound
from tailorbird.server.metrics import Metrics
from tailorbird.server.serve import ServeOptions, Service
from tailorbird.server.transport import Bidirectional, CallContext, ClientStream, ServerStream, Unary


def of(path: str) -> CallContext:
    """Return the context of a call of a method."""
    return CallContext(method=path, peer="test")


@pytest.fixture
def engine(shop: Path) -> Iterator[Engine]:
    with Engine.open(shop) as opened:
        yield opened


@pytest.fixture
def metrics(engine: Engine) -> Iterator[Metrics]:
    made = Metrics(engine)
    yield made
    made.close()


def scrape(metrics: Metrics) -> dict[tuple[str, str, str], float]:
    """Return the samples at the port by name, method and code."""
    port = metrics.serve("127.0.0.1:0")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    return {
        (sample.name, sample.labels.get("method", ""), sample.labels.get("code", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


async def requests() -> AsyncIterator[bytes]:
    yield b"1"
    yield b"2"


async def unary(request: bytes, context: CallContext) -> bytes:
    if request == b"bad":
        raise NotFound("NOTHING", "as the test has it")
    if request == b"bug":
        raise ZeroDivisionError
    if request == b"stop":
        raise asyncio.CancelledError
    return request


async def gather(given: AsyncIterator[bytes], context: CallContext) -> bytes:
    return b"".join([each async for each in given])


async def scatter(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
    for byte in request:
        if byte == 0:
            raise NotFound("NOTHING", "as the test has it")
        yield bytes([byte])


async def echo(given: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
    async for each in given:
        yield each


def test_every_kind_of_call_is_counted_by_how_it_ended(metrics: Metrics) -> None:
    table = metrics.metered(
        {
            "/u": Unary(unary, prompt=True),
            "/c": ClientStream(gather),
            "/s": ServerStream(scatter),
            "/b": Bidirectional(echo),
        }
    )
    one, many, out, both = table["/u"], table["/c"], table["/s"], table["/b"]
    assert isinstance(one, Unary)
    assert one.prompt
    assert isinstance(many, ClientStream)
    assert isinstance(out, ServerStream)
    assert isinstance(both, Bidirectional)

    async def calls() -> None:
        assert await one.function(b"x", of("/u")) == b"x"
        for request, error in ((b"bad", NotFound), (b"bug", ZeroDivisionError), (b"stop", asyncio.CancelledError)):
            with pytest.raises(error):
                await one.function(request, of("/u"))
        assert await many.function(requests(), of("/c")) == b"12"
        assert [each async for each in out.function(b"ab", of("/s"))] == [b"a", b"b"]
        with pytest.raises(NotFound):
            _ = [each async for each in out.function(b"a\0", of("/s"))]
        assert [each async for each in both.function(requests(), of("/b"))] == [b"1", b"2"]

    asyncio.run(calls())
    found = scrape(metrics)
    counted = {
        (method, code): value for (name, method, code), value in found.items() if name == "tailorbird_calls_total"
    }
    assert {key: value for key, value in counted.items() if value} == {
        ("/u", "OK"): 1.0,
        ("/u", "NOT_FOUND"): 1.0,
        ("/u", "INTERNAL"): 1.0,
        ("/u", "CANCELLED"): 1.0,
        ("/c", "OK"): 1.0,
        ("/s", "OK"): 1.0,
        ("/s", "NOT_FOUND"): 1.0,
        ("/b", "OK"): 1.0,
    }
    assert found["tailorbird_call_seconds_count", "/u", ""] == 4.0
    assert found["tailorbird_call_seconds_sum", "/u", ""] > 0.0


def test_the_engines_figures_are_those_of_now(engine: Engine, metrics: Metrics) -> None:
    engine.put_items([Item(id="a")])
    found = scrape(metrics)
    assert found["tailorbird_log_position", "", ""] == engine.position > 0
    assert found["tailorbird_servings_waiting", "", ""] == 0.0
    assert found["tailorbird_servings_dropped_total", "", ""] == 0.0
    assert found["tailorbird_decisions_unlogged_total", "", ""] == 0.0
    assert "tailorbird_decisions_logged_total" in {name for name, *_ in found}
    assert ("tailorbird_newest_event_seconds", "", "") in found


def test_an_address_that_cannot_be_had_is_told(metrics: Metrics) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(CallerError, match="LISTEN_FAILED.*choose another with --metrics"),
    ):
        metrics.serve(f"127.0.0.1:{taken.getsockname()[1]}")
    for address in ("unix:/tmp/x:1", "fd:3", "nowhere"):
        with pytest.raises(CallerError, match="BAD_ADDRESS"):
            metrics.serve(address)


def test_a_service_answers_prometheus_beside_its_calls(shop: Path) -> None:
    async def run() -> str:
        with Engine.open(shop) as engine:
            service = Service(engine, ServeOptions(listen="127.0.0.1:0", metrics="127.0.0.1:0"))
            try:
                await service.start()
                url = f"http://127.0.0.1:{service.metrics_port}/metrics"
                text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
            finally:
                await service.stop()
            return str(text)

    text = asyncio.run(run())
    assert 'tailorbird_calls_total{code="OK",method="/tailorbird.v1.DecisionService/Decide"} 0.0' in text

"""The port for those who look after the service: metrics, health and readiness over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry, Gauge

from tailorbird.engine import Engine
from tailorbird.engine.errors import CallerError, Unavailable
from tailorbird.engine.log import LocalLog
from tailorbird.server import endpoint
from tailorbird.server.endpoint import Endpoint
from tailorbird.server.serve import ServeOptions, Service
from tailorbird.server.watching import Begin
from tailorbird.v1 import catalog_service_pb2, catalog_service_pb2_grpc, decision_service_pb2
from tests.server.conftest import running_service, serving_process

Answer = tuple[int, str, bytes]


def get(port: int, path: str) -> Answer:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def test_readiness_is_told_with_its_reason() -> None:
    registry = CollectorRegistry()
    Gauge("t_one", "One.", registry=registry).set(1)
    state: list[tuple[str, str] | None] = [("STARTING", "soon")]
    port = (served := Endpoint(registry, lambda: state[0])).start("127.0.0.1:0")
    try:
        assert get(port, "/healthz") == (200, "application/json", b'{"status":"alive"}')
        code, kind, body = get(port, "/readyz")
        assert (code, kind) == (503, "application/json")
        assert json.loads(body) == {"status": "not ready", "reason": "STARTING", "message": "soon"}
        state[0] = None
        assert get(port, "/readyz")[0] == 200
        for path in ("/", "/metrics", "/metrics?name=x"):
            assert b"t_one 1.0" in get(port, path)[2]
        assert get(port, "/other")[0] == 404
    finally:
        served.close()
    served.close()
    with pytest.raises(OSError, match="refused"):
        get(port, "/healthz")


def test_figures_that_fail_are_logged_and_the_next_reader_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("t_one", "One.", registry=registry)
    gauge.set_function(lambda: 1 / 0)
    port = (served := Endpoint(registry)).start("127.0.0.1:0")
    try:
        with pytest.raises(OSError):  # noqa: PT011
            get(port, "/metrics")
        assert get(port, "/healthz")[0] == 200
    finally:
        served.close()
    assert "an answer over HTTP failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_readers_past_the_bound_are_turned_away_and_silent_ones_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint._Handler, "timeout", 0.5)
    monkeypatch.setattr(endpoint, "CONNECTIONS_MAX", 2)
    port = (served := Endpoint(CollectorRegistry())).start("127.0.0.1:0")
    try:
        silent = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3)]
        assert silent[2].recv(1) == b""  # at once: there is no room
        assert [each.recv(1) for each in silent[:2]] == [b"", b""]
        ends_s = time.monotonic() + 30
        while True:
            try:
                assert get(port, "/healthz")[0] == 200
                break
            except (OSError, ValueError):
                assert time.monotonic() < ends_s
        for each in silent:
            each.close()
    finally:
        served.close()


def test_a_service_is_ready_while_it_takes_calls_and_can_write(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(log: LocalLog) -> None:
        raise Unavailable("LOG_SYNC_FAILED", "as the test has it")

    with running_service(shop, metrics="127.0.0.1:0") as running:
        assert get(running.metrics_port, "/readyz")[0] == 200
        monkeypatch.setattr(LocalLog, "sync", fails)
        items = catalog_service_pb2.PutItemsRequest(message_id="m1", items=[catalog_service_pb2.Item(id="mug")])
        with pytest.raises(grpc.RpcError, match="as the test has it"):
            catalog_service_pb2_grpc.CatalogServiceStub(running.channel).PutItems(items, timeout=30)
        code, _, body = get(running.metrics_port, "/readyz")
        assert (code, json.loads(body)["reason"]) == (503, "WRITER_STOPPED")
        assert get(running.metrics_port, "/healthz")[0] == 200
        # Decisions go on.
        decide = running.channel.unary_unary("/tailorbird.v1.DecisionService/Decide")
        request = decision_service_pb2.DecideRequest(placement="home").SerializeToString()
        assert decision_service_pb2.DecideResponse.FromString(decide(request, timeout=30)).degraded == [
            "EMPTY_CATALOGUE"
        ]


def test_an_address_by_name_or_of_ipv6_is_taken_where_the_machine_has_it() -> None:
    for address in ("localhost:0", "[::1]:0"):
        served = Endpoint(CollectorRegistry())
        try:
            port = served.start(address)
        except CallerError as error:
            assert error.reason == "LISTEN_FAILED"
            continue
        host = address.rpartition(":")[0]
        with urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=10) as response:
            assert response.status == 200
        served.close()


def test_a_service_that_warms_up_or_stops_is_alive_and_not_ready(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warming, go_on, seen = threading.Event(), threading.Event(), list[Answer]()
    warm, made = Engine.warm, list[Service]()

    def slow_warm(engine: Engine) -> None:
        warming.set()
        go_on.wait(30)
        warm(engine)

    def noted(service: Service, engines: Engine, options: ServeOptions, watchers: Sequence[Begin]) -> None:
        made.append(service)
        begin(service, engines, options, watchers)

    def look() -> None:
        assert warming.wait(30)
        while not made or not made[0].metrics_port:
            time.sleep(0.01)
        seen.extend(get(made[0].metrics_port, path) for path in ("/readyz", "/healthz"))
        go_on.set()

    begin = Service.__init__
    monkeypatch.setattr(Engine, "warm", slow_warm)
    monkeypatch.setattr(Service, "__init__", noted)
    looking = threading.Thread(target=look)
    looking.start()
    with running_service(shop, metrics="127.0.0.1:0") as running:
        looking.join()
        assert [answer[0] for answer in seen] == [503, 200]
        assert json.loads(seen[0][2])["reason"] == "STARTING"
        assert get(running.metrics_port, "/readyz")[0] == 200
        made[0]._state = made[0]._state.STOPPING
        assert json.loads(get(running.metrics_port, "/readyz")[2])["reason"] == "STOPPING"


def test_a_serving_process_answers_both(shop: Path, tmp_path: Path) -> None:
    with serving_process(tmp_path, "--data", str(shop)) as process:
        port = int(process.metrics.rpartition(":")[2])
        assert get(port, "/readyz")[0] == 200
        assert get(port, "/healthz")[0] == 200
        text = get(port, "/metrics")[2].decode()
        assert "process_resident_memory_bytes" in text
        assert 'tailorbird_decisions_total{process="worker 1",tier="person"} 0.0' in text


def test_without_traces_nothing_of_them_is_imported() -> None:
    script = (
        "import sys, tailorbird.server.commands.serve, tailorbird.server.serve\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

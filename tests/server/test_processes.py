"""The service as several real processes: killed, replaced, drained, full, and what callers see of it."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tailorbird.engine import Engine
from tailorbird.engine.decision_id import DecisionIds
from tailorbird.engine.decision_log import list_segments, read_all
from tailorbird.engine.decision_replay import replay_decisions
from tailorbird.engine.errors import PreconditionFailed
from tailorbird.engine.identifiers import IdentifierHasher
from tailorbird.server.keys import KeyFile, Scope
from tailorbird.server.processes.plan import read_plan
from tailorbird.server.statuses import REASON_KEY
from tailorbird.v1 import decision_service_pb2, signal_service_pb2, signal_service_pb2_grpc
from tests.server.processes import COMMAND, PATIENCE_S, Connection, Load, Service, order, running, until, user

# What is served is not served again for longer than a test takes.
CONFIGURATION = """\
version: 1
jurisdiction: opt_in
statistics:
  tick: 20ms
features:
  - {name: orders, aggregate: count, signal: order_completed}
placements:
  - name: home
    k: 3
    retrieve: {whole_catalogue: true}
    exclude: {bought: 365d, served: 1h}
"""
ITEMS = 90
REPLACED = "(the workers are replaced)"


def new_shop(directory: Path) -> Path:
    directory.mkdir()
    (directory / "tailorbird.yaml").write_text(CONFIGURATION)
    return directory


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Return the directory of a service that a test starts itself."""
    return new_shop(tmp_path / "own")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the service that tests share."""
    return new_shop(tmp_path_factory.mktemp("processes") / "shop")


@pytest.fixture(scope="module")
def service(shared: Path) -> Iterator[Service]:
    """Return a service that heals, shared by tests that each have people of their own."""
    with running(shared, "--metrics", "127.0.0.1:0") as found, Connection(found.address) as connection:
        connection.put_items(ITEMS)
        yield found


def reason_of(error: BaseException) -> str:
    assert isinstance(error, grpc.Call)
    return str(dict(error.trailing_metadata() or ()).get(REASON_KEY, ""))


def refusal(call: object, *arguments: object, **fields: object) -> tuple[grpc.StatusCode, str, str]:
    """Return code, reason and text of a call that fails."""
    assert callable(call)
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **fields)
    error = caught.value
    return error.code(), reason_of(error), error.details()


def orders_of(connection: Connection, who: str, min_position: int = 0) -> float:
    (orders,) = connection.profile(who, min_position).features
    return orders.number


def ingested(connection: Connection, message_id: str, who: str) -> int:
    """Send an order until it is acknowledged; return the position."""
    while True:
        try:
            response = connection.ingest(order(message_id, who))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            continue
        assert response.outcomes[0].status in (
            signal_service_pb2.SIGNAL_STATUS_APPLIED,
            signal_service_pb2.SIGNAL_STATUS_DUPLICATE,
        )
        return int(response.position)


def decide_for(connection: Connection, number: int) -> object:
    return connection.decide(identifiers=user(f"visitor{number}"))


# ---- as it should be ---------------------------------------------------------------------------------------------


def test_what_one_worker_took_every_worker_sees_and_serves_once(service: Service, shared: Path) -> None:
    decision_ids = set()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(service.address)) for _ in range(8)]
        position = connections[0].ingest(order("m1", "u1")).position
        assert {orders_of(connection, "u1", position) for connection in connections} == {1.0}

        served: list[str] = []
        for number in range(ITEMS // 3 - 1):
            decision = connections[number % 8].decide(
                identifiers=user("u1"), min_position=position, served_acknowledgement=1
            )
            position = decision.served_position
            decision_ids.add(decision.decision_id)
            served += [item.item_id for item in decision.items]
        assert len(served) == len(set(served)) == ITEMS - 3
        assert "item000" not in served

        refused = refusal(connections[0].decide, min_position=1 << 40, timeout=0.3)
        assert refused[:2] == (grpc.StatusCode.UNAVAILABLE, "POSITION_NOT_REACHED")
    figures = service.metrics()
    counts = [f'tailorbird_decisions_logged_total{{process="worker {number}"}} ' for number in (1, 2)]
    assert all(count in figures for count in counts)
    assert 'tailorbird_writes_waiting_bytes{lane="live",process="writer"} 0.0' in figures
    assert 'tailorbird_process_up{process="worker 2"} 1.0' in figures
    # Each worker logs in segments of its own; all are read as one log.
    ids = DecisionIds(IdentifierHasher((shared / "keys" / "identity").read_bytes()))
    until(lambda: decision_ids <= {ids.placed(stored.place) for stored in read_all(shared / "decisions")})
    assert len({segment.process for segment in list_segments(shared / "decisions")}) == 2


def test_another_service_on_the_directory_is_refused(service: Service, shared: Path) -> None:
    for workers in ("2", "0"):
        other = subprocess.run(
            [*COMMAND, "serve", "--data", str(shared), "--listen", "127.0.0.1:0", "--workers", workers],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert other.returncode == 2
        assert (
            f"ALREADY_OPEN: expected to be the only writer of {shared}, got process {service.process.pid}"
            in other.stderr
        )


def test_a_port_that_is_taken_is_told_and_nothing_stays(service: Service, tmp_path: Path) -> None:
    other = new_shop(tmp_path / "other")
    refused = subprocess.run(
        [*COMMAND, "serve", "--data", str(other), "--listen", service.address, "--workers", "1"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (refused.returncode, "LISTEN_FAILED" in refused.stderr) == (2, True)
    with Engine.open(other):
        pass


def test_workers_share_one_unix_socket(shop: Path, tmp_path: Path) -> None:
    pytest.importorskip("tailorbird.native.http2", reason="libnghttp2 was missing when the kernels were built")
    path = tmp_path / "s"
    with running(shop, listen=f"unix:{path}") as service, Connection(f"unix:{path}") as connection:
        assert service.address == f"unix:{path}"
        connection.put_items(ITEMS)
        assert len(connection.decide().items) == 3
    assert not path.exists()


def test_a_new_configuration_is_in_force_on_every_worker(service: Service) -> None:
    from tailorbird.v1 import configuration_service_pb2, configuration_service_pb2_grpc

    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(service.address)) for _ in range(6)]
        stub = configuration_service_pb2_grpc.ConfigurationServiceStub(connections[0].channel)
        text = CONFIGURATION.replace("k: 3", "k: 2") + "limits: {batch_decisions_max: 1}\n"
        request = configuration_service_pb2.PutConfigurationRequest(configuration=text)
        position = stub.PutConfiguration(request, timeout=30).position
        assert {len(each.decide(min_position=position).items) for each in connections} == {2}
        request = configuration_service_pb2.PutConfigurationRequest(configuration=CONFIGURATION)
        position = stub.PutConfiguration(request, timeout=30).position
        assert {len(each.decide(min_position=position).items) for each in connections} == {3}


def test_events_of_a_decision_are_written_behind_its_answer(shop: Path) -> None:
    keys = KeyFile(shop)
    both, only = (keys.create(scopes, 1)[0] for scopes in ([*Scope], [Scope.DECIDE, Scope.PROFILE]))
    with running(shop) as service, Connection(service.address) as connection:
        from tailorbird.v1 import decision_service_pb2_grpc, profile_service_pb2

        stub = decision_service_pb2_grpc.DecisionServiceStub(connection.channel)
        for who, key in (("u1", both), ("u2", only)):
            request = decision_service_pb2.DecideRequest(
                placement="home", identifiers=user(who), events=[order("m1", who), order("", who)]
            )
            stub.Decide(request, metadata=[("authorization", f"Bearer {key}")], timeout=30)

        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = connection.channel.unary_unary(
            "/tailorbird.v1.ProfileService/GetProfile"
        )

        def written(who: str) -> float:
            message = profile_service_pb2.GetProfileRequest(identifiers=user(who)).SerializeToString()
            try:
                answer = ask(message, metadata=[("authorization", f"Bearer {both}")], timeout=30)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND
                return 0.0
            return profile_service_pb2.GetProfileResponse.FromString(answer).features[0].number

        until(lambda: written("u1"))
        assert (written("u1"), written("u2")) == (1.0, 0.0)


# ---- killed and replaced -----------------------------------------------------------------------------------------


def test_decisions_go_on_while_the_writer_is_killed_and_nothing_acknowledged_is_lost(service: Service) -> None:
    acknowledged: list[int] = []

    def write(connection: Connection, number: int) -> None:
        ingested(connection, f"k{number}", "killed")
        acknowledged.append(number)

    with Load().of(service.address, decide_for) as decisions, Load().of(service.address, write, 2) as writes:
        for _ in range(3):
            service.kill("writer")
            decisions.more()
            writes.more()
    assert decisions.failures == []
    assert writes.failures == []
    with Connection(service.address) as connection:
        position = ingested(connection, "last", "killed")
        assert orders_of(connection, "killed", position) == len(acknowledged) + 1
    assert 'tailorbird_process_restarts_total{process="writer"} 3.0' in service.metrics()


def test_workers_that_are_killed_fail_only_the_calls_in_flight_on_them(service: Service) -> None:
    threads, kills = 4, ("worker 1", "worker 2", "worker 1")
    with Load().of(service.address, decide_for, threads) as decisions:
        for name in kills:
            service.kill(name)
            decisions.more()
    assert len(decisions.failures) <= threads * len(kills)
    assert {error.code() for error in decisions.failures if isinstance(error, grpc.Call)} <= {
        grpc.StatusCode.UNAVAILABLE
    }


def test_workers_are_replaced_one_by_one_without_a_failed_call(service: Service) -> None:
    pytest.importorskip("tailorbird.native.http2_client", reason="libnghttp2 was missing when the kernels were built")
    from tailorbird.client import Client

    def decide(_: Connection, number: int) -> object:
        request = decision_service_pb2.DecideRequest(placement="home", identifiers=user(f"visitor{number}"))
        return client.decide(request)

    with Client(service.address) as client, Load().of(service.address, decide) as decisions:
        for _ in range(2):
            replaced = len(service.said(REPLACED))
            before = {service.pid(name) for name in ("worker 1", "worker 2")}
            service.process.send_signal(signal.SIGHUP)
            until(lambda: len(service.said(REPLACED)) > replaced)  # noqa: B023
            assert not before & {service.pid(name) for name in ("worker 1", "worker 2")}
            decisions.more()
    assert decisions.failures == []


def test_workers_are_replaced_where_another_state_is_in_the_place_of_theirs(service: Service, shared: Path) -> None:
    replaced = len(service.said(REPLACED))
    (shared / "state").rename(shared / "state.lost")  # the log still has everything
    service.kill("writer")
    until(lambda: len(service.said(REPLACED)) > replaced)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(service.address)) for _ in range(6)]
        position = ingested(connections[0], "n1", "anew")
        assert {orders_of(connection, "anew", position) for connection in connections} == {1.0}
        assert len(connections[0].decide().items) == 3


def test_a_stop_finishes_what_was_taken_and_what_was_decided_replays(shop: Path) -> None:
    acknowledged: list[int] = []
    with running(shop) as service:
        with Connection(service.address) as connection:
            connection.put_items(ITEMS)

        def write(connection: Connection, number: int) -> None:
            outcomes = connection.ingest(order(f"m{number}", "u1", f"item{number % ITEMS:03d}")).outcomes
            if outcomes[0].status == signal_service_pb2.SIGNAL_STATUS_APPLIED:
                acknowledged.append(number)
            connection.decide(
                identifiers=user("u1"), timeout=2.0
            )  # it waits for a service, of which there is none in the end

        with Load().of(service.address, write):
            assert service.stop() == 0
    with Engine.open(shop, read_only=True) as engine:
        (orders,) = engine.get_features("user_id", ["u1"]).column("orders")
        assert orders >= len(acknowledged) > 0
    stored = list(read_all(shop / "decisions"))
    assert len(stored) >= 30
    assert [each for each in replay_decisions(shop, stored) if each.passed or each.difference] == []


def test_processes_end_with_their_supervisor(shop: Path) -> None:
    with running(shop, workers=1) as service:
        processes = [service.pid(name) for name in ("writer", "worker 1")]
        plan = read_plan(Path(f"/proc/{processes[0]}/cmdline").read_text().split("\0")[-3:])
        run, relay = plan.run, plan.relay(plan.tenant)
        assert run.stat().st_mode & 0o777 == 0o700
        assert relay.stat().st_mode & 0o777 == 0o600
        service.process.kill()
        service.process.wait()
    for process in processes:
        until(lambda: not Path(f"/proc/{process}").exists())  # noqa: B023
    until(lambda: not run.exists())

    def opened() -> bool:
        with contextlib.suppress(PreconditionFailed), Engine.open(shop):
            return True
        return False

    until(opened)


# ---- what comes in between ---------------------------------------------------------------------------------------


def test_a_full_disk_refuses_writes_with_the_reason_and_decisions_go_on(service: Service, shared: Path) -> None:
    with Connection(service.address) as connection:
        connection.ingest(order("f1", "full"))
        writer = service.pid("writer")
        before = resource.prlimit(writer, resource.RLIMIT_FSIZE)
        size = max(path.stat().st_size for path in (shared / "log").iterdir())
        resource.prlimit(writer, resource.RLIMIT_FSIZE, (size, before[1]))
        code, reason, text = refusal(connection.ingest, order("f2", "full"))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL"), text
        assert len(connection.decide(identifiers=user("full")).items) == 3
        decision = connection.decide(identifiers=user("full"), served_acknowledgement=1)
        assert (list(decision.degraded), decision.served_position) == (["SERVING_NOT_WRITTEN"], 0)
        resource.prlimit(writer, resource.RLIMIT_FSIZE, before)
        position = connection.ingest(order("f2", "full")).position
        assert orders_of(connection, "full", position) == 2.0
    assert service.pid("writer") == writer


def test_a_client_that_vanishes_half_way_through_a_stream_leaves_what_was_acknowledged(service: Service) -> None:
    with Connection(service.address) as gone, Connection(service.address) as connection:
        waiting = iter([order("v1", "vanished"), order("v2", "vanished")])
        held = (signal_service_pb2.IngestStreamRequest(signals=[each]) for each in waiting)

        def requests() -> Iterator[signal_service_pb2.IngestStreamRequest]:
            yield from held
            until(lambda: not call.is_active())

        call = signal_service_pb2_grpc.SignalServiceStub(gone.channel).IngestStream(requests())
        position = [next(call).position for _ in range(2)][-1]
        call.cancel()
        assert orders_of(connection, "vanished", position) == 2.0
        assert (
            connection.ingest(order("v2", "vanished")).outcomes[0].status == signal_service_pb2.SIGNAL_STATUS_DUPLICATE
        )


def test_a_writer_that_is_gone_is_told_and_a_stream_goes_on_with_the_next(service: Service) -> None:
    with Connection(service.address) as connection:
        os.kill(service.pid("writer"), signal.SIGSTOP)  # it can take nothing, and is not started again yet
        stopped = service.pid("writer")
        with pytest.raises(grpc.RpcError) as caught:
            connection.ingest(order("g1", "gone"), timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert len(connection.decide().items) == 3
        os.kill(stopped, signal.SIGKILL)
        code, reason, text = refusal(_ingest_until_refused, connection)
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "WRITER_GONE"), text
        until(lambda: service.pid("writer") != stopped)
        position = ingested(connection, "g1", "gone")
        assert orders_of(connection, "gone", position) == 1.0


def _ingest_until_refused(connection: Connection) -> None:
    """Ingest again and again: between a process's end and its connection's there is a moment."""
    while True:
        connection.ingest(order("g1", "gone"))


def test_what_a_start_had_to_repair_is_in_the_log(shop: Path) -> None:
    with running(shop, workers=1) as service, Connection(service.address) as connection:
        connection.put_items(3)
        connection.ingest(order("a", "pia"))
        assert not service.said(r"applied (\d+) facts")
    shutil.rmtree(shop / "state")
    with running(shop, workers=1) as service, Connection(service.address) as connection:
        assert service.said(r"applied (\d+) facts that the log had and the state had not")
        assert connection.profile("pia").person_id

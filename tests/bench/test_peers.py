"""The bench against peers: how it speaks to their processes, what it makes of their times, what it says when they fail.

The peers here are fake ones, made by the tests: the real ones are installed by `make bench-peers` and run by .ci/run.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.bench import features, measure, peers
from tailorbird.bench.load import Generator, Target
from tailorbird.bench.peers import subject, vowpal_subject
from tailorbird.bench.peers.process import Peer
from tailorbird.bench.peers.servers import MANY, as_body, ask, body_length, measured
from tailorbird.bench.servers import free_port, server_at, server_that_tells
from tailorbird.engine.errors import InternalError, PreconditionFailed
from tailorbird.server.commands import bench as bench_command
from tailorbird.server.transport.choice import has_native

FAKE = Path(__file__).with_name("fake_peer.py")
PINS = sorted((Path(__file__).resolve().parents[2] / "bench" / "peers").glob("*.txt"))
# Stands in for Feast's gRPC server and for the echo of C++ gRPC, by how it is called.
FAKE_SERVER = """\
#!{python}
import json, sys
from concurrent import futures
import grpc

def serve(address, answer):
    class Everything(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Everything()])
    port = server.add_insecure_port(address)
    server.start()
    return server, port

if sys.argv[1] == "--chdir":
    serve(sys.argv[5], b"feature_00")[0].wait_for_termination()
else:
    server, port = serve("127.0.0.1:0", open(sys.argv[2], "rb").read())
    print(json.dumps({{"port": port, "version": "of " + sys.argv[1]}}), flush=True)
    sys.stdin.read()
    server.stop(None)
"""


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    peers.add_arguments(parser)
    return parser.parse_args(arguments)


def fake(**given_options: object) -> Peer:
    return Peer(Path(sys.executable), FAKE, given_options)


def test_a_peer_is_timed_in_a_process_of_its_own_which_may_print() -> None:
    with fake(people=3) as peer:
        assert peer.versions == {"fake": "1.0", "isolated": "1"}
        assert peer.settings == "options ['people']"
        assert bytes.fromhex(peer.facts["request_hex"]) == b"what is asked"
        for call_count in (1, 20):
            spent_ns = peer.time("get_1", call_count, seed=4)
            assert len(spent_ns) == call_count
            assert spent_ns.min() > 0
        assert len(peer.time("released", 20, seed=1)) == 20


def test_a_peer_that_fails_says_why_and_can_be_asked_again() -> None:
    with fake() as peer:
        with pytest.raises(InternalError, match=r"expected one of .*get_100.*, got get_7.*from fake_peer"):
            peer.time("get_7", 1, seed=0)
        with pytest.raises(InternalError, match=r"PEER_FAILED.*ValueError: no \d+, as the test has it"):
            peer.time("fail", 1, seed=0)
        assert len(peer.time("get_100", 2, seed=0)) == 2
        with pytest.raises(InternalError, match="expected an answer of one line of JSON, got none"):
            peer.time("leave", 1, seed=0)


def test_a_peer_that_does_not_start_is_told_with_what_it_wrote() -> None:
    with pytest.raises(InternalError, match="refused, as the test has it"):
        fake(refuse=True)


def test_inputs_come_from_the_seed_and_results_are_released_in_order() -> None:
    seen: list[int] = []
    released: list[int] = []

    def call(number: int) -> int:
        assert not gc.isenabled()
        seen.append(number)
        return -number

    operation = subject.Operation(call, lambda draws: draws.randrange(1_000), released.append)
    spent_ns = subject.time_operation(operation, 30, seed=5)
    first = list(seen)
    assert min(spent_ns) >= 1
    assert released == [-number for number in first]
    assert gc.isenabled()
    subject.time_operation(operation, 30, seed=5)
    assert seen == first * 2
    subject.time_operation(operation, 30, seed=6)
    assert seen[60:] != first


def test_the_collector_is_on_again_after_a_failed_call() -> None:
    def fail(_: object) -> None:
        raise ValueError("as the test has it")

    with pytest.raises(ValueError, match="as the test has it"):
        subject.time_operation(subject.Operation(fail, lambda _: None), 1, seed=0)
    assert gc.isenabled()


def test_vowpal_wabbits_text_has_the_person_once_and_a_line_for_each_action() -> None:
    lines = vowpal_subject.example(random.Random(3), ["|i item-0000001", "|i item-0000002"], 100)
    assert len(lines) == 101
    assert lines[0].startswith("shared |p 0:")
    assert lines[0].count(":") == vowpal_subject.DIMENSION
    assert set(lines[1:]) == {"|i item-0000001", "|i item-0000002"}
    assert vowpal_subject.numbers([0.5, -0.0123456]) == "0:0.5 1:-0.01235"


def test_cases_take_turns_turn_round_and_warm_up() -> None:
    order: list[str] = []

    def case(name: str) -> Callable[[int], float]:
        def run(block: int) -> float:
            order.append(f"{name}{block}")
            return float(block)

        return run

    found = measure.in_turns({"a": case("a"), "b": case("b"), "c": case("c")}, 3)
    assert order == ["c0", "b0", "a0", "a1", "b1", "c1", "c2", "b2", "a2", "a3", "b3", "c3"]
    assert {name: values.tolist() for name, values in found.items()} == {name: [1.0, 2.0, 3.0] for name in "abc"}


def test_a_ratio_is_the_median_of_those_within_a_block() -> None:
    # In the second block all took ten times as long, in the third one of them alone did.
    found = {"peer": np.array([8.0, 80.0, 90.0]), "ours": np.array([2.0, 20.0, 3.0])}
    assert measure.ratio_by_block(found, "peer", "ours") == 4.0
    assert measure.ratio_by_block(found, "ours", "peer") == 0.25


def test_peers_are_put_over_ours_and_our_echo_over_the_better_api_in_each_respect() -> None:
    names = ["decide_100_p50_us", "decide_1000_p50_us", *peers.FEAST_CASES, *peers.VOWPAL_CASES]
    found = {name: np.array([float(place + 1)] * 3) for place, name in enumerate(names)}
    ratios = peers.ratios(found)
    assert ratios["feast_over_decide_p50"] == 3.0
    assert ratios["vw_over_decide_p50_100"] == float(names.index("vw_100_p50_us") + 1)
    assert ratios["vw_embedding_over_decide_p50_1000"] == (names.index("vw_embedding_1000_p50_us") + 1) / 2.0
    served = {
        "decide_rpc_p50_us": np.array([100.0]),
        "feast_rpc_p50_us": np.array([700.0]),
        "echo_native_rps": np.array([90_000.0]),
        "echo_native_p50_us": np.array([40.0]),
        "echo_cpp_sync_rps": np.array([20_000.0]),
        "echo_cpp_sync_p50_us": np.array([80.0]),
        "echo_cpp_callback_rps": np.array([30_000.0]),
        "echo_cpp_callback_p50_us": np.array([100.0]),
    }
    assert peers.server_ratios(served) == {
        "feast_rpc_over_decide_rpc_p50": 7.0,
        "echo_native_over_cpp_rps": 3.0,
        "echo_native_over_cpp_p50": 0.5,
    }


@given(st.binary(max_size=300) | st.integers(0, 16_383).map(bytes))
def test_a_body_is_what_protobuf_makes_of_one_field_of_bytes(content: bytes) -> None:
    assert as_body(content) == (BytesValue(value=content).SerializeToString() or b"\n\x00")


def test_a_body_too_long_is_refused() -> None:
    with pytest.raises(InternalError, match=r"expected up to 16,383 bytes, got 16384"):
        as_body(bytes(16_384))


def test_a_body_has_the_length_asked_for_where_there_is_one() -> None:
    lengths = {total: len(as_body(bytes(body_length(total)))) for total in range(2, 5_000)}
    # The second byte of a length counts too, so that no body has 130 bytes.
    assert {total: length for total, length in lengths.items() if length != total} == {130: 129}


@pytest.mark.parametrize(
    "made", [[], ["feast/bin/python"], ["feast/bin/python", "vowpal/bin/python", "feast/bin/feast"]]
)
def test_without_the_peers_the_command_that_installs_them_is_told(tmp_path: Path, made: list[str]) -> None:
    if not has_native():
        pytest.skip("needs the native transport")
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(PreconditionFailed, match=r"NO_PEERS.*run `make bench-peers`"):
        peers.run(options("--peers", str(tmp_path)))


def test_bench_all_tells_what_is_missing_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure_it(name: str, *_: object) -> dict[str, object]:
        if name == "peers":
            raise PreconditionFailed("NO_PEERS", "expected the peers, got none")
        print(f"{name} is measured")
        return {}

    monkeypatch.setattr(bench_command, "BENCHES", {"peers": "", "engine": ""})
    monkeypatch.setattr(bench_command, "_measure", measure_it)
    assert bench_command.run(argparse.Namespace(bench="all", quick=True, json=None)) == 0
    shown = capsys.readouterr().out
    assert "peers: " in shown
    assert "expected the peers" in shown
    assert "engine is measured" in shown


def test_a_server_that_ends_is_told_with_what_it_wrote() -> None:
    broken = [sys.executable, "-c", "import sys; sys.exit('no server, as the test has it')"]
    core = min(os.sched_getaffinity(0))
    with pytest.raises(InternalError, match="no server, as the test has it"), server_that_tells(broken, core):
        pass
    with pytest.raises(InternalError, match="no server, as the test has it"), server_at(broken, free_port(), core):
        pass


@pytest.mark.skipif(not has_native(), reason="needs libnghttp2")
def test_a_load_on_nothing_is_an_error_and_no_figure() -> None:
    with (
        Generator(min(os.sched_getaffinity(0))) as generator,
        pytest.raises(InternalError, match="LOAD_FAILED.*Connection refused"),
    ):
        measured(generator, Target(free_port(), [("/a.B/C", b"")]), MANY, 1)


@pytest.fixture
def fake_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder as `make bench-peers` leaves it, in which every peer is fake."""
    for name in ("feast/bin", "vowpal/bin", "echo"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("feast", "vowpal"):
        (tmp_path / name / "bin" / "python").symlink_to(sys.executable)
    for name in ("feast/bin/feast", "echo/echo_server"):
        (tmp_path / name).write_text(FAKE_SERVER.format(python=sys.executable))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(peers, "FEAST", FAKE)
    monkeypatch.setattr(peers, "VOWPAL", FAKE)
    return tmp_path


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2 or not has_native(), reason="needs two cores and the native transport"
)
def test_bench_peers_reports_every_figure(fake_peers: Path) -> None:
    small = ["--people", "200", "--items", "3000", "--blocks", "1", "--calls", "5", "--seconds", "1"]
    results = peers.run(options(*small, "--peers", str(fake_peers)))
    ratios = [*peers.RATIOS, "feast_rpc_over_decide_rpc_p50", "echo_native_over_cpp_rps", "echo_native_over_cpp_p50"]
    times = [*peers.FEAST_CASES, *peers.VOWPAL_CASES, "decide_100_p50_us", "decide_1000_p50_us"]
    served = ["decide_rpc_p50_us", "feast_rpc_p50_us"] + [
        f"echo_{name}_{unit}" for name in ("native", "cpp_sync", "cpp_callback") for unit in ("rps", "p50_us")
    ]
    for name in (*ratios, *times, *served):
        value = results[name]
        assert isinstance(value, float), name
        assert math.isfinite(value), name
        assert value > 0, name
    assert results["method"]
    assert results["peer_versions"] == [
        "Feast: fake 1.0, isolated 1",
        "Vowpal Wabbit: fake 1.0, isolated 1",
        "C++ gRPC: of callback",
    ]


def test_a_stock_client_gets_what_a_server_was_given(fake_peers: Path, tmp_path: Path) -> None:
    (tmp_path / "answer").write_bytes(b"an answer")
    command = [fake_peers / "echo" / "echo_server", "sync", tmp_path / "answer"]
    with server_that_tells(command, min(os.sched_getaffinity(0))) as told:
        assert ask(Target(told["port"], [("/any.Path/AtAll", b"")])) == b"an answer"


def test_every_peer_is_pinned() -> None:
    assert [path.name for path in PINS] == ["feast.txt", "vowpal.txt"]
    for path in PINS:
        wanted = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert [line for line in wanted if line.count("==") != 1] == []
        assert wanted


def test_bench_features_measures_reading_against_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "FEAST", FAKE)
    interpreter = tmp_path / "peers" / "feast" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(sys.executable)
    parser = argparse.ArgumentParser()
    features.add_arguments(parser)
    small = ["--quick", "--data", str(tmp_path), "--peers", str(tmp_path / "peers")]
    results = features.run(parser.parse_args(small))
    for count in (1, 100):
        ours, theirs = results[f"get_features_{count}_us"], results[f"feast_get_{count}_us"]
        assert isinstance(ours, float)
        assert isinstance(theirs, float)
        assert results[f"feast_over_get_features_{count}"] == pytest.approx(theirs / ours)
    for name in ("update_events_per_s", "bytes_per_profile_strangers", "bytes_per_profile_customers"):
        value = results[name]
        assert isinstance(value, float)
        assert value > 0
    assert len(features.fifty()) == 50
    with pytest.raises(PreconditionFailed, match="NO_PEERS"):
        features.run(parser.parse_args(["--quick", "--peers", str(tmp_path / "nowhere")]))

"""The servers of `tailorbird bench peers`: ours, Feast's and two of C++ gRPC, all on one core."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from tailorbird.bench.load import Generator, LoadPlan, Target
from tailorbird.bench.rpc_subject import DECIDE, path_of, requests
from tailorbird.bench.servers import free_port, server_at, server_that_tells
from tailorbird.bench.workload import WorkloadR
from tailorbird.engine.errors import InternalError
from tailorbird.server.transport.choice import NATIVE
from tailorbird.v1 import decision_service_pb2

FEAST_PATH, CPP_PATH = "/GrpcFeatureServer/GetOnlineFeatures", "/tailorbird.bench.Echo/Call"
CPP_APIS = ("sync", "callback")
MANY = 16
# Connections, and calls on each, by the calls in flight.
SHAPES = {1: (1, 1), MANY: (4, 4)}
# What our served engine holds at most: as in `bench rpc`.
SERVED_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Targets:
    """The running servers: our Decide and echo, Feast's, and those of C++ gRPC by API."""

    decide: Target
    feast: Target
    echo: Target
    cpp: dict[str, Target]
    cpp_version: str


@contextlib.contextmanager
def servers(
    size: WorkloadR, store: Path, feast_server: Path, echo_server: Path, feast_request: bytes, core: int
) -> Iterator[Targets]:
    """Run all servers on one core, each asked once by a stock client, because the load does not read messages."""
    people, items = min(size.people, SERVED_MAX), min(size.items, SERVED_MAX)
    ours = [sys.executable, "-m", "tailorbird.bench.rpc_subject", "--transport", NATIVE]
    port = free_port()
    listen: list[str | Path] = [
        feast_server,
        "--chdir",
        store,
        *f"listen --address 127.0.0.1:{port} --registry_ttl_sec 3600".split(),
    ]
    with contextlib.ExitStack() as running:
        our_told = running.enter_context(
            server_that_tells([*ours, "--people", str(people), "--items", str(items)], core)
        )
        our_port = our_told["port"]
        running.enter_context(server_at(listen, port, core))
        asked = requests(WorkloadR(people, items), 100)
        decide = Target(our_port, [(DECIDE, request) for request in asked])
        if len(decision_service_pb2.DecideResponse.FromString(ask(decide)).items) != 10:
            raise InternalError("WRONG_ANSWER", "expected 10 items of Decide, got others")
        feast = Target(port, [(FEAST_PATH, feast_request)])
        if b"feature_00" not in ask(feast):
            raise InternalError("WRONG_ANSWER", "expected feature_00 in Feast's answer, got none")
        echoed = as_body(asked[0])
        echo = Target(our_port, [(path_of("Echo", 100), echoed)])
        # C++ answers with as many bytes as we do.
        answer = as_body(bytes(body_length(len(ask(echo)))))
        answer_file = running.enter_context(tempfile.NamedTemporaryFile())
        answer_file.write(answer)
        answer_file.flush()
        cpp, version = {}, ""
        for api in CPP_APIS:
            told = running.enter_context(server_that_tells([echo_server, api, answer_file.name], core))
            cpp[api], version = Target(told["port"], [(CPP_PATH, echoed)]), told["version"]
            if ask(cpp[api]) != answer:
                raise InternalError("WRONG_ANSWER", f"expected the answer it was given of the {api} echo, got another")
        yield Targets(decide, feast, echo, cpp, version)


def server_cases(targets: Targets, seconds: int, generator: Generator) -> dict[str, Callable[[int], float]]:
    """Return the servers' cases of one block each."""

    def case(target: Target, in_flight: int) -> Callable[[int], float]:
        return lambda _: measured(generator, target, in_flight, seconds)

    cases = {"decide_rpc_p50_us": case(targets.decide, 1), "feast_rpc_p50_us": case(targets.feast, 1)}
    echoes = {"native": targets.echo, **{f"cpp_{api}": target for api, target in targets.cpp.items()}}
    for name, target in echoes.items():
        cases |= {f"echo_{name}_p50_us": case(target, 1), f"echo_{name}_rps": case(target, MANY)}
    return cases


def measured(generator: Generator, target: Target, in_flight: int, seconds: float) -> float:
    """Return the median microseconds of a call at 1 in flight, or calls a second at 16 (closed loop). Raises `InternalError`
    LOAD_FAILED when a call fails."""
    connections, streams = SHAPES[in_flight]
    done = generator.run(target, LoadPlan(connections=connections, streams=streams, seconds=seconds)).all_answered()
    return done.quantile_us(0.5) if in_flight == 1 else done.rate()


def ask(target: Target) -> bytes:
    """Return a server's answer to a stock client, for the first of the target's requests."""
    path, message = target.requests[0]
    with grpc.insecure_channel(f"{target.host}:{target.port}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        return call(message, timeout=30)


def as_body(content: bytes) -> bytes:
    """Return the message of echo.proto with a content of up to 16,383 bytes: field 1, its length, the bytes."""
    size = len(content)
    if not 0 <= size < 1 << 14:
        raise InternalError("TOO_LONG", f"expected up to 16,383 bytes, got {size}")
    return b"\n" + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + content


def body_length(total: int) -> int:
    """Return how much content makes a message of `total` bytes, or of one less where none does."""
    return max(0, total - (2 if total <= 129 else 3))

"""`tailorbird bench rpc`: the transports against each other, and Decide against an echo on the same transport.

Each server runs in a process of its own, all on one core, one at a time under load; `h2load` loads it from another core.
Blocks of all cases take turns, the order turning round in every other block, and each ratio is the median over the
blocks of the ratio within a block. Echo goes through the same handler table, gets as many bytes and answers with the
bytes of a real Decide answer, made beforehand. Every call of Decide asks for another person and other candidates, from
a set made beforehand (rpc_subject.py); what is served is written meanwhile, by the server's own writer thread.

Closed loop: latency is of a server with one call at a time, not of one under a given load.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from tailorbird.bench.rpc_subject import REQUESTS, path_of, requests
from tailorbird.bench.workload import WorkloadR
from tailorbird.engine.errors import InternalError, PreconditionFailed
from tailorbird.server.transport.choice import GRPCIO, NATIVE, chosen
from tailorbird.v1 import decision_service_pb2

METHOD = (
    "h2load on one core, servers in processes of their own on another; blocks of all cases take turns; ratios are "
    "medians over blocks; echo answers the bytes of a real Decide answer through the same handler table"
)
FINISHED = re.compile(r"finished in [\d.]+\w+, ([\d.]+) req/s")
COUNTS = re.compile(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout")
# Connections and streams on each that make 16 in flight.
CONNECTIONS, STREAMS = 4, 4


@dataclass(frozen=True, slots=True)
class Case:
    """What one run of h2load measures: requests a second at 16 in flight, or microseconds (p50) at 1."""

    transport: str
    kind: str
    candidate_count: int
    in_flight: int

    @property
    def name(self) -> str:
        """Return its key among the results."""
        measure = "rps" if self.in_flight > 1 else "p50_us"
        return f"{self.kind.lower()}_{self.candidate_count}_{self.transport}_{measure}"


CASES = (
    Case(NATIVE, "Echo", 100, 16),
    Case(GRPCIO, "Echo", 100, 16),
    Case(NATIVE, "EchoInTask", 100, 16),
    Case(NATIVE, "Decide", 100, 16),
    Case(NATIVE, "Echo", 100, 1),
    Case(GRPCIO, "Echo", 100, 1),
    Case(NATIVE, "EchoInTask", 100, 1),
    Case(NATIVE, "Decide", 100, 1),
    Case(NATIVE, "Echo", 1_000, 1),
    Case(NATIVE, "Decide", 1_000, 1),
)
RATIOS = {
    "echo_native_over_grpcio_rps": (CASES[0], CASES[1]),
    "echo_native_over_grpcio_p50": (CASES[4], CASES[5]),
    "echo_prompt_over_task_rps": (CASES[0], CASES[2]),
    "echo_prompt_over_task_p50": (CASES[4], CASES[6]),
    "decide_over_echo_rps": (CASES[3], CASES[0]),
    "decide_100_over_echo_p50": (CASES[7], CASES[4]),
    "decide_1000_over_echo_p50": (CASES[9], CASES[8]),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--people", type=int, default=20_000, help="people (default 20,000)")
    parser.add_argument("--items", type=int, default=20_000, help="items (default 20,000)")
    parser.add_argument("--blocks", type=int, default=7, help="blocks (default 7, after one that warms up)")
    parser.add_argument("--seconds", type=int, default=2, help="seconds of each case in a block (default 2)")
    parser.add_argument("--quick", action="store_true", help="2,000 people, 2,000 items, 2 blocks of 1 second")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Return the measurements; see the module for each. Raises `PreconditionFailed` without h2load or a second core."""
    if args.quick:
        args.people, args.items, args.blocks, args.seconds = 2_000, 2_000, 2, 1
    h2load, (server_core, load_core) = _h2load(), _cores()
    chosen(NATIVE)
    size = WorkloadR(args.people, args.items)
    found: dict[Case, list[float]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as folder, contextlib.ExitStack() as servers:
        ports = {name: servers.enter_context(_server(name, size, server_core)) for name in (NATIVE, GRPCIO)}
        load = _Load(h2load, load_core, args.seconds, Path(folder), size)
        for case in CASES:
            _check_answer(ports[case.transport], case)
        for block in range(args.blocks + 1):
            for case in CASES if block % 2 else reversed(CASES):
                value = load.measure(case, ports[case.transport])
                if block:
                    found[case].append(value)
    results: dict[str, object] = {"method": METHOD, "people": size.people, "items": size.items, "blocks": args.blocks}
    for name, (ours, peer) in RATIOS.items():
        results[name] = float(np.median(np.array(found[ours]) / np.array(found[peer])))
    for case, values in found.items():
        results[case.name] = float(np.median(values))
    return results


class _Load:
    """Runs h2load on its core."""

    def __init__(self, h2load: str, core: int, seconds: int, folder: Path, size: WorkloadR) -> None:
        self._h2load, self._core, self._seconds, self._folder = h2load, core, seconds, folder
        for count in REQUESTS:
            body = requests(size, count)[0]
            (folder / f"body-{count}").write_bytes(b"\x00" + len(body).to_bytes(4, "big") + body)

    def measure(self, case: Case, port: int) -> float:
        """Return requests a second, or the median microseconds of a request."""
        count, log = case.candidate_count, self._folder / "requests.tsv"
        # h2load appends to the log of the run before.
        log.unlink(missing_ok=True)
        uris = self._folder / "uris"
        uris.write_text(
            "".join(f"http://127.0.0.1:{port}{path_of(case.kind, count, n)}\n" for n in range(REQUESTS[count]))
        )
        shape = ["-c1", "-m1"] if case.in_flight == 1 else [f"-c{CONNECTIONS}", f"-m{STREAMS}"]
        command = [
            *(self._h2load, *shape, "-t1", f"-D{self._seconds}", f"-i{uris}", f"-d{self._folder / f'body-{count}'}"),
            *("-H", "content-type: application/grpc", "-H", "te: trailers", f"--log-file={log}"),
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, {self._core}),
        )
        finished, counts = FINISHED.search(done.stdout), COUNTS.search(done.stdout)
        if finished is None or counts is None or any(map(int, counts.groups()[1:])):
            raise InternalError(
                "LOAD_FAILED", f"expected h2load to end without failures, got {done.stdout}{done.stderr}"
            )
        if case.in_flight > 1:
            return float(finished[1])
        spent_us = [int(line.split("\t")[2]) for line in log.read_text().splitlines()]
        return float(np.median(spent_us))


@contextlib.contextmanager
def _server(transport: str, size: WorkloadR, core: int) -> Iterator[int]:
    """Run a server in its own process; yield its port."""
    command = [sys.executable, "-m", "tailorbird.bench.rpc_subject", "--transport", transport, "--core", str(core)]
    command += ["--people", str(size.people), "--items", str(size.items)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise InternalError("SERVER_FAILED", f"expected a port of the {transport} server, got none")
            yield int(line)
        finally:
            process.stdin.close()
            process.wait()


def _check_answer(port: int, case: Case) -> None:
    """Raise unless a stock client gets a full answer: h2load takes every HTTP 200 for a success."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            path_of(case.kind, case.candidate_count, 1)
        )
        answer = call(b"", timeout=30)
    items = decision_service_pb2.DecideResponse.FromString(answer).items
    if len(items) != 10:
        raise InternalError("WRONG_ANSWER", f"expected 10 items of {case.name}, got {len(items)}")


def _h2load() -> str:
    found = shutil.which("h2load")
    if found is None:
        raise PreconditionFailed(
            "NO_H2LOAD", "expected h2load on the PATH, got none; install nghttp2's tools (Debian: nghttp2-client)"
        )
    return found


def _cores() -> tuple[int, int]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise PreconditionFailed(
            "ONE_CORE", f"expected a core for the servers and one for the load, got {len(cores)} in all"
        )
    return cores[0], cores[1]

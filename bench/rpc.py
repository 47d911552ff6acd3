"""`tailorbird bench rpc`: the transports against each other, and Decide against an echo on the same transport.

Each server runs in a process of its own, all on one core, one at a time under load; the load generator (load.py) has another
core. Blocks of all cases take turns, the order turning round in every other block, and each ratio is the median over the
blocks of the ratio within a block. Echo goes through the same handler table, gets the same bytes and answers with the bytes of
a real Decide answer, made beforehand. Every call of Decide asks for another person and other candidates, from a set made
beforehand (rpc_subject.py); what is served is written meanwhile, by the server's own writer thread.

Closed loop: latency is of a server with one call at a time, throughput of one with 16. Open loop: latency from when a call was
due, at half of what the same block's closed loop had got through, on 16 connections. Last, our Python client against grpcio's
(rpc_client.py).
"""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from tailorbird.bench import rpc_sweep
from tailorbird.bench.load import Generator, LoadPlan, Target, cores
from tailorbird.bench.load_results import LoadResults
from tailorbird.bench.musts import Must
from tailorbird.bench.report import RAW
from tailorbird.bench.rpc_subject import REQUESTS, requests, served
from tailorbird.bench.workload import WorkloadR
from tailorbird.engine.errors import InternalError
from tailorbird.server.transport.choice import GRPCIO, NATIVE, chosen
from tailorbird.v1 import decision_service_pb2

METHOD = (
    "servers in processes of their own on one core, our load generator on another; blocks of all cases take turns; ratios are "
    "medians over blocks; echo answers the bytes of a real Decide answer through the same handler table; open loop: Poisson, "
    "latency from when a call was due, at half of the closed loop's calls a second, all blocks in one histogram"
)
MUSTS = (
    Must("echo_native_over_grpcio_rps", at_least=8),
    Must("echo_native_over_grpcio_p50", at_most=0.35),
    Must("decide_100_over_echo_p50", at_most=1.4),
    Must("decide_1000_over_echo_p50", at_most=1.8),
    Must("decide_over_echo_rps", at_least=0.5),
    Must("client_over_grpcio_client_p50", at_most=0.5),
)
# Connections and streams on each that make 16 in flight; connections of open loops.
CONNECTIONS, STREAMS = 4, 4
# Together fewer than the server lets wait: what a stall of the machine brings waits at the generator, and nothing is refused.
OPEN_CONNECTIONS, OPEN_STREAMS = 16, 50
OPEN_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Case:
    """What one run measures: calls a second at 16 in flight, or microseconds (p50) at 1."""

    transport: str
    kind: str
    candidate_count: int
    in_flight: int

    @property
    def name(self) -> str:
        """Return its key among the results."""
        measure = "rps" if self.in_flight > 1 else "p50_us"
        return f"{self.kind.lower()}_{self.candidate_count}_{self.transport}_{measure}"

    def plan(self, seconds: float) -> LoadPlan:
        """Return its run."""
        if self.in_flight == 1:
            return LoadPlan(connections=1, streams=1, seconds=seconds)
        return LoadPlan(connections=CONNECTIONS, streams=STREAMS, seconds=seconds)


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
# Open loops, and the closed loops whose calls a second they take half of.
OPEN = {"decide": CASES[3], "echo": CASES[0]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--people", type=int, default=20_000, help="people (default 20,000)")
    parser.add_argument("--items", type=int, default=20_000, help="items (default 20,000)")
    parser.add_argument("--blocks", type=int, default=7, help="blocks (default 7, after one that warms up)")
    parser.add_argument("--seconds", type=float, default=2, help="seconds of each case in a block (default 2)")
    parser.add_argument("--quick", action="store_true", help="2,000 people, 2,000 items, 2 blocks of 1 second")
    parser.add_argument("--sweep", action="store_true", help="then latency over rates, and over calls in flight")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write the sweep's plots there (tailorbird[plots])")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Return the measurements; see the module for each. Raises `PreconditionFailed` without the kernels or a second core."""
    if args.quick:
        args.people, args.items, args.blocks, args.seconds = 2_000, 2_000, 2, 1
    server_core, load_core = cores()
    chosen(NATIVE)
    from tailorbird.bench.rpc_client import client_results  # built where the native transport is

    if args.plots is not None:
        rpc_sweep.require_plots()
    size = WorkloadR(args.people, args.items)
    bodies = {count: requests(size, count) for count in REQUESTS}
    with contextlib.ExitStack() as running:
        generator = running.enter_context(Generator(load_core))
        subjects = {name: running.enter_context(served(name, size, server_core)) for name in (NATIVE, GRPCIO)}
        targets = {
            case: subjects[case.transport].target(case.kind, case.candidate_count, bodies[case.candidate_count])
            for case in CASES
        }
        for case, target in targets.items():
            _check_answer(target, case)
        measured = Measured()
        for block in range(args.blocks + 1):
            measured.add(block, generator, targets, args.seconds)
        results: dict[str, object] = {
            "method": METHOD,
            "people": size.people,
            "items": size.items,
            "blocks": args.blocks,
        }
        results |= measured.results()
        results |= client_results(targets[CASES[4]], args.blocks)
        if args.sweep:
            open_targets = {name: targets[case] for name, case in OPEN.items()}
            results |= rpc_sweep.sweep(generator, open_targets, measured.saturation(), args.seconds, args.plots)
    return results


class Measured:
    """What the blocks have told."""

    def __init__(self) -> None:
        self._found: dict[Case, list[float]] = {case: [] for case in CASES}
        self._open: dict[str, list[LoadResults]] = {name: [] for name in OPEN}
        self._raw: dict[str, list[dict[str, object]]] = {}

    def add(self, block: int, generator: Generator, targets: dict[Case, Target], seconds: float) -> None:
        """Measure a block; the first only warms up."""
        rates: dict[Case, float] = {}
        for case in CASES if block % 2 else reversed(CASES):
            done = generator.run(targets[case], case.plan(seconds)).all_answered()
            rates[case] = done.rate()
            if block:
                self._found[case].append(done.rate() if case.in_flight > 1 else done.quantile_us(0.5))
                self._raw.setdefault(case.name, []).append(done.report())
        for name, case in OPEN.items() if block % 2 else reversed(OPEN.items()):
            done = generator.run(targets[case], open_plan(rates[case] * OPEN_SHARE, seconds, seed=block))
            done.all_answered()
            if block:
                self._open[name].append(done)
                self._raw.setdefault(f"{name}_open", []).append(done.report())

    def saturation(self) -> dict[str, float]:
        """Return the closed loops' calls a second, by the name of the open loop."""
        return {name: float(np.median(self._found[case])) for name, case in OPEN.items()}

    def results(self) -> dict[str, object]:
        """Return ratios, cases, open loops and the raw histograms."""
        results: dict[str, object] = {}
        for name, (ours, peer) in RATIOS.items():
            results[name] = float(np.median(np.array(self._found[ours]) / np.array(self._found[peer])))
        tails = {}
        for name, runs in self._open.items():
            merged = LoadResults.merged(runs)
            p50, p99, p999 = (merged.quantile_us(quantile) for quantile in (0.5, 0.99, 0.999))
            results |= {f"{name}_p50_us": p50, f"{name}_p99_us": p99, f"{name}_p999_us": p999}
            results[f"{name}_open_rps"] = merged.rate()
            results[f"{name}_late_share"] = merged.counters["late"] / merged.counters["started"]
            tails[name] = p999 / p50
        results["tail_over_echo_tail"] = tails["decide"] / tails["echo"]
        for case, values in self._found.items():
            results[case.name] = float(np.median(values))
        results[RAW] = self._raw
        return results


def open_plan(rate: float, seconds: float, seed: int) -> LoadPlan:
    """Return an open loop of so many calls a second."""
    return LoadPlan(connections=OPEN_CONNECTIONS, streams=OPEN_STREAMS, phases=((rate, seconds),), seed=seed)


def _check_answer(target: Target, case: Case) -> None:
    """Raise unless a stock client gets a full answer: the load does not read the messages."""
    path, message = target.requests[0]
    with grpc.insecure_channel(f"{target.host}:{target.port}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        answer = call(message, timeout=30)
    items = decision_service_pb2.DecideResponse.FromString(answer).items
    if len(items) != 10:
        raise InternalError("WRONG_ANSWER", f"expected 10 items of {case.name}, got {len(items)}")

"""`tailorbird bench peers`: a decision against Feast and Vowpal Wabbit, our transport against C++ gRPC.

Each peer runs in its own process from its own environment, which `make bench-peers` makes below build/peers at the versions
that bench/peers/*.txt pin (C++ gRPC: Debian's). In process, every call is timed where it runs; blocks of all cases take
turns, the order turning round in every other block, the first only warms up; each ratio is the median over the blocks of
the ratio of p50s within a block.

Ours is `Engine.decide` on workload R (engine.py): 64 features of the person read and ranked against the candidates. Feast
reads 20 features of one person out of as many people, and ranks nothing. What Vowpal Wabbit is asked, and that it is asked
it in two forms, is told in vowpal_subject.py. Servers all run on one core, one at a time under load from another, closed
loop: our Decide of 100 candidates and Feast's gRPC server at 1 in flight (its HTTP server is slower), our echo and those of
C++ gRPC at 1 and at 16. The echoes get the same bytes and answer with as many. What decides is docs/adr/0008.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tailorbird.bench.engine import BenchR, directory_of, filled
from tailorbird.bench.load import Generator, cores
from tailorbird.bench.measure import NS_PER_US, in_turns, ratio_by_block, time_calls
from tailorbird.bench.musts import Must
from tailorbird.bench.peers.process import Peer, installed
from tailorbird.bench.peers.servers import CPP_APIS, server_cases, servers
from tailorbird.bench.workload import WorkloadR
from tailorbird.server.transport.choice import NATIVE, chosen

METHOD = (
    "peers in processes and environments of their own; blocks of all cases take turns; in process each call is timed where it "
    "runs; servers on one core, closed-loop load on another; ratios are medians over blocks of p50 over p50 (rps over rps)"
)
MUSTS = (
    Must("feast_over_decide_p50", at_least=20),  # set when a read took Feast longer: ADR 8
    Must("vw_over_decide_p50_100", at_least=10),
    Must("vw_over_decide_p50_1000", at_least=50),
)
HERE = Path(__file__).parent
FEAST, VOWPAL = HERE / "feast_subject.py", HERE / "vowpal_subject.py"
# The peers' operations, by the name of the result.
FEAST_CASES = {"feast_get_1_p50_us": "get_1", "feast_get_100_p50_us": "get_100"}
VOWPAL_CASES = {
    f"vw_{form}{part}{count}_p50_us": f"{operation}_{form}{count}"
    for form in ("", "embedding_")
    for part, operation in (("", "predict"), ("parse_", "parse"))
    for count in (100, 1_000)
}
RATIOS = {
    "feast_over_decide_p50": ("feast_get_1_p50_us", "decide_100_p50_us"),
    "vw_over_decide_p50_100": ("vw_100_p50_us", "decide_100_p50_us"),
    "vw_over_decide_p50_1000": ("vw_1000_p50_us", "decide_1000_p50_us"),
    "vw_embedding_over_decide_p50_100": ("vw_embedding_100_p50_us", "decide_100_p50_us"),
    "vw_embedding_over_decide_p50_1000": ("vw_embedding_1000_p50_us", "decide_1000_p50_us"),
}
Found = dict[str, NDArray[np.float64]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--people", type=int, default=100_000, help="people, in Feast too (default 100,000)")
    parser.add_argument("--items", type=int, default=100_000, help="items (default 100,000)")
    parser.add_argument("--blocks", type=int, default=12, help="blocks (default 12, after one that warms up)")
    parser.add_argument("--calls", type=int, default=50, help="calls of each case in a block (default 50)")
    parser.add_argument("--seconds", type=int, default=2, help="seconds of load of each case in a block (default 2)")
    parser.add_argument("--quick", action="store_true", help="5,000 people, 2,000 items, 3 blocks of 1 second")
    parser.add_argument("--data", type=Path, metavar="DIR", help="fill this directory once, and use it again")
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", default=Path("build/peers"), help="what `make bench-peers` made"
    )


def run(args: argparse.Namespace) -> dict[str, object]:
    """Return the measurements; see the module. Raises `PreconditionFailed` without the peers, the kernels or a second core."""
    if args.quick:
        args.people, args.items, args.blocks, args.seconds = 5_000, 2_000, 3, 1
    chosen(NATIVE)
    feast, vowpal = (installed(args.peers / name / "bin" / "python") for name in ("feast", "vowpal"))
    feast_server = installed(args.peers / "feast" / "bin" / "feast")
    echo_server = installed(args.peers / "echo" / "echo_server")
    server_core, load_core = cores()
    size = WorkloadR(args.people, args.items)
    results: dict[str, object] = {
        "method": METHOD,
        "people": size.people,
        "items": size.items,
        "blocks": args.blocks,
        "calls": args.calls,
    }
    with directory_of(args.data) as path:
        store = path / "feast"
        with (
            filled(size, path / "engine") as engine,
            Peer(feast, FEAST, {"directory": str(store.resolve()), "people": size.people}) as feast_peer,
            Peer(vowpal, VOWPAL, {"items": size.items}) as vowpal_peer,
        ):
            engine.warm()
            cases: dict[str, Callable[[int], float]] = our_cases(BenchR(engine, size, args.blocks, args.calls))
            cases |= peer_cases(feast_peer, FEAST_CASES, args.calls) | peer_cases(vowpal_peer, VOWPAL_CASES, args.calls)
            found = in_turns(cases, args.blocks)
            peers = {"Feast": feast_peer, "Vowpal Wabbit": vowpal_peer}
            feast_request = bytes.fromhex(feast_peer.facts["request_hex"])
        with (
            servers(size, store, feast_server, echo_server, feast_request, server_core) as targets,
            Generator(load_core) as generator,
        ):
            served = in_turns(server_cases(targets, args.seconds, generator), args.blocks)
            cpp_version = targets.cpp_version
    results |= ratios(found) | server_ratios(served)
    results |= {name: float(np.median(values)) for name, values in (found | served).items()}
    results["peer_settings"] = [f"{name}: {peer.settings}" for name, peer in peers.items()]
    versions = {
        name: ", ".join(f"{key} {value}" for key, value in peer.versions.items()) for name, peer in peers.items()
    }
    results["peer_versions"] = [f"{name}: {text}" for name, text in (versions | {"C++ gRPC": cpp_version}).items()]
    return results


def our_cases(bench: BenchR) -> dict[str, Callable[[int], float]]:
    """Return our cases of one block each: p50 of whole decisions, microseconds. What was served is written afterwards."""

    def case(candidate_count: int) -> Callable[[int], float]:
        def measure(_: int) -> float:
            spent_ns = time_calls(bench.engine.decide, bench.requests(candidate_count))
            bench.engine.flush()
            return float(np.median(spent_ns)) / NS_PER_US

        return measure

    return {f"decide_{count}_p50_us": case(count) for count in (100, 1_000)}


def peer_cases(peer: Peer, operations: dict[str, str], call_count: int) -> dict[str, Callable[[int], float]]:
    """Return a peer's cases of one block each: p50 of calls, microseconds."""

    def case(operation: str) -> Callable[[int], float]:
        return lambda block: float(np.median(peer.time(operation, call_count, seed=block))) / NS_PER_US

    return {name: case(operation) for name, operation in operations.items()}


def ratios(found: Found) -> dict[str, object]:
    """Return the ratios of what ran in process."""
    return {name: ratio_by_block(found, above, below) for name, (above, below) in RATIOS.items()}


def server_ratios(served: Found) -> dict[str, object]:
    """Return the ratios of the servers, our echo against the better API of C++ gRPC in each respect."""
    by_rps = max(CPP_APIS, key=lambda api: float(np.median(served[f"echo_cpp_{api}_rps"])))
    by_p50 = min(CPP_APIS, key=lambda api: float(np.median(served[f"echo_cpp_{api}_p50_us"])))
    return {
        "feast_rpc_over_decide_rpc_p50": ratio_by_block(served, "feast_rpc_p50_us", "decide_rpc_p50_us"),
        "echo_native_over_cpp_rps": ratio_by_block(served, "echo_native_rps", f"echo_cpp_{by_rps}_rps"),
        "echo_native_over_cpp_p50": ratio_by_block(served, "echo_native_p50_us", f"echo_cpp_{by_p50}_p50_us"),
    }

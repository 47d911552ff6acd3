"""`tailorbird bench soak`: load for a long time, and nothing may grow, fail or leak.

Decide of 100 candidates, and every 50th call an Ingest of one signal, in an open loop at 70 % of what a closed loop of the same
calls got through at the start, while connections end and others are opened (each lives 2,000 calls). The server runs in its own process; every
second it is asked what it holds. Ends non-zero when a call failed or a connection was lost, and when, from the second minute
on (--quick: the second half), its memory grew by more than 1 MiB, or descriptors or slots of LMDB's reader table grew.

Memory is what `smaps_rollup` calls private, less what the mapped files of the state take of it: those pages are the kernel's
cache of a file that grows with what is written, and go when memory is short.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from tailorbird.bench.load import Generator, LoadPlan, Target, cores
from tailorbird.bench.load_results import LoadResults
from tailorbird.bench.musts import Must
from tailorbird.bench.report import RAW
from tailorbird.bench.rpc_subject import DECIDE, INGEST, Holdings, Subject, requests, served
from tailorbird.bench.workload import AT, WorkloadR, identifiers, item_id
from tailorbird.server.transport.choice import NATIVE, chosen
from tailorbird.v1 import identity_pb2, signal_pb2, signal_service_pb2

METHOD = (
    "open loop (Poisson) at 70 % of the calls a second of a closed loop, 16 connections of 2,000 calls each, one server on one "
    "core; growth is the median of the last tenth of the samples over that of the tenth behind the first minute"
)
SHARE = 0.7
# Together no more in flight than the server lets wait; what a stall brings waits at the generator.
CONNECTIONS, STREAMS, LIFE_CALLS = 16, 50, 2_000
IN_FLIGHT_MAX = 500_000
INGEST_EVERY = 50
# One run of the generator; between two the server's answers may be read in peace.
RUN_S = 5.0
SETTLE_S = 60.0
MIB = 1024**2
MUSTS = (
    Must("failed_calls", at_most=0),
    Must("lost_connections", at_most=0),
    Must("memory_growth_mib", at_most=1),
    Must("descriptor_growth", at_most=0),
    Must("reader_slot_growth", at_most=0),
)
# Whatever else is measured, these say whether the server may run on.
ALWAYS_CHECKED = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--people", type=int, default=20_000, help="people (default 20,000)")
    parser.add_argument("--items", type=int, default=20_000, help="items (default 20,000)")
    parser.add_argument("--minutes", type=float, default=10, help="how long (default 10)")
    parser.add_argument("--quick", action="store_true", help="2,000 people, 2,000 items, 20 seconds")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Return the measurements. Raises `PreconditionFailed` without the kernels or a second core."""
    if args.quick:
        args.people, args.items, args.minutes = 2_000, 2_000, 1 / 3
    server_core, load_core = cores()
    chosen(NATIVE)
    size = WorkloadR(args.people, args.items)
    seconds = args.minutes * 60
    with Generator(load_core) as generator, served(NATIVE, size, server_core) as subject:
        target = mixed(subject, size)
        closed = LoadPlan(seconds=min(5.0, seconds / 10))
        saturation = min(generator.run(target, closed).all_answered().rate() for _ in range(2))
        # As many calls at once as a stall of the machine may ever bring: what they take stays taken.
        crowd = LoadPlan(connections=CONNECTIONS, streams=STREAMS, seconds=min(5.0, seconds / 10), drain_s=30.0)
        generator.run(target, crowd).all_answered()
        runs, samples = soaked(generator, subject, target, SHARE * saturation, seconds)
    return {"method": METHOD, "people": size.people, "items": size.items, "saturation_rps": saturation} | figures(
        runs, samples, min(SETTLE_S, seconds / 2)
    )


def mixed(subject: Subject, size: WorkloadR) -> Target:
    """Return a target of decisions, with an ingest every `INGEST_EVERY` calls: views, each with a message id of its own."""
    rng = np.random.default_rng([size.seed, 6])
    asked: list[tuple[str, bytes]] = []
    for number, decision in enumerate(requests(size, 100)):
        asked.append((DECIDE, decision))
        if number % (INGEST_EVERY - 1) == 0:
            asked.append((INGEST, _view(int(rng.integers(size.people)), int(rng.integers(size.items)), number)))
    return Target(subject.port, asked)


def _view(person: int, item: int, number: int) -> bytes:
    view = signal_pb2.Signal(
        type="product_viewed",
        event_time_ms=AT,
        identifiers=[
            identity_pb2.Identifier(namespace=name, value=value) for name, value in identifiers(person).items()
        ],
        message_id=f"soak-{number}",
        products=[signal_pb2.ProductLine(product_id=item_id(item), price=9.5, quantity=1)],
    )
    return signal_service_pb2.IngestRequest(signals=[view]).SerializeToString()


def soaked(
    generator: Generator, subject: Subject, target: Target, rate: float, seconds: float
) -> tuple[list[LoadResults], list[Holdings]]:
    """Load for so long; return the runs, and what the server held after each."""
    runs: list[LoadResults] = []
    samples: list[Holdings] = []
    run_s = min(RUN_S, seconds / 20)
    for number in range(round(seconds / run_s)):
        plan = LoadPlan(
            connections=CONNECTIONS,
            streams=STREAMS,
            phases=((rate, run_s),),
            seed=number + 1,
            life_calls=LIFE_CALLS,
            in_flight_max=IN_FLIGHT_MAX,
            drain_s=30.0,
        )
        runs.append(generator.run(target, plan))
        samples.append(subject.holdings())
    return runs, samples


def figures(runs: Sequence[LoadResults], samples: Sequence[Holdings], settle_s: float) -> dict[str, object]:
    """Return what grew from `settle_s` on, what failed, and how long calls took."""
    merged = LoadResults.merged(list(runs))
    statuses = merged.statuses()
    settled = samples[min(round(settle_s / runs[0].window_s), len(samples) - 1) :]
    return {
        "calls": merged.counters["started"],
        "connections": merged.counters["connections"],
        "failed_calls": sum(count for name, count in statuses.items() if name != "OK") + merged.counters["dropped"],
        "lost_connections": merged.counters["failures"] + merged.counters["goaways"],
        "memory_growth_mib": growth([each.private_bytes - each.mapped_bytes for each in settled]) / MIB,
        "private_growth_mib": growth([each.private_bytes for each in settled]) / MIB,
        "descriptor_growth": growth([each.descriptors for each in settled]),
        "reader_slot_growth": growth([each.reader_slots for each in settled]),
        "object_growth": growth([each.objects for each in settled]),
        "p50_us": merged.quantile_us(0.5),
        "p99_us": merged.quantile_us(0.99),
        "p999_us": merged.quantile_us(0.999),
        "rps": merged.rate(),
        "late_share": merged.counters["late"] / merged.counters["started"],
        "memory_mib": [
            f"{(each.private_bytes - each.mapped_bytes) / MIB:.1f}" for each in samples[:: len(samples) // 10]
        ],
        "statuses": [f"{name}: {count}" for name, count in statuses.items()],
        RAW: {"runs": merged.report(), "samples": [asdict(each) for each in samples]},
    }


def growth(values: Sequence[float]) -> float:
    """Return the median of the last tenth over that of the first, each of at least one."""
    count = max(1, len(values) // 10)
    return float(np.median(values[-count:]) - np.median(values[:count]))

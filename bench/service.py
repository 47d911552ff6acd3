"""`tailorbird bench service`: the service as several processes, under load from others, on workload R.

- `decide_p99_with_ingest_over_without`: p99 of Decide (100 candidates) at a fixed rate, from when each call was due, while signals
  arrive at half the rate the service was measured to take, over the same without; blocks of the two take turns.
- `ack_to_visible_p99_ms`: from the acknowledgement of an order on one connection to the answer of GetProfile on another that has
  its `min_position`, and the order in it.
- `served_repeat_violations`: items served twice to one person who asks again and again over many connections, each time with
  the `served_position` of the answer before.
- `rolling_restart_failed_calls`: of decisions and ingest while all workers are replaced one by one, again and again; calls are
  made by the shipped client, which repeats them by its default policy.
- `scaling_2_workers`: decisions a second of two workers over one; it takes a core for each and one for the load.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tailorbird.bench import workload
from tailorbird.bench.musts import Must
from tailorbird.bench.service_load import BATCH_SIGNALS, DECIDE, INGEST
from tailorbird.bench.service_subject import Calls, load, serving
from tailorbird.bench.workload import WorkloadR
from tailorbird.engine import Engine
from tailorbird.engine.errors import InternalError
from tailorbird.server.messages.consent import choice_message
from tailorbird.server.transport.choice import NATIVE, chosen
from tailorbird.v1 import (
    decision_service_pb2,
    identity_pb2,
    profile_service_pb2,
    signal_pb2,
    signal_service_pb2,
)

if TYPE_CHECKING:
    from tailorbird.client import Client

METHOD = (
    "the service by its own command on loopback, loads in processes of their own; decisions are due at a fixed rate and timed from "
    "then on; blocks with and without ingest take turns"
)
MUSTS = (
    Must("decide_p99_with_ingest_over_without", at_most=3.0),
    Must("ack_to_visible_p99_ms", at_most=20.0),
    Must("served_repeat_violations", at_most=0),
    Must("rolling_restart_failed_calls", at_most=0),
)
DECIDES_PER_S = 200.0
INGESTERS = 2  # connections that send signals
SETTLE_S = 0.2  # between blocks, not measured
CORES_TO_SCALE = 3
CONNECTIONS = 8
SERVED_ROUNDS = 3
SERVED_K = 10
CONSENT = choice_message(workload.CONSENT)
RESTART_DECIDES_PER_S, RESTART_INGESTS_PER_S = 100.0, 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--people", type=int, default=20_000, help="people (default 20,000)")
    parser.add_argument("--items", type=int, default=20_000, help="items (default 20,000)")
    parser.add_argument("--blocks", type=int, default=7, help="blocks with and without ingest (default 7 each)")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of a block (default 3)")
    parser.add_argument("--orders", type=int, default=2_000, help="orders whose visibility is timed (default 2,000)")
    parser.add_argument("--served", type=int, default=500, help="people who are served again and again (default 500)")
    parser.add_argument("--restarts", type=int, default=100, help="rolling restarts under load (default 100)")
    parser.add_argument("--quick", action="store_true", help="2,000 people and items, 3 blocks of 1 second, 5 restarts")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Return the measurements; see the module for each."""
    chosen(NATIVE)  # The client is on the same kernel.
    if args.quick:
        args.people = args.items = 2_000
        args.blocks, args.seconds, args.orders, args.served, args.restarts = 3, 1.0, 200, 50, 5
    size = WorkloadR(args.people, args.items)
    results: dict[str, object] = {"method": METHOD, "people": size.people, "items": size.items}
    with tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as folder:
        directory = Path(folder) / "r"
        with Engine.open(directory, workload.configuration_text()) as engine:
            size.load(engine)
            engine.tick()
        with serving(directory, workers=1) as service:
            results |= beside_ingest(service.address, size, args.blocks, args.seconds)
        with serving(directory, workers=2) as service:
            results |= visibility(service.address, size, args.orders)
            results |= repeats(service.address, size, args.served)
            results["rolling_restarts"] = args.restarts
            with (
                load(DECIDE, service.address, size, connections=2) as decisions,
                load(INGEST, service.address, size, connections=1, seed=9) as ingest,
            ):
                decisions.rate(RESTART_DECIDES_PER_S)
                ingest.rate(RESTART_INGESTS_PER_S)
                for _ in range(args.restarts):
                    service.replace_workers()
                done = [decisions.end(), ingest.end()]
            results["rolling_restart_calls"] = sum(len(calls.due_s) for calls in done)
            results["rolling_restart_failed_calls"] = sum(calls.failed_count for calls in done)
            results["rolling_restart_decide_p99_ms"] = done[0].p99_ms()
        results |= scaling(directory, size, args.seconds)
    return results


def beside_ingest(address: str, size: WorkloadR, blocks: int, seconds: float) -> dict[str, object]:
    """Return how decisions fare beside ingest at half of what the service takes."""
    spans: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with (
        load(DECIDE, address, size) as decisions,
        load(INGEST, address, size, INGESTERS) as ingest,
    ):
        # A load tells its calls only at its end, so the most that is taken is measured by another one.
        with load(INGEST, address, size, INGESTERS, seed=1) as most:
            began_s = time.monotonic()
            most.rate(-1)
            time.sleep(seconds)
            calls = most.end()
            ended_s = time.monotonic()
        most_per_s = len(calls.due_s) / (ended_s - began_s)
        decisions.rate(DECIDES_PER_S)
        time.sleep(1.0)
        for block in range(2 * blocks):
            with_ingest = block % 4 in (1, 2)
            ingest.rate(most_per_s / 2 if with_ingest else 0)
            time.sleep(SETTLE_S)
            began_s = time.monotonic()
            time.sleep(seconds)
            spans[with_ingest].append((began_s, time.monotonic()))
        ingest.rate(0)
        decided, ingested = decisions.end(), ingest.end()
    if decided.failed_count or ingested.failed_count:
        raise InternalError("CALLS_FAILED", f"expected no failed call, got {decided.failed_count} decisions and more")
    p99_ms = {
        which: float(np.median([decided.between(*span).p99_ms() for span in found])) for which, found in spans.items()
    }
    ingest_per_s = [len(ingested.between(*span).due_s) / (span[1] - span[0]) for span in spans[True]]
    return {
        "decide_p99_with_ingest_over_without": p99_ms[True] / p99_ms[False],
        "decide_p99_without_ingest_ms": p99_ms[False],
        "decide_p99_with_ingest_ms": p99_ms[True],
        "ingest_max_signals_per_s": most_per_s * BATCH_SIGNALS,
        "ingest_beside_signals_per_s": float(np.median(ingest_per_s)) * BATCH_SIGNALS,
    }


def visibility(address: str, size: WorkloadR, count: int) -> dict[str, object]:
    """Return how long after its acknowledgement an order is seen over another connection."""
    spent_s, acknowledged_s = [], []
    with client(address) as one, client(address) as other:
        for number in range(count):
            who = identifiers(f"new-{number}")
            began_s = time.monotonic()
            answer = one.ingest(signal_service_pb2.IngestRequest(signals=[order(f"visible-{number}", who)]))
            acknowledged = time.monotonic()
            seen = other.get_profile(
                profile_service_pb2.GetProfileRequest(identifiers=who, min_position=answer.position)
            )
            spent_s.append(time.monotonic() - acknowledged)
            acknowledged_s.append(acknowledged - began_s)
            if seen.bought_count != 1:
                raise InternalError("NOT_VISIBLE", f"expected order {number} in the profile, got {seen.bought_count}")
    return {
        "ack_to_visible_p50_ms": float(np.percentile(spent_s, 50)) * 1e3,
        "ack_to_visible_p99_ms": float(np.percentile(spent_s, 99)) * 1e3,
        "ingest_ack_p50_ms": float(np.percentile(acknowledged_s, 50)) * 1e3,
        "ingest_ack_p99_ms": float(np.percentile(acknowledged_s, 99)) * 1e3,
    }


def repeats(address: str, size: WorkloadR, people: int) -> dict[str, object]:
    """Return how many items were served twice to one person who passes on the `served_position`."""
    rng = random.Random(size.seed)
    candidates = [workload.item_id(item) for item in range(SERVED_ROUNDS * SERVED_K + size.seed)]
    violations = served_count = 0
    spent_s = []
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(address)) for _ in range(CONNECTIONS)]
        for person in range(people):
            who = [
                identity_pb2.Identifier(namespace=name, value=value)
                for name, value in workload.identifiers(person % size.people).items()
            ]
            position, served = 0, set[str]()
            for _ in range(SERVED_ROUNDS):
                request = decision_service_pb2.DecideRequest(
                    placement="ranked",
                    identifiers=who,
                    candidate_ids=candidates,
                    item_count=SERVED_K,
                    min_position=position,
                    served_acknowledgement=decision_service_pb2.SERVED_ACKNOWLEDGEMENT_WRITTEN,
                )
                began_s = time.monotonic()
                answer = rng.choice(clients).decide(request)
                spent_s.append(time.monotonic() - began_s)
                if not answer.served_position:
                    raise InternalError("NOT_WRITTEN", f"expected a served_position, got {list(answer.degraded)}")
                items = {item.item_id for item in answer.items}
                violations += len(items & served)
                served_count += len(items)
                served |= items
                position = answer.served_position
    return {
        "served_repeat_violations": violations,
        "served_items": served_count,
        "served_written_decide_p50_ms": float(np.percentile(spent_s, 50)) * 1e3,
    }


def scaling(directory: Path, size: WorkloadR, seconds: float) -> dict[str, object]:
    """Return decisions a second of two workers over one, None where there are too few cores to tell."""
    cores = len(os.sched_getaffinity(0))
    if cores < CORES_TO_SCALE:
        why = f"expected {CORES_TO_SCALE} cores or more, one for the load, got {cores}"
        return {"scaling_2_workers": None, "scaling_2_workers_reason": why}
    found = {}
    for workers in (1, 2):
        with serving(directory, workers) as service, contextlib.ExitStack() as stack:
            loads = [
                stack.enter_context(load(DECIDE, service.address, size, connections=4, seed=number))
                for number in range(max(2, cores - workers))
            ]
            began_s = time.monotonic()
            for each in loads:
                each.rate(-1)
            time.sleep(seconds)
            ended: list[Calls] = [each.end() for each in loads]
            found[workers] = sum(len(calls.due_s) for calls in ended) / (time.monotonic() - began_s)
    return {
        "scaling_2_workers": found[2] / found[1],
        "decides_per_s_1_worker": found[1],
        "decides_per_s_2_workers": found[2],
    }


def client(address: str) -> Client:
    """Return a client on a connection of its own."""
    from tailorbird.client import ChannelOptions, Client  # built where the native transport is

    return Client(address, ChannelOptions(connections_max=1))


def identifiers(user: str) -> list[identity_pb2.Identifier]:
    """Return the name of somebody new."""
    return [identity_pb2.Identifier(namespace="user_id", value=user)]


def order(message_id: str, who: list[identity_pb2.Identifier]) -> signal_pb2.Signal:
    """Return an order of one item."""
    return signal_pb2.Signal(
        type="order_completed",
        event_time_ms=time.time_ns() // 1_000_000,
        identifiers=who,
        message_id=message_id,
        products=[signal_pb2.ProductLine(product_id=workload.item_id(1))],
        consent=CONSENT,
    )

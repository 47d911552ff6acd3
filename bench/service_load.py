"""The load of `tailorbird bench service`: `python -m tailorbird.bench.service_load KIND ADDRESS PEOPLE ITEMS CONNECTIONS SEED`.

Calls `decide` (100 candidates, another person each) or `ingest` (100 signals) in a thread per connection. A line on standard input
is a rate in calls a second, over all connections: 0 pauses, -1 is as fast as answers come. At its end the process writes one JSON
list of calls to standard output: [when it was due, seconds until its answer, whether it succeeded], on the clock of
`time.monotonic()`, which is the machine's. At a rate a call's time begins when it was due, not when it was sent.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import cast

import numpy as np

from tailorbird.bench import workload
from tailorbird.bench.rpc_subject import requests
from tailorbird.bench.workload import WorkloadR
from tailorbird.v1 import identity_pb2, signal_pb2, signal_service_pb2

DECIDE, INGEST = "decide", "ingest"
PATHS = {DECIDE: "/tailorbird.v1.DecisionService/Decide", INGEST: "/tailorbird.v1.SignalService/Ingest"}
CANDIDATES = 100
BATCH_SIGNALS = 100
BATCHES = 20
TIMEOUT_S = 30.0
LOOK_S = 0.005
TAG = b"#" * 12

Call = Callable[[bytes], bytes]


class Pace:
    """When calls are due: in turns of all threads, at the rate that was said last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rate = 0.0
        self._next_s = 0.0
        self.is_over = False

    def set(self, rate: float) -> None:
        """Go on at a rate."""
        with self._lock:
            self._rate, self._next_s = rate, time.monotonic()

    def due(self) -> float | None:
        """Wait until a call is due; return when it was, None at the end."""
        while not self.is_over:
            with self._lock:
                now_s = time.monotonic()
                if self._rate < 0:
                    return now_s
                if self._rate > 0 and self._next_s <= now_s + LOOK_S:
                    due_s = self._next_s
                    self._next_s += 1.0 / self._rate
                    break
            time.sleep(LOOK_S)
        else:
            return None
        time.sleep(max(0.0, due_s - time.monotonic()))
        return due_s


def decide_bodies(size: WorkloadR, seed: int) -> Callable[[], bytes]:
    """Return what makes Decide requests."""
    made = requests(size, CANDIDATES)
    rng = random.Random(seed)
    return lambda: rng.choice(made)


def ingest_bodies(size: WorkloadR, seed: int) -> Callable[[], bytes]:
    """Return what makes Ingest requests of signals that were not sent before: views of items, by people who are known."""
    rng = np.random.default_rng([size.seed, 7, seed])
    templates = []
    for _ in range(BATCHES):
        people = rng.integers(0, size.people, BATCH_SIGNALS).tolist()
        items = rng.integers(0, size.items, BATCH_SIGNALS).tolist()
        batch = signal_service_pb2.IngestRequest(
            signals=[
                signal_pb2.Signal(
                    type="product_viewed",
                    event_time_ms=workload.AT + number,
                    identifiers=[
                        identity_pb2.Identifier(namespace=name, value=value)
                        for name, value in workload.identifiers(person).items()
                    ],
                    message_id=f"{TAG.decode()}{number}",
                    properties=[
                        signal_pb2.Property(name="product_id", string_value=workload.item_id(item)),
                        signal_pb2.Property(name="price", double_value=9.5),
                        signal_pb2.Property(name="quantity", int_value=1),
                    ],
                )
                for number, (person, item) in enumerate(zip(people, items, strict=True))
            ]
        )
        templates.append(batch.SerializeToString())
    drawn = random.Random(seed)
    lock, number = threading.Lock(), 0

    def body() -> bytes:
        nonlocal number
        with lock:
            number += 1
            tag = f"{seed:04d}{number:08d}".encode()
            return drawn.choice(templates).replace(TAG, tag)

    return body


def connected(address: str, path: str) -> Call:
    """Return a method over a connection of its own, repeated as the client does by default."""
    from tailorbird.client import Channel, ChannelOptions  # built where the native transport is

    channel = Channel(address, ChannelOptions(connections_max=1))
    method = channel.unary_unary(path)
    return lambda body: cast(bytes, method(body, timeout=TIMEOUT_S))


def main(arguments: list[str]) -> int:
    """Run as the module's docstring says."""
    kind, address = arguments[1:3]
    people, items, connections, seed = map(int, arguments[3:7])
    size = WorkloadR(people, items)
    body = decide_bodies(size, seed) if kind == DECIDE else ingest_bodies(size, seed)
    pace = Pace()
    calls: list[tuple[float, float, bool]] = []

    def run() -> None:
        call = connected(address, PATHS[kind])
        while (due_s := pace.due()) is not None:
            request = body()
            try:
                call(request)
                succeeded = True
            except Exception as error:
                print(f"{kind} failed: {error}", file=sys.stderr)
                succeeded = False
            calls.append((due_s, time.monotonic() - due_s, succeeded))

    threads = [threading.Thread(target=run) for _ in range(connections)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    for line in sys.stdin:
        pace.set(float(line))
    pace.is_over = True
    for thread in threads:
        thread.join()
    json.dump(calls, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

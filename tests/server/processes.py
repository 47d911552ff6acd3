"""The service as several real processes, for tests: started by its command, watched by its log, its processes known to the system."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from tailorbird.v1 import (
    catalog_service_pb2,
    catalog_service_pb2_grpc,
    consent_pb2,
    decision_service_pb2,
    decision_service_pb2_grpc,
    identity_pb2,
    profile_service_pb2,
    profile_service_pb2_grpc,
    signal_pb2,
    signal_service_pb2,
    signal_service_pb2_grpc,
)

PATIENCE_S = 30.0
COMMAND = (sys.executable, "-c", "from tailorbird.server.cli import main; raise SystemExit(main())")
GRANTED = consent_pb2.ConsentChoice(
    entries=[
        consent_pb2.ConsentEntry(data_type=data_type, state=consent_pb2.CONSENT_STATE_GRANTED)
        for data_type in (
            consent_pb2.DATA_TYPE_BEHAVIOURAL,
            consent_pb2.DATA_TYPE_CONTEXTUAL,
            consent_pb2.DATA_TYPE_TRANSACTIONAL,
        )
    ]
)


def until(found: Callable[[], Any]) -> Any:
    """Return what `found` returns once it is true."""
    ends = time.monotonic() + PATIENCE_S
    while not (value := found()):
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.02)
    return value


def user(name: str) -> list[identity_pb2.Identifier]:
    return [identity_pb2.Identifier(namespace="user_id", value=name)]


def order(message_id: str, who: str, item: str = "item000") -> signal_pb2.Signal:
    return signal_pb2.Signal(
        type="order_completed",
        event_time_ms=time.time_ns() // 1_000_000,
        identifiers=user(who),
        message_id=message_id,
        products=[signal_pb2.ProductLine(product_id=item)],
        consent=GRANTED,
    )


class Connection:
    """One connection of its own to the service, which leads to one of its workers."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(
            address,
            [
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        )

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def put_items(self, count: int) -> int:
        items = [catalog_service_pb2.Item(id=f"item{n:03d}", price=1.0) for n in range(count)]
        request = catalog_service_pb2.PutItemsRequest(message_id="put", items=items)
        return int(catalog_service_pb2_grpc.CatalogServiceStub(self.channel).PutItems(request, timeout=30).position)

    def ingest(self, *signals: signal_pb2.Signal, timeout: float = 30.0) -> signal_service_pb2.IngestResponse:
        stub = signal_service_pb2_grpc.SignalServiceStub(self.channel)
        return stub.Ingest(signal_service_pb2.IngestRequest(signals=signals), timeout=timeout)

    def decide(self, timeout: float = 30.0, **fields: Any) -> decision_service_pb2.DecideResponse:
        stub = decision_service_pb2_grpc.DecisionServiceStub(self.channel)
        request = decision_service_pb2.DecideRequest(**{"placement": "home", **fields})
        return stub.Decide(request, timeout=timeout, wait_for_ready=True)

    def profile(self, who: str, min_position: int = 0) -> profile_service_pb2.GetProfileResponse:
        stub = profile_service_pb2_grpc.ProfileServiceStub(self.channel)
        request = profile_service_pb2.GetProfileRequest(identifiers=user(who), min_position=min_position)
        return stub.GetProfile(request, timeout=30, wait_for_ready=True)


@dataclass(slots=True)
class Service:
    """A service that runs; `log` is what it said."""

    process: subprocess.Popen[bytes]
    log: Path
    address: str = ""

    def said(self, pattern: str) -> list[str]:
        """Return what the log says by a pattern of one group, oldest first."""
        return re.findall(pattern, self.log.read_text())

    def pids(self, name: str) -> list[int]:
        """Return the ids of the processes that have a place, oldest first: one that ends may be there beside its successor."""
        supervisor = self.process.pid
        started: list[tuple[int, int]] = []
        for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
            with contextlib.suppress(OSError):  # it ended meanwhile
                command = Path(f"/proc/{pid}/cmdline").read_text()
                if f'"name":"{name}"' in command:
                    # What follows the command in parentheses; the 22nd field of all is the time of the start.
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    started.append((int(fields[19]), int(pid)))
        return [pid for _, pid in sorted(started)]

    def pid(self, name: str) -> int:
        """Return the id of the process that has a place now, or of the one that has it next."""
        return int(until(lambda: self.pids(name))[-1])

    def kill(self, name: str) -> None:
        """Kill a process and wait until another one has its place."""
        former = self.pid(name)
        os.kill(former, signal.SIGKILL)
        until(lambda: self.pid(name) != former)

    def metrics(self) -> str:
        """Return what Prometheus is told."""
        (url,) = self.said(r"metrics at (http://\S+)")
        with urllib.request.urlopen(url, timeout=30) as answer:
            return str(answer.read().decode())

    def stop(self) -> int:
        """Ask it to stop; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def running(directory: Path, *options: str, workers: int = 2, listen: str = "127.0.0.1:0") -> Iterator[Service]:
    """Run the service over a data directory until the block is left."""
    log = directory.parent / f"{directory.name}-{time.monotonic_ns()}.log"
    with log.open("wb") as out:
        command = [*COMMAND, "serve", "--data", str(directory), "--listen", listen, "--workers", str(workers), *options]
        process = subprocess.Popen(command, stdout=out, stderr=out)
    service = Service(process, log)
    try:
        (service.address,) = until(lambda: service.said(r"listening on (\S+),") or process.poll() is not None)
        yield service
    finally:
        if process.poll() is None:
            service.stop()
        print(log.read_text())


@dataclass(slots=True)
class Load:
    """Calls in threads until the block is left, each on a connection of its own: how many ended well, and how the others failed."""

    done_count: int = 0
    failures: list[BaseException] = field(default_factory=list)

    @contextlib.contextmanager
    def of(self, address: str, call: Callable[[Connection, int], object], threads: int = 3) -> Iterator[Load]:
        """`call` gets a connection and a number that is not used twice."""
        stopping, lock, numbers = threading.Event(), threading.Lock(), iter(range(1 << 30))

        def run() -> None:
            with Connection(address) as connection:
                while not stopping.is_set():
                    with lock:
                        number = next(numbers)
                    try:
                        call(connection, number)
                    except Exception as error:
                        self.failures.append(error)
                        stopping.wait(0.05)  # whoever is refused leaves the machine to others
                    else:
                        with lock:
                            self.done_count += 1

        running_threads = [threading.Thread(target=run, name=f"load-{n}") for n in range(threads)]
        for thread in running_threads:
            thread.start()
        try:
            self.more()
            yield self
        finally:
            stopping.set()
            for thread in running_threads:
                thread.join()

    def more(self, count: int = 30) -> None:
        """Wait until so many more calls ended well."""
        wanted = self.done_count + count
        until(lambda: self.done_count >= wanted)

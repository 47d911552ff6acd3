"""What `tailorbird bench service` starts: the service by its own command, and loads in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tailorbird.bench.workload import WorkloadR
from tailorbird.engine.errors import InternalError

PATIENCE_S = 120.0
REPLACED = "the workers are replaced"


@dataclass(slots=True)
class Calls:
    """What a load did, in the order the calls ended: when each was due and how long it took, in seconds."""

    due_s: NDArray[np.float64]
    spent_s: NDArray[np.float64]
    succeeded: NDArray[np.bool_]

    def between(self, begin_s: float, end_s: float) -> Calls:
        """Return the calls that were due within a time."""
        inside = (self.due_s >= begin_s) & (self.due_s < end_s)
        return Calls(self.due_s[inside], self.spent_s[inside], self.succeeded[inside])

    @property
    def failed_count(self) -> int:
        """How many failed."""
        return int((~self.succeeded).sum())

    def p99_ms(self) -> float:
        """Return the 99th percentile, in ms."""
        if not len(self.spent_s):
            raise InternalError("NO_CALLS", "expected calls to measure, got none; give it more seconds")
        return float(np.percentile(self.spent_s, 99)) * 1e3


class RunningLoad:
    """A load that waits for a rate; `end` returns what it did."""

    def __init__(self, kind: str, address: str, size: WorkloadR, connections: int, seed: int) -> None:
        command = [sys.executable, "-m", "tailorbird.bench.service_load", kind, address]
        command += [str(number) for number in (size.people, size.items, connections, seed)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise InternalError("LOAD_FAILED", f"expected the load {kind} to begin, got its end")

    def rate(self, calls_per_s: float) -> None:
        """Go on at a rate; 0 pauses, -1 is as fast as answers come."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{calls_per_s}\n")
        self._process.stdin.flush()

    def end(self) -> Calls:
        """End the load."""
        found = json.loads(self._process.communicate()[0])
        columns = np.array(found, dtype=np.float64).reshape(-1, 3)
        return Calls(columns[:, 0], columns[:, 1], columns[:, 2] != 0)

    def kill(self) -> None:
        """End it without a word; idempotent."""
        with self._process:  # which closes its pipes
            if self._process.poll() is None:
                self._process.kill()


class Serving:
    """`tailorbird serve` on a data directory."""

    def __init__(self, directory: Path, workers: int, options: Sequence[str] = ()) -> None:
        command = [sys.executable, "-c", "from tailorbird.server.cli import main; raise SystemExit(main())", "serve"]
        command += ["--data", str(directory), "--listen", "127.0.0.1:0", "--workers", str(workers), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = self.wait_for(r"listening on (\S+),")[1]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the next line it says of a pattern."""
        while line := self._lines.get(timeout=PATIENCE_S):
            if found := re.search(pattern, line):
                return found
        raise InternalError("SERVER_FAILED", f"expected the service to say {pattern!r}, got its end")

    def replace_workers(self) -> None:
        """Replace the workers one by one, and wait until that is done."""
        os.kill(self.process.pid, signal.SIGHUP)
        self.wait_for(REPLACED)

    def stop(self) -> None:
        """Stop it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def serving(directory: Path, workers: int) -> Iterator[Serving]:
    """Serve a data directory until the block is left."""
    service = Serving(directory, workers)
    try:
        yield service
    finally:
        service.stop()


@contextlib.contextmanager
def load(kind: str, address: str, size: WorkloadR, connections: int = 1, seed: int = 0) -> Iterator[RunningLoad]:
    """Have a load ready until the block is left."""
    running = RunningLoad(kind, address, size, connections, seed)
    try:
        yield running
    finally:
        running.kill()

"""Load on a gRPC server, from a process of its own on a core of its own: `Generator` runs plans by native/load.

Closed loop: so many calls in flight, the next begins when one ends; it measures throughput, and the latency of a server that
nobody else asks. Open loop: calls are due at a rate, on a seeded schedule, whatever the server does, and a call's latency runs
from when it was due: it measures what callers see under a given load.

The process speaks msgpack behind 4-byte lengths on standard input and output, and ends with its input.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from tailorbird.bench.load_results import LoadResults
from tailorbird.engine.errors import CallerError, InternalError, PreconditionFailed

NS_PER_S = 1_000_000_000
_LENGTH_BYTES = 4
_END_S = 30.0
CALLS_MAX = 50_000_000
POISSON, UNIFORM = "poisson", "uniform"


@dataclass(frozen=True, slots=True)
class Target:
    """A server at an IPv4 address, and the (path, message) that are sent in turn."""

    port: int
    requests: Sequence[tuple[str, bytes]]
    host: str = "127.0.0.1"


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One run. With `phases`, (calls a second, seconds) one after the other, the loop is open, else closed for `seconds`.

    `streams` bounds the calls on a connection; a closed loop keeps as many in flight. `timeout_s` is each call's deadline, 0
    for none. `calls_max` bounds a closed loop's calls, and is refused of an open one that has more; `in_flight_max` bounds
    those begun and not over. Calls in flight at the end are given `drain_s`. A call sent `late_us` after it was due counts as
    late. Results are kept apart by `window_s`, 0 for all in one. A connection ends after `life_calls` calls, 0 for never.
    """

    connections: int = 4
    streams: int = 4
    seconds: float = 1.0
    phases: tuple[tuple[float, float], ...] = ()
    schedule: str = POISSON
    seed: int = 1
    calls_max: int = CALLS_MAX
    in_flight_max: int = 20_000
    timeout_s: float = 0.0
    drain_s: float = 5.0
    late_us: float = 1_000.0
    window_s: float = 0.0
    life_calls: int = 0

    @property
    def run_s(self) -> float:
        """Return how long calls are begun, in seconds."""
        return sum(seconds for _, seconds in self.phases) if self.phases else self.seconds

    @property
    def window_count(self) -> int:
        """Return how many windows there are."""
        return max(1, round(self.run_s / self.window_s)) if self.window_s else 1


def due_ns(plan: LoadPlan) -> NDArray[np.int64]:
    """Return when each call of an open loop is due, from the start; nothing of a closed loop.

    Raises `CallerError` for more than `calls_max`, or an unknown schedule.
    """
    expected = sum(rate * seconds for rate, seconds in plan.phases)
    if expected > plan.calls_max:
        raise CallerError("TOO_MANY_CALLS", f"expected at most calls_max = {plan.calls_max} calls, got {expected:,.0f}")
    if plan.schedule not in (POISSON, UNIFORM):
        raise CallerError("UNKNOWN_SCHEDULE", f"expected {POISSON} or {UNIFORM}, got {plan.schedule}")
    rng = np.random.default_rng(plan.seed)
    parts, began_s = [np.empty(0)], 0.0
    for rate, seconds in plan.phases:
        if plan.schedule == UNIFORM:
            times_s = np.arange(int(rate * seconds)) / rate
        else:
            # The times of a Poisson process, given their number, are uniform.
            times_s = np.sort(rng.uniform(0.0, seconds, rng.poisson(rate * seconds)))
        parts.append(began_s + times_s)
        began_s += seconds
    return (np.concatenate(parts) * NS_PER_S).astype(np.int64)


def run_plan(target: Target, plan: LoadPlan) -> LoadResults:
    """Run a plan in this process. Raises ValueError for what is out of bounds, ConnectionError where nobody listens."""
    from tailorbird.native import load  # built where libnghttp2 was there

    begun = due_ns(plan)
    if plan.phases and not len(begun):
        raise CallerError("NO_CALLS", f"expected a schedule with calls, got {plan.phases}; a higher rate, or longer")
    counters, latency__wb, service__b, statuses__ws, good__w, done__w = load.run(
        target.host,
        target.port,
        [(path.encode(), message) for path, message in target.requests],
        connections=plan.connections,
        streams=plan.streams,
        due_ns=begun,
        calls_max=plan.calls_max,
        run_ns=int(plan.run_s * NS_PER_S),
        drain_ns=int(plan.drain_s * NS_PER_S),
        timeout_ns=int(plan.timeout_s * NS_PER_S),
        late_ns=int(plan.late_us * 1_000),
        window_ns=int((plan.window_s or plan.run_s) * NS_PER_S),
        window_count=plan.window_count,
        life_calls=plan.life_calls,
        in_flight_max=plan.in_flight_max,
    )
    window_s = plan.window_s or plan.run_s
    return LoadResults(counters, latency__wb, service__b, statuses__ws, good__w, done__w, window_s)


class Generator:
    """The generator's process, pinned to a core. Use as a context manager. Raises `PreconditionFailed` without its kernel."""

    def __init__(self, core: int) -> None:
        require_kernel()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tailorbird.bench.load", "--core", str(core)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._target: Target | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is not None:
            # It may be in the middle of a run that nobody waits for.
            self._process.terminate()
        self._process.stdin.close()
        self._process.wait(_END_S)
        self._process.stdout.close()

    def run(self, target: Target, plan: LoadPlan) -> LoadResults:
        """Run a plan. Raises `InternalError` LOAD_FAILED where it could not be run; failed calls are in the results."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        requests = None
        if self._target is not target:
            # Tens of megabytes, the same in many runs.
            requests = (target.host, target.port, list(target.requests))
            self._target = target
        _write(self._process.stdin, (requests, plan))
        answer = _read(self._process.stdout, dict[str, Any])
        if answer is None or "error" in answer:
            told = "the end of its process" if answer is None else answer["error"]
            raise InternalError("LOAD_FAILED", f"expected a run of the load generator, got {told}")
        return LoadResults.from_wire(answer)


def require_kernel() -> None:
    """Raise `PreconditionFailed` NO_LOAD_GENERATOR where the kernel was not built."""
    import importlib.util

    if importlib.util.find_spec("tailorbird.native.load") is None:
        raise PreconditionFailed(
            "NO_LOAD_GENERATOR",
            "expected tailorbird.native.load, got a build without it; install libnghttp2 with its headers (Debian: "
            "libnghttp2-dev) and build again",
        )


def cores() -> tuple[int, int]:
    """Return a core for the servers and one for the load. Raises `PreconditionFailed` where there is one only."""
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        raise PreconditionFailed(
            "ONE_CORE", f"expected a core for the servers and one for the load, got {len(found)} in all"
        )
    return found[0], found[1]


def _write(file: IO[bytes], value: object) -> None:
    encoded = msgspec.msgpack.encode(value)
    file.write(len(encoded).to_bytes(_LENGTH_BYTES, "big"))
    file.write(encoded)
    file.flush()


def _read(file: IO[bytes], kind: Any) -> Any:
    head = file.read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return None
    return msgspec.msgpack.decode(file.read(int.from_bytes(head, "big")), type=kind)


def main() -> None:
    """Run plans until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--core", type=int, required=True)
    os.sched_setaffinity(0, {parser.parse_args().core})
    # What is printed by mistake must not look like an answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    target: Target | None = None
    wire = tuple[tuple[str, int, list[tuple[str, bytes]]] | None, LoadPlan]
    while (order := _read(sys.stdin.buffer, wire)) is not None:
        if order[0] is not None:
            host, port, requests = order[0]
            target = Target(port, requests, host)
        try:
            assert target is not None
            _write(answers, run_plan(target, order[1]).to_wire())
        except Exception as error:
            _write(answers, {"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()

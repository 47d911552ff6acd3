"""`tailorbird bench overload`: what a server still gets done when it is asked for more than it can.

Peak: the most calls a second of closed loops over rising numbers of connections. Then a closed loop of five times the
connections of that peak: callers who wait, of whom there are too many. Then an open loop at twice the peak: callers who do not
wait. Each call has a deadline, and an answer counts when it came within. An open loop at half of the peak runs before
and after, in one piece with the overload: `recovery_s` is how long after its end the p99 of each 0.1 s stays above three times
what it was before (or 5 ms).

The server runs in its own process on one core, the load generator on another. Decide of 100 candidates, as in `bench rpc`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from tailorbird.bench.load import Generator, LoadPlan, Target, cores
from tailorbird.bench.load_results import LoadResults
from tailorbird.bench.musts import Must
from tailorbird.bench.report import RAW
from tailorbird.bench.rpc_subject import Subject, requests, served
from tailorbird.bench.workload import WorkloadR
from tailorbird.server.transport.choice import NATIVE, chosen

METHOD = (
    "one server on one core, our load generator on another; goodput is answers within their deadline a second; peak is the "
    "best closed loop; open loop: Poisson, latency from when a call was due, calls past their deadline reset by the caller"
)
MUSTS = (
    Must("goodput_5x_closed", at_least=0.9),
    Must("goodput_2x_open", at_least=0.6),
    Must("recovery_s", at_most=5),
    Must("memory_growth_mib", at_most=64),
)
STREAMS = 4
CONNECTIONS = (1, 2, 4, 8, 16)
OVER_CONNECTIONS, OVER_RATE, CALM_RATE = 5, 2.0, 0.5
OPEN_CONNECTIONS, OPEN_STREAMS = 64, 100
WINDOW_S = 0.1
# What counts as back to normal.
NORMAL_TIMES, NORMAL_US = 3.0, 5_000.0


@dataclass(frozen=True, slots=True)
class Peak:
    """The best closed loop: its connections, calls a second."""

    connections: int
    rps: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--people", type=int, default=20_000, help="people (default 20,000)")
    parser.add_argument("--items", type=int, default=20_000, help="items (default 20,000)")
    parser.add_argument("--seconds", type=float, default=10, help="seconds of each overload (default 10)")
    parser.add_argument("--blocks", type=int, default=3, help="how often all is measured (default 3)")
    parser.add_argument("--timeout-ms", type=float, default=100, help="each call's deadline (default 100)")
    parser.add_argument("--quick", action="store_true", help="2,000 people, 2,000 items, one block of 3 seconds")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Return the measurements. Raises `PreconditionFailed` without the kernels or a second core."""
    if args.quick:
        args.people, args.items, args.seconds, args.blocks = 2_000, 2_000, 3, 1
    server_core, load_core = cores()
    chosen(NATIVE)
    size = WorkloadR(args.people, args.items)
    found: dict[str, list[float]] = {}
    raw: list[dict[str, object]] = []
    statuses: list[str] = []
    with Generator(load_core) as generator, served(NATIVE, size, server_core) as subject:
        bench = Overload(generator, subject, size, args.seconds, args.timeout_ms / 1_000)
        bench.warm()
        for block in range(args.blocks):
            values, runs = bench.measure(seed=block + 1)
            for name, value in values.items():
                found.setdefault(name, []).append(value)
            raw.append({name: done.report() for name, done in runs.items()})
            statuses += [f"{name}: {done.statuses()}" for name, done in runs.items()]
    results: dict[str, object] = {"method": METHOD, "people": size.people, "items": size.items, "blocks": args.blocks}
    results |= {name: float(np.median(values)) for name, values in found.items()}
    for name in ("recovery_s", "memory_growth_mib"):
        results[name] = max(found[name])
    return results | {"statuses": statuses, RAW: raw}


class Overload:
    """Measures one server."""

    def __init__(
        self, generator: Generator, subject: Subject, size: WorkloadR, seconds: float, timeout_s: float
    ) -> None:
        self._generator, self._subject = generator, subject
        self._seconds, self._timeout_s = seconds, timeout_s
        self._target: Target = subject.target("Decide", 100, requests(size, 100))

    def warm(self) -> None:
        """Ask for a second, so that nothing is new."""
        self._generator.run(self._target, LoadPlan(seconds=1)).all_answered()

    def measure(self, seed: int) -> tuple[dict[str, float], dict[str, LoadResults]]:
        """Return one block's figures, and the runs they come from."""
        peak = self._peak()
        before = self._subject.holdings()
        closed = self._closed(peak.connections * OVER_CONNECTIONS)
        opened = self._open(peak.rps, seed)
        growth = self._subject.holdings().private_bytes - before.private_bytes
        calm, end = round(self._seconds / WINDOW_S), round(2 * self._seconds / WINDOW_S)
        values = {
            "peak_rps": peak.rps,
            "peak_connections": float(peak.connections),
            "goodput_5x_closed": closed.good_rate() / peak.rps,
            "goodput_2x_open": opened.good_rate(calm, end) / peak.rps,
            "answered_2x_open": opened.rate(calm, end) / peak.rps,
            "recovery_s": recovery_s(opened, calm, end),
            "calm_p99_us": opened.quantile_us(0.99, 0, calm),
            "closed_5x_p99_us": closed.quantile_us(0.99),
            "open_2x_p99_us": opened.quantile_us(0.99, calm, end),
            "open_2x_late_share": opened.counters["late"] / opened.counters["started"],
            "memory_growth_mib": growth / 1024**2,
        }
        return values, {"closed_5x": closed, "open_2x": opened}

    def _peak(self) -> Peak:
        seconds = max(0.5, self._seconds / 5)
        peaks = []
        for connections in CONNECTIONS:
            plan = LoadPlan(connections=connections, streams=STREAMS, seconds=seconds)
            peaks.append(Peak(connections, self._generator.run(self._target, plan).all_answered().rate()))
        return max(peaks, key=lambda peak: peak.rps)

    def _closed(self, connections: int) -> LoadResults:
        plan = LoadPlan(connections=connections, streams=STREAMS, seconds=self._seconds, timeout_s=self._timeout_s)
        return self._generator.run(self._target, plan)

    def _open(self, peak_rps: float, seed: int) -> LoadResults:
        phases = tuple((peak_rps * share, self._seconds) for share in (CALM_RATE, OVER_RATE, CALM_RATE))
        plan = LoadPlan(
            connections=OPEN_CONNECTIONS,
            streams=OPEN_STREAMS,
            phases=phases,
            seed=seed,
            timeout_s=self._timeout_s,
            window_s=WINDOW_S,
        )
        return self._generator.run(self._target, plan)


def recovery_s(done: LoadResults, calm: int, end: int) -> float:
    """Return the seconds from window `end`, the overload's, until p99 stays normal; all that is left where it never does.

    Normal is at most `NORMAL_TIMES` the median p99 of the windows before `calm`, or `NORMAL_US`, with every call answered.
    """
    p99s = [done.quantile_us(0.99, window, window + 1) for window in range(len(done.good__w))]
    usual = max(NORMAL_US, NORMAL_TIMES * float(np.median(p99s[:calm])))
    answered = done.statuses__ws[:, 0] == done.statuses__ws.sum(axis=1)
    normal = [p99 <= usual and bool(whole) for p99, whole in zip(p99s, answered, strict=True)]
    # One slow window in ten is the machine's own.
    for window in range(end, len(normal)):
        following = normal[window : window + 10]
        if normal[window] and sum(following) >= 0.9 * len(following):
            return (window - end) * done.window_s
    return (len(normal) - end) * done.window_s

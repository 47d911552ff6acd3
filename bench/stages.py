"""`tailorbird bench stages`: where the time of a decision goes, on workload R, beside what its memory alone would take.

One stage is clocked at a time, in blocks that take turns, so that no clock stands in another's stage; the medians of the
stages need not add up to the median of the whole, and `rest` is what is missing: checks, the answer, recording what was
served. They are those of the general way. `quick` is the whole as the engine makes it where it can, `encoded` from the
bytes of a request to those of its answer. `estimate` is a lower bound from the machine itself: the cache lines a decision
has to fetch for its candidates, at what a line costs where memory is read in a row (measured here, in an array as large as
the catalogue), and the dependent steps down the tree of people, each at what a line from a random place costs alone.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.bench.engine import BenchR, directory_of, filled
from tailorbird.bench.measure import NS_PER_US, time_calls
from tailorbird.bench.workload import DIMENSION, WorkloadR
from tailorbird.engine import DecideRequest, Engine
from tailorbird.v1 import decision_service_pb2, identity_pb2

METHOD = (
    "p50 in microseconds of one stage at a time, clocked around its function, in blocks that take turns; another person and "
    "other random candidates each call"
)
LINE_BYTES = 64
REPEATS, CHAINED = 11, 20_000
# Lines of a candidate: its slot in the id table, its row, its embedding in 16 bits, and one in each context cell.
ROW_LINES, SLOT_LINES, CELL_LINES = 1, 1, 3
EMBEDDING_LINES = DIMENSION * 2 // LINE_BYTES
TREE_LEVELS, LINES_PER_LEVEL = 3, 6  # of `people` at 100,000; header, pointers and keys of a binary search


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--people", type=int, default=100_000, help="people (default 100,000)")
    parser.add_argument("--items", type=int, default=100_000, help="items (default 100,000)")
    parser.add_argument("--blocks", type=int, default=12, help="timed blocks per stage (default 12)")
    parser.add_argument("--calls", type=int, default=50, help="calls per block (default 50)")
    parser.add_argument("--seed", type=int, default=64, help="seed of the workload (default 64)")
    parser.add_argument("--quick", action="store_true", help="5,000 people, 2,000 items, 3 blocks")
    parser.add_argument("--data", type=Path, metavar="DIR", help="fill this directory once, and use it again")
    parser.add_argument("--log-decisions", action="store_true", help="keep a decision log; its stage is `log`")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Return the measurements; see the module for each."""
    if args.quick:
        args.people, args.items, args.blocks = 5_000, 2_000, 3
    size = WorkloadR(args.people, args.items, args.seed)
    results: dict[str, object] = {"method": METHOD, "people": size.people, "items": size.items, "seed": size.seed}
    with directory_of(args.data) as path, filled(size, path) as engine:
        engine.warm()
        if args.log_decisions:
            engine.log_decisions()
        bench = BenchR(engine, size, args.blocks, args.calls)
        in_a_row_ns, alone_ns = line_costs_ns(size)
        results["line_in_a_row_ns"], results["line_alone_ns"] = in_a_row_ns, alone_ns
        for count in (100, 1_000):
            count = min(count, size.items // 2)
            quick = results[f"quick_{count}_us"] = _quick(bench, count, args.blocks)
            with _in_general(engine):
                spent = _stages(bench, count, args.blocks)
            lines = count * (SLOT_LINES + ROW_LINES + EMBEDDING_LINES + CELL_LINES)
            estimate = (lines * in_a_row_ns + TREE_LEVELS * LINES_PER_LEVEL * alone_ns) / NS_PER_US
            results |= {f"{name}_{count}_us": value for name, value in spent.items()}
            results[f"encoded_{count}_us"] = _encoded(bench, count, args.blocks)
            results[f"estimate_{count}_us"] = estimate
            results[f"decide_{count}_over_estimate"] = quick / estimate
    return results


@contextlib.contextmanager
def _in_general(engine: Engine) -> Iterator[None]:
    """Let every decision be made the general way, which has the stages."""
    quickly = engine._decider.decide_quickly
    engine._decider.decide_quickly = lambda request, now: None  # type: ignore[method-assign]
    yield
    engine._decider.decide_quickly = quickly  # type: ignore[method-assign]


def _quick(bench: BenchR, count: int, block_count: int) -> float:
    """Return the median microseconds of a whole decision as `Engine.decide` makes it."""
    return _median_us(bench, block_count, bench.engine.decide, lambda: bench.requests(count))


def _encoded(bench: BenchR, count: int, block_count: int) -> float:
    """Return the median microseconds from the bytes of a request to those of its answer, as the service decides."""
    return _median_us(
        bench, block_count, bench.engine.decide_encoded, lambda: [encoded_request(r) for r in bench.requests(count)]
    )


def _median_us(
    bench: BenchR, block_count: int, decide: Callable[[Any], object], inputs: Callable[[], Sequence[Any]]
) -> float:
    spent = []
    for block in range(block_count + 1):  # the first only warms up
        spent_ns = time_calls(decide, inputs())
        bench.engine.flush()
        if block:
            spent.append(float(np.median(spent_ns)) / NS_PER_US)
    return float(np.median(spent))


def encoded_request(request: DecideRequest) -> bytes:
    """Return the DecideRequest of a request without events."""
    message = decision_service_pb2.DecideRequest(
        placement=request.placement,
        identifiers=[
            identity_pb2.Identifier(namespace=name, value=value) for name, value in request.identifiers.items()
        ],
        context=[identity_pb2.ContextEntry(name=name, value=value) for name, value in request.context.items()],
        candidate_ids=request.candidates,
        at_ms=request.at,
        item_count=request.k,
    )
    return message.SerializeToString()


class Clock:
    """Adds up what the calls of one function take."""

    def __init__(self) -> None:
        self.spent_ns: list[int] = []

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, clocked."""

        def clocked(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter_ns()
            try:
                return function(*arguments, **named)
            finally:
                self.spent_ns.append(time.perf_counter_ns() - begin)

        return clocked


class _Ranking:
    """An item table whose rankings are clocked."""

    def __init__(self, items: Any, clock: Clock) -> None:
        self._items = items
        self.rank = clock.around(items.rank)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._items, name)


def _stages(bench: BenchR, count: int, block_count: int) -> dict[str, float]:
    """Return the median microseconds of each stage at a number of candidates."""
    stages: dict[str, Callable[[Engine, Clock], Callable[[], None]] | None] = {
        "whole": None,
        "transaction": lambda engine, clock: _patched(engine._decider, "_begin", clock),
        "follow": lambda engine, clock: _patched(engine._decider.evidence, "follow", clock),
        "identifier": lambda engine, clock: _patched(engine._decider.hasher, "anchor", clock),
        "person": lambda engine, clock: _patched(engine._decider, "_person", clock),
        "lists": lambda engine, clock: _patched(engine._decider, "_exclude_listed", clock),
        "known": lambda engine, clock: _patched(engine._decider, "_known", clock),
        "rank": _clock_rank,
    }
    if bench.engine.decision_log is not None:
        stages["log"] = lambda engine, clock: _patched(engine._decider, "_log", clock)
    spent: dict[str, list[float]] = {name: [] for name in stages}
    for block in range(block_count + 1):  # the first only warms up
        for name, patch in stages.items():
            requests = bench.requests(count)
            clock = Clock()
            restore = patch(bench.engine, clock) if patch is not None else None
            whole_ns = time_calls(bench.engine.decide, requests)
            if restore is not None:
                restore()
            bench.engine.flush()
            if block:
                spent[name].append(float(np.median(clock.spent_ns if patch is not None else whole_ns)) / NS_PER_US)
    found = {name: float(np.median(values)) for name, values in spent.items()}
    outermost = ("transaction", "follow", "person", "known", "rank", "log")
    found["rest"] = found["whole"] - sum(found.get(name, 0.0) for name in outermost)
    return found


def _patched(owner: Any, name: str, clock: Clock) -> Callable[[], None]:
    """Clock a method of one object; return what takes the clock off."""
    before = getattr(owner, name)
    was_own = name in vars(owner)
    setattr(owner, name, clock.around(before))
    return lambda: setattr(owner, name, before) if was_own else delattr(owner, name)


def _clock_rank(engine: Engine, clock: Clock) -> Callable[[], None]:
    catalogue = engine._decider.evidence.catalogue
    items = catalogue.items
    catalogue.items = _Ranking(items, clock)  # type: ignore[assignment]

    def restore() -> None:
        catalogue.items = items

    return restore


def line_costs_ns(size: WorkloadR) -> tuple[float, float]:
    """Return the nanoseconds of a cache line: read in a row with all others, and alone.

    The array is as large as the catalogue in memory; alone is a chain, in which each line says where the next is. The cost of
    the call is taken off by a chain of eight lines.
    """
    line_count = size.items * (ROW_LINES + EMBEDDING_LINES)
    order = np.random.default_rng([size.seed, 6]).permutation(line_count)
    lines = np.zeros((line_count, LINE_BYTES // 8), np.int64)
    lines[order, 0] = np.roll(order, -1)
    in_a_row = []
    for _ in range(REPEATS):
        begin = time.perf_counter_ns()
        lines.sum()
        in_a_row.append((time.perf_counter_ns() - begin) / line_count)
    few = np.zeros((8, LINE_BYTES // 8), np.int64)
    few[:, 0] = np.roll(np.arange(8), -1)
    alone = [_chained_ns(lines) - _chained_ns(few) for _ in range(REPEATS)]
    return float(np.median(in_a_row)), max(0.0, float(np.median(alone)))


def _chained_ns(lines: NDArray[np.int64]) -> float:
    """Return the nanoseconds of one step from line to line."""
    place, item, begin = 0, lines.item, time.perf_counter_ns()
    for _ in range(CHAINED):
        place = item(place, 0)
    return (time.perf_counter_ns() - begin) / CHAINED

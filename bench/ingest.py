"""`tailorbird bench ingest`: signals a second, made durable and applied, against bare LMDB writes.

Ours is `Engine.ingest` in groups of 1,000 ready `Signal`s of one event each (`product_viewed`), with the features,
identity and consent rules of the shop preset: validation, identifier hashing, consent, refusal of repeats, log append
and fdatasync, features, statistics, LMDB commit. People (100,000) are drawn by Zipf's law with exponent 1; each has a
cookie and an account, known and with consent before the clock starts; message ids are unique. The peer does one get and
one put per event of a value as large as the average person's record, by a ready 16-byte key of the same person, in
transactions of 1,000, `sync=True`, on the same file system, over as many values. Groups of the two alternate
(measure.py).

Bytes written come from /proc/self/io around our groups; memory is that of the whole process at the end, the benchmark's
own signals included. `--breakdown` runs some more groups under the profiler: microseconds of own time per event, the
profiler's cost included. `--orders FILE` also loads real order lines through the source of `tailorbird ingest`.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import pstats
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import lmdb
import numpy as np

from tailorbird.bench.measure import Paired, Timings, private_bytes, time_paired, written_bytes
from tailorbird.bench.musts import Must
from tailorbird.bench.workload import AT, CONSENT, CONTEXT, identifiers, item_id, load_signals
from tailorbird.engine import Engine
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.errors import InternalError
from tailorbird.engine.items import Item
from tailorbird.engine.signals import Signal, Status
from tailorbird.engine.store import HEAD_ROW, LMDB_ENGINE
from tailorbird.server.sources import FORMATS
from tailorbird.server.sources.batch import Counts

METHOD = (
    "one-event signals in groups of 1,000 through Engine.ingest over py-lmdb get+put per event in groups of 1,000 "
    "with sync=True; alternating groups, one process, same file system, people by Zipf 1, consent given before"
)
ORDER_CONSENT = parse_choice("granted:behavioural,contextual,transactional,device", "contract")
MUSTS = (Must("events_per_s_over_lmdb_put", at_least=0.1),)
GROUP = 1_000
ITEMS = 10_000
WARM_UP_GROUPS = 3
BREAKDOWN_GROUPS = 5
BREAKDOWN_ROWS = 25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--people", type=int, default=100_000, help="people (default 100,000)")
    parser.add_argument("--groups", type=int, default=100, help="timed groups of 1,000 signals (default 100)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the signals (default 7)")
    parser.add_argument("--quick", action="store_true", help="5,000 people, 10 groups")
    parser.add_argument("--breakdown", action="store_true", help="also tell where the time goes, by function")
    parser.add_argument("--orders", type=Path, metavar="FILE", help="also load this online-retail file")
    parser.add_argument("--data", type=Path, metavar="DIR", help="work below this directory (default the system's)")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Return the measurements; see the module for each."""
    if args.quick:
        args.people, args.groups = 5_000, 10
    with tempfile.TemporaryDirectory(prefix="tailorbird-ingest-", dir=args.data) as temporary:
        path = Path(temporary)
        results = _measure(path, args)
        if args.orders is not None:
            results.update(_load_orders(path / "orders", args.orders))
    return results


def _measure(path: Path, args: argparse.Namespace) -> dict[str, object]:
    private_before, anonymous_before = private_bytes()
    shop = path / "shop"
    with Engine.open(shop, preset("shop"), clock=lambda: AT) as engine:
        engine.put_items([Item(id=item_id(index), attributes=_attributes(index)) for index in range(ITEMS)])
        load_signals(engine, _first_signals(args.people))
    record_bytes = average_head_bytes(shop / "state")
    stream = _Stream(args.people, args.seed)
    with (
        Engine.open(shop, preset("shop"), clock=lambda: AT) as engine,
        _bare(path / "bare", args.people, record_bytes) as bare,
    ):
        for _ in range(WARM_UP_GROUPS):
            engine.ingest(stream.group()[0])
        paired, written = _race(engine, bare, stream, args.groups)
        private, anonymous = private_bytes()
        ours_s, peer_s = _seconds(paired.ours), _seconds(paired.peer)
        events = args.groups * GROUP
        results: dict[str, object] = {
            "method": METHOD,
            "people": args.people,
            "events": events,
            "seed": args.seed,
            "events_per_s": events / ours_s,
            "events_per_s_over_lmdb_put": peer_s / ours_s,
            "events_per_s_over_lmdb_put_by_block": 1.0 / paired.ratio_by_block(),
            "lmdb_events_per_s": events / peer_s,
            "group_p50_ms": paired.ours.percentile_us(50) / 1_000,
            "group_p99_ms": paired.ours.percentile_us(99) / 1_000,
            "person_record_bytes": record_bytes,
            "written_bytes_per_event": written / events,
            "private_bytes": private,
            "private_bytes_before": private_before,
            "anonymous_bytes": anonymous,
            "anonymous_bytes_before": anonymous_before,
        }
        if args.breakdown:
            results["breakdown_us_per_event"] = breakdown(engine, [stream.group()[0] for _ in range(BREAKDOWN_GROUPS)])
    return results


def breakdown(engine: Engine, groups: Sequence[Sequence[Signal]]) -> list[str]:
    """Return where ingest spends its time under the profiler: own microseconds per event and function, most first."""
    profile = cProfile.Profile()
    for group in groups:
        profile.runcall(engine.ingest, group)
    stats = pstats.Stats(profile)
    events = sum(len(group) for group in groups)
    rows = []
    for (file, _, function), (_, call_count, own_s, _, _) in stats.stats.items():  # type: ignore[attr-defined]
        place = Path(file).stem if file != "~" else "built in"
        rows.append((own_s / events * 1e6, f"{place}: {function}, {call_count / events:.2f} calls"))
    rows.sort(reverse=True)
    return [f"{own_us:8.2f}  {text}" for own_us, text in rows[:BREAKDOWN_ROWS]]


def preset(name: str) -> str:
    """Return the text of a configuration that comes with the engine."""
    return (resources.files("tailorbird.engine") / "presets" / f"{name}.yaml").read_text("utf-8")


def average_head_bytes(state: Path) -> int:
    """Return the mean size of a person's head. The engine must be closed: a process opens an environment once."""
    with lmdb.open(str(state), readonly=True, max_dbs=64, lib_version=LMDB_ENGINE) as environment:
        db = environment.open_db(b"people", create=False)
        with environment.begin(db=db) as transaction:
            sizes = [len(value) for key, value in transaction.cursor() if key[16:] == HEAD_ROW]
    if not sizes:
        raise InternalError("WORKLOAD_REFUSED", f"expected people in {state}, found none")
    return round(sum(sizes) / len(sizes))


class _Stream:
    """Groups of signals, and whose they are."""

    def __init__(self, people_count: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.people_count = people_count
        self.reach = np.cumsum(1.0 / np.arange(1, people_count + 1))  # Zipf's law, exponent 1
        self.sent = 0

    def group(self) -> tuple[list[Signal], list[int]]:
        """Return the next signals and their people; ranks are dealt to people at random but fixed."""
        ranks = np.searchsorted(self.reach, self.rng.random(GROUP) * self.reach[-1], side="right")
        people = (ranks * 7_919 % self.people_count).tolist()
        items = self.rng.integers(0, ITEMS, GROUP).tolist()
        signals = []
        for person, item in zip(people, items, strict=True):
            self.sent += 1
            signals.append(
                Signal(
                    type="product_viewed",
                    event_time=AT - 60_000 + self.sent // 10,
                    identifiers=identifiers(person),
                    message_id=f"event-{self.sent}",
                    properties={"product_id": item_id(item), "price": 9.5, **_attributes(item)},
                    context=CONTEXT,
                )
            )
        return signals, people


def _first_signals(people_count: int) -> Iterator[Signal]:
    for person in range(people_count):
        item = person % ITEMS
        yield Signal(
            type="product_viewed",
            event_time=AT - 86_400_000,
            identifiers=identifiers(person),
            message_id=f"first-{person}",
            properties={"product_id": item_id(item), "price": 9.5, **_attributes(item)},
            context=CONTEXT,
            consent=CONSENT,
        )


def _attributes(item: int) -> dict[str, str]:
    return {"category": f"category {item % 50}", "brand": f"brand {item % 200}"}


@contextlib.contextmanager
def _bare(path: Path, count: int, value_bytes: int) -> Iterator[tuple[lmdb.Environment, list[bytes]]]:
    """Yield an LMDB environment of `count` values of `value_bytes`, and their random keys."""
    path.mkdir()
    drawn = np.random.default_rng(1).bytes(16 * count)
    keys = [drawn[place : place + 16] for place in range(0, 16 * count, 16)]
    with lmdb.open(str(path), map_size=16 * 1024**3, lib_version=LMDB_ENGINE, sync=True) as environment:
        with environment.begin(write=True) as transaction:
            for key in keys:
                transaction.put(key, bytes(value_bytes))
        yield environment, keys


def _race(
    engine: Engine, bare: tuple[lmdb.Environment, list[bytes]], stream: _Stream, group_count: int
) -> tuple[Paired, int]:
    """Return the timings of both, a group a block, and the bytes our groups have written."""
    environment, keys = bare
    written = 0

    def ours(group: list[Signal]) -> None:
        nonlocal written
        before = written_bytes()
        report = engine.ingest(group)
        written += written_bytes() - before
        if report.count(Status.APPLIED) != len(group):
            raise InternalError("WORKLOAD_REFUSED", f"expected all {len(group)} signals applied, got {report.outcomes}")

    def peer(people: list[int]) -> None:
        with environment.begin(write=True) as transaction:
            for person in people:
                value = transaction.get(keys[person], b"")
                transaction.put(keys[person], value[:-1] + b"\x01")

    def inputs_of(block: int) -> tuple[list[list[Signal]], list[list[int]]]:
        nonlocal written
        if block == 1:  # Block 0 was warming up.
            written = 0
        group, people = stream.group()
        return [group], [people]

    return time_paired(ours, peer, inputs_of, block_count=group_count), written


def _seconds(timings: Timings) -> float:
    return sum(int(block.sum()) for block in timings.blocks) / 1e9


def _load_orders(path: Path, orders: Path) -> dict[str, object]:
    """Load the order lines as `tailorbird ingest --format online-retail` does, and time it."""
    counts = Counts()
    begin = time.perf_counter()
    with Engine.open(path, preset("online-retail")) as engine:
        for batch in FORMATS["online-retail"](orders, consent=ORDER_CONSENT, counts=counts):
            if batch.items:
                engine.put_items(batch.items)
            if batch.signals:
                engine.ingest(batch.signals)
        seconds = time.perf_counter() - begin
    signal_count = sum(counts.signals.values())
    return {
        "orders_lines": counts.lines,
        "orders_signals": signal_count,
        "orders_lines_per_s": counts.lines / seconds,
        "orders_signals_per_s": signal_count / seconds,
    }

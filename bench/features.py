"""`tailorbird bench features`: reading features against Feast, updating them, and what a profile takes.

`feast_over_get_features_1`, `_100`: Feast's `get_online_features` in a process of its own (SQLite, 20 features by name) over our
`Engine.get_features` of as many features, values taken as a numpy array, of 1 and of 100 people. Both hold the same number of
people, who are drawn anew for every call; blocks of calls alternate. Medians. How Feast is set up is told in peers/feast_subject.py.

`update_events_per_s`: `Engine.ingest` in groups of 1,000 one-event signals on one core, 50 features declared, of which each event
updates 25. `bytes_per_profile_strangers`, `bytes_per_profile_customers`: what the state grows by per person of one visit, and per returning
customer of 5 events under those features, in bytes of used pages of the memory map.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tailorbird.bench.measure import Timings, time_calls
from tailorbird.bench.musts import Must
from tailorbird.bench.peers import FEAST
from tailorbird.bench.peers.process import Peer, installed
from tailorbird.engine import Engine
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.signals import Signal, Status

MUSTS = (Must("feast_over_get_features_1", at_least=50), Must("feast_over_get_features_100", at_least=50))
FEATURES = 20
CONSENT = parse_choice("granted:behavioural,transactional")
AT = 1_750_000_000_000
GROUP = 1_000
VISITS = 5
HALF_LIVES = ("1h", "6h", "1d", "3d", "7d")
WINDOWS = ("1h", "1d", "7d")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--people", type=int, default=20_000, help="people whose features are read (default 20,000)")
    parser.add_argument("--profiles", type=int, default=1_000_000, help="profiles to weigh, twice (default 1,000,000)")
    parser.add_argument("--blocks", type=int, default=10, help="timed blocks (default 10)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="work below this directory (default the system's)")
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", default=Path("build/peers"), help="what `make bench-peers` made"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Return the measures; see the module for each."""
    people, profiles, blocks = (2_000, 5_000, 2) if args.quick else (args.people, args.profiles, args.blocks)
    feast = installed(args.peers / "feast" / "bin" / "python")
    with tempfile.TemporaryDirectory(prefix="tailorbird-features-", dir=args.data) as folder:
        results = _against_feast(Path(folder), feast, people, blocks)
        results |= _updates(Path(folder, "updates"), 20_000 if args.quick else 200_000)
        results["bytes_per_profile_strangers"] = _bytes_per_profile(Path(folder, "strangers"), profiles, 1)
        results["bytes_per_profile_customers"] = _bytes_per_profile(Path(folder, "customers"), profiles, VISITS)
    results["profiles"] = profiles
    return results


# ---- reading ---------------------------------------------------------------------------------------------------------


def _against_feast(folder: Path, interpreter: Path, people: int, blocks: int) -> dict[str, object]:
    names = tuple(f"f{n}" for n in range(FEATURES))
    lines = [f"  - {{name: {name}, pushed: number, category: behavioural}}" for name in names[::2]]
    lines += [
        f"  - {{name: {name}, signal: order_completed, aggregate: sum(revenue), version: {n + 1}}}"
        for n, name in enumerate(names[1::2])
    ]
    rng = np.random.default_rng(7)
    ours = {1: Timings(), 100: Timings()}
    feast = {1: Timings(), 100: Timings()}
    calls = {1: 400, 100: 20}
    with (
        Engine.open(folder / "reading", _configuration(lines), clock=lambda: AT) as engine,
        Peer(interpreter, FEAST, {"directory": str(folder / "feast"), "people": people}) as peer,
    ):
        _fill(engine, people, names)

        def read(asked: list[str]) -> object:
            return engine.get_features("user_id", asked, names, at=AT).values

        for block in range(blocks + 1):
            for count in (1, 100):
                asked = [[f"user-{n}" for n in rng.integers(0, people, count)] for _ in range(calls[count])]
                theirs = peer.time(f"get_{count}", calls[count], seed=block)
                spent = time_calls(read, asked)
                if block:  # the first warms up
                    ours[count].blocks.append(spent)
                    feast[count].blocks.append(theirs)
        table = engine.get_features("user_id", [f"user-{n}" for n in range(100)], names, at=AT)
        assert not np.isnan(table.values).any(), "we must find everybody"
        versions = ", ".join(f"{name} {version}" for name, version in peer.versions.items())
        settings = peer.settings
    found: dict[str, object] = {}
    for count in (1, 100):
        found[f"feast_over_get_features_{count}"] = feast[count].percentile_us(50) / ours[count].percentile_us(50)
        found[f"get_features_{count}_us"] = ours[count].percentile_us(50)
        found[f"feast_get_{count}_us"] = feast[count].percentile_us(50)
    return {**found, "feast_versions": versions, "feast_settings": settings, "people": people}


def _configuration(lines: list[str]) -> str:
    head = "version: 1\njurisdiction: opt_in\nstate_sync: interval\nlimits: {map_bytes: 17179869184}\nfeatures:\n"
    return head + "\n".join(lines) + "\n"


def _fill(engine: Engine, people: int, names: tuple[str, ...]) -> None:
    """Give everybody a value in every feature."""
    pushed = names[::2]
    for start in range(0, people, GROUP):
        signals = []
        for n in range(start, min(start + GROUP, people)):
            who = {"user_id": f"user-{n}"}
            values = {name: n + index / 8 for index, name in enumerate(pushed)}
            signals.append(
                Signal(
                    type="behavioural_features_pushed",
                    event_time=AT,
                    identifiers=who,
                    message_id=f"p{n}",
                    properties=values,
                    consent=CONSENT,
                )
            )
            order = {"revenue": float(n % 97), "products": []}
            signals.append(
                Signal(type="order_completed", event_time=AT, identifiers=who, message_id=f"o{n}", properties=order)
            )
        assert engine.ingest(signals).count(Status.APPLIED) == len(signals)


# ---- updating --------------------------------------------------------------------------------------------------------


def fifty() -> list[str]:
    """Return 50 declarations: for each of two signal types counts, sums, extremes, decays, windows, sketches and lists."""
    lines = []
    for signal, number, text in (("product_viewed", "price", "category"), ("product_added", "price", "category")):
        each = [
            "count", "time_since", f"sum({number})", f"mean({number})", f"min({number})", f"max({number})", f"last({number})",
            f"first({number})", f"last({text})", f"quantile({number}, k=32)", f"distinct({text})",
            "last_k(product_id, k=8)", f"decayed_top_k({text}, k=8, half_life=7d)",
            *(f"decayed_count(half_life={half_life})" for half_life in HALF_LIVES),
            f"decayed_sum({number}, half_life=7d)",
        ]  # fmt: skip
        declared = [f'signal: {signal}, aggregate: "{aggregate}"' for aggregate in each]
        declared += [f"signal: {signal}, aggregate: count, window: {window}" for window in WINDOWS]
        declared += [f"signal: {signal}, aggregate: sum({number}), window: {window}" for window in WINDOWS]
        lines += declared
    return [
        f"  - {{name: f{n}, {text}, store: {'lists' if 'window' in text or 'quantile' in text or 'distinct' in text else 'head'}}}"
        for n, text in enumerate(lines)
    ]


def _signals(people: int, visits: int, salt: str) -> Iterator[Signal]:
    rng = np.random.default_rng(3)
    for visit in range(visits):
        for n in range(people):
            item = int(rng.integers(0, 5_000))
            yield Signal(
                type="product_viewed" if visit % 2 == 0 else "product_added",
                event_time=AT - (visits - visit) * 86_400_000,
                identifiers={"anonymous_id" if visits == 1 else "user_id": f"{salt}-{n}"},
                message_id=f"{salt} {visit} {n}",
                properties={"product_id": f"item-{item}", "price": item / 8, "category": f"category {item % 40}"},
                consent=CONSENT if visit == 0 else None,
            )


def _ingest(engine: Engine, signals: Iterator[Signal]) -> None:
    for group in _grouped(signals):
        engine.ingest(group)


def _updates(path: Path, events: int) -> dict[str, object]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with Engine.open(path, _configuration(fifty()), clock=lambda: AT) as engine:
            people = events // VISITS // 2
            _ingest(engine, _signals(people, VISITS, "warm"))
            groups = [list(group) for group in _grouped(_signals(people, VISITS, "warm again"))]
            began = time.perf_counter()
            for group in groups:
                assert engine.ingest(group).count(Status.APPLIED) == len(group)
            spent = time.perf_counter() - began
    finally:
        os.sched_setaffinity(0, cores)
    return {"update_events_per_s": people * VISITS / spent}


def _grouped(signals: Iterator[Signal]) -> Iterator[list[Signal]]:
    group: list[Signal] = []
    for signal in signals:
        group.append(signal)
        if len(group) == GROUP:
            yield group
            group = []
    if group:
        yield group


def _bytes_per_profile(path: Path, people: int, visits: int) -> float:
    def used(engine: Engine) -> int:
        engine.flush()
        return engine.state_bytes

    with Engine.open(path, _configuration(fifty()), clock=lambda: AT) as engine:
        _ingest(engine, _signals(GROUP, visits, "first"))
        before = used(engine)
        _ingest(engine, _signals(people, visits, "person"))
        return (used(engine) - before) / people

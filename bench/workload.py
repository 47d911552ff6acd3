"""Workload R: 100,000 people with 64 features each, 100,000 items with embeddings of 64, item ids of 12 bytes.

Every person has an account and a cookie, bought 5 items within the last week, and has all 64 features: for each of four
signal types a count, a time since, a sum, a decayed sum, and decayed counts of 12 half-lives from 1 hour to 4 years.
Consent for the usual purposes comes with the first signal; the jurisdiction is opt-in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.engine import Engine
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.errors import InternalError
from tailorbird.engine.items import Item
from tailorbird.engine.signals import Signal, Status

DIMENSION = 64
BOUGHT_PER_PERSON = 5
WEEK_MS = 7 * 86_400_000
AT = 1_740_960_000_000  # 2025-03-03; every signal lies in the week before.
CONTEXT = {"country": "GB", "device": "mobile", "daypart": "evening"}
CONSENT = parse_choice("granted:behavioural,contextual,transactional,preference,demographic,device")
SIGNAL_GROUP, ITEM_GROUP = 10_000, 5_000

_HALF_LIVES = ("1h", "2h", "4h", "8h", "16h", "1d", "3d", "1w", "4w", "13w", "1y", "4y")
# Signal type and the property its sums read.
_SOURCES = (
    ("product_viewed", "price"),
    ("product_added", "quantity"),
    ("product_added_to_wishlist", "price"),
    ("order_completed", "revenue"),
)
_CATEGORIES, _BRANDS = 50, 200


@dataclass(frozen=True, slots=True)
class WorkloadR:
    """The workload's sizes and seed; everything else follows."""

    people: int = 100_000
    items: int = 100_000
    seed: int = 64

    def embedding__id(self) -> NDArray[np.float32]:
        """Return the items' embeddings, C-contiguous."""
        drawn = np.random.default_rng([self.seed, 1]).standard_normal((self.items, DIMENSION), dtype=np.float32)
        drawn *= np.float32(0.05)  # 64 terms of log1p features stay within a few units of log-odds.
        return drawn

    def catalogue(self) -> Iterator[Item]:
        """Yield the items."""
        for index, row in enumerate(self.embedding__id()):
            yield Item(
                id=item_id(index),
                attributes={"category": f"category {index % _CATEGORIES}", "brand": f"brand {index % _BRANDS}"},
                price=1.0 + index % 100,
                stock=10,
                embedding=tuple(row.tolist()),
            )

    def signals(self) -> Iterator[Signal]:
        """Yield four signals a person, the consent with the first."""
        rng = np.random.default_rng([self.seed, 2])
        count = len(_SOURCES)
        for person in range(self.people):
            times = (AT - 60_000 - rng.integers(0, WEEK_MS, count)).tolist()
            items = [item_id(item) for item in rng.integers(0, self.items, count - 1 + BOUGHT_PER_PERSON).tolist()]
            for number, (name, _) in enumerate(_SOURCES):
                if name == "order_completed":
                    lines = [{"product_id": item, "price": 9.5, "quantity": 1} for item in items[number:]]
                    properties: dict[str, object] = {"revenue": 9.5 * len(lines), "products": lines}
                else:
                    properties = {"product_id": items[number], "price": 9.5, "quantity": 1}
                yield Signal(
                    type=name,
                    event_time=times[number],
                    identifiers=identifiers(person),
                    message_id=f"{person}-{number}",
                    properties=properties,
                    context=CONTEXT,
                    consent=CONSENT if number == 0 else None,
                )

    def load(self, engine: Engine) -> None:
        """Fill an empty engine."""
        group: list[Item] = []
        for item in self.catalogue():
            group.append(item)
            if len(group) == ITEM_GROUP:
                engine.put_items(group)
                group = []
        if group:
            engine.put_items(group)
        load_signals(engine, self.signals())


def load_signals(engine: Engine, signals: Iterator[Signal], group_size: int = SIGNAL_GROUP) -> int:
    """Ingest signals in groups and return how many. Raises `InternalError` when one is not applied."""
    total = 0
    while group := [signal for _, signal in zip(range(group_size), signals, strict=False)]:
        report = engine.ingest(group)
        for outcome in report.outcomes:
            if outcome.status is not Status.APPLIED:
                raise InternalError("WORKLOAD_REFUSED", f"expected every signal to be applied, got {outcome}")
        total += len(group)
    return total


def configuration_text() -> str:
    """Return the configuration: 64 features, a placement that ranks given candidates, one that finds its own."""
    lines = ["version: 1", "jurisdiction: opt_in", f"embedding_dimension: {DIMENSION}", "features:"]
    for name, aggregate, signal in _features():
        lines.append(f"  - {{name: {name}, signal: {signal}, aggregate: {aggregate!r}}}")
    vector = "vector: {features: [" + ", ".join(feature_names()) + "]}"
    lines += [
        "placements:",
        "  - name: ranked",
        f"    rank: {{bought: false, {vector}}}",
        "    exclude: {bought: 365d, served: 30m}",
        "  - name: retrieved",
        f"    rank: {{bought: true, {vector}}}",
        "    exclude: {bought: 365d, served: 30m}",
    ]
    return "\n".join(lines) + "\n"


def feature_names() -> list[str]:
    """Return the 64 feature names in order."""
    return [name for name, _, _ in _features()]


def _features() -> Iterator[tuple[str, str, str]]:
    for signal, number in _SOURCES:
        yield f"{signal}_count", "count", signal
        yield f"{signal}_time_since", "time_since", signal
        yield f"{signal}_{number}", f"sum({number})", signal
        yield f"{signal}_{number}_decayed", f"decayed_sum({number}, half_life=4w)", signal
        for half_life in _HALF_LIVES:
            yield f"{signal}_{half_life}", f"decayed_count(half_life={half_life})", signal


def identifiers(person: int) -> dict[str, str]:
    """Return the two identifiers of a person."""
    return {"user_id": f"user-{person:07d}", "anonymous_id": f"visitor-{person:07d}"}


def item_id(index: int) -> str:
    """Return the 12-byte id of an item number."""
    return f"item-{index:07d}"

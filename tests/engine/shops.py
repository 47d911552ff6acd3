"""A small shop with an injected clock, for tests of declarations, bad input and recovery."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tailorbird.engine import Decision, Engine, Item, Signal
from tailorbird.engine.consent import ConsentChoice, parse_choice
from tailorbird.engine.profile import FeatureValue
from tailorbird.engine.replay import verify
from tailorbird.engine.signals import Status

EVERYTHING = parse_choice("granted:all")
START = 1_750_000_000_000  # 2025-06-15
DAY = 86_400_000
CONFIGURATION = """\
version: 1
limits: {map_bytes: 67108864}
features:
  - {name: views, signal: product_viewed, aggregate: count}
  - {name: spent, signal: order_completed, aggregate: sum(total)}
placements:
  - {name: home, k: 3, retrieve: {whole_catalogue: true}}
"""


class Clock:
    """The engine's clock: stands still until moved."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def open_shop(
    tmp_path: Path, configuration: str | None = CONFIGURATION, *, clock: Clock | None = None, read_only: bool = False
) -> Engine:
    """Open the shop below `tmp_path`, made when it is not there."""
    return Engine.open(tmp_path / "shop", configuration, clock=clock or Clock(), read_only=read_only)


def signal(
    message_id: str,
    kind: str = "product_viewed",
    at: int = START,
    *,
    who: Mapping[str, str] | None = None,
    consent: ConsentChoice | None = EVERYTHING,
    **properties: Any,
) -> Signal:
    """Return a signal of visitor v1, who agrees to everything; a view is one of the mug."""
    if kind == "product_viewed":
        properties = {"product_id": "mug", **properties}
    return Signal(
        type=kind,
        event_time=at,
        identifiers=dict(who or {"anonymous_id": "v1"}),
        message_id=message_id,
        properties=properties,
        source="test",
        consent=consent,
    )


def items(*names: str, **fields: Any) -> list[Item]:
    """Return one item per name, alike in everything else."""
    return [Item(id=name, **fields) for name in names]


def ids(decision: Decision) -> list[str]:
    """Return the items of an answer, best first."""
    return [item.id for item in decision.items]


def view(engine: Engine, *products: str) -> None:
    """Take views of visitor v1."""
    views = [signal(f"view {engine.position}.{n}", product_id=product) for n, product in enumerate(products)]
    assert engine.ingest(views).count(Status.APPLIED) == len(products)


def buy(engine: Engine, visitor: str, *products: str, at: int = START, country: str = "") -> None:
    """Take one order of a visitor's, and publish what it adds to popularity."""
    lines = [{"product_id": product} for product in products]
    who = {"anonymous_id": visitor}
    order = signal(f"order {engine.position}", "order_completed", at, who=who, products=lines)
    order = msgspec.structs.replace(order, context={"country": country} if country else {})
    assert engine.ingest([order]).count(Status.APPLIED) == 1
    engine.tick()


def feature(engine: Engine, name: str, at: int = START, visitor: str = "v1") -> FeatureValue:
    """Return one feature of a visitor's profile."""
    profile = engine.profile({"anonymous_id": visitor}, at=at)
    return next(value for value in profile.features if value.name == name)


def views(engine: Engine, visitor: str = "v1") -> float:
    """Return how many product views a visitor's profile counts."""
    value = feature(engine, "views", visitor=visitor).value
    return value if isinstance(value, float) else 0.0


def assert_replays_to_the_same(tmp_path: Path) -> None:
    """Check, with the shop closed, that its log alone leads to the state it has."""
    stored, replayed = verify(tmp_path / "shop")
    assert stored == replayed

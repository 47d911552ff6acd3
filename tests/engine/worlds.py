"""Small shops for the engine's tests: an engine with a clock of its own, and signals in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tailorbird.engine import Engine
from tailorbird.engine.consent import ALL_BITS, ConsentChoice, parse_choice
from tailorbird.engine.items import Item
from tailorbird.engine.profile import FeatureValue, Profile
from tailorbird.engine.requests import Decision
from tailorbird.engine.signals import Outcome, Signal, Status
from tailorbird.engine.store import HEAD_ROW, IDENTIFIER_ROW, LIST_ROWS

SECOND_MS = 1_000
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000
START_MS = 1_700_000_000_000  # 2023-11-14 22:13:20 UTC

FEATURES = """\
features:
  - {name: views, signal: product_viewed, aggregate: count}
  - {name: orders, signal: order_completed, aggregate: count}
  - {name: spent, signal: order_completed, aggregate: sum(total)}
  - {name: last_view, signal: product_viewed, aggregate: time_since}
  - {name: interest, signal: product_viewed, aggregate: "decayed_count(half_life=7d)"}
  - {name: categories, signal: product_viewed, aggregate: "decayed_top_k(category, k=4, half_life=30d)"}
  - {name: viewed_items, signal: product_viewed, aggregate: "last_k(product_id, k=8)"}
  - {name: city, signal: identified, aggregate: last(city)}
  - {name: newsletter, signal: preferences_updated, aggregate: last(channel)}
  - {name: country, signal: page_viewed, aggregate: last(context.country)}
"""

PLACEMENTS = """\
placements:
  - name: home
    k: 3
    rank: {recent: [viewed_items], affinity: {category: categories}}
    exclude: {bought: 365d, served: 30m, shown: 1d}
  - name: plain
    k: 3
    exclude: {}
"""

# No consent is asked for; popularity counts views and orders and is published on `tick`.
OPT_OUT = f"""\
version: 1
jurisdiction: opt_out
statistics: {{signals: {{product_viewed: 1.0, order_completed: 5.0}}, half_life: 365d, levels: [[country]], tick: 1h}}
{FEATURES}{PLACEMENTS}"""

OPT_IN = OPT_OUT.replace("opt_out", "opt_in")

EVERYTHING = ConsentChoice(granted=ALL_BITS)


class Clock:
    """A clock that goes when told to."""

    def __init__(self, now: int = START_MS) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, milliseconds: int) -> int:
        self.now += milliseconds
        return self.now


class Shop:
    """An open engine, its clock, and short ways to say things to it. Message ids count up by themselves."""

    def __init__(self, path: Path, config: str, clock: Clock) -> None:
        self.path = path
        self.config = config
        self.clock = clock
        self.engine = Engine.open(path, config, clock=clock)
        self._messages = count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()

    def reopen(self) -> Self:
        """Close the engine and open the same directory again."""
        self.engine.close()
        self.engine = Engine.open(self.path, self.config, clock=self.clock)
        return self

    def signal(
        self,
        signal_type: str,
        identifiers: Mapping[str, str],
        *,
        at: int = 0,
        context: Mapping[str, str] | None = None,
        consent: ConsentChoice | str | None = None,
        **properties: Any,
    ) -> Signal:
        """Return a signal of now, or of `at`, with a message id that no other has."""
        return Signal(
            type=signal_type,
            event_time=at or self.clock.now,
            identifiers=dict(identifiers),
            message_id=f"m{next(self._messages)}",
            properties=properties,
            context=dict(context or {}),
            consent=parse_choice(consent) if isinstance(consent, str) else consent,
        )

    def send(self, signal_type: str, identifiers: Mapping[str, str], **rest: Any) -> Outcome:
        """Ingest one signal, which must be applied."""
        outcome = self.try_send(signal_type, identifiers, **rest)
        assert outcome.status is Status.APPLIED, outcome
        return outcome

    def try_send(self, signal_type: str, identifiers: Mapping[str, str], **rest: Any) -> Outcome:
        """Ingest one signal and return what became of it."""
        return self.engine.ingest([self.signal(signal_type, identifiers, **rest)]).outcomes[0]

    def view(self, identifiers: Mapping[str, str], item: str, **rest: Any) -> Outcome:
        """Ingest a product view, which must be applied."""
        return self.send("product_viewed", identifiers, product_id=item, **rest)

    def buy(self, identifiers: Mapping[str, str], *items: str, total: float = 10.0, **rest: Any) -> Outcome:
        """Ingest an order, which must be applied."""
        lines = [{"product_id": item, "quantity": 1} for item in items]
        return self.send("order_completed", identifiers, products=lines, total=total, **rest)

    def choose(self, identifiers: Mapping[str, str], choice: str) -> int:
        """Record a consent choice written as text."""
        return self.engine.set_consent(identifiers, parse_choice(choice))

    def decide(self, identifiers: Mapping[str, str] | None = None, placement: str = "home", **rest: Any) -> Decision:
        """Decide at a placement, `home` by default."""
        return self.engine.decide(placement=placement, identifiers=dict(identifiers or {}), **rest)

    def offered(self, identifiers: Mapping[str, str] | None = None, placement: str = "home", **rest: Any) -> list[str]:
        """Return the item ids of a decision, best first."""
        return ids(self.decide(identifiers, placement, **rest))

    def feature(self, identifiers: Mapping[str, str], name: str, *, at: int = 0) -> FeatureValue:
        """Return one feature of a profile."""
        return feature(self.engine.profile(identifiers, at=at), name)

    def person(self, **identifiers: str) -> str:
        """Return the id of the person an identifier belongs to."""
        return self.engine.profile(identifiers).person_id

    def rows(self, table: str) -> dict[bytes, bytes]:
        """Return every row of one table of the state; of `people`, which holds three kinds, one kind by its name."""
        store = self.engine._store
        with store.reading() as txn:
            if table == "identifiers":
                return {
                    key[:16]: row for key, row in txn.cursor(db=store.tables["people"]) if key[16:] == IDENTIFIER_ROW
                }
            if table == "people":
                return {key[:16]: row for key, row in txn.cursor(db=store.tables["people"]) if key[16:] == HEAD_ROW}
            if table == "lists":
                return {key: row for key, row in txn.cursor(db=store.tables["people"]) if key[16] >= LIST_ROWS}
            return dict(txn.cursor(db=store.tables[table]))

    def key(self, namespace: str, value: str) -> bytes:
        """Return the stored key of an identifier."""
        return self.engine._hasher.anchor(namespace, value).key


def shop(tmp_path: Path, config: str = OPT_OUT, clock: Clock | None = None) -> Shop:
    """Return an empty, open shop under `tmp_path`."""
    return Shop(tmp_path / "data", config, clock or Clock())


def catalogue(*ids: str, category: str = "", **fields: Any) -> list[Item]:
    """Return items with these ids, all alike."""
    attributes = {"category": category} if category else {}
    return [Item(id=item, name=item.title(), attributes=attributes, **fields) for item in ids]


def ids(decision: Decision) -> list[str]:
    """Return the item ids of a decision, best first."""
    return [item.id for item in decision.items]


def feature(profile: Profile, name: str) -> FeatureValue:
    """Return one feature of a profile."""
    return next(value for value in profile.features if value.name == name)


def features(profile: Profile, names: Sequence[str] = ()) -> dict[str, object]:
    """Return the values of a profile's features by name, all or those named."""
    return {value.name: value.value for value in profile.features if not names or value.name in names}

"""Decisions on real files, from the first command of a new user to the answers: a shop's orders, and visits as they go."""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from tailorbird.engine import Decision, Engine, Item
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.requests import Reason, Tier
from tailorbird.engine.signals import Status
from tailorbird.server.cli import main
from tailorbird.server.sources import FORMATS
from tailorbird.server.sources.online_retail import product_id

CONSENT = "granted:behavioural,transactional,contextual"
POPULARITY_HALF_LIFE_DAYS = 30
KNOWN_CUSTOMERS = 60


def ids(decision: Decision) -> list[str]:
    return [item.id for item in decision.items]


# ---- a shop's orders -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealShop:
    """An engine that has read the file, and what a plain reading of the same file says."""

    engine: Engine
    at: int
    bought: dict[str, set[str]]
    country_of: dict[str, str]
    popular: list[str]
    favourites: dict[str, str]

    def decide(self, customer: str = "", country: str = "") -> Decision:
        return self.engine.decide(
            placement="home",
            identifiers={"crm_id": customer} if customer else {},
            context={"country": country} if country else {},
            at=self.at,
        )


def open_real_shop(folder: Path, path: Path) -> Engine:
    """Do what the README tells a new user to do."""
    shop = str(folder / "shop")
    assert main(["init", shop, "--preset", "online-retail"]) == 0
    ingest = ["ingest", "--data", shop, "--format", "online-retail", str(path), "--consent", CONSENT]
    assert main([*ingest, "--basis", "contract"]) == 0
    assert not Path(shop, "rejected.jsonl").exists()
    assert main(["train", "cooccurrence", "--data", shop]) == 0
    return Engine.open(shop)


@pytest.fixture(scope="module")
def real_shop(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealShop]:
    path = data_dir / "online-retail" / "transactions-2010-12-to-2011-09.csv.gz"
    bought: dict[str, set[str]] = defaultdict(set)
    country_of: dict[str, str] = {}
    purchases: list[tuple[float, str, str]] = []
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            code = product_id(row["StockCode"])
            good = row["InvoiceNo"].isdigit() and int(row["Quantity"]) > 0 and float(row["UnitPrice"]) > 0
            if not good or code is None:
                continue
            purchases.append((datetime.fromisoformat(row["InvoiceDate"]).timestamp(), code, row["Country"]))
            if customer := row["CustomerID"].removesuffix(".0"):
                bought[customer].add(code)
                country_of[customer] = row["Country"]
    last = max(time for time, _, _ in purchases)
    weight_of: defaultdict[str, float] = defaultdict(float)
    weight_in: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for time, code, country in purchases:
        weight = 2.0 ** ((time - last) / 86_400 / POPULARITY_HALF_LIFE_DAYS)
        weight_of[code] += weight
        weight_in[country][code] += weight
    with open_real_shop(tmp_path_factory.mktemp("real"), path) as engine:
        favourites = {country: max(weights, key=weights.__getitem__) for country, weights in weight_in.items()}
        popular = sorted(weight_of, key=weight_of.__getitem__, reverse=True)
        yield RealShop(engine, engine.latest_event_time, bought, country_of, popular, favourites)


def test_without_an_id_the_answer_is_what_was_bought_most_lately(real_shop: RealShop) -> None:
    decision = real_shop.decide()
    assert decision.tier is Tier.POPULAR
    assert ids(decision) == real_shop.popular[:10]
    assert {item.reasons[0].reason for item in decision.items} == {Reason.POPULAR}
    stranger = real_shop.decide("a customer of next year")
    assert (ids(stranger), stranger.degraded) == (ids(decision), ("NO_PROFILE",))


@pytest.mark.parametrize("country", ["Germany", "France"])
def test_without_an_id_a_country_gets_what_is_bought_there(real_shop: RealShop, country: str) -> None:
    decision = real_shop.decide(country=country)
    assert decision.tier is Tier.CONTEXT
    favourite = real_shop.favourites[country]
    assert ids(decision)[0] == favourite
    assert favourite not in real_shop.popular[:10]
    first = decision.items[0].reasons[0]
    assert (first.reason, first.detail) == (Reason.POPULAR_IN_CONTEXT, f"country={country}")
    assert ids(real_shop.decide(country="Atlantis")) == real_shop.popular[:10]


def test_a_known_customer_gets_what_goes_with_their_orders_and_nothing_they_bought(real_shop: RealShop) -> None:
    customers = sorted(real_shop.bought)
    asked = customers[:: len(customers) // KNOWN_CUSTOMERS]
    answers = set()
    for customer in asked:
        bought = real_shop.bought[customer]
        decision = real_shop.decide(customer, real_shop.country_of[customer])
        assert decision.tier is Tier.PERSON
        assert len(decision.items) == 10
        assert not bought & set(ids(decision))
        assert decision.excluded_count == len(bought)
        together = [r.detail for item in decision.items for r in item.reasons if r.reason is Reason.BOUGHT_TOGETHER]
        assert together
        assert set(together) <= bought
        answers.add(tuple(ids(decision)))
    assert len(answers) == len(asked) >= KNOWN_CUSTOMERS


# ---- visits as they go -----------------------------------------------------------------------------------------------


VISITS = """\
version: 1
attributes: [category]
statistics: {signals: {order_completed: 1, product_added: 0.3, product_viewed: 0.1}, half_life: 14d, tick: 1d}
features:
  - {name: seen, signal: [product_viewed, product_added], aggregate: "last_k(product_id, k=32)"}
  - name: liked
    signal: [product_viewed, product_added, order_completed]
    aggregate: "decayed_top_k(category, k=16, half_life=7d)"
placements:
  - name: next
    retrieve: {whole_catalogue: true}
    rank: {recent: [seen], affinity: {category: liked}}
    exclude: {bought: 365d}
    exclude_recent: [seen]
    record_served: false
"""
CATEGORIES = 12


def categorised(item: Item) -> Item:
    return msgspec.structs.replace(item, attributes={"category": f"category {int(item.id) % CATEGORIES}"})


def test_a_visitors_next_decision_changes_after_each_event(data_dir: Path, tmp_path: Path) -> None:
    """The shop has learned from the file's visits; now new visitors make the same ones, event by event.

    The file names no more of an item than its number, so each is put into one of a few categories by it.
    """
    path = data_dir / "otto" / "sessions.jsonl"
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "tailorbird.yaml").write_text(VISITS)
    assert main(["ingest", "--data", str(shop), "--format", "otto", str(path), "--consent", CONSENT]) == 0
    assert not (shop / "rejected.jsonl").exists()
    assert main(["train", "cooccurrence", "--data", str(shop)]) == 0
    batches = list(FORMATS["otto"](path, consent=parse_choice(CONSENT)))
    signals = [signal for batch in batches for signal in batch.signals]
    # Nothing is published for a day, however long it took to come here: what changes is due to the visitor's event alone.
    last = max(signal.event_time for signal in signals)
    asked = 0
    with Engine.open(shop, clock=lambda: last) as engine:
        engine.put_items([categorised(item) for batch in batches for item in batch.items])
        for signal in signals:
            visitor = {"anonymous_id": f"again {signal.identifiers['anonymous_id']}"}

            def decide(who: dict[str, str], at: int = signal.event_time) -> Decision:
                return engine.decide(placement="next", identifiers=who, at=at)

            before, stranger = decide(visitor), decide({"anonymous_id": "a stranger"})
            event = msgspec.structs.replace(signal, source="again", identifiers=visitor)
            assert engine.ingest([event]).count(Status.APPLIED) == 1
            after = decide(visitor)
            lines = signal.properties.get("products", [signal.properties])
            assert after.tier is Tier.PERSON
            assert after.items != before.items
            assert not {line["product_id"] for line in lines} & set(ids(after))
            assert decide({"anonymous_id": "a stranger"}).items == stranger.items
            asked += 1
    assert asked == sum(path.read_text().count(f'"type":"{kind}"') for kind in ("clicks", "carts", "orders"))

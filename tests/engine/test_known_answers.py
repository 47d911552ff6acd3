"""Decisions on the generated shop, whose right answers are known: cold, returning, and across devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tailorbird.bench.workload import load_signals
from tailorbird.bench.world import CONSENT, DIMENSIONS, World, WorldSettings
from tailorbird.engine import DecideRequest, Decision, Engine
from tailorbird.engine.requests import Tier
from tailorbird.engine.signals import Signal

SETTINGS = WorldSettings(seed=29)
SIGNALS = 40_000
HOUR_MS = 3_600_000
K = 10
CELLS = [
    {"country": country, "daypart": daypart, "weather": weather}
    for country, daypart, weather in product(DIMENSIONS["country"], DIMENSIONS["daypart"], DIMENSIONS["weather"])
]
CONFIGURATION = """\
version: 1
jurisdiction: opt_in
statistics:
  signals: {product_viewed: 1.0}
  half_life: 365d
  levels: [[country], [country, daypart], [country, daypart, weather]]
features:
  - {name: recent_items, signal: product_viewed, aggregate: "last_k(product_id, k=20)"}
  - {name: category_affinity, signal: product_viewed, aggregate: "decayed_top_k(category, k=12, half_life=60d)"}
  - {name: brand_affinity, signal: product_viewed, aggregate: "decayed_top_k(brand, k=12, half_life=60d)"}
placements:
  - name: home
    exclude: {}
    rank: &rank {recent: [recent_items], affinity: {category: category_affinity, brand: brand_affinity}}
  - name: no_repeats
    exclude: {bought: 365d, served: 30m}
    rank: *rank
"""


@dataclass(frozen=True)
class Shop:
    """An engine that has seen the shop's signals, the truth behind them, and the moment after the last of them."""

    world: World
    engine: Engine
    popular: list[str]
    view_count: Counter[str]
    at: int

    def decide(self, identifiers: Mapping[str, str], context: Mapping[str, str], placement: str = "home") -> Decision:
        return self.engine.decide(
            DecideRequest(placement=placement, identifiers=dict(identifiers), context=dict(context), k=K, at=self.at)
        )

    def clicks(self, person: int | None, context: Mapping[str, str], items: Sequence[str]) -> float:
        return self.world.expected_clicks(person, context, items)

    def best(self, person: int | None, context: Mapping[str, str]) -> list[str]:
        return self.world.best_items(person, context, K, at=self.at)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    path: Path = tmp_path_factory.mktemp("known-answers") / "data"
    world = World(SETTINGS)
    print(f"world seed {SETTINGS.seed}")
    signals = list(world.signals(SIGNALS))
    last = max(signal.event_time for signal in signals)
    with Engine.open(path, CONFIGURATION, clock=lambda: last + HOUR_MS) as engine:
        engine.put_items(list(world.items()))
        load_signals(engine, iter(signals))
        engine.train_cooccurrence()
        engine.tick()
        viewed = [signal for signal in signals if signal.type == "product_viewed"]
        on_offer = {item.id for item in world.items() if world.catalogue.on_offer__i(last)[int(item.id[5:])]}
        counted = Counter(signal.properties["product_id"] for signal in viewed)
        popular = [item for item, _ in counted.most_common() if item in on_offer][:K]
        by_user = Counter(signal.identifiers.get("user_id", "") for signal in viewed)
        yield Shop(world, engine, popular, by_user, last + HOUR_MS)


def ids(decision: Decision) -> list[str]:
    return [item.id for item in decision.items]


def ndcg(gain__k: Sequence[float], best__k: Sequence[float]) -> float:
    """Return the discounted gain in order over the best possible one (Järvelin and Kekäläinen, 2002)."""
    discount__k = 1.0 / np.log2(np.arange(2, len(best__k) + 2))
    return float(np.dot(gain__k, discount__k[: len(gain__k)]) / np.dot(best__k, discount__k))


def test_the_first_answer_in_each_context_is_near_the_truth(shop: Shop) -> None:
    regret, popular_regret, quality, popular_quality = [], [], [], []
    for context in CELLS:
        decision = shop.decide({}, context)
        assert decision.tier is Tier.CONTEXT
        assert len(decision.items) == K
        probability = {item: shop.world.click_probability(None, context, item) for item in shop.best(None, context)}
        best = list(probability.values())
        for answer, regrets, qualities in (
            (ids(decision), regret, quality),
            (shop.popular, popular_regret, popular_quality),
        ):
            gain = [shop.world.click_probability(None, context, item) for item in answer]
            regrets.append(1.0 - sum(gain) / sum(best))
            qualities.append(ndcg(gain, best))
    print(f"seed {SETTINGS.seed}: regret {np.mean(regret):.3f} popularity {np.mean(popular_regret):.3f}")
    print(f"NDCG {np.mean(quality):.3f} popularity {np.mean(popular_quality):.3f}")
    assert np.mean(regret) < 0.5 * np.mean(popular_regret)
    assert np.mean(quality) > np.mean(popular_quality) + 0.2
    assert np.mean(np.array(regret) < np.array(popular_regret)) > 0.9


def test_what_fits_the_weather_is_shown_in_that_weather(shop: Shop) -> None:
    category = {item.id: item.attributes["category"] for item in shop.world.items()}
    count: dict[str, Counter[str]] = {weather: Counter() for weather in DIMENSIONS["weather"]}
    for context in CELLS:
        count[context["weather"]].update(category[item] for item in ids(shop.decide({}, context)))
    print(
        f"seed {SETTINGS.seed}: rainwear in rain {count['rain']['rainwear']}, when clear {count['clear']['rainwear']}"
    )
    assert count["rain"]["rainwear"] > 2 * count["clear"]["rainwear"]
    assert count["snow"]["knitwear"] > count["clear"]["knitwear"]
    assert count["clear"]["garden"] > count["rain"]["garden"]


def test_a_context_never_seen_falls_back_to_the_coarser_one(shop: Shop) -> None:
    """Weather is unknown here, so that the cell of country and daypart has to speak."""
    for country in DIMENSIONS["country"]:
        context = {"country": country, "daypart": "morning"}
        decision = shop.decide({}, {**context, "weather": "volcanic ash"})
        assert decision.tier is Tier.CONTEXT
        assert shop.clicks(None, context, ids(decision)) > shop.clicks(None, context, shop.popular)


def test_a_returning_visitor_gets_a_better_answer_than_a_stranger(shop: Shop) -> None:
    returning, cold, best = [], [], []
    for user, view_count in shop.view_count.most_common(80):
        person = int(user.removeprefix("user-")) if user else -1
        if person < 0 or view_count < 20:
            continue
        context = {"country": shop.world.country(person), "daypart": "afternoon", "weather": "clouds"}
        known = shop.decide({"user_id": user}, context)
        assert known.tier is Tier.PERSON
        returning.append(shop.clicks(person, context, ids(known)))
        cold.append(shop.clicks(person, context, ids(shop.decide({}, context))))
        best.append(shop.clicks(person, context, shop.best(person, context)))
    print(f"seed {SETTINGS.seed}: {len(cold)} people, clicks on 10 items: returning {np.mean(returning):.2f}")
    print(f"cold {np.mean(cold):.2f}, best possible {np.mean(best):.2f}")
    assert len(cold) >= 30
    assert np.mean(returning) > 1.15 * np.mean(cold)
    assert np.mean(np.array(returning) > np.array(cold)) > 0.6


def test_nothing_bought_or_served_repeats_after_login_on_a_second_device(shop: Shop) -> None:
    engine, world, person = shop.engine, shop.world, 3
    phone, laptop = {"anonymous_id": "known-answer-phone"}, {"anonymous_id": "known-answer-laptop"}
    account = {"user_id": "known-answer-account"}
    context = {"country": world.country(person), "daypart": "evening", "weather": "clear"}
    liked = world.best_items(person, context, 8, at=shop.at)
    bought = liked[:2]

    def signal(number: int, kind: str, identifiers: dict[str, str], properties: dict[str, object]) -> Signal:
        return Signal(
            type=kind,
            event_time=shop.at - 600_000 + number * 1_000,
            identifiers=identifiers,
            message_id=f"known-answer-{number}",
            properties=properties,
            context=context,
            consent=CONSENT,
        )

    visit = [signal(n, "product_viewed", phone, {"product_id": item}) for n, item in enumerate(liked)]
    lines = [{"product_id": item, "price": 5.0, "quantity": 1} for item in bought]
    visit.append(signal(20, "order_completed", phone, {"order_id": "known-answer", "products": lines}))
    load_signals(engine, iter(visit))

    first = shop.decide(phone, context, "no_repeats")
    assert first.tier is Tier.PERSON
    assert not set(ids(first)) & set(bought)
    engine.flush()

    load_signals(engine, iter([signal(30, "identified", {**phone, **account}, {})]))
    load_signals(engine, iter([signal(31, "identified", {**laptop, **account}, {})]))
    second = shop.decide(laptop, context, "no_repeats")
    assert second.tier is Tier.PERSON
    assert len(second.items) == K
    assert not set(ids(second)) & (set(bought) | set(ids(first)))
    assert second.excluded_count >= len(bought) + len(first.items)

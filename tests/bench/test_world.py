"""The generated shop: repeatable, in the engine's vocabulary, and true to the probabilities it states."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from tailorbird.bench.world import DIMENSIONS, World, WorldSettings
from tailorbird.bench.worlds.catalogue import item_index
from tailorbird.engine.consent import DataType
from tailorbird.engine.signals import Signal
from tailorbird.engine.vocabulary import ECOMMERCE, PRODUCT_FIELDS

SETTINGS = WorldSettings(seed=11)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SETTINGS)


@pytest.fixture(scope="module")
def signals(world: World) -> list[Signal]:
    return list(world.signals(40_000))


def test_two_worlds_of_one_seed_are_equal_signal_for_signal(world: World, signals: list[Signal]) -> None:
    again = World(SETTINGS)
    assert list(again.items()) == list(world.items())
    assert list(again.signals(3_000)) == signals[:3_000]
    assert list(World(WorldSettings(seed=12)).signals(3_000)) != signals[:3_000]


def test_signals_speak_the_vocabulary_in_all_categories_but_context(signals: list[Signal]) -> None:
    categories = set()
    for signal in signals:
        kind = ECOMMERCE[signal.type]
        categories.add(kind.category)
        assert set(kind.required) <= set(signal.properties)
        assert set(signal.properties) <= set(kind.properties)
        for line in signal.properties.get("products", []):
            assert set(line) <= set(PRODUCT_FIELDS)
        assert set(signal.context) == set(DIMENSIONS)  # Context travels with every signal.
    assert categories == {DataType.BEHAVIOURAL, DataType.TRANSACTIONAL, DataType.PREFERENCE, DataType.DEMOGRAPHIC}


def test_signals_come_in_order_with_unique_message_ids(signals: list[Signal]) -> None:
    assert all(first.event_time <= second.event_time for first, second in pairwise(signals))
    assert len({signal.message_id for signal in signals}) == len(signals)


def test_duplicates_and_late_signals_come_when_asked_for() -> None:
    world = World(WorldSettings(seed=11, duplicate_share=0.05, late_share=0.05))
    signals = list(world.signals(10_000))
    repeated = len(signals) - len({signal.message_id for signal in signals})
    assert 0.03 * len(signals) < repeated < 0.07 * len(signals)
    assert sum(first.event_time > second.event_time for first, second in pairwise(signals)) > 100
    by_id: dict[str, Signal] = {}
    assert all(by_id.setdefault(signal.message_id, signal) == signal for signal in signals)


def test_revenue_is_what_the_lines_cost(signals: list[Signal]) -> None:
    orders = [signal.properties for signal in signals if signal.type == "order_completed"]
    assert orders
    for order in orders:
        cost = sum(line["price"] * line["quantity"] for line in order["products"])
        assert order["revenue"] == pytest.approx(cost, abs=0.006)


def test_views_are_as_frequent_as_their_true_probability(world: World, signals: list[Signal]) -> None:
    """Pearson's chi-square over the items on offer throughout, in two contexts. Expectation k, deviation sqrt(2k)."""
    views = [signal for signal in signals if signal.type == "product_viewed"]
    first, last = signals[0].event_time, signals[-1].event_time
    catalogue = world.catalogue
    throughout = catalogue.on_offer__i(first) & catalogue.on_offer__i(last)
    for cell in ({"country": "GB", "daypart": "evening"}, {"country": "DE", "device": "mobile"}):
        count__i = np.zeros(len(catalogue))
        expected__i = np.zeros(len(catalogue))
        visits = Counter(
            tuple(signal.context.values())
            for signal in signals
            if signal.type == "page_viewed" and cell.items() <= signal.context.items()
        )
        for values, visit_count in visits.items():
            context = dict(zip(DIMENSIONS, values, strict=True))
            expected__i += visit_count * world.click_probability__i(None, context)
        for view in views:
            if cell.items() <= view.context.items():
                count__i[item_index(view.properties["product_id"])] += 1
        expected__i *= count__i[throughout].sum() / expected__i[throughout].sum()
        statistic = ((count__i - expected__i)[throughout] ** 2 / expected__i[throughout]).sum()
        freedom = throughout.sum()
        print(f"seed {SETTINGS.seed}, {cell}: chi-square {statistic:.0f} over {freedom}")
        # People come back, so views are not independent: the variance is larger than Poisson's, but not by much.
        assert statistic < 2.5 * freedom
        uniform = count__i[throughout].mean()
        assert statistic < 0.4 * ((count__i - uniform)[throughout] ** 2 / uniform).sum()


def test_the_click_rate_is_as_set(world: World) -> None:
    rng = np.random.default_rng(5)
    rates = []
    for person in rng.integers(0, SETTINGS.people, 100):
        context = {name: str(rng.choice(values)) for name, values in DIMENSIONS.items()}
        context["country"] = world.country(int(person))
        rates.append(world.click_probability__i(int(person), context).mean())
    assert np.mean(rates) == pytest.approx(SETTINGS.click_rate, rel=0.25)


def test_context_truly_drives_clicks(world: World) -> None:
    category = {item.id: item.attributes["category"] for item in world.items()}
    usual = {"country": "GB", "device": "mobile", "daypart": "afternoon", "referrer": "direct"}
    rain = Counter(category[item] for item in world.best_items(None, {**usual, "weather": "rain"}, 20))
    clear = Counter(category[item] for item in world.best_items(None, {**usual, "weather": "clear"}, 20))
    assert rain["rainwear"] > clear["rainwear"]
    assert clear["garden"] > rain["garden"]


def test_the_best_items_are_the_most_probable_ones_on_offer(world: World) -> None:
    context = {"country": "US", "device": "mobile", "daypart": "night", "weather": "snow", "referrer": "email"}
    at = SETTINGS.start
    best = world.best_items(7, context, 10, at=at)
    probability = [world.click_probability(7, context, item) for item in best]
    assert probability == sorted(probability, reverse=True)
    on_offer = world.catalogue.on_offer__i(at)
    assert all(on_offer[item_index(item)] for item in best)
    rest = world.best_items(7, context, 10, at=at, exclude=best[:3])
    assert rest[:7] == best[3:]
    assert world.expected_clicks(7, context, best) == pytest.approx(sum(probability), rel=1e-6)


def test_a_person_differs_from_the_average_visitor(world: World) -> None:
    context = {"device": "mobile", "daypart": "morning", "weather": "clear", "referrer": "direct"}
    gains = []
    for person in range(40):
        own = world.expected_clicks(person, context, world.best_items(person, context, 10))
        cold = world.expected_clicks(person, context, world.best_items(None, context, 10))
        gains.append(own / cold)
    assert min(gains) >= 1.0
    assert np.mean(gains) > 1.3


def test_an_unknown_context_value_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="expected weather of clear, clouds, rain, snow, got 'hail'"):
        world.click_probability(None, {"weather": "hail"}, "item-0000000")


def test_each_cookie_and_each_account_belongs_to_people_of_one_household(world: World, signals: list[Signal]) -> None:
    household = world.people.household__p
    seen: dict[str, set[int]] = {}
    for signal in signals:
        if "user_id" in signal.identifiers:
            person = int(signal.identifiers["user_id"].removeprefix("user-"))
            assert world.people.has_account__p[person]
            seen.setdefault(signal.identifiers["anonymous_id"], set()).add(int(household[person]))
    assert seen
    assert all(len(households) == 1 for households in seen.values())
    cookies = {signal.identifiers["anonymous_id"] for signal in signals}
    assert len(cookies) > world.people.device_count  # They churn.


def test_the_first_signal_of_a_cookie_carries_the_choice_unless_the_person_refuses() -> None:
    world = World(WorldSettings(seed=11, refusing_share=0.5, shared_tablet_share=0.0))
    refuses, owner = world.people.refuses__p, {}
    for person, devices in enumerate(world.people.devices__pk.tolist()):
        owner.update({device: person for device in devices if device >= 0})
    asked: set[str] = set()
    for signal in world.signals(5_000):
        cookie = signal.identifiers["anonymous_id"]
        if cookie not in asked:
            asked.add(cookie)
            assert (signal.consent is None) == refuses[owner[int(cookie.split("-")[1])]]


def test_memory_does_not_grow_with_the_stream() -> None:
    world = World(SETTINGS)
    tracemalloc.start()
    try:
        peaks = []
        for count in (3_000, 30_000):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            for _ in world.signals(count):
                pass
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 200_000

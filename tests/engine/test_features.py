"""Features by declaration: every aggregate from YAML to a profile, the consent each needs, and layouts over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailorbird.engine import Engine, Signal
from tailorbird.engine.compiled import compile_configuration
from tailorbird.engine.consent import ConsentChoice, DataType, Purpose, bit, parse_choice
from tailorbird.engine.errors import ConfigurationError
from tailorbird.engine.items import Item
from tailorbird.engine.profile import FeatureStatus, FeatureValue
from tailorbird.engine.signals import Status
from tests.engine.shops import (
    DAY,
    START,
    assert_replays_to_the_same,
    feature,
    open_shop,
    signal,
)

HOUR = 3_600_000
CATEGORIES = ("behavioural", "contextual", "transactional", "preference", "demographic")
# One signal of each category, with the feature of it that `ONE_OF_EACH` declares.
SIGNALS: dict[str, tuple[str, dict[str, Any]]] = {
    "behavioural": ("product_viewed", {"product_id": "mug"}),
    "contextual": ("context_observed", {"weather": "rain"}),
    "transactional": ("order_completed", {"products": [{"product_id": "mug"}], "total": 9.5}),
    "preference": ("product_reviewed", {"product_id": "mug", "rating": 4}),
    "demographic": ("identified", {"age_band": "30-39"}),
}
ONE_OF_EACH = """\
version: 1
features:
  - {name: behavioural, signal: product_viewed, aggregate: count}
  - {name: contextual, signal: context_observed, aggregate: last(weather)}
  - {name: transactional, signal: order_completed, aggregate: sum(total)}
  - {name: preference, signal: product_reviewed, aggregate: last(rating)}
  - {name: demographic, signal: identified, aggregate: last(age_band)}
placements: [{name: home}]
"""
VALUES = {
    "behavioural": 1.0,
    "contextual": "rain",
    "transactional": 9.5,
    "preference": 4.0,
    "demographic": "30-39",
}


def features(*declarations: str) -> str:
    """Return a configuration of features, each written without its name: f0, f1, ..."""
    lines = [f"  - {{name: f{index}, {text}}}\n" for index, text in enumerate(declarations)]
    return "version: 1\nfeatures:\n" + "".join(lines)


def refusal(*declarations: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        compile_configuration(features(*declarations), 1, 1)
    return caught.value


def apply(engine: Engine, *signals: Signal) -> None:
    """Ingest signals, all of which must be applied."""
    outcomes = engine.ingest(signals).outcomes
    assert {outcome.status for outcome in outcomes} == {Status.APPLIED}, outcomes


# ---- what cannot be declared -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declaration", "reason", "said"),
    [
        ("signal: page_viewed, aggregate: average(total)", "UNKNOWN_AGGREGATE", "count, sum, mean, min, max"),
        ("signal: product_viewed, aggregate: sum(prise)", "UNKNOWN_PROPERTY", "'prise'"),
        ("signal: product_viewed, aggregate: last(item.colour)", "UNKNOWN_ATTRIBUTE", "['category', 'brand']"),
        ("signal: page_viewed, aggregate: sum(name)", "BAD_AGGREGATE", "kind number for sum, got name (symbol)"),
        ("signal: page_viewed, aggregate: sum", "BAD_AGGREGATE", "got no field"),
        ("signal: page_viewed, aggregate: count(name)", "BAD_AGGREGATE", "kind none for count"),
        ("signal: order_completed, aggregate: last(products)", "BAD_AGGREGATE", "last, got products"),
        ('signal: product_viewed, aggregate: "last_k(brand, k=3)"', "BAD_AGGREGATE", "last_k of an item id"),
        ('signal: product_viewed, aggregate: "last_k(product_id, k=0)"', "BAD_AGGREGATE", "k from 1 to"),
        ('signal: product_viewed, aggregate: "last_k(product_id, k=2.5)"', "BAD_AGGREGATE", "got 2.5"),
        ("signal: page_viewed, aggregate: decayed_count", "BAD_AGGREGATE", "half_life=<duration>"),
        ("signal: page_viewed, aggregate: decayed_count(half_life=0d)", "BAD_AGGREGATE", "half_life=<duration>"),
        ("signal: page_viewed, aggregate: count(half_life=3d)", "BAD_AGGREGATE", "options of none for count"),
        (
            'signal: page_viewed, aggregate: "decayed_count(half_life=1d, weights={product_viewed: 2})"',
            "BAD_AGGREGATE",
            "weights of this feature's signals, got product_viewed",
        ),
        (
            'signal: page_viewed, aggregate: "decayed_count(half_life=1d, weights={page_viewed: -2})"',
            "BAD_AGGREGATE",
            "positive weights",
        ),
        ("signal: [product_viewed, promotion_viewed], aggregate: last(position)", "BAD_AGGREGATE", "one kind in all"),
        ("signal: page_viewed, aggregate: count, category: secret", "BAD_CATEGORY", "'secret'"),
        ("signal: page_viewed, aggregate: count, max_age: old", "BAD_DURATION", "max_age of feature 'f0'"),
    ],
)
def test_a_feature_that_cannot_be_is_refused(declaration: str, reason: str, said: str) -> None:
    error = refusal(declaration)
    assert (error.reason, said in error.message) == (reason, True), error
    assert "'f0'" in error.message


def test_a_head_too_large_names_what_takes_the_room() -> None:
    big = 'signal: product_viewed, aggregate: "decayed_top_k(brand, k=32, half_life=1d)"'
    error = refusal(*[big] * 4, "signal: page_viewed, aggregate: count")
    assert error.reason == "HEAD_TOO_LARGE"
    assert "at most 1900 bytes" in error.message
    assert "f0 528" in error.message
    assert "f4 16" in error.message
    assert "lower k, or keep some with `store: lists`" in error.message


# ---- every aggregate -------------------------------------------------------------------------------------------------


def view(message_id: str, at: int, product_id: str = "mug", **properties: Any) -> Signal:
    return signal(message_id, "product_viewed", at, product_id=product_id, **properties)


def read(
    tmp_path: Path, declaration: str, *signals: Signal, at: int = START, items: tuple[Item, ...] = ()
) -> FeatureValue:
    """Return the one feature after the signals, and check that replaying them leads to the same state."""
    with open_shop(tmp_path, features(declaration) + "attributes: [category, brand]\n") as engine:
        if items:
            engine.put_items(items)
        apply(engine, *signals)
        found = feature(engine, "f0", at)
    assert_replays_to_the_same(tmp_path)
    return found


def test_count_counts_events_of_its_signals_only(tmp_path: Path) -> None:
    signals = [view("a", START), view("b", START - DAY), signal("c", "page_viewed"), signal("d", "cart_viewed")]
    found = read(tmp_path, "signal: [product_viewed, page_viewed], aggregate: count", *signals, at=START + HOUR)
    assert found == FeatureValue("f0", 3.0, HOUR, FeatureStatus.FRESH)


def test_sum_adds_a_property_and_every_line_of_an_order(tmp_path: Path) -> None:
    order: dict[str, Any] = {
        "products": [{"product_id": "mug", "price": 2.5}, {"product_id": "cup", "price": 4}],
        "total": 6.5,
    }
    signals = [signal("a", "order_completed", **order), signal("b", "order_completed", products=[], total=-1.25)]
    assert read(tmp_path / "own", "signal: order_completed, aggregate: sum(total)", *signals).value == 5.25
    assert read(tmp_path / "lines", "signal: order_completed, aggregate: sum(price)", *signals).value == 6.5


def test_last_is_by_event_time_whatever_came_last(tmp_path: Path) -> None:
    newer = signal("a", "product_reviewed", START, product_id="mug", rating=4.5)
    older = signal("b", "product_reviewed", START - DAY, product_id="mug", rating=1)
    assert read(tmp_path / "number", "signal: product_reviewed, aggregate: last(rating)", newer, older).value == 4.5
    ada = signal("c", "identified", START - 5, city="York"), signal("d", "identified", START - 9, city="Łódź")
    assert read(tmp_path / "text", "signal: identified, aggregate: last(city)", *ada).value == "York"
    told = signal("e", "preferences_updated", newsletter=True)
    assert read(tmp_path / "flag", "signal: preferences_updated, aggregate: last(newsletter)", told).value == 1.0


def test_last_reads_what_the_catalogue_says_of_the_item(tmp_path: Path) -> None:
    mug = Item(id="mug", attributes={"brand": "Potters"})
    declaration = "signal: product_viewed, aggregate: last(item.brand)"
    assert read(tmp_path, declaration, view("a", START), items=(mug,)).value == "Potters"


def test_time_since_is_seconds_since_the_newest_event(tmp_path: Path) -> None:
    signals = [view("a", START), view("b", START - DAY)]
    found = read(tmp_path, "signal: product_viewed, aggregate: time_since", *signals, at=START + HOUR)
    assert (found.value, found.age_ms) == (3600.0, HOUR)


def test_decayed_count_halves_in_a_half_life_and_weighs_by_signal(tmp_path: Path) -> None:
    declaration = (
        "signal: [product_viewed, product_added], "
        'aggregate: "decayed_count(half_life=1d, weights={product_viewed: 1, product_added: 4})"'
    )
    signals = [
        view("a", START),
        view("b", START - DAY),
        signal("c", "product_added", START - 2 * DAY, product_id="mug"),
    ]
    assert read(tmp_path / "now", declaration, *signals).value == pytest.approx(1 + 1 / 2 + 4 / 4)
    # The order of arrival does not count, and a later look sees less.
    assert read(tmp_path / "later", declaration, *signals[::-1], at=START + DAY).value == pytest.approx(1.25)


def test_decayed_sum_halves_what_was_spent(tmp_path: Path) -> None:
    orders = [
        signal("a", "order_completed", START - DAY, products=[], total=10),
        signal("b", "order_completed", products=[], total=3),
    ]
    declaration = 'signal: order_completed, aggregate: "decayed_sum(total, half_life=1d)"'
    assert read(tmp_path, declaration, *orders).value == pytest.approx(8.0)


def test_decayed_top_k_keeps_the_heaviest_texts(tmp_path: Path) -> None:
    declaration = 'signal: product_viewed, aggregate: "decayed_top_k(category, k=2, half_life=1d)"'
    signals = [view(f"m{n}", START - n * DAY, category=name) for n, name in enumerate(["tea", "cups", "tea", "pots"])]
    value = read(tmp_path, declaration, *signals).value
    assert isinstance(value, tuple)
    assert [name for name, _ in value] == ["tea", "cups"]
    assert value[0][1] == pytest.approx(1.25)


def test_decayed_top_k_asks_the_catalogue_where_the_event_does_not_say(tmp_path: Path) -> None:
    declaration = 'signal: product_viewed, aggregate: "decayed_top_k(category, k=2, half_life=1d)"'
    mug = Item(id="mug", attributes={"category": "cups"})
    assert read(tmp_path, declaration, view("a", START), items=(mug,)).value == (("cups", 1.0),)


def test_last_k_keeps_distinct_items_newest_first_with_their_age_in_seconds(tmp_path: Path) -> None:
    declaration = 'signal: product_viewed, aggregate: "last_k(product_id, k=2)"'
    signals = [
        view("a", START - 3000, "mug"),
        view("b", START, "cup"),
        view("c", START - 9000, "pot"),
        view("d", START - 1000, "mug"),
    ]
    assert read(tmp_path, declaration, *signals).value == (("cup", 0.0), ("mug", 1.0))


def test_a_feature_of_a_person_it_never_happened_to_is_missing_not_zero(tmp_path: Path) -> None:
    found = read(tmp_path, "signal: order_completed, aggregate: count", view("a", START))
    assert (found.value, found.status) == (None, FeatureStatus.MISSING)


def test_a_feature_older_than_its_max_age_is_stale_and_has_no_value(tmp_path: Path) -> None:
    declaration = "signal: product_viewed, aggregate: count, max_age: 1d"
    assert read(tmp_path / "young", declaration, view("a", START), at=START + DAY).status is FeatureStatus.FRESH
    old = read(tmp_path / "old", declaration, view("a", START), at=START + DAY + 1)
    assert (old.value, old.status) == (None, FeatureStatus.STALE)


def test_a_signal_of_ones_own_feeds_features_too(tmp_path: Path) -> None:
    text = features("signal: tasted, aggregate: sum(sips)") + (
        "signals: [{name: tasted, category: preference, properties: {sips: integer, tea: string}, required: [sips]}]\n"
    )
    with open_shop(tmp_path, text) as engine:
        apply(engine, signal("a", "tasted", sips=3), signal("b", "tasted", sips=4))
        assert feature(engine, "f0").value == 7.0
        outcome = engine.ingest([signal("c", "tasted", tea="assam")]).outcomes[0]
        assert (outcome.status, outcome.reason) == (Status.REJECTED, "MISSING_PROPERTY")


# ---- categories and consent ------------------------------------------------------------------------------------------


def granted(*categories: str) -> ConsentChoice:
    return parse_choice(f"granted:{','.join(categories)}")


@pytest.mark.parametrize("category", CATEGORIES)
def test_each_category_needs_consent_of_its_own(tmp_path: Path, category: str) -> None:
    kind, properties = SIGNALS[category]
    others = granted(*(c for c in CATEGORIES if c != category))
    with open_shop(tmp_path, ONE_OF_EACH) as engine:
        refused = engine.ingest([signal("a", kind, consent=others, **properties)]).outcomes[0]
        assert (refused.status, refused.reason) == (Status.WITHHELD, "NO_CONSENT")
        assert category in refused.message
        apply(engine, signal("b", kind, consent=granted(category), **properties))
        assert feature(engine, category).value == VALUES[category]
        engine.set_consent({"anonymous_id": "v1"}, parse_choice(f"denied:{category}/personalise"))
        assert feature(engine, category).status is FeatureStatus.MASKED
    assert_replays_to_the_same(tmp_path)


def test_all_five_categories_go_into_one_profile(tmp_path: Path) -> None:
    with open_shop(tmp_path, ONE_OF_EACH) as engine:
        apply(engine, *(signal(c, kind, **properties) for c, (kind, properties) in SIGNALS.items()))
        profile = engine.profile({"anonymous_id": "v1"}, at=START)
    assert {f.name: f.value for f in profile.features} == VALUES


def test_a_feature_needs_the_bits_of_all_it_draws_on() -> None:
    text = features(
        "signal: [product_viewed, order_completed], aggregate: count",
        "signal: product_viewed, aggregate: last(context.country)",
        "signal: product_viewed, aggregate: count, category: sensitive",
    )
    found = compile_configuration(text, 1, 1).features.features
    drawn_on = [
        (DataType.BEHAVIOURAL, DataType.TRANSACTIONAL),
        (DataType.BEHAVIOURAL, DataType.CONTEXTUAL),
        (DataType.BEHAVIOURAL, DataType.SENSITIVE),
    ]
    for compiled, categories in zip(found, drawn_on, strict=True):
        assert compiled.required == sum(bit(category, Purpose.PERSONALISE) for category in categories)
        assert compiled.admit == sum(bit(category, Purpose.PROFILE) for category in categories)


def test_without_consent_to_profile_an_event_is_kept_and_no_feature_moves(tmp_path: Path) -> None:
    with open_shop(tmp_path, ONE_OF_EACH) as engine:
        collected = parse_choice("granted:behavioural/collect+personalise")
        apply(engine, signal("a", consent=collected))
        assert feature(engine, "behavioural").status is FeatureStatus.MISSING


# ---- layouts over time -----------------------------------------------------------------------------------------------

BEFORE = features(
    "signal: product_viewed, aggregate: count", 'signal: product_viewed, aggregate: "last_k(product_id, k=4)"'
)
AFTER = (
    features(
        "signal: page_viewed, aggregate: count",
        'signal: product_viewed, aggregate: "last_k(product_id, k=4)"',
    ).replace("name: f0", "name: pages")
    + "  - {name: f0, signal: product_viewed, aggregate: count}\n"
)


def test_an_added_feature_leaves_the_others_and_warms_until_it_is_backfilled(tmp_path: Path) -> None:
    with open_shop(tmp_path, BEFORE) as engine:
        apply(engine, *(signal(f"{v}{n}", who={"anonymous_id": v}) for v in ("v1", "v2") for n in range(3)))
    with open_shop(tmp_path, AFTER) as engine:
        for visitor in ("v1", "v2"):
            assert feature(engine, "f0", visitor=visitor).value == 3.0
            assert feature(engine, "f1", visitor=visitor).value == (("mug", 0.0),)
            new = feature(engine, "pages", visitor=visitor)
            assert (new.value, new.status) == (None, FeatureStatus.WARMING)
        # v1's record is written in the new layout, v2's stays as it was; both are read.
        apply(engine, signal("p", "page_viewed"), signal("v"))
        assert [feature(engine, name).value for name in ("f0", "pages")] == [4.0, None]
        engine.backfill()
        assert [feature(engine, name).value for name in ("f0", "pages")] == [4.0, 1.0]
        assert feature(engine, "f0", visitor="v2").value == 3.0
    assert_replays_to_the_same(tmp_path)
    with open_shop(tmp_path, AFTER) as engine:
        assert [feature(engine, name).value for name in ("f0", "pages")] == [4.0, 1.0]
        assert feature(engine, "f0", visitor="v2").value == 3.0


def test_a_feature_of_another_version_is_another_and_a_removed_one_is_gone(tmp_path: Path) -> None:
    one = features("signal: product_viewed, aggregate: count", "signal: page_viewed, aggregate: count")
    other = features('version: 2, signal: product_viewed, aggregate: "decayed_count(half_life=1d)"')
    with open_shop(tmp_path, one) as engine:
        apply(engine, signal("a"), signal("b", "page_viewed"))
    with open_shop(tmp_path, other) as engine:
        assert [f.status for f in engine.profile({"anonymous_id": "v1"}).features] == [FeatureStatus.WARMING]
        apply(engine, signal("c"))
        engine.backfill()
        assert feature(engine, "f0").value == 2.0
    with open_shop(tmp_path, one) as engine:
        assert feature(engine, "f0").status is FeatureStatus.WARMING
        engine.backfill()
        assert feature(engine, "f0").value == 2.0
    assert_replays_to_the_same(tmp_path)


def test_people_met_under_three_layouts_can_be_joined_and_split(tmp_path: Path) -> None:
    texts = [features(*["signal: product_viewed, aggregate: count"] * n) for n in (1, 2, 3)]
    for n, text in enumerate(texts):
        with open_shop(tmp_path, text) as engine:
            apply(engine, signal(f"m{n}", who={"anonymous_id": f"d{n}"}))
    with open_shop(tmp_path, texts[-1]) as engine:
        engine.link(("anonymous_id", "d0"), ("user_id", "u"))
        engine.link(("anonymous_id", "d1"), ("user_id", "u"))
        engine.link(("anonymous_id", "d2"), ("user_id", "u"))
        assert [feature(engine, f"f{n}", visitor="d0").value for n in range(3)] == [3.0, None, None]
        engine.backfill()
        assert [feature(engine, f"f{n}", visitor="d0").value for n in range(3)] == [3.0, 3.0, 3.0]
        engine.split(("anonymous_id", "d0"), ("user_id", "u"))
        assert feature(engine, "f0", visitor="d0").value == 1.0
        assert feature(engine, "f0", visitor="d2").value == 2.0
    assert_replays_to_the_same(tmp_path)


def test_a_configuration_that_stores_alike_keeps_its_layout(tmp_path: Path) -> None:
    def stored_layouts(engine: Engine) -> tuple[int, int]:
        layouts = engine.writer.applier.state.layouts
        assert layouts is not None
        return layouts.current.version, layouts.current.layout_version

    with open_shop(tmp_path, ONE_OF_EACH) as engine:
        apply(engine, signal("a"))
        assert stored_layouts(engine) == (1, 1)
    with open_shop(tmp_path, ONE_OF_EACH + "limits: {k_max: 50}\n") as engine:
        apply(engine, signal("b"))
        assert stored_layouts(engine) == (2, 1)
        assert feature(engine, "behavioural").value == 2.0
    with open_shop(tmp_path, ONE_OF_EACH.replace("aggregate: last(rating)", "version: 2, aggregate: count")) as engine:
        assert stored_layouts(engine) == (3, 3)
        assert feature(engine, "behavioural").value == 2.0

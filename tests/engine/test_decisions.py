"""Decisions on catalogues so small that the right answer is known: what may be offered, in what order, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailorbird.engine import Decision, Item
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.requests import Reason, ReasonDetail, Tier
from tests.engine.shops import (
    DAY,
    START,
    Clock,
    assert_replays_to_the_same,
    buy,
    ids,
    items,
    open_shop,
    signal,
    view,
)

WHO = {"anonymous_id": "v1"}
HEAD = """\
version: 1
limits: {map_bytes: 67108864}
"""
PLAIN = HEAD + "placements: [{name: home, retrieve: {whole_catalogue: true}, record_served: false}]\n"


def scores(decision: Decision) -> dict[str, float]:
    return {item.id: item.score for item in decision.items}


def reasons(decision: Decision) -> dict[str, tuple[ReasonDetail, ...]]:
    return {item.id: item.reasons for item in decision.items}


# ---- the catalogue: what may be offered ------------------------------------------------------------------------------


def test_a_placement_offers_items_of_its_attribute_values_only(tmp_path: Path) -> None:
    where = "where: {category: [shoes, hats], brand: [acme]}"
    with open_shop(tmp_path, PLAIN.replace("home,", f"home, {where},")) as engine:
        acme = {"brand": "acme"}
        engine.put_items(
            [
                Item(id="boot", attributes={"category": "shoes", **acme}),
                Item(id="cap", attributes={"category": "hats", **acme}),
                Item(id="scarf", attributes={"category": "scarves", **acme}),
                Item(id="clog", attributes={"category": "shoes", "brand": "other"}),
                Item(id="bare", attributes={"category": "shoes"}),
                Item(id="blank"),
            ]
        )
        assert ids(engine.decide(placement="home")) == ["boot", "cap"]
        engine.put_items([Item(id="boot", attributes={"category": "scarves", **acme})])
        assert ids(engine.decide(placement="home")) == ["cap"]


def test_a_placement_offers_items_with_all_of_its_tags_only(tmp_path: Path) -> None:
    with open_shop(tmp_path, PLAIN.replace("home,", "home, tags: [sale, summer],")) as engine:
        engine.put_items(
            [
                Item(id="both", tags=("summer", "new", "sale")),
                Item(id="one", tags=("sale",)),
                Item(id="none"),
            ]
        )
        assert ids(engine.decide(placement="home")) == ["both"]
        engine.put_items([Item(id="both", tags=("summer",)), Item(id="one", tags=("sale", "summer"))])
        assert ids(engine.decide(placement="home")) == ["one"]


def test_an_item_is_offered_from_its_start_up_to_but_not_including_its_end(tmp_path: Path) -> None:
    start, end = START + DAY, START + 2 * DAY
    with open_shop(tmp_path, PLAIN) as engine:
        engine.put_items([Item(id="always"), Item(id="that_day", start=start, end=end), Item(id="later", start=start)])
        offered = {
            START: ["always"],
            start - 1: ["always"],
            start: ["always", "later", "that_day"],
            end - 1: ["always", "later", "that_day"],
            end: ["always", "later"],
        }
        assert {at: ids(engine.decide(placement="home", at=at)) for at in offered} == offered


def test_what_is_sold_out_is_not_offered_until_it_is_in_stock_again(tmp_path: Path) -> None:
    configuration = HEAD + (
        "placements:\n"
        "  - {name: home, retrieve: {whole_catalogue: true}}\n"
        "  - {name: list, retrieve: {whole_catalogue: true}, require_stock: false}\n"
    )
    with open_shop(tmp_path, configuration) as engine:
        engine.put_items([Item(id="uncounted"), Item(id="last_one", stock=1), Item(id="gone", stock=0)])
        assert ids(engine.decide(placement="home")) == ["last_one", "uncounted"]
        assert ids(engine.decide(placement="list")) == ["gone", "last_one", "uncounted"]
        engine.put_items([Item(id="gone", stock=7), Item(id="last_one", stock=0)])
        assert ids(engine.decide(placement="home")) == ["gone", "uncounted"]


def test_a_new_price_or_name_is_a_new_fact_and_the_same_again_is_none(tmp_path: Path) -> None:
    with open_shop(tmp_path, PLAIN) as engine:
        mug = Item(id="mug", name="A mug", price=9.5, currency="GBP")
        position = engine.put_items([mug])
        assert engine.put_items([mug]) == position
        assert engine.put_items([Item(id="mug", name="A mug", price=8, currency="GBP")]) == position + 1
        assert engine.put_items([Item(id="mug", name="The mug", price=8.0, currency="GBP")]) == position + 2
        assert engine.item_names(["mug"]) == {"mug": "The mug"}
        assert ids(engine.decide(placement="home")) == ["mug"]
    assert_replays_to_the_same(tmp_path)


def test_an_embedding_lifts_an_item_by_the_exponential_of_its_product_with_the_features(tmp_path: Path) -> None:
    configuration = HEAD + (
        "embedding_dimension: 2\n"
        "features:\n"
        "  - {name: views, signal: product_viewed, aggregate: count}\n"
        "  - {name: orders, signal: order_completed, aggregate: count}\n"
        "placements:\n"
        "  - name: home\n"
        "    retrieve: {whole_catalogue: true}\n"
        "    rank: {vector: {features: [views, orders], transform: identity}}\n"
        "    record_served: false\n"
    )
    with open_shop(tmp_path, configuration) as engine:
        embeddings = {"for": (0.5, 0.0), "against": (-0.5, 0.0), "orders": (0.0, 3.0)}
        engine.put_items([Item(id=name, embedding=values) for name, values in embeddings.items()] + [Item(id="none")])
        view(engine, "none", "none")
        known = engine.decide(placement="home", identifiers=WHO)
        assert ids(known) == ["for", "none", "orders", "against"]
        score = scores(known)
        assert score["for"] / score["none"] == pytest.approx(2.718281828, rel=1e-5)
        assert score["none"] / score["against"] == pytest.approx(2.718281828, rel=1e-5)
        assert known.tier is Tier.PERSON
        assert known.items[0].reasons == (ReasonDetail(Reason.MODEL),)
        assert len(set(scores(engine.decide(placement="home")).values())) == 1


# ---- reasons, tiers and the moment -----------------------------------------------------------------------------------

EVIDENCE = (
    HEAD
    + """\
statistics: {levels: [[country]], half_life: 1000d}
features:
  - {name: seen, signal: product_viewed, aggregate: "last_k(product_id, k=8)"}
  - {name: liked, signal: product_viewed, aggregate: "decayed_top_k(category, k=4, half_life=30d)"}
placements:
  - name: home
    retrieve: {whole_catalogue: true}
    exclude: {bought: 30d}
    rank: {recent: [seen], affinity: {category: liked}}
    record_served: false
"""
)


def test_each_tier_is_told_from_an_empty_catalogue_to_a_known_person(tmp_path: Path) -> None:
    """One shop learns more and more; the same question is carried by better and better evidence."""
    with open_shop(tmp_path, EVIDENCE) as engine:

        def answer(country: str = "France", **asked: Any) -> Decision:
            return engine.decide(placement="home", context={"country": country}, **asked)

        empty = answer()
        assert (empty.tier, empty.items, empty.degraded) == (Tier.EMPTY, (), ("EMPTY_CATALOGUE",))

        engine.put_items(items("mug", "cup", "pot", attributes={"category": "tea"}) + items("tin", "jar"))
        engine.put_items(items("box", attributes={"category": "storage"}))
        catalogue = answer()
        assert catalogue.tier is Tier.CATALOGUE
        assert ids(catalogue) == ["box", "cup", "jar", "mug", "pot", "tin"]
        assert set(reasons(catalogue).values()) == {(ReasonDetail(Reason.NEW),)}

        buy(engine, "someone", "jar")
        popular = answer()
        assert popular.tier is Tier.POPULAR
        assert ids(popular)[0] == "jar"
        assert reasons(popular)["jar"] == (ReasonDetail(Reason.POPULAR),)
        assert reasons(popular)["box"] == (ReasonDetail(Reason.NEW),)

        for n in range(5):
            buy(engine, f"french {n}", "box", country="France")
        context = answer()
        assert context.tier is Tier.CONTEXT
        assert ids(context)[0] == "box"
        assert reasons(context)["box"][0] == ReasonDetail(Reason.POPULAR_IN_CONTEXT, "country=France")
        assert answer("Spain").tier is Tier.POPULAR
        assert engine.decide(placement="home").tier is Tier.POPULAR

        view(engine, "mug", "mug")
        person = answer(identifiers=WHO)
        assert person.tier is Tier.PERSON
        assert ReasonDetail(Reason.AFFINITY, "category=tea") in reasons(person)["cup"]
        assert answer(identifiers={"anonymous_id": "stranger"}).tier is Tier.CONTEXT


def test_an_answer_bought_together_names_the_item_it_was_bought_with(tmp_path: Path) -> None:
    with open_shop(tmp_path, EVIDENCE) as engine:
        engine.put_items(items("tea", "pot", "nail", "hammer"))
        for n in range(20):
            buy(engine, f"tea {n}", "tea", "pot")
            buy(engine, f"nail {n}", "nail", "hammer")
        engine.train_cooccurrence()
        for seen, first in (("tea", "pot"), ("nail", "hammer")):
            event = signal("now", product_id=seen)
            decision = engine.decide(placement="home", events=(event,))
            assert decision.tier is Tier.PERSON
            assert ids(decision)[0] == first
            assert reasons(decision)[first][0] == ReasonDetail(Reason.BOUGHT_TOGETHER, seen)
        assert engine.decide(placement="home").tier is Tier.POPULAR


def test_an_answer_tells_what_it_rests_on(tmp_path: Path) -> None:
    with open_shop(tmp_path, EVIDENCE) as engine:
        engine.put_items(items("mug", "cup", "pot"))
        buy(engine, "v1", "mug")
        view(engine, "cup")
        candidates = ("mug", "cup", "nothing")
        decision = engine.decide(placement="home", identifiers=WHO, at=START + 3_000, candidates=candidates)
        assert ids(decision) == ["cup"]
        assert (decision.candidate_count, decision.excluded_count, decision.unknown_candidate_count) == (2, 1, 1)
        assert decision.degraded == ("UNKNOWN_CANDIDATES",)
        assert (decision.placement, decision.at, decision.profile_age_ms) == ("home", START + 3_000, 3_000)
        assert (decision.position, decision.configuration_version) == (engine.position, 1)
        assert (decision.completeness, decision.masked_count) == (0.5, 0)
        assert decision.person_id == engine.profile(WHO).person_id
        assert all(0.0 <= item.score <= 1.0 for item in decision.items)
        assert decision.items[0].propensity == 1.0
        stranger = engine.decide(placement="home", identifiers={"anonymous_id": "v2"})
        assert (stranger.person_id, stranger.profile_age_ms, stranger.degraded) == ("", -1, ("NO_PROFILE",))


def test_a_decision_is_as_of_the_moment_asked_for_and_without_one_as_of_the_clock(tmp_path: Path) -> None:
    clock = Clock()
    with open_shop(tmp_path, EVIDENCE, clock=clock) as engine:
        engine.put_items([*items("mug", "cup"), Item(id="autumn", start=START + 40 * DAY)])
        buy(engine, "v1", "mug")

        def offered(at: int) -> list[str]:
            decision = engine.decide(placement="home", identifiers=WHO, at=at)
            assert decision.at == (at or clock.now)
            return sorted(ids(decision))

        assert offered(START + DAY) == ["cup"]
        assert offered(START + 31 * DAY) == ["cup", "mug"]
        assert offered(START + 40 * DAY) == ["autumn", "cup", "mug"]
        assert offered(0) == ["cup"]
        clock.now = START + 40 * DAY
        assert offered(0) == ["autumn", "cup", "mug"]
        assert offered(START + DAY) == ["cup"]


# ---- affinity --------------------------------------------------------------------------------------------------------


SHELF = [item for name in ("tea", "tools") for item in items(f"{name}1", f"{name}2", attributes={"category": name})]


def test_affinity_weighs_a_persons_share_of_a_value_against_the_shops(tmp_path: Path) -> None:
    """Of 3 views all are of tea, of which the shop has half; 5 more views' worth of the shop's habits stand beside them."""
    with open_shop(tmp_path, EVIDENCE) as engine:
        engine.put_items([*SHELF, Item(id="plain")])
        view(engine, *["tea1"] * 3)
        decision = engine.decide(placement="home", identifiers=WHO)
        assert ids(decision) == ["tea1", "tea2", "plain", "tools1", "tools2"]
        score = scores(decision)
        assert score["tea1"] / score["plain"] == pytest.approx((3 + 5 * 0.5) / (3 + 5) / 0.5, rel=1e-5)
        assert score["tools1"] / score["plain"] == pytest.approx(5 / (3 + 5), rel=1e-5)
        assert reasons(decision)["tea2"] == (ReasonDetail(Reason.AFFINITY, "category=tea"),)
        assert reasons(decision)["tools1"] == (ReasonDetail(Reason.NEW),)


def test_affinity_fades_in_its_half_life_and_follows_what_is_looked_at_now(tmp_path: Path) -> None:
    with open_shop(tmp_path, EVIDENCE, clock=Clock(START + 300 * DAY)) as engine:
        engine.put_items(SHELF)
        view(engine, *["tea1"] * 3)

        def preference(at: int) -> float:
            score = scores(engine.decide(placement="home", identifiers=WHO, at=at))
            return score["tea1"] / score["tools1"]

        fresh, older = preference(START), preference(START + 60 * DAY)
        assert fresh > older > 1.0
        # A half life of 30 days leaves 3/4 of a view after 60.
        assert older == pytest.approx((0.75 + 2.5) / 2.5, rel=1e-5)
        engine.ingest([signal(f"later {n}", at=START + 60 * DAY, product_id="tools2") for n in range(3)])
        assert preference(START + 60 * DAY) < 1.0


def test_affinity_is_silent_without_the_consent_to_personalise(tmp_path: Path) -> None:
    with open_shop(tmp_path, EVIDENCE) as engine:
        engine.put_items(SHELF)
        view(engine, *["tea1"] * 3)
        assert engine.decide(placement="home", identifiers=WHO).tier is Tier.PERSON
        engine.set_consent(WHO, parse_choice("denied:behavioural"))
        decision = engine.decide(placement="home", identifiers=WHO)
        assert decision.tier is Tier.CATALOGUE
        assert decision.masked_count == 2
        assert len(set(scores(decision).values())) == 1

"""Candidates: each retriever brings its quota and no more, and a placement's fallback fills what they leave empty."""

from __future__ import annotations

from pathlib import Path

from tailorbird.engine import Engine
from tailorbird.engine.requests import Tier
from tailorbird.engine.training import read_interactions
from tests.engine.shops import START, buy, ids, items, open_shop, signal, view

WHO = {"anonymous_id": "v1"}
CONFIGURATION = """\
version: 1
limits: {map_bytes: 67108864}
statistics: {levels: [[country]], half_life: 1000d}
features:
  - {name: seen, signal: product_viewed, aggregate: "last_k(product_id, k=8)"}
  - {name: liked, signal: product_viewed, aggregate: "decayed_top_k(category, k=4, half_life=30d)"}
placements:
  - name: home
    retrieve: RETRIEVE
    exclude: {bought: 365d}
    rank: {recent: [seen], affinity: {category: liked}}
    record_served: false
    fallback: FALLBACK
"""


def open_with(tmp_path: Path, fallback: str = "[]", **quotas: int) -> Engine:
    """Open a shop whose retrievers bring what `quotas` say and, of those not named, nothing."""
    quota = {"cooccurrence": 0, "popular": 0, "affinity": 0, "new": 0, **quotas}
    retrieve = ", ".join(f"{name}: {count}" for name, count in quota.items())
    text = CONFIGURATION.replace("RETRIEVE", f"{{{retrieve}}}").replace("FALLBACK", fallback)
    return open_shop(tmp_path, text)


def test_the_newest_items_are_brought_up_to_their_quota(tmp_path: Path) -> None:
    with open_with(tmp_path, new=2) as engine:
        engine.put_items(items("first", "second", "third", "fourth"))
        decision = engine.decide(placement="home")
        assert sorted(ids(decision)) == ["fourth", "third"]
        assert decision.candidate_count == 2
        engine.put_items(items("fifth"))
        assert sorted(ids(engine.decide(placement="home"))) == ["fifth", "fourth"]


def test_the_most_bought_are_brought_up_to_their_quota_over_all_and_of_each_context(tmp_path: Path) -> None:
    with open_with(tmp_path, popular=2) as engine:
        engine.put_items(items("a", "b", "c", "d", "e"))
        for product, count in {"a": 5, "b": 4, "c": 3}.items():
            for n in range(count):
                buy(engine, f"{product}{n}", product)
        buy(engine, "french", "d", country="France")
        assert ids(engine.decide(placement="home")) == ["a", "b"]
        assert ids(engine.decide(placement="home", context={"country": "Spain"})) == ["a", "b"]
        french = engine.decide(placement="home", context={"country": "France"})
        assert sorted(ids(french)) == ["a", "b", "d"]
        assert french.candidate_count == 3


def test_in_a_small_shop_what_becomes_popular_is_brought_at_once(tmp_path: Path) -> None:
    with open_with(tmp_path, popular=1) as engine:
        engine.put_items(items("a", "b", "c"))
        buy(engine, "a0", "a")
        assert ids(engine.decide(placement="home")) == ["a"]
        for n in range(2):
            buy(engine, f"b{n}", "b")
        assert ids(engine.decide(placement="home")) == ["b"]


def test_what_is_bought_with_recent_items_is_brought_up_to_its_quota(tmp_path: Path) -> None:
    with open_with(tmp_path, cooccurrence=2) as engine:
        engine.put_items(items("tea", "pot", "cup", "spoon", "nail", "hammer"))
        for n in range(20):
            buy(engine, f"pot {n}", "tea", "pot", *(["cup"] if n < 15 else []), *(["spoon"] if n < 5 else []))
            buy(engine, f"nail {n}", "nail", "hammer")
        engine.train_cooccurrence()
        assert ids(engine.decide(placement="home", identifiers=WHO)) == []
        view(engine, "tea")
        assert sorted(ids(engine.decide(placement="home", identifiers=WHO))) == ["cup", "pot"]


def test_the_best_of_a_liked_value_are_brought_up_to_the_quota(tmp_path: Path) -> None:
    with open_with(tmp_path, affinity=2) as engine:
        engine.put_items(items("tea1", "tea2", "tea3", attributes={"category": "tea"}))
        engine.put_items(items("nail", attributes={"category": "tools"}))
        buy(engine, "someone", "tea3")
        assert ids(engine.decide(placement="home", identifiers=WHO)) == []
        view(engine, "tea1")
        assert ids(engine.decide(placement="home", identifiers=WHO)) == ["tea3", "tea1"]


def test_quotas_add_up_and_an_item_found_twice_counts_once(tmp_path: Path) -> None:
    with open_with(tmp_path, popular=2, new=2) as engine:
        engine.put_items(items("a", "b", "c", "d"))
        for n, product in enumerate(["a", "a", "a", "d", "d", "b"]):
            buy(engine, f"v{n}", product)
        decision = engine.decide(placement="home", identifiers={"anonymous_id": "stranger"})
        assert ids(decision) == ["a", "d", "c"]
        assert decision.candidate_count == 3


def test_candidates_of_the_question_take_the_place_of_every_retriever(tmp_path: Path) -> None:
    with open_with(tmp_path, "[d]", new=1) as engine:
        engine.put_items(items("a", "b", "c", "d"))
        assert ids(engine.decide(placement="home", candidates=("b", "a"))) == ["a", "b"]


# ---- the last tiers --------------------------------------------------------------------------------------------------


def test_the_fallback_fills_what_the_retrievers_leave_empty_and_stands_behind_them(tmp_path: Path) -> None:
    with open_with(tmp_path, "[c, a, gone, unheard_of]", new=2) as engine:
        engine.put_items([*items("a", "b", "c"), *items("gone", stock=0), *items("y", "z")])
        assert ids(engine.decide(placement="home")) == ["y", "z", "a", "c"]
        assert ids(engine.decide(placement="home", k=3)) == ["y", "z", "a"]
        assert ids(engine.decide(placement="home", k=2)) == ["y", "z"]
        for n in range(3):
            buy(engine, f"c {n}", "c")
        assert ids(engine.decide(placement="home")) == ["y", "z", "c", "a"]


def test_the_fallback_repeats_nothing_and_offers_nothing_bought(tmp_path: Path) -> None:
    with open_with(tmp_path, "[a, b, z]", new=1) as engine:
        engine.put_items(items("a", "b", "z"))
        assert ids(engine.decide(placement="home")) == ["z", "a", "b"]
        buy(engine, "v1", "a", "z")
        assert ids(engine.decide(placement="home", identifiers=WHO)) == ["b"]


def test_without_any_evidence_items_stand_by_their_id_and_the_tier_says_so(tmp_path: Path) -> None:
    with open_with(tmp_path, new=3) as engine:
        engine.put_items(items("old", "c", "b", "a"))
        decision = engine.decide(
            placement="home", identifiers={"anonymous_id": "stranger"}, context={"country": "France"}
        )
        assert ids(decision) == ["a", "b", "c"]
        assert decision.tier is Tier.CATALOGUE
        assert decision.degraded == ("NO_PROFILE",)


def test_nothing_eligible_is_an_empty_answer_that_says_so(tmp_path: Path) -> None:
    with open_with(tmp_path, "[a]", new=5) as engine:
        engine.put_items([*items("a", "b", stock=0), *items("past", end=START)])
        decision = engine.decide(placement="home")
        assert (decision.items, decision.tier) == ((), Tier.EMPTY)
        assert decision.degraded == ("NOTHING_ELIGIBLE",)
        event = signal("now", product_id="a")
        assert engine.decide(placement="home", events=(event,)).items == ()


# ---- the model behind them -------------------------------------------------------------------------------------------


def test_the_same_log_trains_the_same_model_in_any_directory(tmp_path: Path) -> None:
    models, groups = [], []
    for name in ("one", "other"):
        with open_with(tmp_path / name, cooccurrence=2) as engine:
            engine.put_items(items(*"abcdefgh"))
            for n in range(120):
                buy(
                    engine,
                    f"v{n % 40}",
                    *(chr(ord("a") + (n * step) % 8) for step in (1, 3, 5)),
                    at=START + n * 3_600_000,
                )
            models.append((engine.directory.models / engine.train_cooccurrence()["file"]).read_bytes())
            with engine._store.reading() as txn:
                groups.append(read_interactions(engine._log, engine._store, txn)[0].groups.tolist())
    assert models[0] == models[1]
    assert groups[0] == groups[1]

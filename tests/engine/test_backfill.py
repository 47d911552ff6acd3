"""A feature declared late, backfilled while events flow, equals the one that was there from the start."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tailorbird.engine import Engine, Item, Signal
from tailorbird.engine.backfill import BackfillProgress
from tailorbird.engine.errors import ConfigurationError, PreconditionFailed
from tailorbird.engine.facts import FactKind, decode_fact
from tailorbird.engine.log import LocalLog
from tailorbird.engine.profile import FeatureStatus
from tests.engine.shops import DAY, START, assert_replays_to_the_same, feature, open_shop, signal

NAMES = [
    "visits",
    "spent",
    "spent_week",
    "categories",
    "brands",
    "favourite",
    "latest",
    "middle",
    "recent",
    "per_visit",
]
BASE = """\
version: 1
attributes: [category, brand]
limits: {map_bytes: 268435456}
features:
  - {name: pages, signal: page_viewed, aggregate: count}
"""
ADDED = """\
  - {name: visits, signal: [product_viewed, page_viewed], aggregate: count}
  - {name: spent, signal: [order_completed, order_refunded], aggregate: sum(revenue)}
  - {name: spent_week, signal: order_completed, aggregate: sum(revenue), window: 7d}
  - {name: categories, signal: product_viewed, aggregate: distinct(category)}
  - {name: brands, signal: product_viewed, aggregate: distinct(brand), window: 20d}
  - {name: favourite, signal: product_viewed, aggregate: "decayed_top_k(category, k=4, half_life=7d)"}
  - {name: latest, signal: product_viewed, aggregate: last(category)}
  - {name: middle, signal: order_completed, aggregate: quantile(revenue)}
  - {name: recent, signal: product_viewed, aggregate: "last_k(product_id, k=5)"}
  - {name: per_visit, formula: spent / visits}
"""
CATEGORIES = ("cups", "plates", "bowls", "glasses")


def events(seed: int, first: int, last: int) -> list[Signal]:
    """Return a part of a stream of five people on devices and logins, some of it late."""
    rng = random.Random(seed)
    found = []
    for number in range(last):
        person = rng.randrange(5)
        who = {"anonymous_id": f"d{person}{rng.randrange(3)}"}
        if rng.random() < 0.2:
            who["user_id"] = f"user{person}"
        at = START + number * 3_600_000 - rng.choice((0, 0, 0, 5 * DAY))
        kind = rng.choice(("product_viewed", "page_viewed", "order_completed", "order_refunded"))
        properties: dict[str, Any] = {}
        if kind == "product_viewed":
            properties = {"product_id": f"p{rng.randrange(8)}"}
        elif kind != "page_viewed":
            properties = {
                "revenue": rng.randrange(1, 9_000) / 100,
                "products": [{"product_id": f"p{rng.randrange(8)}"}],
            }
        found.append(signal(f"m{number}", kind, at, who=who, **properties))
    return found[first:]


def catalogue(shift: int = 0) -> list[Item]:
    return [
        Item(id=f"p{n}", attributes={"category": CATEGORIES[(n + shift) % 4], "brand": f"brand{n % 3}"})
        for n in range(8)
    ]


def ingest(engine: Engine, signals: Sequence[Signal]) -> None:
    assert all(outcome.status == "applied" for outcome in engine.ingest(signals).outcomes)


def history(engine: Engine, seed: int) -> None:
    """Play the first half of every shop: events before and after the catalogue changed."""
    engine.put_items(catalogue())
    ingest(engine, events(seed, 0, 150))
    engine.put_items(catalogue(shift=1))
    ingest(engine, events(seed, 150, 300))


def with_the_key_of(engine: Engine, path: Path) -> Path:
    """Return the path, where a shop will hash with the same key: ties between events fall alike."""
    key = path / "shop" / "keys" / "identity"
    key.parent.mkdir(parents=True)
    key.write_bytes(engine.directory.read_identity_key())
    return path


def same(one: Engine, other: Engine, at: int) -> None:
    """Check that both shops say the same of everybody in every feature."""
    devices = [f"d{person}{device}" for person in range(5) for device in range(3)]
    tables = [engine.get_features("anonymous_id", devices, NAMES, at=at) for engine in (one, other)]
    np.testing.assert_array_equal(tables[0].statuses, tables[1].statuses)
    np.testing.assert_array_equal(tables[0].ages_ms, tables[1].ages_ms)
    np.testing.assert_array_equal(tables[0].values, tables[1].values)
    assert tables[0].texts == tables[1].texts
    assert tables[0].weighted == tables[1].weighted
    assert (tables[0].statuses == FeatureStatus.FRESH).any(axis=0).all(), "a feature nobody has shows nothing"


@pytest.mark.parametrize("seed", range(3))
def test_a_backfilled_feature_equals_the_one_that_was_there_from_the_start(tmp_path: Path, seed: int) -> None:
    at = START + 400 * 3_600_000
    with open_shop(tmp_path / "early", BASE + ADDED) as early:
        history(early, seed)
        ingest(early, events(seed, 300, 400))
        with open_shop(with_the_key_of(early, tmp_path / "late"), BASE) as late:
            history(late, seed)
        with open_shop(tmp_path / "late", BASE + ADDED) as late:
            ingest(late, events(seed, 300, 360))  # counted beside what is missing
            found = late.get_features("anonymous_id", ["d00"], ["visits", "spent_week", "pages", "per_visit"], at=at)
            warming, fresh = FeatureStatus.WARMING, FeatureStatus.FRESH
            assert found.statuses.tolist() == [[warming, warming, fresh, warming]]
            told: list[BackfillProgress] = []
            assert set(late.backfill(told.append)) == set(NAMES) - {"per_visit"}
            assert told[-1].read == told[-1].end - 1
            assert told[-1].written == told[-1].found > 0
            ingest(late, events(seed, 360, 400))
            same(early, late, at)
            assert late.backfill() == ()
    assert_replays_to_the_same(tmp_path / "late")


def test_events_that_come_during_a_backfill_are_counted_once(tmp_path: Path) -> None:
    with open_shop(tmp_path, BASE) as engine:
        ingest(
            engine,
            [signal(f"a{n}", "page_viewed", START + n, who={"anonymous_id": f"v{n % 700}"}) for n in range(1_000)],
        )
    with open_shop(tmp_path, BASE + "  - {name: visits, signal: page_viewed, aggregate: count}\n") as engine:
        sent = 0

        def more(_: BackfillProgress) -> None:
            nonlocal sent
            sent += 1
            ingest(engine, [signal(f"b{sent}", "page_viewed", START + sent, who={"anonymous_id": f"v{sent}"})])

        sender_done = threading.Event()

        def send() -> None:
            for n in range(300):
                ingest(engine, [signal(f"c{n}", "page_viewed", START + n, who={"anonymous_id": f"v{n}"})])
            sender_done.set()

        thread = threading.Thread(target=send)
        thread.start()
        engine.backfill(more)
        assert sender_done.wait(60)
        thread.join()
        everybody = [f"v{n}" for n in range(700)]
        found = engine.get_features("anonymous_id", everybody, ["pages", "visits"], at=START + DAY)
        np.testing.assert_array_equal(found.column("visits"), found.column("pages"))
        assert found.column("visits").sum() == 1_300 + sent
        assert sent > 2
    assert_replays_to_the_same(tmp_path)


def test_an_interrupted_backfill_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailorbird.engine.backfill.READ_AT_ONCE", 20)
    monkeypatch.setattr("tailorbird.engine.backfill.CHECKPOINT_SECONDS", 0.0)
    with open_shop(tmp_path / "early", BASE + ADDED) as early:
        history(early, 7)
        with open_shop(with_the_key_of(early, tmp_path / "late"), BASE) as late:
            history(late, 7)

        class Killed(BaseException):
            pass

        def kill_at(read: int) -> Any:
            def stop(progress: BackfillProgress) -> None:
                if progress.read >= read:
                    raise Killed

            return stop

        with open_shop(tmp_path / "late", BASE + ADDED) as late, pytest.raises(Killed):
            late.backfill(kill_at(120))
        with open_shop(tmp_path / "late", BASE + ADDED) as late:
            assert feature(late, "visits", visitor="d00").status is FeatureStatus.WARMING
            told: list[BackfillProgress] = []
            late.backfill(told.append)
            assert told[0].read > 100, "it began anew"
            same(early, late, START + 400 * 3_600_000)
            assert not late.directory.backfill.exists()


@pytest.mark.parametrize("damage", [b"", b"x" * 40, b"\x00" * 8])
def test_a_damaged_checkpoint_only_costs_time(tmp_path: Path, damage: bytes) -> None:
    with open_shop(tmp_path, BASE) as engine:
        ingest(engine, [signal("a", "page_viewed")])
    with open_shop(tmp_path, BASE + "  - {name: visits, signal: page_viewed, aggregate: count}\n") as engine:
        engine.directory.backfill.write_bytes(damage)
        engine.backfill()
        assert feature(engine, "visits").value == 1.0


def test_another_configuration_ends_a_backfill(tmp_path: Path) -> None:
    late = BASE + "  - {name: visits, signal: page_viewed, aggregate: count}\n"
    with open_shop(tmp_path, BASE) as engine:
        ingest(engine, [signal("a", "page_viewed")])
        engine.configure(late)

        def change(_: BackfillProgress) -> None:
            engine.configure(late + "freshness: {behavioural: 1m}\n")

        with pytest.raises(PreconditionFailed) as caught:
            engine.backfill(change)
        assert caught.value.reason == "CONFIGURATION_CHANGED"
        assert feature(engine, "visits").status is FeatureStatus.WARMING
        engine.backfill()
        assert feature(engine, "visits").value == 1.0


def test_a_feature_declared_while_a_backfill_ends_is_not_ended_with_it(tmp_path: Path) -> None:
    late = BASE + "  - {name: visits, signal: page_viewed, aggregate: count}\n"
    newer = BASE + "  - {name: visits, version: 2, signal: product_viewed, aggregate: count}\n"
    with open_shop(tmp_path, BASE) as engine:
        ingest(engine, [signal("a", "page_viewed"), signal("b", "product_viewed")])
        engine.configure(late)

        def change(progress: BackfillProgress) -> None:
            if progress.written == progress.found > 0:  # all chunks are written, the end is not
                engine.configure(newer)

        with pytest.raises(PreconditionFailed, match="CONFIGURATION_CHANGED"):
            engine.backfill(change)
        assert feature(engine, "visits").status is FeatureStatus.WARMING
        engine.backfill()
        assert feature(engine, "visits").value == 1.0
    assert_replays_to_the_same(tmp_path)


def test_each_text_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailorbird.engine.backfill.CHUNK_PEOPLE", 1)
    monkeypatch.setattr("tailorbird.engine.backfill.CHUNK_TEXTS", 2)
    with open_shop(tmp_path, BASE) as engine:
        engine.put_items(catalogue())
        ingest(engine, events(11, 0, 60))
        engine.configure(BASE + "  - {name: latest, signal: product_viewed, aggregate: last(category)}\n")
        arrived = iter(["saucers", "trays", "jugs"])

        def meanwhile(progress: BackfillProgress) -> None:
            if progress.written and (category := next(arrived, "")):
                ingest(engine, [signal(category, "product_viewed", category=category)])

        before = engine.flush()
        engine.backfill(meanwhile)
        facts = [
            decode_fact(record.kind, record.payload)
            for record in LocalLog.open(engine.directory.log, read_only=True).read(before, engine.position - before)
            if record.kind == FactKind.BACKFILL
        ]
    texts = [text for fact in facts for text in fact.texts]
    assert len(texts) == len(set(texts))
    assert {*CATEGORIES, "saucers", "trays"} <= set(texts)


def test_one_backfill_at_a_time(tmp_path: Path) -> None:
    with open_shop(tmp_path, BASE) as engine:
        ingest(engine, [signal("a", "page_viewed")])
        engine.configure(BASE + "  - {name: visits, signal: page_viewed, aggregate: count}\n")

        def again(_: BackfillProgress) -> None:
            with pytest.raises(PreconditionFailed, match="BACKFILL_RUNNING"):
                engine.backfill()

        engine.backfill(again)


def test_a_definition_never_changes_under_its_version(tmp_path: Path) -> None:
    first = BASE + "  - {name: visits, signal: page_viewed, aggregate: count}\n"
    other = first.replace("signal: page_viewed, aggregate: count}\n", "signal: product_viewed, aggregate: count}\n")
    with open_shop(tmp_path, BASE) as engine:
        engine.configure(other)  # nothing happened yet: it may still be anything
        engine.configure(first)
        ingest(engine, [signal("a", "page_viewed")])
        with pytest.raises(ConfigurationError) as caught:
            engine.configure(other.replace("name: pages, signal: product_viewed", "name: pages, signal: page_viewed"))
        assert (caught.value.reason, "'visits' version 1" in caught.value.message) == ("FEATURE_CHANGED", True)
        assert feature(engine, "visits").value == 1.0
        second = first.replace("name: visits, signal: page_viewed", "name: visits, version: 2, signal: product_viewed")
        engine.configure(second)
        assert feature(engine, "visits").status is FeatureStatus.WARMING
        ingest(engine, [msgspec.structs.replace(signal("b"), properties={"product_id": "mug"})])
        engine.backfill()
        assert feature(engine, "visits").value == 1.0
    assert_replays_to_the_same(tmp_path)

"""Segments: membership is a feature, and who comes and goes is told once, whatever the groups facts are written in."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tailorbird.engine import Engine
from tailorbird.engine.compiled import compile_configuration
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.errors import ConfigurationError
from tailorbird.engine.formulas import parse_formula
from tests.engine.shops import DAY, START, Clock, assert_replays_to_the_same, open_shop, signal

SHOP = """\
version: 1
limits: {map_bytes: 134217728}
features:
  - {name: pages, signal: page_viewed, aggregate: count}
  - {name: orders, signal: order_completed, aggregate: count, default: 0}
  - {name: week, signal: page_viewed, aggregate: count, window: 7d, store: lists}
  - {name: browser, formula: pages >= 3 and orders == 0, segment: true}
  - {name: buyer, formula: orders > 0, segment: true}
  - {name: keen, formula: "week >= 5 or not (pages < 8)", segment: true}
"""


def view(number: int, who: str = "v1", at: int = START) -> object:
    return signal(f"p{number} {who}", "page_viewed", at, who={"anonymous_id": who})


def changes(engine: Engine, first: int = 0) -> list[tuple[str, bool]]:
    engine.tick()
    return [(change.segment, change.entered) for change in engine.segment_changes(first)]


def belongs(engine: Engine, who: str = "v1", at: int = START) -> list[float]:
    return engine.get_features("anonymous_id", [who], ["browser", "buyer", "keen"], at=at).values[0].tolist()


def test_who_comes_and_goes_is_told_once(tmp_path: Path) -> None:
    with open_shop(tmp_path, SHOP) as engine:
        engine.ingest([view(n) for n in range(2)])
        assert (belongs(engine), changes(engine)) == ([0.0, 0.0, 0.0], [])
        engine.ingest([view(2)])
        assert (belongs(engine), changes(engine)) == ([1.0, 0.0, 0.0], [("browser", True)])
        assert changes(engine, 1) == []
        engine.ingest([signal("o", "order_completed", products=[]), view(3), view(4)])
        assert belongs(engine) == [0.0, 1.0, 1.0]
        assert changes(engine, 1) == [("browser", False), ("buyer", True), ("keen", True)]
        first, *_, last = engine.segment_changes()
        assert (first.sequence, last.sequence, last.at) == (0, 3, START)
        assert first.person_id == engine.profile({"anonymous_id": "v1"}).person_id
        assert belongs(engine, "nobody") == [0.0, 0.0, 0.0]
    assert_replays_to_the_same(tmp_path)


def test_two_who_are_found_to_be_one_belong_as_one(tmp_path: Path) -> None:
    with open_shop(tmp_path, SHOP) as engine:
        engine.ingest([*(view(n) for n in range(3)), *(view(n, "v2") for n in range(3))])
        assert changes(engine) == [("browser", True)] * 2
        engine.link(("anonymous_id", "v1"), ("user_id", "u"))
        engine.link(("anonymous_id", "v2"), ("user_id", "u"))
        found = changes(engine, 2)
        assert ("keen", True) in found
        assert belongs(engine) == [1.0, 0.0, 1.0]
        engine.split(("anonymous_id", "v1"), ("user_id", "u"))
        changes(engine)
        assert belongs(engine) == belongs(engine, "v2") == [1.0, 0.0, 0.0]
    assert_replays_to_the_same(tmp_path)


def test_withdrawn_consent_ends_a_membership(tmp_path: Path) -> None:
    with open_shop(tmp_path, SHOP) as engine:
        engine.ingest([view(n) for n in range(3)])
        changes(engine)
        engine.set_consent({"anonymous_id": "v1"}, parse_choice("denied:behavioural"))
        assert changes(engine, 1) == [("browser", False)]
    assert_replays_to_the_same(tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_changes_follow_what_the_features_say_and_replay_alike(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    with open_shop(tmp_path, SHOP, clock=Clock(START + 60 * DAY)) as engine:
        standing: dict[str, set[str]] = {}
        seen = 0
        for step in range(30):
            batch = []
            for n in range(rng.randrange(1, 6)):
                who = f"v{rng.randrange(4)}"
                kind = "order_completed" if rng.random() < 0.2 else "page_viewed"
                batch.append(signal(f"{step}.{n}", kind, START + step * DAY, who={"anonymous_id": who}, products=[]))
            engine.ingest(batch)
            if rng.random() < 0.5:
                continue
            engine.tick()
            for change in engine.segment_changes(seen):
                assert change.sequence == seen
                seen += 1
                members = standing.setdefault(change.person_id, set())
                assert (change.segment in members) is not change.entered, "told twice"
                members ^= {change.segment}
        engine.ingest([view(n, f"v{n}", START + 40 * DAY) for n in range(4)])
        engine.tick()
        for change in engine.segment_changes(seen):
            standing.setdefault(change.person_id, set()).symmetric_difference_update({change.segment})
        names = ["browser", "buyer", "keen"]
        for n in range(4):
            person = engine.profile({"anonymous_id": f"v{n}"}).person_id
            held = {
                name for name, value in zip(names, belongs(engine, f"v{n}", START + 40 * DAY), strict=True) if value
            }
            assert standing.get(person, set()) == held
    assert_replays_to_the_same(tmp_path)


@pytest.mark.parametrize(
    ("declaration", "reason"),
    [
        ("{name: a, signal: page_viewed, aggregate: count, segment: true}", "BAD_SEGMENT"),
        ("{name: a, formula: pages > 1, segment: true, default: 0.5}", "BAD_SEGMENT"),
        ("{name: a, learned_from: [pages], segment: true}", "BAD_SEGMENT"),
        ("{name: a, formula: s > 0.5, segment: true}\n  - {name: s, learned_from: [pages]}", "BAD_SEGMENT"),
        ("{name: a, formula: pages > > 1}", "BAD_FORMULA"),
        ("{name: a, formula: pages and}", "BAD_FORMULA"),
        ("{name: a, formula: 1 < pages < 3}", "BAD_FORMULA"),
    ],
)
def test_a_segment_that_cannot_be_is_refused(declaration: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compile_configuration(f"{SHOP}  - {declaration}\n", 1, 1)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a > 1", [0.0, 1.0, np.nan]),
        ("not a > 1", [1.0, 0.0, np.nan]),
        ("a == 1 or b == 5", [1.0, 1.0, np.nan]),
        ("a >= 1 and b != 5 and 1", [1.0, 0.0, np.nan]),
        ("(a > 1) * 10 + min(b, 3 > 2)", [1.0, 11.0, np.nan]),
        ("not not a", [1.0, 1.0, np.nan]),
        ("-a < -1", [0.0, 1.0, np.nan]),
    ],
)
def test_truths_are_numbers_and_of_what_is_missing_there_is_none(text: str, expected: list[float]) -> None:
    columns = {"a": np.array([1.0, 2.0, np.nan]), "b": np.array([4.0, 5.0, 6.0])}
    np.testing.assert_array_equal(parse_formula(text, "test").values(columns), expected)

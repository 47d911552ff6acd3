"""A logged day of the generated shop, decided again from the fact log alone: the same to the bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tailorbird.bench.ingest import preset
from tailorbird.bench.world import CONSENT, World, WorldSettings
from tailorbird.engine import DecideRequest, Engine
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.decision_log import list_segments, read_all, read_segment
from tailorbird.engine.decision_record import Stored
from tailorbird.engine.decision_replay import Passed, Replayed, replay_decisions
from tailorbird.engine.requests import PagePart, PageRequest
from tailorbird.engine.signals import Signal

from tests.engine.worlds import Clock

SIGNALS, GROUP = 6_000, 100
SEED = 20_261_125
SETTINGS = WorldSettings(seed=SEED, people=150, items=400, refusing_share=0.1)
# Few candidates each, so that orders derived from the counts decide who is one; half of the given candidates are kept.
SHOP = preset("shop").replace("version: 1\n", "version: 1\ndecision_log: {candidates_sampled: 0.5}\n", 1)
RETRIEVED = """
  - name: shelf
    k: 5
    retrieve: {cooccurrence: 20, popular: 30, affinity: 20, new: 5}
    rank: {recent: [recently_viewed], affinity: {category: category_affinity}}
    exclude: {bought: 365d, served: 30m}
"""


class Day:
    """A shop's day: signals as they come, and decisions of every sort between them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.world = World(SETTINGS)
        self.items = [item.id for item in self.world.items()]
        self.clock = Clock(SETTINGS.start)
        self.rng = random.Random(SEED)
        self.answers: dict[str, bytes] = {}

    def run(self, configuration: str) -> None:
        """Ingest and decide, with a restart of the engine in the middle."""
        signals = self.world.signals(SIGNALS)
        with Engine.open(self.path, configuration, clock=self.clock) as engine:
            engine.put_items(list(self.world.items()))
            engine.log_decisions()
            self._half(engine, islice(signals, SIGNALS // 2))
            engine.train_cooccurrence()
            engine.snapshot()
        with Engine.open(self.path, clock=self.clock) as engine:
            engine.log_decisions()
            self._half(engine, signals)

    def _half(self, engine: Engine, signals: Iterator[Signal]) -> None:
        while group := list(islice(signals, GROUP)):
            self.clock.now = max(self.clock.now, *(signal.event_time for signal in group))
            engine.ingest(group)
            if self.rng.random() < 0.4:
                engine.tick()
            for _ in range(12):
                self._decide(engine)
            if self.rng.random() < 0.3:
                self._change(engine)

    def _decide(self, engine: Engine) -> None:
        rng = self.rng
        person = rng.randrange(SETTINGS.people)
        who = rng.choice([self.world.identifiers(person), {}, {"anonymous_id": "new-here"}, {"email": "no address"}])
        context = {"country": self.world.country(person), "device": rng.choice(["mobile", "desktop"])}
        request: dict[str, Any] = {"placement": rng.choice(["home", "shelf"]), "identifiers": who, "context": context}
        if rng.random() < 0.3:
            request["candidates"] = [*rng.sample(self.items, 40), "unknown-item"]
        if rng.random() < 0.2:
            viewed = {"product_id": rng.choice(self.items)}
            request["events"] = (
                Signal(
                    type="product_viewed",
                    event_time=self.clock.now,
                    identifiers=who,
                    properties=viewed,
                    consent=CONSENT,
                ),
            )
        if rng.random() < 0.2:
            parts = (PagePart(placement="shelf", k=3), PagePart(placement="home"))
            decisions = engine.decide_page(PageRequest(parts=parts, identifiers=who, context=context))
        elif rng.random() < 0.2:
            found = list(engine.decide_each([DecideRequest(**request), DecideRequest(placement="shelf")]))
            decisions = [decision for decision in found if not isinstance(decision, Exception)]
        else:
            decisions = [engine.decide(**request, request_id=f"r{len(self.answers)}" if rng.random() < 0.2 else "")]
        for decision in decisions:
            self.answers[decision.decision_id] = msgspec.msgpack.encode(decision)

    def _change(self, engine: Engine) -> None:
        """Change what is for sale, or what somebody lets be done."""
        item = self.rng.choice(list(self.world.items()))
        engine.put_items([msgspec.structs.replace(item, stock=self.rng.choice([0, 5]))])
        person = self.world.identifiers(self.rng.randrange(SETTINGS.people))
        if person:
            engine.set_consent(person, parse_choice(self.rng.choice(["denied:all", "granted:all"])))


def with_shelf(text: str) -> str:
    return text.replace("placements:\n", "placements:" + RETRIEVED, 1)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    day = Day(tmp_path_factory.mktemp("day") / "shop")
    day.run(with_shelf(SHOP))
    return day


def outcomes(day: Day, wanted: list[Stored]) -> list[Replayed]:
    return list(replay_decisions(day.path, wanted))


def test_a_logged_day_replays_to_identical_decisions(day: Day) -> None:
    stored = list(read_all(day.path / "decisions"))
    assert len(stored) == len(day.answers) > 600
    replayed = outcomes(day, stored)
    assert len(replayed) == len(stored)
    differing = [(each.stored.place, each.difference) for each in replayed if each.difference]
    assert not differing, f"seed {SEED}: {len(differing)} of {len(stored)}, first {differing[:3]}"
    passed = {each.passed for each in replayed if each.passed is not None}
    assert passed == {Passed.WITHHELD}
    assert sum(each.passed is None for each in replayed) > 500
    assert 0 < sum(not each.whole for each in replayed) < 200

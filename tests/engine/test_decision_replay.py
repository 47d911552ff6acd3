"""A logged day of the generated shop, decided again from the fact log alone: the same to the bit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyarrow import parquet

from tailorbird.bench.ingest import preset
from tailorbird.bench.world import CONSENT, World, WorldSettings
from tailorbird.engine import DecideRequest, Decision, Engine
from tailorbird.engine.caps import CapCount
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.decision_id import DecisionIds
from tailorbird.engine.decision_log import read_all
from tailorbird.engine.decision_record import LoggedDecision, Stored
from tailorbird.engine.decision_replay import Passed, Replayed, replay_decisions
from tailorbird.engine.decision_table import export_parquet
from tailorbird.engine.directory import Directory
from tailorbird.engine.errors import PreconditionFailed
from tailorbird.engine.identifiers import IdentifierHasher
from tailorbird.engine.log import LocalLog
from tailorbird.engine.requests import PagePart, PageRequest
from tailorbird.engine.signals import Signal
from tests.engine.worlds import Clock

REFUSING = {"user_id": "u-900002"}
SIGNALS, GROUP = 6_000, 100
# One person on two devices, asked about so often that caps are reached.
REGULAR = {"user_id": "u-900001"}, {"anonymous_id": "c-900001"}
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
  - name: capped
    k: 4
    retrieve: {cooccurrence: 20, popular: 30, affinity: 20, new: 5}
    exclude: {bought: 365d}
    caps: {served: {times: 3, window: 30d}, shown: {times: 2, window: 30d}}
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
            viewed = {"product_id": self.items[0]}
            for number, who in enumerate((*REGULAR, REGULAR[0] | REGULAR[1])):
                engine.ingest(
                    [
                        Signal(
                            type="product_viewed",
                            event_time=self.clock.now,
                            identifiers=who,
                            message_id=f"regular-{number}",
                            properties=viewed,
                            consent=CONSENT,
                        )
                    ]
                )
            engine.set_consent(REFUSING, parse_choice("denied:all"))
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
        who = rng.choice(
            [
                self.world.identifiers(person),
                {},
                {"anonymous_id": "new-here"},
                {"email": "no address"},
                *REGULAR,
                REFUSING,
            ]
        )
        context = {"country": self.world.country(person), "device": rng.choice(["mobile", "desktop"])}
        request: dict[str, Any] = {
            "placement": rng.choice(["home", "shelf", "capped"]),
            "identifiers": who,
            "context": context,
        }
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
            parts = (PagePart(placement="shelf", k=3), PagePart(placement="capped"), PagePart(placement="home"))
            decisions = engine.decide_page(PageRequest(parts=parts, identifiers=who, context=context))
        elif rng.random() < 0.2:
            batch = [DecideRequest(**request), DecideRequest(placement="shelf"), DecideRequest(**request)]
            decisions = []
            for decision in engine.decide_each(batch):
                assert isinstance(decision, Decision)
                decisions.append(decision)
                if rng.random() < 0.3:
                    engine.flush()
        else:
            decisions = [engine.decide(**request, request_id=f"r{len(self.answers)}" if rng.random() < 0.2 else "")]
        for number, decision in enumerate(decisions):
            if who and rng.random() < 0.3:
                self._show(engine, who, decision, f"{len(self.answers)}.{number}")
            self.answers[decision.decision_id] = msgspec.msgpack.encode(decision)

    def _show(self, engine: Engine, who: dict[str, str], decision: Decision, message_id: str) -> None:
        lines = [{"product_id": item.id} for item in decision.items]
        if lines:
            shown = Signal(
                type="items_shown",
                event_time=self.clock.now,
                identifiers=who,
                message_id=message_id,
                source="web",
                properties={"products": lines},
            )
            engine.ingest([shown])

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


def test_what_caps_kept_back_that_day_is_replayed_by_counting(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed without counting, the decisions that caps changed differ, and no others."""
    monkeypatch.setattr(CapCount, "exclude", lambda count, items: None)
    differing = [
        each.stored.logged() for each in outcomes(day, list(read_all(day.path / "decisions"))) if each.difference
    ]
    assert len(differing) > 20
    # What the capped placement of a page had is refused to those behind it, as logged.
    assert {logged.placement for logged in differing if logged is not None} == {"capped"}


def test_a_replay_goes_on_from_a_snapshot_where_the_log_has_lost_its_beginning(day: Day, tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shutil.copytree(day.path, shop)
    (position,) = [int(path.name) for path in (shop / "snapshots").iterdir()]
    stored = list(read_all(shop / "decisions"))
    later = [each for each in stored if each.position >= position]
    assert 100 < len(later) < len(stored)
    # The same from the snapshot as from the beginning, orders derived before it apart.
    assert [each.difference for each in replay_decisions(shop, later[-50:])] == [""] * 50
    shutil.rmtree(shop / "snapshots")
    (shop / "snapshots").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalLog, "start", property(lambda log: 1))
        assert {each.passed for each in replay_decisions(shop, later[-5:])} <= {Passed.NO_LOG, Passed.WITHHELD}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda logged: {"items": (msgspec.structs.replace(logged.items[0], score=0.5), *logged.items[1:])}, "items[0].score"),
        (lambda logged: {"items": (logged.items[1], logged.items[0], *logged.items[2:])}, "items[0].id"),
        (lambda logged: {"items": logged.items[:-1]}, "items: logged"),
        (lambda logged: {"items": (msgspec.structs.replace(logged.items[0], reasons=()), *logged.items[1:])}, "items[0].reasons"),
        (lambda logged: {"completeness": logged.completeness + 2**-50}, "completeness: logged"),
        (lambda logged: {"excluded_count": logged.excluded_count + 1}, "excluded_count: logged"),
        (lambda logged: {"recent": b"\0\0\0\0"}, "recent: logged"),
        (lambda logged: {"placement": "nowhere"}, "expected an answer, got UNKNOWN_PLACEMENT"),
    ],
)  # fmt: skip
def test_the_first_difference_is_told_to_the_bit(
    day: Day, change: Callable[[LoggedDecision], dict[str, object]], expected: str
) -> None:
    for stored in read_all(day.path / "decisions"):
        logged = stored.logged()
        if logged is not None and not logged.withheld and logged.person_id and not logged.given_count and logged.items:
            break
    assert logged is not None
    changed = msgspec.structs.replace(logged, **change(logged))
    (replayed,) = replay_decisions(day.path, [stored._replace(payload=msgspec.msgpack.encode(changed))])
    assert replayed.difference.startswith(expected)


def test_a_log_that_ends_before_the_decision_is_told(day: Day) -> None:
    stored = [each for each in read_all(day.path / "decisions") if (logged := each.logged()) and not logged.withheld]
    with pytest.raises(
        PreconditionFailed, match="STATE_AHEAD_OF_LOG: expected a log up to the decision's position 9999999"
    ):
        outcomes(day, [stored[-1]._replace(position=9_999_999)])


def test_a_day_is_exported_as_columns(day: Day, tmp_path: Path) -> None:
    directory = Directory(day.path)
    ids = DecisionIds(IdentifierHasher(directory.read_identity_key()))
    assert export_parquet(tmp_path / "day.parquet", read_all(directory.decisions), ids) == len(day.answers)
    table = parquet.read_table(tmp_path / "day.parquet").to_pylist()
    for row in table:
        answer = msgspec.msgpack.decode(day.answers[row["decision_id"]], type=Decision)
        assert row["items"] == [item.id for item in answer.items]
        assert row["scores"] == [item.score for item in answer.items]
        assert row["person_id"] == ("" if row["withheld"] else answer.person_id)

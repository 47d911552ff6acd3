"""What was served is kept by time, then in lists, and is nowhere served again; every replay comes to the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tailorbird.engine import Engine
from tailorbird.engine.facts import FactKind
from tailorbird.engine.replay import verify
from tailorbird.engine.store import scan
from tailorbird.v1 import decision_service_pb2 as api
from tailorbird.v1 import identity_pb2
from tests.engine.shops import DAY, START, Clock, ids, items, open_shop, signal

SERVED = """\
version: 1
jurisdiction: opt_out
limits: {map_bytes: 67108864}
placements:
  - {name: home, k: 2, retrieve: {whole_catalogue: true}, exclude: {served: 30m}}
  - {name: long, k: 2, retrieve: {whole_catalogue: true}, exclude: {served: 7d}}
"""
NAMES = [f"item-{n:02d}" for n in range(40)]


def served_rows(engine: Engine) -> int:
    with engine._store.reading() as txn:
        return sum(1 for _ in scan(txn, engine._store.tables["served"], b""))


def list_rows(engine: Engine) -> int:
    with engine._store.reading() as txn:
        return sum(1 for key, _ in scan(txn, engine._store.tables["people"], b"") if key[16] == 16 + 3)


@pytest.mark.parametrize("kept", [0, 150, 400, 1 << 20])
def test_nobody_gets_the_same_twice_wherever_servings_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr("tailorbird.engine.state.SERVED_BYTES_MAX", kept)
    monkeypatch.setattr("tailorbird.engine.state.SERVED_BYTES_FOLDED", kept // 2)
    rng = np.random.default_rng(11)
    clock = Clock()
    got: dict[str, list[str]] = {f"v{n}": [] for n in range(3)}
    engine = open_shop(tmp_path, SERVED, clock=clock)
    engine.put_items(items(*NAMES))
    engine.ingest([signal(who, who={"anonymous_id": who}) for who in got])
    for step in range(54):
        who = f"v{rng.integers(0, 3)}"
        if len(got[who]) < 36:
            got[who] += ids(engine.decide(placement="long", identifiers={"anonymous_id": who}))
        clock.now += 1_000
        if rng.random() < 0.3:
            engine.flush()
        if step % 20 == 19:
            engine.close()
            engine = open_shop(tmp_path, SERVED, clock=clock)
    assert all(len(set(found)) == len(found) > 20 for found in got.values())
    engine.flush()
    assert (served_rows(engine) > 0, list_rows(engine) > 0) == (kept > 0, kept < 1 << 20)
    engine.close()
    stored, replayed = verify(tmp_path / "shop")
    assert stored == replayed


def test_servings_are_forgotten_when_no_placement_looks_back_as_far(tmp_path: Path) -> None:
    clock = Clock()
    with open_shop(tmp_path, SERVED, clock=clock) as engine:
        engine.put_items(items(*NAMES))
        engine.ingest([signal("s1")])
        for day in range(12):
            clock.now = START + day * DAY
            engine.decide(placement="home", identifiers={"anonymous_id": "v1"})
            engine.flush()
        assert served_rows(engine) == 8
        assert list_rows(engine) == 0
        assert len(engine._evidence.served) <= 8
        engine.decide(placement="home", identifiers={"anonymous_id": "v1"})
        assert len(engine._evidence.served) == 8


def test_a_group_of_servings_is_one_fact(tmp_path: Path) -> None:
    with open_shop(tmp_path, SERVED) as engine:
        engine.put_items(items(*NAMES))
        engine.ingest([signal(f"s{n}", who={"anonymous_id": f"v{n}"}) for n in range(20)])
        before = engine.position
        for n in range(20):
            engine.decide(placement="home", identifiers={"anonymous_id": f"v{n}"})
        engine.flush()
        assert engine.position == before + 1
        assert [record.kind for record in engine._log.read(before)] == [FactKind.SERVINGS]


def test_an_engine_that_only_reads_keeps_no_servings(tmp_path: Path) -> None:
    with open_shop(tmp_path, SERVED) as engine:
        engine.put_items(items(*NAMES))
        engine.ingest([signal("s1", who={"anonymous_id": "v-77"})])
    request = api.DecideRequest(
        placement="home",
        identifiers=[identity_pb2.Identifier(namespace="anonymous_id", value="v-77")],
        candidate_ids=NAMES,
    ).SerializeToString()
    with open_shop(tmp_path, None, read_only=True) as engine:
        for _ in range(3):
            assert len(ids(engine.decide(placement="home", identifiers={"anonymous_id": "v-77"}))) == 2
            assert engine.decide_encoded(request) is not None
        assert engine.servings_waiting_count == 0


def test_what_a_person_without_events_was_served_follows_them(tmp_path: Path) -> None:
    """Whose fragment holds nothing yet, it holds the serving from then on: their next device must see it."""
    who, other = {"user_id": "u-1001"}, {"anonymous_id": "v-77"}
    with open_shop(tmp_path, SERVED) as engine:
        engine.put_items(items(*NAMES))
        engine.link(("user_id", "u-1001"), ("anonymous_id", "v-77"))
        got = ids(engine.decide(placement="home", identifiers=who))
        engine.flush()
        engine.ingest([signal("s1", who=other)])
        for identifiers in (other, who, who | other):
            got += ids(engine.decide(placement="home", identifiers=identifiers))
            engine.flush()
        assert len(got) == 8 == len(set(got))
    stored, replayed = verify(tmp_path / "shop")
    assert stored == replayed

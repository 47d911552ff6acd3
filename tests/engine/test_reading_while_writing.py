"""A decision never waits for a write, and nothing served meanwhile is lost or offered twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailorbird.engine import Engine
from tailorbird.engine.errors import Unavailable
from tests.engine.shops import EVERYTHING, ids, items, open_shop, signal

WHO = {"anonymous_id": "v1"}
WAIT_S = 30


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with open_shop(tmp_path) as opened:
        opened.put_items(items(*"abcdefghijkl"))
        opened.ingest([signal("s1", consent=EVERYTHING)])
        yield opened


class Held:
    """A writer whose next append waits, in a thread of its own, until it is let go."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
        self.reached, self.let_go = threading.Event(), threading.Event()
        append = engine.writer.append

        def held(*facts: object) -> int:
            monkeypatch.undo()
            self.reached.set()
            assert self.let_go.wait(WAIT_S)
            if fails:
                raise Unavailable("DISK_FULL", "as the test has it")
            return append(*facts)  # type: ignore[arg-type]

        monkeypatch.setattr(engine.writer, "append", held)
        self.errors: list[Exception] = []
        self.thread = threading.Thread(target=self._flush, args=(engine,))
        self.thread.start()
        assert self.reached.wait(WAIT_S)

    def _flush(self, engine: Engine) -> None:
        try:
            engine.flush()
        except Unavailable as error:
            self.errors.append(error)

    def end(self) -> None:
        self.let_go.set()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


def test_decisions_and_profiles_are_read_while_a_write_is_under_way(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.decide(placement="home", identifiers=WHO)
    held = Held(engine, monkeypatch)
    assert engine.decide(placement="home").items
    assert engine.profile(WHO).member_count == 1
    held.end()


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_served_twice_before_while_and_after_it_is_written(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    served = ids(engine.decide(placement="home", identifiers=WHO))
    held = Held(engine, monkeypatch, fails=fails)
    served += ids(engine.decide(placement="home", identifiers=WHO))
    held.end()
    assert [error.reason for error in held.errors] == (["DISK_FULL"] if fails else [])  # type: ignore[attr-defined]
    served += ids(engine.decide(placement="home", identifiers=WHO))
    engine.flush()
    served += ids(engine.decide(placement="home", identifiers=WHO))
    assert len(served) == len(set(served)) == 12
    assert not engine.decide(placement="home", identifiers=WHO).items
    assert engine.servings_dropped_count == 0


def test_servings_wait_where_a_writer_is_at_work_and_only_then_are_forgotten(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.decide(placement="home", identifiers=WHO, k=1)
    held = Held(engine, monkeypatch)
    monkeypatch.setattr("tailorbird.engine.engine.SERVINGS_QUEUED_MAX", 1)
    for _ in range(6):
        assert engine.decide(placement="home", identifiers=WHO, k=1).items
    assert len(engine._servings.waiting) == 3
    assert engine.servings_dropped_count == 3
    held.end()
    engine.flush()
    assert engine.servings_waiting_count == 0


def test_readers_and_writers_in_many_threads_come_to_the_same(engine: Engine) -> None:
    served: list[list[str]] = [[] for _ in range(3)]
    stop = threading.Event()
    faults: list[BaseException] = []

    def read(who: int) -> None:
        try:
            while not stop.is_set():
                found = ids(engine.decide(placement="home", identifiers={"anonymous_id": f"r{who}"}, k=1))
                served[who] += found
        except BaseException as error:
            faults.append(error)

    for who in range(3):
        engine.ingest([signal(f"c{who}", who={"anonymous_id": f"r{who}"}, consent=EVERYTHING)])
    threads = [threading.Thread(target=read, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for n in range(60):
        engine.ingest([signal(f"w{n}", who={"anonymous_id": f"x{n}"}, consent=EVERYTHING)])
    stop.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert faults == []
    for who, found in enumerate(served):
        while more := ids(engine.decide(placement="home", identifiers={"anonymous_id": f"r{who}"})):
            found += more
        assert len(found) == len(set(found)) == 12

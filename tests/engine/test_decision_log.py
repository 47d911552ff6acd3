"""The decision log: signed ids, records, segments that end anywhere, full disks, retention, erasure, outcomes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.engine import Engine
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.decision_id import ID_CHARACTERS, NAME_BYTES, DecisionIds, Place
from tailorbird.engine.decision_log import DecisionLog, find, list_segments, read_all, read_at, read_segment
from tailorbird.engine.decision_outcomes import find_outcomes
from tailorbird.engine.decision_record import HEADER_BYTES, new_packer, unpack
from tailorbird.engine.decision_replay import Passed, replay_decisions
from tailorbird.engine.errors import CallerError, ConfigurationError, Damaged, NotFound
from tailorbird.engine.identifiers import IdentifierHasher
from tailorbird.engine.items import Item
from tailorbird.engine.log import LocalLog
from tailorbird.engine.signals import Status
from tests.engine import shops
from tests.engine.shops import DAY, START, Clock, open_shop, signal

# The same may be served again, so that every decision has the same three items.
CONFIGURATION = shops.CONFIGURATION.replace("whole_catalogue: true}", "whole_catalogue: true}, exclude: {}")
IDS = DecisionIds(IdentifierHasher(bytes(range(32))))
OTHER_IDS = DecisionIds(IdentifierHasher(bytes(range(1, 33))))
U8, U16, U32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
PLACES = st.builds(Place, U8, U16, U32, U32)
I64 = st.integers(-(2**63), 2**63 - 1)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
ADA, BOB = {"user_id": "ada-7"}, {"user_id": "bob-8"}


def with_log(**settings: object) -> str:
    return CONFIGURATION + f"decision_log: {{{', '.join(f'{name}: {value}' for name, value in settings.items())}}}\n"


def shop_of_ada(tmp_path: Path, configuration: str = CONFIGURATION, clock: Clock | None = None) -> Engine:
    """Return a shop that logs, of three items, where Ada and Bob have looked at one."""
    engine = open_shop(tmp_path, configuration, clock=clock)
    engine.put_items([Item(id=name) for name in ("mug", "pot", "cup")])
    engine.ingest([signal("a", who=ADA), signal("b", who=BOB)])
    engine.log_decisions()
    return engine


def folder_of(engine: Engine) -> Path:
    return engine.directory.decisions


def log_of(engine: Engine) -> DecisionLog:
    assert engine.decision_log is not None
    return engine.decision_log


# ---- ids ---------------------------------------------------------------------------------------------------------


@given(PLACES)
def test_an_id_says_where_its_decision_stands(place: Place) -> None:
    text = IDS.placed(place)
    assert len(text) == ID_CHARACTERS
    assert IDS.read(text) == place


@given(st.binary(min_size=NAME_BYTES, max_size=NAME_BYTES))
def test_the_id_of_a_request_says_its_name(name: bytes) -> None:
    assert IDS.read(IDS.named(name)) == name


def test_what_is_not_logged_has_an_id_of_its_own() -> None:
    ids = {IDS.loose(START) for _ in range(100)}
    assert len(ids) == 100
    assert {IDS.read(text) for text in ids} == {None}


@given(PLACES, st.integers(0, ID_CHARACTERS - 1), st.sampled_from(ALPHABET + "+/= é"))
def test_an_id_with_one_other_character_is_refused(place: Place, index: int, character: str) -> None:
    text = IDS.placed(place)
    forged = text[:index] + character + text[index + 1 :]
    if forged != text:
        with pytest.raises(CallerError, match="BAD_DECISION_ID"):
            IDS.read(forged)


@given(st.text(max_size=40))
def test_no_text_is_an_id_by_chance(text: str) -> None:
    with pytest.raises(CallerError, match="BAD_DECISION_ID"):
        IDS.read(text)


def test_the_id_of_another_directory_is_refused() -> None:
    with pytest.raises(CallerError, match="BAD_DECISION_ID: expected a decision id that this data directory signed"):
        OTHER_IDS.read(IDS.placed(Place(0, 0, 1, 32)))


# ---- records -----------------------------------------------------------------------------------------------------


FIELDS = st.tuples(st.text(max_size=30), st.lists(st.floats(allow_nan=False)), st.binary(max_size=300))
PACK = new_packer().pack


@given(st.integers(0, 2**64 - 1), I64, I64, FIELDS, PLACES, st.binary(max_size=40))
def test_a_record_reads_back_as_written(
    salt: int, at: int, position: int, fields: tuple[object, ...], place: Place, rest: bytes
) -> None:
    packed = PACK(salt, at, position, fields)
    found = unpack(salt, packed + rest, place)
    assert found is not None
    assert (found.place, found.at, found.position, found.end) == (place, at, position, place.offset + len(packed))
    assert found.payload == msgspec.msgpack.encode(fields)


def test_a_decision_on_an_event_no_log_can_hold_is_made_all_the_same(tmp_path: Path) -> None:
    with shop_of_ada(tmp_path) as engine:
        viewed = msgspec.structs.replace(signal("e"), properties={"product_id": "mug", "odd": {1, 2}})
        decision = engine.decide(placement="home", identifiers=ADA, events=(viewed,))
        engine.flush()
        assert decision.items
        assert log_of(engine).dropped_count == 1


@given(st.binary(min_size=1, max_size=100), st.data())
def test_a_damaged_record_is_never_read_as_another(value: bytes, data: st.DataObject) -> None:
    packed = PACK(7, START, 5, (value,))
    index, bit = data.draw(st.integers(0, len(packed) - 1)), data.draw(st.integers(0, 7))
    wrong = bytearray(packed)
    wrong[index] ^= 1 << bit
    found = unpack(7, wrong, Place(0, 0, 1, 32))
    assert found is None or found.payload is None
    cut = data.draw(st.integers(0, len(packed) - 1))
    assert unpack(7, packed[:cut], Place(0, 0, 1, 32)) is None
    assert unpack(8, packed, Place(0, 0, 1, 32)) is None  # another segment's


def test_a_record_says_what_was_asked_used_and_answered(tmp_path: Path) -> None:
    with shop_of_ada(tmp_path) as engine:
        decision = engine.decide(placement="home", identifiers={**ADA, "email": "nobody"}, context={"country": "GB"})
        engine.flush()
        stored = read_at(folder_of(engine), _place(engine, decision.decision_id))
    assert stored is not None
    assert stored.position == decision.position
    logged = stored.logged()
    assert logged is not None
    assert stored.decision(decision.decision_id, logged) == decision
    assert [(name, bool(key), reason) for name, key, reason in logged.identifiers] == [
        ("user_id", True, ""),
        ("email", False, "INVALID_VALUE"),
    ]
    assert logged.context == {"country": "GB", "daypart": "afternoon"}
    assert not logged.withheld
    assert b"ada-7" not in (stored.payload or b"")


def _place(engine: Engine, decision_id: str) -> Place:
    place = log_of(engine).ids.read(decision_id)
    assert isinstance(place, Place)
    return place


# ---- finding -----------------------------------------------------------------------------------------------------


def test_each_decision_is_found_by_its_id_over_restarts_and_segments(tmp_path: Path) -> None:
    configuration = with_log(segment_bytes=4_096)
    clock, found = Clock(), {}
    for _ in range(3):
        with shop_of_ada(tmp_path, configuration, clock) as engine:
            for _ in range(30):
                decision = engine.decide(placement="home", identifiers=ADA)
                found[decision.decision_id] = decision
            directory, ids = engine.directory, log_of(engine).ids
    assert len(found) == 90
    assert len(list_segments(directory.decisions)) > 9
    for decision_id, decision in found.items():
        (stored,) = find(directory.decisions, ids, decision_id)
        logged = stored.logged()
        assert logged is not None
        assert stored.decision(decision_id, logged) == decision


def test_a_callers_request_id_finds_every_attempt_the_newest_first(tmp_path: Path) -> None:
    clock = Clock()
    with shop_of_ada(tmp_path, clock=clock) as engine:
        ids = set()
        for _ in range(3):
            ids.add(engine.decide(placement="home", identifiers=ADA, request_id="r1").decision_id)
            clock.now += 1
        engine.decide(placement="home", identifiers=ADA, request_id="r2")
        engine.flush()
        (decision_id,) = ids
        attempts = find(folder_of(engine), log_of(engine).ids, decision_id)
    assert [stored.at - START for stored in attempts] == [2, 1, 0]


def test_an_id_without_a_record_is_told_as_such(tmp_path: Path) -> None:
    with shop_of_ada(tmp_path) as engine:
        ids = log_of(engine).ids
        for decision_id in (ids.loose(START), ids.placed(Place(0, 0, 1, 32)), ids.named(bytes(NAME_BYTES))):
            with pytest.raises(NotFound, match="NO_DECISION"):
                find(folder_of(engine), ids, decision_id)


def test_a_directory_that_does_not_log_still_signs_its_ids(tmp_path: Path) -> None:
    with shop_of_ada(tmp_path, with_log(enabled="false")) as engine:
        assert engine.decision_log is None
        decision = engine.decide(placement="home", identifiers=ADA)
        assert engine._decider.ids.read(decision.decision_id) is None
        assert not folder_of(engine).exists()


# ---- ends and damage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost_bytes", [1, 31, 32, 100, 700])
def test_a_torn_tail_costs_its_own_record_alone(tmp_path: Path, lost_bytes: int) -> None:
    with shop_of_ada(tmp_path) as engine:
        for _ in range(5):
            engine.decide(placement="home", identifiers=ADA)
    (segment,) = list_segments(folder_of(engine))
    whole = list(read_segment(segment))
    os.truncate(segment.path, segment.path.stat().st_size - lost_bytes)
    left = list(read_segment(segment))
    assert len(whole) == 5
    assert 0 < len(left) < 5
    assert left == whole[: len(left)]
    with shop_of_ada(tmp_path) as engine:  # goes on in a segment of its own
        engine.decide(placement="home", identifiers=ADA)
    assert len(list(read_all(folder_of(engine)))) == len(left) + 1


def test_a_damaged_record_is_told_and_those_behind_it_are_read(tmp_path: Path) -> None:
    with shop_of_ada(tmp_path) as engine:
        ids = [engine.decide(placement="home", identifiers=ADA).decision_id for _ in range(3)]
        places = [_place(engine, decision_id) for decision_id in ids]
    (segment,) = list_segments(folder_of(engine))
    data = bytearray(segment.path.read_bytes())
    data[places[1].offset + HEADER_BYTES + 20] ^= 1
    segment.path.write_bytes(data)
    found = list(read_segment(segment))
    assert [stored.payload is None for stored in found] == [False, True, False]
    with pytest.raises(Damaged, match="DAMAGED_DECISION: expected a decision at byte"):
        found[1].logged()
    assert [each.passed for each in replay_decisions(engine.directory.root, found)].count(Passed.DAMAGED) == 1


def test_a_file_that_is_no_segment_is_refused(tmp_path: Path) -> None:
    with shop_of_ada(tmp_path) as engine:
        engine.decide(placement="home")
    (segment,) = list_segments(folder_of(engine))
    segment.path.write_bytes(bytes(100))
    with pytest.raises(Damaged, match="DAMAGED_DECISION: expected a segment of decisions"):
        list(read_segment(segment))


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.engine.test_decision_log import shop_of_ada, ADA
engine = shop_of_ada(Path(sys.argv[1]))
for number in range(200):
    decision_id = engine.decide(placement="home", identifiers=ADA).decision_id
    if number < 150:
        print(decision_id, flush=True)
    if number == 149:
        engine.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_what_was_not_flushed_and_no_more(tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[2], capture_output=True, check=False
    )
    ids = killed.stdout.decode().split()
    assert (killed.returncode, len(ids)) == (-9, 150), killed.stderr.decode()
    with open_shop(tmp_path, None) as engine:
        directory = engine.directory
    assert len(list(read_all(directory.decisions))) == 150
    hasher = IdentifierHasher(directory.read_identity_key())
    for decision_id in ids:
        assert len(find(directory.decisions, DecisionIds(hasher), decision_id)) == 1


# ---- full disks --------------------------------------------------------------------------------------------------


def test_decisions_go_on_while_the_disk_is_full_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shop_of_ada(tmp_path) as engine:
        log, write = log_of(engine), os.pwrite
        kept = [engine.decide(placement="home", identifiers=ADA).decision_id for _ in range(3)]
        engine.flush()

        def half_full(file: int, data: bytes, offset: int) -> int:
            if len(data) > 100:
                return write(file, bytes(data)[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", half_full)
        lost = []
        for _ in range(4):
            lost += [engine.decide(placement="home", identifiers=ADA).decision_id for _ in range(5)]
            engine.flush()
        monkeypatch.setattr(os, "pwrite", write)
        kept += [engine.decide(placement="home", identifiers=ADA).decision_id for _ in range(3)]
        engine.flush()
        assert (log.logged_count, log.dropped_count) == (6, 20)
        assert len(list(read_all(folder_of(engine)))) == 6
        for decision_id in kept:
            assert find(folder_of(engine), log.ids, decision_id)
        for decision_id in lost:
            with pytest.raises(NotFound, match="NO_DECISION"):
                find(folder_of(engine), log.ids, decision_id)


def test_a_full_buffer_is_written_by_the_decision_that_fills_it(tmp_path: Path) -> None:
    with shop_of_ada(tmp_path, with_log(buffer_bytes=4_096)) as engine:
        for _ in range(60):
            engine.decide(placement="home", identifiers=ADA)
        log = log_of(engine)
        assert 40 < log.logged_count <= 60
        assert log.dropped_count == 0


def test_no_more_is_buffered_than_is_declared(tmp_path: Path) -> None:
    with shop_of_ada(tmp_path, with_log(buffer_bytes=4_096)) as engine:
        log = log_of(engine)
        with log._writing:  # a write that hangs
            for _ in range(200):
                engine.decide(placement="home", identifiers=ADA)
        engine.flush()
        assert 0 < log.logged_count < 60
        assert log.logged_count + log.dropped_count == 200


# ---- retention ---------------------------------------------------------------------------------------------------


def test_the_oldest_segments_go_beyond_the_bytes_declared(tmp_path: Path) -> None:
    with shop_of_ada(tmp_path, with_log(segment_bytes=4_096, bytes_max=20_000)) as engine:
        ids = []
        for _ in range(200):
            ids.append(engine.decide(placement="home", identifiers=ADA).decision_id)
            engine.flush()
        sizes = [segment.path.stat().st_size for segment in list_segments(folder_of(engine))]
        assert 12_000 < sum(sizes) < 20_000 + 2 * 4_096
        with pytest.raises(NotFound, match="NO_DECISION"):
            find(folder_of(engine), log_of(engine).ids, ids[0])
        assert find(folder_of(engine), log_of(engine).ids, ids[-1])


def test_what_is_older_than_the_age_declared_goes_and_nothing_younger(tmp_path: Path) -> None:
    clock = Clock()
    with shop_of_ada(tmp_path, with_log(age_max="8d"), clock) as engine:
        for _ in range(30):
            engine.decide(placement="home", identifiers=ADA)
            engine.flush()
            clock.now += DAY
        engine.flush()
        ages = [(clock.now - stored.at) // DAY for stored in read_all(folder_of(engine))]
    assert set(range(1, 9)) <= set(ages)
    assert max(ages) <= 10


def test_what_a_process_that_is_gone_has_left_goes_with_its_age(tmp_path: Path) -> None:
    clock = Clock()
    with shop_of_ada(tmp_path, with_log(age_max="8d"), clock) as engine:
        engine.decide(placement="home", identifiers=ADA)
        engine.flush()
        (own,) = list_segments(folder_of(engine))
        gone, running = (own.path.with_name(own.path.name.replace("00000-", f"0000{n}-")) for n in (1, 2))
        for path in (gone, running):
            path.write_bytes(own.path.read_bytes())
        os.utime(gone, (START / 1e3, START / 1e3))
        for _ in range(12):
            clock.now += DAY
            os.utime(running, (clock.now / 1e3, clock.now / 1e3))
            engine.decide(placement="home", identifiers=ADA)
            engine.flush()
        assert (gone.exists(), running.exists()) == (False, True)


def test_segment_numbers_never_come_twice(tmp_path: Path) -> None:
    clock = Clock()
    with shop_of_ada(tmp_path, clock=clock) as engine:
        first = engine.decide(placement="home", identifiers=ADA).decision_id
    for segment in list_segments(folder_of(engine)):
        segment.path.unlink()
    clock.now += 1_000
    with shop_of_ada(tmp_path, clock=clock) as engine:
        second = engine.decide(placement="home", identifiers=ADA).decision_id
        engine.flush()
        assert _place(engine, first).offset == _place(engine, second).offset
        with pytest.raises(NotFound, match="NO_DECISION"):
            find(folder_of(engine), log_of(engine).ids, first)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"age_max": "soon"}, "BAD_DURATION"),
        ({"age_max": "0d"}, "BAD_DURATION: expected decision_log.age_max above 0"),
        ({"bytes_max": 1}, "BAD_LIMIT: expected decision_log.bytes_max from"),
        ({"segment_bytes": 2**33}, "BAD_LIMIT: expected decision_log.segment_bytes from"),
        ({"candidates_sampled": 1.5}, "BAD_CONFIGURATION: expected decision_log.candidates_sampled from 0 to 1"),
        ({"segments": 1}, "BAD_CONFIGURATION: .*decision_log"),
    ],
)
def test_a_decision_log_that_cannot_be_is_refused(tmp_path: Path, settings: dict[str, object], error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        open_shop(tmp_path, with_log(**settings))


# ---- people's rights ---------------------------------------------------------------------------------------------


def test_an_erased_persons_decisions_are_overwritten_and_nobody_elses(tmp_path: Path) -> None:
    phone = {"anonymous_id": "cookie-1"}
    with shop_of_ada(tmp_path) as engine:
        engine.ingest([signal("c", who=phone)])
        before = engine.decide(placement="home", identifiers=phone).decision_id
        engine.link(("user_id", "ada-7"), ("anonymous_id", "cookie-1"))
        after = engine.decide(placement="home", identifiers=ADA).decision_id
        bobs = engine.decide(placement="home", identifiers=BOB).decision_id
        position = engine.position
        keys = [engine._hasher.anchor(*item).key for who in (ADA, phone) for item in who.items()]
        assert engine.erase_decisions(ADA) == 2
        assert engine.erase_decisions(ADA) == 0
        assert engine.position == position
        folder, ids = folder_of(engine), log_of(engine).ids
        for decision_id in (before, after):
            (stored,) = find(folder, ids, decision_id)
            assert stored.payload == b""
            assert stored.logged() is None
        assert find(folder, ids, bobs)[0].logged() is not None
        replayed = list(replay_decisions(engine.directory.root, list(read_all(folder))))
        assert [each.passed for each in replayed].count(Passed.ERASED) == 2
        assert not any(each.difference for each in replayed)
    data = b"".join(segment.path.read_bytes() for segment in list_segments(folder))
    assert not any(key in data for key in keys)


@pytest.mark.parametrize("choice", ["denied:all", "denied:behavioural/measure"])
def test_nothing_of_a_person_who_did_not_agree_is_logged(tmp_path: Path, choice: str) -> None:
    with shop_of_ada(tmp_path) as engine:
        engine.set_consent(ADA, parse_choice(choice))
        decision = engine.decide(placement="home", identifiers=ADA, context={"country": "GB"})
        engine.flush()
        (stored,) = find(folder_of(engine), log_of(engine).ids, decision.decision_id)
        logged = stored.logged()
        assert logged is not None
        assert logged.withheld
        assert stored.payload is not None
        assert engine._hasher.anchor("user_id", "ada-7").key not in stored.payload
        assert (logged.identifiers, logged.person_id, logged.vector, logged.recent) == ((), "", b"", b"")
        (replayed,) = replay_decisions(engine.directory.root, [stored])
        assert replayed.passed is Passed.WITHHELD


def test_a_strangers_identifiers_are_not_kept(tmp_path: Path) -> None:
    with shop_of_ada(tmp_path) as engine:
        decision = engine.decide(placement="home", identifiers={"user_id": "never-seen"})
        engine.flush()
        (stored,) = find(folder_of(engine), log_of(engine).ids, decision.decision_id)
        assert engine._hasher.anchor("user_id", "never-seen").key not in (stored.payload or b"")
        (replayed,) = replay_decisions(engine.directory.root, [stored])
        assert replayed.passed is None
        assert not replayed.difference


# ---- outcomes ----------------------------------------------------------------------------------------------------


def test_a_signal_with_a_decision_id_is_an_outcome_of_that_decision(tmp_path: Path) -> None:
    with shop_of_ada(tmp_path) as engine:
        one = engine.decide(placement="home", identifiers=ADA)
        other = engine.decide(placement="home", identifiers=ADA)
        report = engine.ingest(
            [
                signal("o1", "recommendation_clicked", who=ADA, product_id="pot", decision_id=one.decision_id),
                signal("o2", who=ADA, product_id="mug", decision_id=other.decision_id),
                signal("o3", "order_completed", who=ADA, products=[{"product_id": "pot"}], decision_id=one.decision_id),
                signal("o4", who=ADA),
            ]
        )
        assert report.count(Status.APPLIED) == 4
        log = LocalLog.open(engine.directory.log, read_only=True)
        found = list(find_outcomes(log, one.decision_id, one.position, START + DAY))
        assert [(outcome.type, outcome.items) for outcome in found] == [
            ("recommendation_clicked", ("pot",)),
            ("order_completed", ("pot",)),
        ]
        assert not list(find_outcomes(log, one.decision_id, one.position, START))  # the window is over
        log.close()


@pytest.mark.parametrize(
    "forge",
    [
        lambda text: text[:-1] + ("A" if text[-1] != "A" else "B"),
        lambda text: text[:-1],
        lambda text: "x" * ID_CHARACTERS,
        lambda text: "",
    ],
)
def test_an_outcome_of_a_forged_decision_is_refused(tmp_path: Path, forge: Callable[[str], str]) -> None:
    with shop_of_ada(tmp_path) as engine:
        decision = engine.decide(placement="home", identifiers=ADA)
        report = engine.ingest([signal("o1", who=ADA, decision_id=forge(decision.decision_id))])
    (outcome,) = report.outcomes
    assert (outcome.status, outcome.reason) == (Status.REJECTED, "BAD_DECISION_ID")
    assert "in property 'decision_id'" in outcome.message


def test_an_outcome_whose_decision_id_is_no_text_is_refused(tmp_path: Path) -> None:
    with shop_of_ada(tmp_path) as engine:
        (outcome,) = engine.ingest([signal("o1", who=ADA, decision_id=7)]).outcomes
    assert (outcome.status, outcome.reason) == (Status.REJECTED, "WRONG_TYPE")

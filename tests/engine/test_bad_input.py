"""Bad input: each is refused with a reason and a remedy, alone; nothing accepted is lost, and state equals its log."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest

from tailorbird.engine import Engine, Signal
from tailorbird.engine.compiled import CompiledConfiguration, compile_configuration
from tailorbird.engine.consent import ConsentChoice
from tailorbird.engine.errors import (
    CallerError,
    ConfigurationError,
    Damaged,
    NotFound,
    PreconditionFailed,
    ResourceExhausted,
    TailorbirdError,
    Unavailable,
)
from tailorbird.engine.facts import SignalFact, decode_fact
from tailorbird.engine.items import Item
from tailorbird.engine.log import LocalLog, LogIO
from tailorbird.engine.requests import Tier
from tailorbird.engine.signals import Status
from tailorbird.engine.store import HEAD_ROW, LMDB_ENGINE, STATE_FORMAT
from tests.engine.shops import (
    CONFIGURATION,
    DAY,
    START,
    Clock,
    assert_replays_to_the_same,
    open_shop,
    signal,
    views,
)

SURROGATE = "caf\udce9"
HUGE = "x" * 10_000_000
MESSAGE_CHARACTERS_MAX = 1_000
LINE = {"product_id": "mug"}


def changed(**changes: Any) -> Signal:
    """Return a good signal of message id `bad` with some fields changed."""
    return msgspec.structs.replace(signal("bad"), **changes)


def product(**properties: Any) -> Signal:
    """Return a product view with these properties and no others."""
    return changed(properties=properties)


def order(*lines: object) -> Signal:
    return changed(type="order_completed", properties={"products": list(lines)})


BAD_SIGNALS: dict[str, tuple[Signal, str, tuple[str, ...]]] = {
    "unknown type": (changed(type="product_veiwed"), "UNKNOWN_SIGNAL_TYPE", ("did you mean 'product_viewed'",)),
    "undeclared type": (changed(type="qqqq"), "UNKNOWN_SIGNAL_TYPE", ("declare it under `signals:`",)),
    "type of no text": (changed(type=["a"]), "UNKNOWN_SIGNAL_TYPE", ("got ['a']",)),
    "huge type": (changed(type=HUGE), "UNKNOWN_SIGNAL_TYPE", ("got 'xxx",)),
    "no identifier": (changed(identifiers={}), "MISSING_IDENTIFIER", ("anonymous_id", "user_id")),
    "identifiers of a wrong type": (changed(identifiers=["v1"]), "WRONG_TYPE", ("identifiers as a mapping",)),
    "identifier of a wrong type": (changed(identifiers={"user_id": 7}), "WRONG_TYPE", ("'user_id'", "got int")),
    "identifier in a list": (changed(identifiers={"user_id": ["u"]}), "WRONG_TYPE", ("'user_id'", "got list")),
    "unknown namespace": (changed(identifiers={"usr_id": "u"}), "UNKNOWN_NAMESPACE", ("'usr_id'", "user_id")),
    "empty identifier": (changed(identifiers={"user_id": " "}), "INVALID_VALUE", ("got an empty one", "user_id")),
    "huge identifier": (changed(identifiers={"user_id": HUGE}), "INVALID_VALUE", ("at most 512 bytes", "user_id")),
    "placeholder": (changed(identifiers={"user_id": "undefined"}), "REFUSED_VALUE", ("placeholder", "leave")),
    "bad text in an identifier": (changed(identifiers={"user_id": SURROGATE}), "INVALID_VALUE", ("lone surrogates",)),
    "no message id": (changed(message_id=""), "MISSING_MESSAGE_ID", ("by which a retry is recognised",)),
    "long message id": (changed(message_id="m" * 300), "FIELD_TOO_LARGE", ("message_id", "256")),
    "bad text in a message id": (changed(message_id=SURROGATE), "INVALID_VALUE", ("message_id", "lone surrogates")),
    "message id of a wrong type": (changed(message_id=17), "WRONG_TYPE", ("message_id as", "17")),
    "offset without a source": (changed(source="", source_offset=3), "MISSING_SOURCE", ("source_offset counts in",)),
    "offset beyond 63 bits": (changed(source_offset=1 << 64), "WRONG_TYPE", ("below 2**63",)),
    "offset of a wrong type": (changed(source_offset=1.5), "WRONG_TYPE", ("source_offset as an integer", "1.5")),
    "long source": (changed(source="s" * 600, source_offset=3), "FIELD_TOO_LARGE", ("source of at most 256 bytes",)),
    "long source in bytes": (changed(source="é" * 200, source_offset=3), "FIELD_TOO_LARGE", ("256 bytes",)),
    "bad text in a source": (changed(source=SURROGATE, source_offset=3), "BAD_UTF8", ("'source'", "lone surrogate")),
    "time of a wrong type": (changed(event_time="2025-06-15"), "WRONG_TYPE", ("milliseconds since 1970",)),
    "30 years old": (changed(event_time=START - 30 * 365 * DAY), "EVENT_TOO_OLD", ("limits.event_age_max = 20y",)),
    "before all time": (changed(event_time=-(1 << 70)), "EVENT_TOO_OLD", ("limits.event_age_max",)),
    "number for an item": (product(product_id=7), "WRONG_TYPE", ("an item id", "'product_id'", "got 7")),
    "empty item": (product(product_id=""), "WRONG_TYPE", ("a non-empty string", "got ''")),
    "long item": (product(product_id="i" * 1_025), "WRONG_TYPE", ("at most 1,024 bytes", "'product_id'")),
    "text for a number": (product(**LINE, price="9.50"), "WRONG_TYPE", ("a finite number", "'price'", "got '9.50'")),
    "truth for a number": (product(**LINE, price=True), "WRONG_TYPE", ("a finite number", "got True")),
    "fraction for an integer": (product(**LINE, quantity=1.5), "WRONG_TYPE", ("an integer", "'quantity'")),
    "infinity": (product(**LINE, price=float("inf")), "WRONG_TYPE", ("a finite number", "got inf")),
    "no number": (product(**LINE, extra=float("nan")), "WRONG_TYPE", ("finite number", "'extra'", "got nan")),
    "65 bits": (product(**LINE, extra=1 << 64), "WRONG_TYPE", ("'extra'",)),
    "mapping in a property": (product(**LINE, extra={"a": 1}), "WRONG_TYPE", ("'extra'", "got {'a': 1}")),
    "missing property": (product(price=1.0), "MISSING_PROPERTY", ("'product_id'", "product_viewed")),
    "properties of a wrong type": (changed(properties=None), "WRONG_TYPE", ("properties and context as mappings",)),
    "name that is no text": (changed(properties={**LINE, 5: 1}), "WRONG_TYPE", ("names as strings", "got 5")),
    "too many properties": (product(**LINE, **{f"p{n}": n for n in range(200)}), "TOO_MANY_PROPERTIES", ("= 128",)),
    "products of a wrong type": (changed(type="order_completed", properties={"products": "mug"}), "WRONG_TYPE", ()),
    "line that is none": (order(LINE, "mug"), "WRONG_TYPE", ("products[1]", "got 'mug'")),
    "line without an item": (order({"price": 5}), "WRONG_TYPE", ("product_id at products[0]",)),
    "wrong type in a line": (order(LINE, {**LINE, "quantity": "2"}), "WRONG_TYPE", ("'products[1].quantity'",)),
    "too many lines": (order(*[LINE] * 2_001), "TOO_MANY_PRODUCTS", ("limits.products_max = 2000", "got 2001")),
    "10 MB in a property": (product(**LINE, note=HUGE), "FIELD_TOO_LARGE", ("limits.field_bytes_max = 8192", "'note'")),
    "8 KB of many bytes": (product(**LINE, note="é" * 8_000), "FIELD_TOO_LARGE", ("'note'", "got 16000")),
    "10 MB in a line": (order({**LINE, "name": HUGE}), "FIELD_TOO_LARGE", ("'products[0].name'", "got 10000000")),
    "10 MB in a context": (changed(context={"city": HUGE}), "FIELD_TOO_LARGE", ("'context.city'",)),
    "10 MB in a name": (product(**LINE, **{HUGE: 1}), "FIELD_TOO_LARGE", ("names of at most 256 bytes in properties",)),
    "10 MB in a context's name": (changed(context={HUGE: "a"}), "FIELD_TOO_LARGE", ("in context",)),
    "10 MB in a line's name": (order({**LINE, HUGE: 1}), "FIELD_TOO_LARGE", ("in products[0]",)),
    "much in all": (product(**LINE, **{f"p{n}": "x" * 8_000 for n in range(60)}), "SIGNAL_TOO_LARGE", ("262144",)),
    "bad text in a property": (product(**LINE, note=SURROGATE), "BAD_UTF8", ("'note'", "character 3")),
    "bad text in an item": (product(product_id=SURROGATE), "BAD_UTF8", ("'product_id'", "lone surrogate")),
    "bad text in a context": (changed(context={"city": SURROGATE}), "BAD_UTF8", ("'context.city'",)),
    "bad text in a name": (product(**LINE, **{SURROGATE: 1}), "BAD_UTF8", ("a name in properties",)),
    "bad text in a context's name": (changed(context={SURROGATE: "a"}), "BAD_UTF8", ("a name in context",)),
    "bad text in a line's name": (order({**LINE, SURROGATE: 1}), "BAD_UTF8", ("a name in products[0]",)),
    "number in a context": (changed(context={"city": 5}), "WRONG_TYPE", ("context.city", "got 5")),
    "choice that is none": (changed(consent="granted:all"), "WRONG_TYPE", ("a ConsentChoice",)),
    "choice of 65 bits": (changed(consent=ConsentChoice(granted=1 << 64)), "WRONG_TYPE", ("64-bit masks",)),
    "bad text in a notice": (changed(consent=ConsentChoice(notice=SURROGATE)), "BAD_UTF8", ("consent.notice",)),
}


@pytest.mark.parametrize("name", BAD_SIGNALS)
def test_a_bad_signal_is_rejected_with_reason_and_the_others_are_applied(tmp_path: Path, name: str) -> None:
    bad, reason, words = BAD_SIGNALS[name]
    with open_shop(tmp_path) as engine:
        report = engine.ingest([signal("a"), bad, signal("b")])
        assert [outcome.status for outcome in report.outcomes] == [Status.APPLIED, Status.REJECTED, Status.APPLIED]
        refused = report.outcomes[1]
        assert refused.reason == reason
        assert refused.position == -1
        assert "expected" in refused.message
        for word in words:
            assert word in refused.message
        assert len(refused.message) <= MESSAGE_CHARACTERS_MAX
        refused.message.encode()
        assert views(engine) == 2.0
    assert_replays_to_the_same(tmp_path)


def test_a_batch_of_nothing_but_bad_signals_writes_nothing(tmp_path: Path) -> None:
    with open_shop(tmp_path) as engine:
        engine.ingest([signal("a")])
        position, state = engine.position, engine.state_hash()
        report = engine.ingest([bad for bad, _, _ in BAD_SIGNALS.values()])
        assert {outcome.status for outcome in report.outcomes} == {Status.REJECTED}
        assert (engine.position, report.position, engine.state_hash()) == (position, position, state)


def test_an_event_of_next_year_is_moved_to_five_minutes_from_now(tmp_path: Path) -> None:
    times = [START + 365 * DAY, START + 300_001, START + 299_999, 1 << 80]
    with open_shop(tmp_path) as engine:
        engine.ingest([signal(f"m{n}", at=time) for n, time in enumerate(times)])
        assert engine.latest_event_time == START + 300_000
        facts = [decode_fact(record.kind, record.payload) for record in engine._log.read(0)]
    stored = [fact.event_time for fact in facts if isinstance(fact, SignalFact)]
    assert stored == [START + 300_000, START + 300_000, START + 299_999, START + 300_000]
    assert_replays_to_the_same(tmp_path)


def test_an_event_of_19_years_ago_is_taken_as_it_is(tmp_path: Path) -> None:
    with open_shop(tmp_path) as engine:
        engine.ingest([signal("a", at=START - 19 * 365 * DAY)])
        assert engine.latest_event_time == START - 19 * 365 * DAY


def test_a_batch_past_its_limit_is_refused_whole_with_the_limits_name(tmp_path: Path) -> None:
    with open_shop(tmp_path) as engine:
        with pytest.raises(CallerError, match=r"BATCH_TOO_LARGE.*limits.batch_signals_max = 10000 signals, got 10001"):
            engine.ingest([signal("a")] * 10_001)
        with pytest.raises(CallerError, match=r"BATCH_TOO_LARGE.*limits.items_per_put_max = 100000 items, got 100001"):
            engine.put_items([Item(id="a")] * 100_001)
        assert engine.position == 1


# ---- decisions -------------------------------------------------------------------------------------------------------


def test_an_unknown_placement_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with open_shop(tmp_path) as engine:
        with pytest.raises(NotFound, match="UNKNOWN_PLACEMENT: expected a placement of home; got 'hom'"):
            engine.decide(placement="hom")
        assert engine.decide(placement="home").degraded


def test_a_million_candidate_ids_are_refused_and_ten_thousand_answered(tmp_path: Path) -> None:
    with open_shop(tmp_path) as engine:
        engine.put_items([Item(id="i5"), Item(id="i6")])
        candidates = tuple(f"i{n}" for n in range(1_000_000))
        with pytest.raises(CallerError) as caught:
            engine.decide(placement="home", candidates=candidates)
        assert caught.value.reason == "TOO_MANY_CANDIDATES"
        assert "limits.candidates_max = 10000 candidates, got 1000000" in caught.value.message
        assert "send fewer" in caught.value.message
        decision = engine.decide(placement="home", candidates=candidates[:10_000])
        assert sorted(item.id for item in decision.items) == ["i5", "i6"]
        assert decision.unknown_candidate_count == 9_998


def test_an_empty_catalogue_gives_an_empty_answer_that_says_so(tmp_path: Path) -> None:
    with open_shop(tmp_path) as engine:
        engine.ingest([signal("a")])
        for decision in (
            engine.decide(placement="home"),
            engine.decide(placement="home", identifiers={"anonymous_id": "v1"}, candidates=("mug",)),
        ):
            assert decision.items == ()
            assert decision.tier is Tier.EMPTY
            assert "EMPTY_CATALOGUE" in decision.degraded


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"context": {"country": SURROGATE}}, "BAD_UTF8"),
        ({"context": {"country": HUGE}}, "FIELD_TOO_LARGE"),
        ({"context": {"country": 5}}, "WRONG_TYPE"),
        ({"events": (product(product_id=SURROGATE),)}, "WRONG_TYPE"),
        ({"events": (changed(type=["a"]),)}, "UNKNOWN_SIGNAL_TYPE"),
        ({"events": (order("mug"),)}, "WRONG_TYPE"),
        ({"k": 201}, "BAD_K"),
        ({"identifiers": {"usr": "u"}}, "UNKNOWN_NAMESPACE"),
        # What names nobody and nothing is no reason to answer nothing.
        ({"context": {SURROGATE: "a"}}, ""),
        ({"candidates": (SURROGATE, "mug")}, ""),
        ({"candidates": (HUGE, "mug")}, ""),
        ({"identifiers": {"user_id": SURROGATE}}, ""),
        ({"identifiers": {"user_id": HUGE}}, ""),
        ({"events": (product(product_id=HUGE),)}, ""),
        ({"request_id": SURROGATE}, ""),
    ],
)
def test_a_bad_part_of_a_question_is_refused_or_passed_over(tmp_path: Path, asked: dict[str, Any], reason: str) -> None:
    with open_shop(tmp_path) as engine:
        engine.put_items([Item(id="mug")])
        try:
            decision = engine.decide(placement="home", **asked)
        except CallerError as error:
            assert "expected" in error.message
            assert len(error.message) <= MESSAGE_CHARACTERS_MAX
        else:
            assert [item.id for item in decision.items] == ["mug"]
        assert [item.id for item in engine.decide(placement="home").items] == ["mug"]


# ---- the catalogue ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (Item(id=""), "1 to 1024 bytes, got 0 bytes"),
        (Item(id="i" * 1_025), "1 to 1024 bytes, got 1025 bytes"),
        (Item(id=SURROGATE), "lone surrogate"),
        (Item(id="a", name=HUGE), "limits.field_bytes_max = 8192"),
        (Item(id="a", name=SURROGATE), "lone surrogate"),
        (Item(id="a", currency=SURROGATE), "lone surrogate"),
        (Item(id="a", tags=(HUGE,)), "limits.field_bytes_max = 8192"),
        (Item(id="a", attributes={"colour": "red"}), "declare more under `attributes:`"),
        (Item(id="a", attributes={"brand": SURROGATE}), "lone surrogate"),
        (Item(id="a", price=float("nan")), "a finite price"),
        (Item(id="a", stock=-2), "stock from -1"),
        (Item(id="a", stock=1 << 31), "stock from -1"),
        (Item(id="a", start=-1), "before 2106"),
        (Item(id="a", end=1 << 60), "before 2106"),
        (Item(id="a", embedding=(1.0,)), "embedding_dimension = 0"),
    ],
)
def test_a_bad_item_is_refused_and_with_it_the_whole_put(tmp_path: Path, item: Item, said: str) -> None:
    with open_shop(tmp_path) as engine:
        with pytest.raises(CallerError) as caught:
            engine.put_items([Item(id="good"), item])
        assert caught.value.reason == "BAD_ITEM"
        assert said in caught.value.message
        assert len(caught.value.message) <= MESSAGE_CHARACTERS_MAX
        assert engine.decide(placement="home").items == ()
        assert engine.position == 1


@pytest.mark.parametrize("item_id", ["", SURROGATE, "i" * 1_025])
def test_a_bad_id_is_not_deleted(tmp_path: Path, item_id: str) -> None:
    with open_shop(tmp_path) as engine:
        engine.put_items([Item(id="mug")])
        with pytest.raises(CallerError, match="BAD_ITEM"):
            engine.delete_items(["mug", item_id])
        assert [item.id for item in engine.decide(placement="home").items] == ["mug"]
        engine.delete_items(["mug", "never heard of"])
        assert engine.decide(placement="home").items == ()
    assert_replays_to_the_same(tmp_path)


def write_row(directory: Path, table: bytes, key: bytes, change: Callable[[bytes], bytes]) -> None:
    """Change one stored row behind the engine's back."""
    with lmdb.open(str(directory / "state"), max_dbs=64, map_size=1 << 26, lib_version=LMDB_ENGINE) as environment:
        named = environment.open_db(table)
        with environment.begin(write=True, db=named) as txn:
            value = txn.get(key)
            assert value is not None
            txn.put(key, change(bytes(value)))


@pytest.mark.parametrize("change", [lambda row: row[:5], lambda row: b"\xff" * len(row)], ids=["truncated", "damaged"])
def test_a_damaged_catalogue_row_is_told_and_rebuilt_from_the_log(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    with open_shop(tmp_path) as engine:
        engine.put_items([Item(id="mug", name="A mug"), Item(id="cup", name="A cup")])
        whole = engine.state_hash()
    write_row(tmp_path / "shop", b"items", bytes(4), change)
    with open_shop(tmp_path) as engine, pytest.raises(Damaged, match=r"DAMAGED_CATALOGUE.*item number 0.*rebuilt from"):
        engine.decide(placement="home")
    for path in (tmp_path / "shop" / "state").iterdir():
        path.unlink()
    with open_shop(tmp_path) as engine:
        assert sorted(item.id for item in engine.decide(placement="home").items) == ["cup", "mug"]
        assert engine.state_hash() == whole


def test_a_damaged_profile_is_told_and_nobody_elses_is_touched(tmp_path: Path) -> None:
    with open_shop(tmp_path) as engine:
        engine.put_items([Item(id="mug")])
        engine.ingest([signal("a"), signal("b", who={"anonymous_id": "v2"})])
        person = engine._hasher.anchor("anonymous_id", "v1").key
    write_row(tmp_path / "shop", b"people", person + HEAD_ROW, lambda row: row[:-1] + bytes([row[-1] ^ 1]))
    with open_shop(tmp_path) as engine:
        for ask in (engine.profile, lambda who: engine.decide(placement="home", identifiers=who)):
            with pytest.raises(Damaged, match=r"DAMAGED_RECORD.*rebuild it from the log"):
                ask({"anonymous_id": "v1"})
        with pytest.raises(Damaged, match="DAMAGED_RECORD"):
            engine.ingest([signal("c")])
        assert views(engine, "v2") == 1.0
        assert engine.ingest([signal("d", who={"anonymous_id": "v2"})]).count(Status.APPLIED) == 1


# ---- the data directory ----------------------------------------------------------------------------------------------


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """Return the directory of a shop that was closed with two views in it."""
    with open_shop(tmp_path) as engine:
        engine.ingest([signal("a"), signal("b")])
    return tmp_path / "shop"


def refusal(tmp_path: Path, *, read_only: bool = False) -> TailorbirdError:
    with pytest.raises(TailorbirdError) as caught:
        open_shop(tmp_path, read_only=read_only)
    return caught.value


@pytest.mark.parametrize("read_only", [False, True])
def test_a_directory_of_another_version_is_left_alone(tmp_path: Path, closed: Path, read_only: bool) -> None:
    (closed / "FORMAT").write_text("tailorbird data 9\n")
    error = refusal(tmp_path, read_only=read_only)
    assert error.reason == "DATA_VERSION"
    assert "expected 'tailorbird data 1'" in error.message
    assert "got 'tailorbird data 9'" in error.message
    assert "the release that wrote it" in error.message
    (closed / "FORMAT").unlink()
    assert refusal(tmp_path, read_only=read_only).reason == "DATA_VERSION"
    (closed / "FORMAT").write_text("tailorbird data 1\n")
    with open_shop(tmp_path) as engine:
        assert views(engine) == 2.0


def test_a_state_of_another_format_is_left_alone(tmp_path: Path, closed: Path) -> None:
    write_row(closed, b"meta", b"format", lambda _: b"9")
    error = refusal(tmp_path)
    assert error.reason == "DATA_VERSION"
    assert f"expected state format {STATE_FORMAT}" in error.message
    assert "got 9" in error.message


def test_a_directory_is_opened_for_writing_once(tmp_path: Path, closed: Path) -> None:
    with open_shop(tmp_path) as engine:
        error = refusal(tmp_path)
        assert isinstance(error, PreconditionFailed)
        assert error.reason == "ALREADY_OPEN"
        assert "read_only=True" in error.message
        script = "import sys; from tailorbird.engine import Engine; Engine.open(sys.argv[1])"
        other = subprocess.run([sys.executable, "-c", script, str(closed)], capture_output=True, text=True, check=False)
        assert "ALREADY_OPEN" in other.stderr
        assert engine.ingest([signal("c")]).count(Status.APPLIED) == 1
    open_shop(tmp_path).close()


def test_a_directory_that_is_not_there_or_is_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"NO_CONFIGURATION.*tailorbird init"):
        open_shop(tmp_path, None)
    assert refusal(tmp_path, read_only=True).reason == "NO_DATA"
    (tmp_path / "shop").write_text("a file")
    assert refusal(tmp_path).reason == "NOT_A_FOLDER"


def test_a_read_only_engine_writes_nothing(tmp_path: Path, closed: Path) -> None:
    before = {path: path.read_bytes() for path in closed.rglob("*") if path.is_file() and path.name != "lock.mdb"}
    with open_shop(tmp_path, read_only=True) as engine:
        assert views(engine) == 2.0
        writes: tuple[Callable[[], object], ...] = (
            lambda: engine.ingest([signal("c")]),
            lambda: engine.put_items([Item(id="a")]),
            lambda: engine.delete_items(["a"]),
            engine.tick,
        )
        for write in writes:
            with pytest.raises(PreconditionFailed, match="READ_ONLY"):
                write()
        engine.decide(placement="home", identifiers={"anonymous_id": "v1"})
    assert {path: path.read_bytes() for path in before} == before


# ---- the log ---------------------------------------------------------------------------------------------------------


def log_file(directory: Path) -> Path:
    return max((directory / "log").glob("*.log"))


def test_a_damaged_log_stops_the_start_and_names_the_place(tmp_path: Path, closed: Path) -> None:
    file = log_file(closed)
    data = file.read_bytes()
    file.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    for read_only in (False, True):
        error = refusal(tmp_path, read_only=read_only)
        assert isinstance(error, Damaged)
        assert error.reason == "DAMAGED_LOG"
        for word in (str(file), "at byte", "offset 0", "restore"):
            assert word in error.message
    file.write_bytes(data)
    with open_shop(tmp_path) as engine:
        assert views(engine) == 2.0


def test_a_truncated_log_is_refused_because_the_state_is_ahead_of_it(tmp_path: Path, closed: Path) -> None:
    file = log_file(closed)
    data = file.read_bytes()
    for size in (len(data) - 100, len(data) // 2, 600):
        file.write_bytes(data[:size])
        error = refusal(tmp_path)
        assert isinstance(error, PreconditionFailed)
        assert error.reason == "STATE_AHEAD_OF_LOG"
        assert "restore it from a backup" in error.message
    file.write_bytes(data)
    with open_shop(tmp_path) as engine:
        assert views(engine) == 2.0
    assert_replays_to_the_same(tmp_path)


def test_a_state_ahead_of_its_log_can_be_given_up_by_removing_it(tmp_path: Path, closed: Path) -> None:
    file = log_file(closed)
    file.write_bytes(file.read_bytes()[:-200])
    assert refusal(tmp_path).reason == "STATE_AHEAD_OF_LOG"
    for path in (closed / "state").iterdir():
        path.unlink()
    with open_shop(tmp_path) as engine:
        assert views(engine) < 2.0
        engine.ingest([signal("a"), signal("b")])
        assert views(engine) == 2.0
    assert_replays_to_the_same(tmp_path)


def test_a_group_cut_off_by_a_crash_is_cut_and_told(tmp_path: Path, closed: Path) -> None:
    with log_file(closed).open("ab") as file:
        file.write(b"half a group")
    with open_shop(tmp_path) as engine:
        assert engine.recovery == ["cut 12 bytes of an unfinished group off the log's end"]
        engine.ingest([signal("c")])
        assert views(engine) == 3.0
    assert_replays_to_the_same(tmp_path)


def test_whoever_only_reads_a_directory_whose_state_is_gone_is_told_to_wait(tmp_path: Path) -> None:
    with open_shop(tmp_path) as engine:
        engine.ingest([signal("a")])
        state = engine.directory.state
    shutil.rmtree(state)
    with pytest.raises(PreconditionFailed, match=r"NO_STATE.*expected the state.*open it again"):
        open_shop(tmp_path, read_only=True)
    assert not state.exists()
    open_shop(tmp_path).close()
    with open_shop(tmp_path, read_only=True) as reader:
        assert views(reader) == 1.0


# ---- no room ---------------------------------------------------------------------------------------------------------


class FullDisk:
    """System calls of a disk that takes `room` more bytes, or any number while it is None."""

    def __init__(self) -> None:
        self.room: int | None = None
        self.is_broken = False

    def io(self) -> LogIO:
        good = LogIO()

        def write(fd: int, data: bytes | memoryview, position: int) -> int:
            if self.room is None:
                return good.write(fd, data, position)
            if not self.room:
                raise OSError(28, "No space left on device")
            written = good.write(fd, data[: self.room], position)
            self.room -= written
            return written

        def sync(fd: int) -> None:
            if self.is_broken:
                raise OSError(5, "Input/output error")
            good.sync(fd)

        return LogIO(write, sync)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Engine, FullDisk]]:
    """Return a shop with one view, and the disk its log is on."""
    full = FullDisk()
    with open_shop(tmp_path) as engine:
        engine._log._io = full.io()
        engine.put_items([Item(id="mug"), Item(id="cup")])
        engine.ingest([signal("a")])
        yield engine, full


@pytest.mark.parametrize("room", [0, 1, 150])
def test_a_full_disk_loses_nothing_and_stops_nothing_else(
    tmp_path: Path, disk: tuple[Engine, FullDisk], room: int
) -> None:
    engine, full = disk
    position, state = engine.position, engine.state_hash()
    full.room = room
    with pytest.raises(ResourceExhausted, match=r"DISK_FULL.*free space"):
        engine.ingest([signal("b"), signal("c")])
    assert (engine.position, engine.state_hash()) == (position, state)
    assert engine.decide(placement="home", identifiers={"anonymous_id": "v1"}).items
    full.room = None
    report = engine.ingest([signal("a"), signal("b"), signal("c")])
    assert [o.status for o in report.outcomes] == [Status.DUPLICATE, Status.APPLIED, Status.APPLIED]
    assert views(engine) == 3.0
    engine.close()
    assert_replays_to_the_same(tmp_path)


def test_a_configuration_that_could_not_be_written_is_not_in_force(
    tmp_path: Path, disk: tuple[Engine, FullDisk]
) -> None:
    engine, full = disk
    full.room = 0
    with pytest.raises(ResourceExhausted, match="DISK_FULL"):
        engine.configure(CONFIGURATION.replace("k: 3", "k: 1"))
    full.room = None
    engine.ingest([signal("b")])
    assert engine.decide(placement="home", identifiers={"anonymous_id": "v1"}).configuration_version == 1
    assert views(engine) == 2.0
    engine.close()
    assert_replays_to_the_same(tmp_path)


def test_what_changes_nothing_does_not_read_the_configuration_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_shop(tmp_path) as engine:
        engine.ingest([signal("a")])
        engine.tick()
        read: list[str] = []

        def compiled(text: str, *rest: Any) -> CompiledConfiguration:
            read.append(text)
            return compile_configuration(text, *rest)

        monkeypatch.setattr("tailorbird.engine.state.compile_configuration", compiled)
        for _ in range(3):
            assert engine.ingest([signal("a")]).outcomes[0].status == Status.DUPLICATE
            engine.tick()
        engine.ingest([signal("b")])
        assert not read


def test_a_sync_that_fails_stops_the_writer_for_good_and_decisions_go_on(
    tmp_path: Path, disk: tuple[Engine, FullDisk]
) -> None:
    engine, full = disk
    full.is_broken = True
    with pytest.raises(Unavailable, match="LOG_SYNC_FAILED"):
        engine.ingest([signal("b")])
    full.is_broken = False
    with pytest.raises(Unavailable, match=r"WRITER_STOPPED.*LOG_SYNC_FAILED.*open it again"):
        engine.ingest([signal("b")])
    assert views(engine) == 1.0
    assert engine.decide(placement="home", identifiers={"anonymous_id": "v1"}).items
    engine.close()
    with open_shop(tmp_path) as again:
        # Whether the group reached the disk is not known; sent again it counts once.
        again.ingest([signal("b")])
        assert views(again) == 2.0
    assert_replays_to_the_same(tmp_path)


def test_decisions_go_on_when_servings_can_no_longer_be_written(
    disk: tuple[Engine, FullDisk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailorbird.engine.engine.SERVINGS_QUEUED_MAX", 3)
    engine, full = disk
    full.room = 0
    for n in range(6):
        assert engine.decide(placement="home", identifiers={"anonymous_id": "v1"}, at=START + n * DAY).items
    assert engine.servings_dropped_count == 4
    assert len(engine._servings.waiting) == 2
    full.room = None
    engine.flush()
    assert engine.servings_waiting_count == 0


LIMITED = """
    import resource, sys
    from pathlib import Path
    from tailorbird.engine.errors import Unavailable
    from tests.engine.shops import open_shop, signal

    accepted = 0
    engine = open_shop(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    try:
        while True:
            engine.ingest([signal(f"m{accepted}", note="x" * 2000, who={"anonymous_id": f"v{accepted}"})])
            accepted += 1
    except Unavailable as error:
        print(accepted, error.reason)
    try:
        engine.close()
    except Unavailable:
        pass
"""


@pytest.mark.parametrize("file_bytes_max", [110_000, 400_000])
def test_files_that_may_not_grow_lose_nothing_accepted(tmp_path: Path, file_bytes_max: int) -> None:
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path), str(file_bytes_max)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    accepted, reason = done.stdout.split()
    # The log is written first; only when the state's file grows past the bound before it, LMDB reports a failed write.
    assert reason == ("STATE_WRITE_FAILED" if file_bytes_max < 200_000 else "DISK_FULL")
    assert int(accepted) > 5
    with open_shop(tmp_path) as engine:
        assert all(views(engine, f"v{n}") == 1.0 for n in range(int(accepted)))
        again = engine.ingest([signal(f"m{n}", who={"anonymous_id": f"v{n}"}) for n in range(int(accepted))])
        assert again.count(Status.DUPLICATE) == int(accepted)
        assert engine.ingest([signal("more")]).count(Status.APPLIED) == 1
    assert_replays_to_the_same(tmp_path)


def test_a_full_map_loses_nothing_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    small = CONFIGURATION.replace("67108864", str(1 << 20))
    engine = open_shop(tmp_path, small)
    accepted = 0
    with pytest.raises(ResourceExhausted) as caught:
        while True:
            engine.ingest([signal(f"{accepted}.{n}", who={"anonymous_id": f"{accepted}.{n}"}) for n in range(200)])
            accepted += 1
    assert caught.value.reason == "MAP_FULL"
    assert f"limits.map_bytes = {1 << 20}" in caught.value.message
    assert "raise" in caught.value.message
    assert accepted > 1
    assert views(engine, "0.0") == 1.0
    assert engine.decide(placement="home", identifiers={"anonymous_id": "0.0"}).degraded
    try:
        engine.close()
    except ResourceExhausted as error:
        assert error.reason == "MAP_FULL"
    with open_shop(tmp_path) as engine:
        assert all(views(engine, f"{n}.{m}") == 1.0 for n in range(accepted) for m in range(200))
        batch = [signal(f"{accepted}.{n}", who={"anonymous_id": f"{accepted}.{n}"}) for n in range(200)]
        engine.ingest(batch)
        assert views(engine, f"{accepted}.199") == 1.0
    assert_replays_to_the_same(tmp_path)


def test_a_map_too_small_to_begin_with_is_told(tmp_path: Path) -> None:
    error_of = CONFIGURATION.replace("67108864", "32768")
    with pytest.raises(ResourceExhausted, match=r"MAP_FULL.*limits.map_bytes = 32768"):
        open_shop(tmp_path, error_of)
    with open_shop(tmp_path, clock=Clock()) as engine:
        assert engine.ingest([signal("a")]).count(Status.APPLIED) == 1


def test_positions_and_append_times_do_not_go_back_with_the_clock(tmp_path: Path) -> None:
    jumps = (0, 50_000, -3_600_000, 10, -7_200_000, 60_000)
    clock = Clock()
    with open_shop(tmp_path, clock=clock) as engine:
        positions = []
        for number, jump in enumerate(jumps):
            clock.now = START + jump
            positions.append(engine.put_items([Item(id=f"item{number}")]))
        assert positions == sorted(set(positions))
    log = LocalLog.open(tmp_path / "shop" / "log", read_only=True)
    times = [record.append_time for record in log.read(0, positions[-1])][-len(jumps) :]
    log.close()
    assert [each - START for each in times] == [0, 50_000, 50_000, 50_000, 50_000, 60_000]

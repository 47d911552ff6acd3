"""Frequency caps: an item stays away once a person met it so often, on whichever device, wherever the mention stands by now."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tailorbird.engine import DecideRequest, Decision, Engine, Signal
from tailorbird.engine.configuration import parse_configuration
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.errors import ConfigurationError
from tailorbird.engine.requests import PagePart, PageRequest
from tailorbird.engine.store import scan
from tailorbird.v1 import decision_service_pb2 as api
from tailorbird.v1 import identity_pb2
from tests.engine.shops import DAY, START, Clock, assert_replays_to_the_same, ids, items, open_shop, signal

HOUR = 3_600_000
CAPPED = """\
version: 1
jurisdiction: opt_out
limits: {map_bytes: 67108864}
placements:
  - {name: home, k: 1, retrieve: {whole_catalogue: true}, exclude: {}, caps: {served: {times: 2, window: 1h}}}
  - {name: seen, k: 1, retrieve: {whole_catalogue: true}, exclude: {}, caps: {shown: {times: 2, window: 1h}}}
  - name: both
    k: 2
    retrieve: {whole_catalogue: true}
    exclude: {}
    caps: {served: {times: 3, window: 1h}, shown: {times: 2, window: 2h}}
  - {name: free, k: 1, retrieve: {whole_catalogue: true}, exclude: {}}
"""
PHONE, LAPTOP, ACCOUNT = {"anonymous_id": "v-77001"}, {"anonymous_id": "v-77002"}, {"user_id": "u-7001"}


def impression(
    message_id: str, who: dict[str, str], *names: str, at: int = START, consent: str = "granted:all"
) -> Signal:
    lines = [{"product_id": name} for name in names]
    return signal(message_id, "items_shown", at, who=who, consent=parse_choice(consent), products=lines)


def ask(engine: Engine, placement: str, who: dict[str, str], count: int, candidates: tuple[str, ...] = ()) -> str:
    """Return what is offered one time after the other, `-` for nothing; of given candidates by the quick way."""
    found = ""
    for _ in range(count):
        request = DecideRequest(placement=placement, identifiers=who, candidates=candidates)
        found += "".join(ids(engine.decide(request))) or "-"
    return found


def test_an_item_is_served_so_often_and_comes_back_after_the_window(tmp_path: Path) -> None:
    clock = Clock()
    with open_shop(tmp_path, CAPPED, clock=clock) as engine:
        engine.put_items(items("a", "b"))
        engine.ingest([signal("s1", who=PHONE)])
        assert ask(engine, "home", PHONE, 3) == "aab"
        clock.now += HOUR - 1_000
        assert ask(engine, "home", PHONE, 2) == "b-"
        last = engine.decide(placement="home", identifiers=PHONE)
        assert (last.excluded_count, last.candidate_count, last.degraded) == (2, 2, ("NOTHING_ELIGIBLE",))
        clock.now += 2_000
        assert ask(engine, "home", PHONE, 4) == "aab-"
    assert_replays_to_the_same(tmp_path)


def test_servings_of_every_placement_count_and_every_stranger_is_offered_all(tmp_path: Path) -> None:
    with open_shop(tmp_path, CAPPED) as engine:
        engine.put_items(items("a", "b"))
        engine.ingest([signal("s1", who=PHONE), signal("s2", who=LAPTOP)])
        assert ask(engine, "free", PHONE, 3) == "aaa"
        assert ask(engine, "home", PHONE, 1) == "b"
        assert ask(engine, "home", LAPTOP, 1) == ask(engine, "home", {"anonymous_id": "new"}, 1) == "a"


def test_what_two_devices_of_one_person_were_shown_is_counted_together(tmp_path: Path) -> None:
    """Of impressions alone, end to end: what was only served does not count where a placement follows what was shown."""
    clock = Clock()
    with open_shop(tmp_path, CAPPED, clock=clock) as engine:
        engine.put_items(items("a", "b"))
        engine.ingest([impression("i1", PHONE, "a"), impression("i2", LAPTOP, "a")])
        assert ask(engine, "seen", PHONE, 4) == ask(engine, "seen", LAPTOP, 4) == "aaaa"
        engine.ingest([signal("l1", who=PHONE | ACCOUNT), signal("l2", who=LAPTOP | ACCOUNT)])
        for who in (PHONE, LAPTOP, ACCOUNT, PHONE | LAPTOP | ACCOUNT):
            assert ask(engine, "seen", who, 2) == "bb"
        engine.split(("anonymous_id", LAPTOP["anonymous_id"]))
        assert ask(engine, "seen", PHONE, 1) == ask(engine, "seen", LAPTOP, 1) == "a"
        clock.now += HOUR + 1_000
        assert ask(engine, "seen", PHONE, 1) == "a"
    assert_replays_to_the_same(tmp_path)


@pytest.mark.parametrize("kind", ["shown", "served"])
def test_a_placement_chooses_which_of_shown_and_served_its_exclusions_follow(tmp_path: Path, kind: str) -> None:
    text = CAPPED + f"  - {{name: once, k: 1, retrieve: {{whole_catalogue: true}}, exclude: {{{kind}: 1h}}}}\n"
    with open_shop(tmp_path, text) as engine:
        engine.put_items(items("a", "b", "c"))
        engine.ingest(
            [impression("i1", PHONE, "b"), signal("l1", who=PHONE | ACCOUNT), signal("l2", who=LAPTOP | ACCOUNT)]
        )
        assert ask(engine, "free", LAPTOP, 1) == "a"
        first = "a" if kind == "shown" else "b"
        assert ids(engine.decide(placement="once", identifiers=PHONE)) == [first]
        engine.flush()
        second = ids(engine.decide(placement="once", identifiers=LAPTOP))
        assert second == (["a"] if kind == "shown" else ["c"])
        engine.ingest([impression("i2", LAPTOP, *second)])
        assert ids(engine.decide(placement="once", identifiers=PHONE)) == (["c"] if kind == "shown" else [])


def test_a_person_met_twice_in_one_request_is_counted_once(tmp_path: Path) -> None:
    """Of identifiers that lead to two people, two may lead to the same one: their devices are counted once."""
    with open_shop(tmp_path, CAPPED) as engine:
        engine.put_items(items("a", "b"))
        engine.ingest([signal("s1", who={"crm_id": "c-1"}), signal("s2", who={"device_id": "tablet-1"})])
        engine.link(("device_id", "tablet-1"), ("anonymous_id", "web-1"))
        engine.ingest([impression("i1", {"anonymous_id": "web-1"}, "a")])
        asked = {"crm_id": "c-1", "device_id": "tablet-1", "anonymous_id": "web-1"}
        assert ask(engine, "seen", asked, 1) == "a"
        engine.ingest([impression("i2", {"device_id": "tablet-1"}, "a")])
        assert ask(engine, "seen", asked, 1) == "b"


def test_nothing_is_counted_that_consent_does_not_let_be_used(tmp_path: Path) -> None:
    with open_shop(tmp_path, CAPPED) as engine:
        engine.put_items(items("a", "b"))
        engine.ingest([impression("i1", PHONE, "a"), impression("i2", PHONE, "a")])
        assert ask(engine, "seen", PHONE, 1) == "b"
        engine.set_consent(PHONE, parse_choice("denied:behavioural"))
        assert ask(engine, "seen", PHONE, 1) == "a"


def test_impressions_in_a_request_count_in_its_answer(tmp_path: Path) -> None:
    with open_shop(tmp_path, CAPPED) as engine:
        engine.put_items(items("a", "b"))
        engine.ingest([impression("i1", PHONE, "a")])
        now = (impression("", PHONE, "a"),)
        past = (impression("", PHONE, "a", at=START - 2 * HOUR),)
        for events, expected in ((now, "b"), (past, "a"), ((), "a"), ((signal("", who=PHONE, product_id="a"),), "a")):
            assert ids(engine.decide(placement="seen", identifiers=PHONE, events=events)) == [expected]
        twice = (impression("", {}, "a"), impression("", {}, "a"))
        assert ids(engine.decide(placement="seen", events=twice)) == ["b"]


def _counting_quick(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Decision]:
    """Return a list that fills with the decisions made the quick way."""
    made: list[Decision] = []
    quickly = engine._decider.decide_quickly

    def decided(request: DecideRequest, now: int) -> Decision | None:
        found = quickly(request, now)
        made.extend([] if found is None else [found])
        return found

    monkeypatch.setattr(engine._decider, "decide_quickly", decided)
    return made


# ---- wherever a serving is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [(), ("b", "a")])
def test_a_serving_counts_once_before_while_and_after_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...]
) -> None:
    with open_shop(tmp_path, CAPPED.replace("times: 2", "times: 3")) as engine:
        engine.put_items(items("a", "b"))
        engine.ingest([signal("s1", who=PHONE)])
        quickly = _counting_quick(engine, monkeypatch)
        offered = ask(engine, "home", PHONE, 1, given)
        append, written = engine.writer.append, engine._servings.written

        def appended(*facts: object) -> int:
            nonlocal offered
            offered += ask(engine, "home", PHONE, 1, given)  # being written
            position = append(*facts)  # type: ignore[arg-type]
            offered += ask(engine, "home", PHONE, 1, given)  # in the state, and still held beside it
            return position

        monkeypatch.setattr(engine.writer, "append", appended)
        engine.flush()
        monkeypatch.setattr(engine.writer, "append", append)
        offered += ask(engine, "home", PHONE, 1, given)
        engine.flush()
        assert engine._servings.written == written
        offered += ask(engine, "home", PHONE, 3, given)
        assert offered == "aaabbb-"
        assert len(quickly) == (7 if given else 0)


@pytest.mark.parametrize("given", [(), ("b", "a")])
def test_what_another_process_writes_counts_once_when_it_says_where(tmp_path: Path, given: tuple[str, ...]) -> None:
    with open_shop(tmp_path, CAPPED.replace("times: 2", "times: 3")) as engine:
        engine.put_items(items("a", "b"))
        engine.ingest([signal("s1", who=PHONE)])
        assert ask(engine, "home", PHONE, 1, given) == "a"
        batch = engine.decide_each([DecideRequest(placement="home", identifiers=PHONE)] * 3)
        offered = next(batch)
        taken = engine._servings.take()
        engine._servings.written(engine.writer.append(*taken))
        assert ask(engine, "home", PHONE, 2, given) == "ab"
        assert [ids(decision) for decision in (offered, *batch) if isinstance(decision, Decision)] == [
            ["a"],
            ["b"],
            ["b"],
        ]


@pytest.mark.parametrize("given", [(), ("b", "a")])
def test_others_count_once_what_is_kept_for_a_batch(tmp_path: Path, given: tuple[str, ...]) -> None:
    with open_shop(tmp_path, CAPPED.replace("times: 2", "times: 3")) as engine:
        engine.put_items(items("a", "b"))
        engine.ingest([signal("s1", who=PHONE)])
        batch = engine.decide_each([DecideRequest(placement="home", identifiers=PHONE)] * 2)
        next(batch)
        engine.flush()
        assert len(engine._servings._written) == 1
        assert ask(engine, "home", PHONE, 3, given) == "aab"
        batch.close()


@pytest.mark.parametrize("flushed", range(4))
def test_a_batch_counts_what_was_served_before_and_within_it(tmp_path: Path, flushed: int) -> None:
    """Written before it, while it is under way, or not at all: the moment of the batch has what the others have not."""
    with open_shop(tmp_path, CAPPED.replace("times: 2", "times: 3")) as engine:
        engine.put_items(items("a", "b"))
        engine.ingest([signal("s1", who=PHONE)])
        assert ask(engine, "home", PHONE, 1) == "a"
        batch = engine.decide_each([DecideRequest(placement="home", identifiers=PHONE)] * 6)
        offered = ""
        for number in range(6):
            if number == flushed:
                engine.flush()
            decision = next(batch)
            assert isinstance(decision, Decision)
            offered += "".join(ids(decision)) or "-"
        batch.close()
        assert offered == "aabbb-"
        assert engine._servings._written == []
        assert ask(engine, "home", PHONE, 1) == "-"


def test_nothing_served_before_a_batch_is_served_again_in_it(tmp_path: Path) -> None:
    """What waited when the batch began and is written while it is under way is in no state that the batch reads."""
    text = CAPPED + "  - {name: once, k: 1, retrieve: {whole_catalogue: true}, exclude: {served: 1h}}\n"
    with open_shop(tmp_path, text) as engine:
        engine.put_items(items("a", "b", "c"))
        engine.ingest([signal("s1", who=PHONE)])
        assert ask(engine, "once", PHONE, 1) == "a"
        batch = engine.decide_each([DecideRequest(placement="once", identifiers=PHONE)] * 2)
        offered = []
        for decision in batch:
            assert isinstance(decision, Decision)
            offered += ids(decision)
            engine.flush()
        assert offered == ["b", "c"]


def test_a_page_counts_what_its_earlier_placements_took_once(tmp_path: Path) -> None:
    with open_shop(tmp_path, CAPPED) as engine:
        engine.put_items(items("a", "b", "c"))
        engine.ingest([signal("s1", who=PHONE)])
        page = PageRequest(parts=(PagePart(placement="home"), PagePart(placement="free")), identifiers=PHONE)
        answers = [[ids(part) for part in engine.decide_page(page)] for _ in range(3)]
        assert answers == [[["a"], ["b"]], [["a"], ["b"]], [["c"], ["a"]]]


def test_the_quick_way_counts_too_and_is_taken(tmp_path: Path) -> None:
    """That it says the same as the general one, tests/engine/test_quick_decisions.py has."""
    plain = {"anonymous_id": "v-77"}
    with open_shop(tmp_path, CAPPED) as engine:
        engine.put_items(items("a", "b"))
        engine.ingest([signal("s1", who=plain)])
        who = [identity_pb2.Identifier(namespace="anonymous_id", value="v-77")]
        asked = api.DecideRequest(placement="home", identifiers=who, candidate_ids=["b", "a"]).SerializeToString()
        offered = ""
        for step in range(6):
            answer = engine.decide_encoded(asked)
            assert answer is not None
            offered += "".join(item.item_id for item in api.DecideResponse.FromString(answer).items) or "-"
            if step % 2:
                engine.flush()
        assert offered == "aabb--"


def test_servings_are_kept_for_as_long_as_a_cap_looks_back(tmp_path: Path) -> None:
    text = CAPPED.replace("served: {times: 2, window: 1h}", "served: {times: 2, window: 7d}")
    clock = Clock()
    with open_shop(tmp_path, text, clock=clock) as engine:
        engine.put_items(items("a"))
        engine.ingest([signal("s1", who=PHONE)])
        for day in range(12):
            clock.now = START + day * DAY
            ask(engine, "free", PHONE, 1)
            engine.flush()
        with engine._store.reading() as txn:
            assert sum(1 for _ in scan(txn, engine._store.tables["served"], b"")) == 8


@pytest.mark.parametrize("kept", [0, 600, 1 << 20])
def test_random_servings_and_impressions_are_counted_as_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """Servings by time, in lists, or waiting; devices that become one person; restarts: against a plain count."""
    monkeypatch.setattr("tailorbird.engine.state.SERVED_BYTES_MAX", kept)
    monkeypatch.setattr("tailorbird.engine.state.SERVED_BYTES_FOLDED", kept // 2)
    seed = 20_261_125 + kept
    rng, clock = random.Random(seed), Clock()
    names = ["a", "b", "c", "d"]
    person = {"phone": 0, "laptop": 1, "tablet": 2}
    mentions: list[tuple[str, str, int, str]] = []  # kind, device, time, item
    engine = open_shop(tmp_path, CAPPED, clock=clock)
    engine.put_items(items(*names))
    engine.ingest([signal(device, who={"anonymous_id": device}) for device in person])

    def expected(device: str) -> list[str]:
        found = Counter(
            (kind, item)
            for kind, other, time, item in mentions
            for window in [HOUR if kind == "served" else 2 * HOUR]
            if person[other] == person[device] and time // 1_000 >= (clock.now - window) // 1_000
        )
        return [item for item in names if found["served", item] < 3 and found["shown", item] < 2][:2]

    for step in range(300):
        device = rng.choice(list(person))
        who = {"anonymous_id": device}
        requests = [DecideRequest(placement="both", identifiers=who)] * rng.choice([1, 1, 1, 3])
        answers = [engine.decide(requests[0])] if len(requests) == 1 else list(engine.decide_each(requests))
        for answer in answers:
            assert isinstance(answer, Decision)
            assert ids(answer) == expected(device), f"seed {seed}, step {step}"
            mentions += [("served", device, clock.now, item) for item in ids(answer)]
        if rng.random() < 0.3:
            shown = [rng.choice(names) for _ in range(rng.choice([1, 2]))]
            engine.ingest([impression(f"i{step}", who, *shown, at=clock.now)])
            mentions += [("shown", device, clock.now, item) for item in shown]
        if rng.random() < 0.2:
            engine.flush()
        if step == 150:
            engine.link(("anonymous_id", "phone"), ("anonymous_id", "laptop"))
            person["laptop"] = 0
        if step % 70 == 69:
            engine.close()
            engine = open_shop(tmp_path, CAPPED, clock=clock)
        clock.now += rng.choice([0, 0, 1_000, 7 * 60_000, 25 * 60_000])
    engine.close()
    assert_replays_to_the_same(tmp_path)


# ---- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caps", "reason", "parts"),
    [
        ("{served: {times: 0, window: 1d}}", "BAD_CAP", ("from 1 to limits.list_entries_max = 2000, got 0", "caps.served", "'home'")),
        ("{shown: {times: 2001, window: 1d}}", "BAD_CAP", ("limits.list_entries_max = 2000, got 2001", "caps.shown")),
        ("{bought: {times: 1, window: 1d}}", "BAD_CAP", ("served or shown, got 'bought'", "'home'")),
        ("{served: {times: 1, window: soon}}", "BAD_DURATION", ("soon", "caps.served", "'home'")),
        ("{served: {times: 1, window: 0s}}", "BAD_DURATION", ("a window above 0, got '0s'", "caps.served")),
        ("{served: {times: many, window: 1d}}", "BAD_CONFIGURATION", ("$.placements[0].caps[...].times",)),
        ("{served: {times: 1}}", "BAD_CONFIGURATION", ("window",)),
        ("{served: {times: 1, window: 1d, per: item}}", "BAD_CONFIGURATION", ("per",)),
        ("{clicked: {times: 1, window: 1d}}", "BAD_CONFIGURATION", ("clicked",)),
    ],
)  # fmt: skip
def test_caps_that_cannot_work_are_refused_by_name(caps: str, reason: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_configuration(f"version: 1\nplacements:\n  - {{name: home, caps: {caps}}}\n", "shop.yaml")
    assert caught.value.reason == reason
    for part in (*parts, "shop.yaml"):
        assert part in caught.value.message


def test_a_cap_may_be_as_high_as_a_list_is_long(tmp_path: Path) -> None:
    text = CAPPED.replace("limits: {", "limits: {list_entries_max: 3, ").replace("times: 2", "times: 3")
    with open_shop(tmp_path, text) as engine:
        engine.put_items(items("a", "b"))
        engine.ingest([impression(f"i{n}", PHONE, "a") for n in range(600)])
        assert ask(engine, "seen", PHONE, 1) == "b"

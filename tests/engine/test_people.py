"""People in the engine: one person across identifiers, merges that add nothing and lose nothing, exact splits."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tailorbird.engine.errors import NotFound
from tailorbird.engine.facts import Anchor
from tailorbird.engine.people import People
from tailorbird.engine.replay import verify
from tailorbird.engine.signals import Status
from tests.engine.worlds import DAY_MS, MINUTE_MS, OPT_OUT, START_MS, Clock, Shop, catalogue, feature, features, shop

DEVICE = {"device_id": "phone-1"}
COOKIE = {"anonymous_id": "cookie-1"}
ANNA = {"user_id": "anna"}
BELA = {"user_id": "bela"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Shop]:
    with shop(tmp_path) as opened:
        opened.engine.put_items([*catalogue("a", "b", category="shoes"), *catalogue("c", "d", category="hats")])
        yield opened


def link_ledger(world: Shop) -> list[tuple[Any, ...]]:
    """Return the entries of the ledger: (what, kind or reason, one, other, time, refused, generic, restored)."""
    return [tuple(msgspec.msgpack.decode(entry)) for entry in world.rows("links").values()]


def identity_rows(world: Shop) -> dict[str, dict[bytes, bytes]]:
    """Return everything stored about who people are and what they did."""
    return {table: world.rows(table) for table in ("identifiers", "people", "fragments", "lists")}


def people_of(world: Shop) -> set[frozenset[bytes]]:
    """Return the people as sets of identifier keys."""
    people: dict[bytes, set[bytes]] = {}
    for key, row in world.rows("identifiers").items():
        people.setdefault(row[:16], set()).add(key)
    return {frozenset(keys) for keys in people.values()}


# ---- one person -----------------------------------------------------------------------------------------------------


def test_anonymous_visit_login_and_crm_link_give_one_person(world: Shop) -> None:
    world.view(COOKIE, "a")
    assert world.engine.profile(COOKIE).member_count == 1
    world.view({**ANNA, **COOKIE}, "b")
    world.buy({"crm_id": "4711"}, "c", total=30.0)
    world.engine.link(("crm_id", "4711"), ("user_id", "anna"), kind="import")
    profile = world.engine.profile(COOKIE)
    assert profile.person_id == world.person(**ANNA) == world.person(crm_id="4711")
    assert profile.member_count == 3
    assert features(profile, ["views", "orders", "spent"]) == {"views": 2.0, "orders": 1.0, "spent": 30.0}
    assert profile.bought_count == 1


def test_an_events_state_goes_to_its_best_identifier_alone(world: Shop) -> None:
    world.view({**ANNA, **COOKIE}, "a")
    world.view(COOKIE, "b")
    world.engine.split(("user_id", "anna"), ("anonymous_id", "cookie-1"))
    assert world.feature(ANNA, "viewed_items").value == (("a", 0.0),)
    assert world.feature(COOKIE, "viewed_items").value == (("b", 0.0),)


def test_a_person_with_an_account_keeps_the_id_when_devices_come_and_go(world: Shop) -> None:
    world.view(ANNA, "a")
    before = world.person(**ANNA)
    for number in range(3):
        world.view({**ANNA, "device_id": f"phone-{number}"}, "b")
    world.engine.split(("user_id", "anna"), ("device_id", "phone-1"))
    assert world.person(**ANNA) == before
    assert world.person(device_id="phone-1") != before


def test_two_accounts_never_become_one_person(world: Shop) -> None:
    world.view({**ANNA, **DEVICE}, "a")
    world.view({**BELA, **DEVICE}, "b")
    world.engine.link(("user_id", "anna"), ("user_id", "bela"), kind="manual")
    world.view({**BELA, "email": "family@shop.com"}, "b")
    world.view({**ANNA, "email": "family@shop.com"}, "a")
    assert world.person(**ANNA) != world.person(**BELA)
    refused = [entry[5] for entry in link_ledger(world) if entry[5]]
    assert len(refused) >= 2, "each refusal stands in the ledger"


def test_two_crm_ids_never_become_one_person(world: Shop) -> None:
    world.view({"crm_id": "1", **DEVICE}, "a")
    world.view({"crm_id": "2", **DEVICE}, "a")
    world.engine.link(("crm_id", "1"), ("crm_id", "2"))
    assert world.person(crm_id="1") != world.person(crm_id="2")


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
def test_no_person_ever_has_two_accounts_in_a_random_stream(seed: int) -> None:
    draw = random.Random(seed)
    names = {"user_id": 3, "crm_id": 2, "email": 2, "device_id": 3, "anonymous_id": 3}
    with tempfile.TemporaryDirectory() as folder, shop(Path(folder)) as world:
        for _ in range(25):
            chosen = draw.sample(sorted(names), draw.randint(1, 4))
            who = {name: f"{name}{draw.randrange(names[name])}@shop.com" for name in chosen}
            world.view(who, "a", at=START_MS - draw.randrange(10 * DAY_MS))
        namespace_of = {key: msgspec.msgpack.decode(row[16:])[0] for key, row in world.rows("identifiers").items()}
        for person in people_of(world):
            held = [namespace_of[key] for key in person]
            assert held.count("user_id") <= 1
            assert held.count("crm_id") <= 1


# ---- merges ---------------------------------------------------------------------------------------------------------


def test_a_merged_person_reads_the_sums_of_one_stream(tmp_path: Path) -> None:
    """The same events, once under one identifier and once under four that are linked late, give the same numbers."""
    (tmp_path / "one").mkdir()
    (tmp_path / "several").mkdir()
    draw = random.Random(5)
    fragments = [ANNA, {"crm_id": "7"}, DEVICE, COOKIE]
    with shop(tmp_path / "one") as one, shop(tmp_path / "several") as several:
        for world in (one, several):
            world.engine.put_items([*catalogue("a", "b", category="shoes"), *catalogue("c", "d", category="hats")])
        for step in range(60):
            at = START_MS - draw.randrange(5 * DAY_MS)
            who, item, total = draw.choice(fragments), draw.choice("abcd"), draw.randrange(10_000) / 100
            if step % 4:
                one.view(ANNA, item, at=at)
                several.view(who, item, at=at)
            else:
                one.buy(ANNA, item, total=total, at=at)
                several.buy(who, item, total=total, at=at)
        several.engine.link(("crm_id", "7"), ("user_id", "anna"))
        several.view({**ANNA, **DEVICE}, "a", at=START_MS - 1)
        several.view({**DEVICE, **COOKIE}, "b", at=START_MS)
        one.view(ANNA, "a", at=START_MS - 1)
        one.view(ANNA, "b", at=START_MS)
        whole, merged = one.engine.profile(ANNA), several.engine.profile(COOKIE)
    assert merged.member_count == 4
    assert (merged.first_seen, merged.last_seen) == (whole.first_seen, whole.last_seen)
    assert merged.bought_count == whole.bought_count
    exact = ["views", "orders", "spent", "last_view", "viewed_items"]
    assert features(merged, exact) == features(whole, exact)
    interest, expected = feature(merged, "interest").value, feature(whole, "interest").value
    assert interest == pytest.approx(expected, rel=1e-6)
    mine, theirs = feature(merged, "categories").value, feature(whole, "categories").value
    assert isinstance(mine, tuple)
    assert isinstance(theirs, tuple)
    assert [name for name, _ in mine] == [name for name, _ in theirs]
    assert [weight for _, weight in mine] == pytest.approx([weight for _, weight in theirs], rel=1e-6)


def test_the_order_in_which_links_arrive_does_not_change_the_people(tmp_path: Path) -> None:
    """Two accounts and what they share: whichever link comes first, the same people and the same profiles."""
    links = [
        (("user_id", "anna"), ("device_id", "phone-1"), 1),
        (("user_id", "bela"), ("device_id", "phone-1"), 2),
        (("user_id", "bela"), ("email", "b@shop.com"), 3),
        (("device_id", "phone-1"), ("anonymous_id", "cookie-1"), 4),
        (("crm_id", "9"), ("email", "b@shop.com"), 5),
    ]
    found = []
    for number in range(6):
        order = list(links)
        random.Random(number).shuffle(order)
        with shop(tmp_path / str(number)) as world:
            for who in (ANNA, BELA, DEVICE, COOKIE, {"crm_id": "9"}):
                world.view(who, "a")
            for one, other, day in order:
                world.engine.link(one, other, kind="import", event_time=START_MS + day)
            # Keys are hashed with each directory's own secret: compare by name.
            names = {world.key(*end): end for link in links for end in link[:2]}
            people = {frozenset(names[key] for key in person) for person in people_of(world)}
            views = {end: world.feature(dict([end]), "views").value for end in names.values()}
            found.append((people, views))
    assert all(each == found[0] for each in found)


def test_a_late_older_login_moves_the_device_to_whom_it_belonged_first(world: Shop) -> None:
    world.view({**BELA, **DEVICE}, "a", at=START_MS)
    assert world.person(**DEVICE) == world.person(**BELA)
    world.view({**ANNA, **DEVICE}, "a", at=START_MS - DAY_MS)
    assert world.person(**DEVICE) == world.person(**ANNA) != world.person(**BELA)


def test_a_device_of_three_accounts_belongs_to_nobody(world: Shop) -> None:
    world.view(DEVICE, "a")
    for number, name in enumerate(("anna", "bela", "cecil")):
        world.view({"user_id": name, **DEVICE}, "b", at=START_MS + number)
    people = {world.person(user_id=name) for name in ("anna", "bela", "cecil")} | {world.person(**DEVICE)}
    assert len(people) == 4
    assert world.feature(DEVICE, "views").value == 1.0
    assert world.feature(ANNA, "views").value == 1.0
    assert any(world.key(*next(iter(DEVICE.items()))) in entry[6] for entry in link_ledger(world))


# ---- placeholders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placeholder", ["null", "undefined", " Guest ", "0", "[object Object]"])
def test_a_placeholder_beside_a_real_identifier_is_passed_over(world: Shop, placeholder: str) -> None:
    world.view({"user_id": placeholder, **COOKIE}, "a")
    assert world.engine.profile(COOKIE).member_count == 1
    assert len(world.rows("identifiers")) == 1


@pytest.mark.parametrize("placeholder", ["null", "undefined", "anonymous"])
def test_a_placeholder_alone_is_refused_and_nothing_is_stored(world: Shop, placeholder: str) -> None:
    position = world.engine.position
    outcome = world.try_send("product_viewed", {"user_id": placeholder}, product_id="a")
    assert (outcome.status, outcome.reason) == (Status.REJECTED, "REFUSED_VALUE")
    outcome = world.try_send("product_viewed", {"user_id": placeholder, "device_id": "null"}, product_id="a")
    assert (outcome.status, outcome.reason) == (Status.REJECTED, "REFUSED_VALUE")
    assert world.engine.position == position
    assert not world.rows("identifiers")


def test_a_malformed_identifier_refuses_the_signal_even_beside_a_real_one(world: Shop) -> None:
    outcome = world.try_send("product_viewed", {"email": "not an address", **COOKIE}, product_id="a")
    assert (outcome.status, outcome.reason) == (Status.REJECTED, "INVALID_VALUE")
    assert not world.rows("identifiers")


# ---- splits ---------------------------------------------------------------------------------------------------------


def test_a_split_gives_both_single_identifiers_their_exact_state_again(world: Shop) -> None:
    world.view(ANNA, "a", context={"country": "de"})
    world.buy(ANNA, "b", total=12.5)
    world.view(COOKIE, "c", at=START_MS - MINUTE_MS)
    world.choose(COOKIE, "denied:location")
    before = identity_rows(world)
    world.engine.link(("user_id", "anna"), ("anonymous_id", "cookie-1"))
    assert world.feature(COOKIE, "views").value == 2.0
    assert identity_rows(world) != before
    world.engine.split(("user_id", "anna"), ("anonymous_id", "cookie-1"), reason="shared computer")
    assert identity_rows(world) == before


def test_a_split_gives_two_merged_people_their_exact_state_again(world: Shop) -> None:
    world.view({**ANNA, **DEVICE}, "a")
    world.view(DEVICE, "b")
    world.buy({"crm_id": "9", "email": "b@shop.com"}, "c")
    world.buy({"email": "b@shop.com"}, "d", total=3.0)
    assert len(world.rows("fragments")) == 4
    before = identity_rows(world)
    world.engine.link(("device_id", "phone-1"), ("email", "b@shop.com"))
    assert world.engine.profile(ANNA).member_count == 4
    world.engine.split(("device_id", "phone-1"), ("email", "b@shop.com"))
    assert identity_rows(world) == before


def test_a_split_gives_back_an_identifier_that_never_held_state(world: Shop) -> None:
    world.view({**ANNA, **COOKIE}, "a")
    before = identity_rows(world)
    world.engine.link(("user_id", "anna"), ("crm_id", "9"))
    world.engine.split(("user_id", "anna"), ("crm_id", "9"))
    after = identity_rows(world)
    lone = world.key("crm_id", "9")
    assert {key: row for key, row in after["identifiers"].items() if key != lone} == before["identifiers"]
    assert {k: r for k, r in after["people"].items() if k != after["identifiers"][lone][:16]} == before["people"]
    assert (after["fragments"], after["lists"]) == (before["fragments"], before["lists"])


def test_what_happened_while_merged_stays_with_the_identifier_it_happened_under(world: Shop) -> None:
    world.view(ANNA, "a")
    world.view(COOKIE, "b")
    world.engine.link(("user_id", "anna"), ("anonymous_id", "cookie-1"))
    world.view(COOKIE, "c")
    world.view({**ANNA, **COOKIE}, "d")
    world.engine.split(("user_id", "anna"), ("anonymous_id", "cookie-1"))
    assert world.feature(ANNA, "views").value == 2.0
    assert world.feature(COOKIE, "views").value == 2.0


def test_a_split_of_one_identifier_frees_it_from_all_and_for_good(world: Shop) -> None:
    world.view({**ANNA, **DEVICE}, "a")
    world.view({**DEVICE, **COOKIE}, "a")
    world.engine.split(("device_id", "phone-1"))
    assert len({world.person(**who) for who in (ANNA, DEVICE, COOKIE)}) == 3
    world.view({**ANNA, **DEVICE}, "a")
    assert world.person(**ANNA) != world.person(**DEVICE), "a login does not join again what was split"


def test_replay_gives_the_same_state_after_merges_and_splits(world: Shop) -> None:
    draw = random.Random(11)
    users, devices = ["anna", "bela", "cecil"], ["phone-1", "phone-2", "phone-3", "phone-4"]
    for _ in range(80):
        who = {"device_id": draw.choice(devices)}
        if draw.random() < 0.4:
            who["user_id"] = draw.choice(users)
        at = START_MS - draw.randrange(DAY_MS)
        step = draw.random()
        if step < 0.7:
            world.view(who, draw.choice("abcd"), at=at)
        elif step < 0.8:
            world.buy(who, draw.choice("abcd"), at=at)
        elif step < 0.9:
            world.engine.link(("user_id", draw.choice(users)), ("device_id", draw.choice(devices)))
        else:
            world.engine.split(("device_id", draw.choice(devices)), ("user_id", draw.choice(users)))
    world.engine.close()
    stored, replayed = verify(world.path)
    assert stored == replayed
    world.reopen()
    assert world.engine.recovery == []


def test_a_person_is_found_again_after_the_engine_was_closed(world: Shop) -> None:
    world.view({**ANNA, **COOKIE}, "a")
    before = world.engine.profile(COOKIE)
    world.reopen()
    assert world.engine.profile(COOKIE) == msgspec.structs.replace(before, position=world.engine.position)
    with pytest.raises(NotFound) as caught:
        world.engine.profile({"user_id": "nobody-we-know"})
    assert caught.value.reason == "NO_PROFILE"


# ---- the fast path --------------------------------------------------------------------------------------------------

WIDE = (
    OPT_OUT
    + """\
identity:
  namespaces:
    tent: {priority: 8, generic_at: 1, per_person_max: 3}
    badge: {priority: 9, generic_at: 0, rate_max: 1, rate_days: 7}
"""
)
POOL = [(name, str(value)) for name in ("user_id", "crm_id", "device_id", "anonymous_id") for value in range(12, 15)]
POOL += [("email", f"{name}@shop.com") for name in "ab"]
POOL += [(name, value) for name in ("tent", "badge") for value in ("t1", "t2")]

ends = st.sampled_from(POOL)
pairs = st.lists(ends, min_size=2, max_size=2, unique=True)
days = st.integers(0, 20)
meeting = st.tuples(st.just("meet"), st.lists(ends, min_size=1, max_size=5, unique_by=lambda end: end[0]), days)
steps_of_all_kinds = st.lists(
    meeting
    | st.tuples(st.just("link"), pairs, days)
    | st.tuples(st.just("split"), pairs, days)
    | st.tuples(st.just("consent"), st.lists(ends, min_size=1, max_size=1), days),
    max_size=25,
)


def played(folder: Path, steps: list[tuple[str, list[tuple[str, str]], int]]) -> tuple[str, dict[bytes, bytes]]:
    """Return the state hash and the ledger of links after `steps`, under one key whatever the folder."""
    key = folder / "data" / "keys" / "identity"
    key.parent.mkdir(parents=True)
    key.write_bytes(bytes(range(32)))
    with Shop(folder / "data", WIDE, Clock()) as world:
        for what, named, day in steps:
            world.clock.advance(MINUTE_MS)
            at = START_MS - day * DAY_MS
            if what == "meet":
                world.view(dict(named), "a", at=at)
            elif what == "link":
                world.engine.link(named[0], named[1], kind="import", event_time=at)
            elif what == "split":
                world.engine.split(named[0], named[1])
            else:
                world.choose(dict(named), "denied:sensitive")
        return world.engine.state_hash(), world.rows("links")


def test_two_directories_under_one_key_reach_one_hash(tmp_path: Path) -> None:
    steps = [("meet", [("user_id", "12"), ("device_id", "13")], 0)]
    assert played(tmp_path / "one", steps) == played(tmp_path / "two", steps)
    assert played(tmp_path / "three", [])[0] != played(tmp_path / "four", steps)[0]


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps_of_all_kinds)
def test_strangers_met_at_once_are_who_the_graph_says(steps: list[tuple[str, list[tuple[str, str]], int]]) -> None:
    """The fast path of `People.meet` leaves the very bytes that the graph would: state, links, ledger."""
    taken = []
    usual = People._nothing_forbids

    def noted(people: People, anchors: tuple[Anchor, ...], unknown: int) -> bool:
        taken.append(answer := usual(people, anchors, unknown))
        return answer

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(People, "_nothing_forbids", noted)
        fast = played(Path(folder) / "fast", steps)
        patch.setattr(People, "_nothing_forbids", lambda *_: False)
        slow = played(Path(folder) / "slow", steps)
    assert fast == slow
    event(f"fast path taken: {any(taken)}")

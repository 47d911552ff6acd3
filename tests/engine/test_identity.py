"""Identity: the same people whatever the order of links, one account per person, exact splits, bounds."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from tailorbird.engine.identifiers import NAMESPACES, Namespace, namespaces_with
from tailorbird.engine.identity import (
    NODES_PER_COMPONENT_MAX,
    REFUSED_PER_COMPONENT_MAX,
    Link,
    LinkKind,
    Refusal,
    partition,
)
from tests.engine.identity_model import DAY_MS, World, anchor, people_of

# Small limits, so that a handful of links reaches all of them.
TIGHT = {
    "user_id": Namespace("user_id", 1, True, 1, 1),
    "crm_id": Namespace("crm_id", 2, True, 1, 1),
    "email": Namespace("email", 3, False, 2, 2, holds_state=False),
    "device_id": Namespace("device_id", 6, False, 3, 3, rate_max=2, rate_days=1),
    "anonymous_id": Namespace("anonymous_id", 7, False, 2, 2),
}
POOL = {"user_id": 3, "crm_id": 2, "email": 3, "device_id": 3, "anonymous_id": 2}
NAMES = [f"{name}:{number}" for name, count in POOL.items() for number in range(count)]
WIDE = namespaces_with({"email": Namespace("email", 3, False, 1000, 0, holds_state=False)})

names = st.sampled_from(NAMES)
links = st.builds(
    lambda one, other, kind, time: Link(one.encode(), other.encode(), kind, time * DAY_MS // 2),
    names,
    names,
    st.sampled_from(LinkKind),
    st.integers(0, 4),
)
negatives = st.builds(lambda one, other: Link(one.encode(), other.encode(), 0, 0, True), names, names)


def played(steps: Sequence[Link], namespaces: dict[str, Namespace] = TIGHT) -> World:
    world = World(namespaces)
    for step in steps:
        one, other = step.one.decode(), step.other.decode()
        if step.negative:
            world.split(one, other)
        else:
            world.link(one, other, step.event_time, LinkKind(step.kind))
    return world


def expected(steps: Sequence[Link]) -> dict[bytes, frozenset[bytes]]:
    return people_of([step for step in steps if step.one != step.other], TIGHT)


@given(steps=st.lists(links, max_size=40))
def test_the_incremental_graph_gives_the_people_of_the_whole_set(steps: list[Link]) -> None:
    world = played(steps)
    assert world.store.people() == expected(steps)
    event(f"reasons: {sorted({Refusal(reason).name for *_, reason in world.store.refused()})}")


@given(data=st.data(), steps=st.lists(links | negatives, max_size=30))
def test_any_order_and_repetition_gives_the_same_graph(data: st.DataObject, steps: list[Link]) -> None:
    repeated = steps + data.draw(st.lists(st.sampled_from(steps), max_size=8) if steps else st.just([]))
    other_order = data.draw(st.permutations(repeated))
    first, second = played(steps), played(other_order)
    assert first.store.people() == second.store.people() == expected(steps)
    assert first.store.edges == second.store.edges
    assert first.store.generic == second.store.generic
    assert first.store.refused() == second.store.refused()


@given(steps=st.lists(links | negatives, max_size=30))
def test_partition_equals_the_obvious_computation_and_the_graph(steps: list[Link]) -> None:
    nodes = {step.one: step.one.decode().partition(":")[0] for step in steps}
    nodes |= {step.other: step.other.decode().partition(":")[0] for step in steps}
    found = partition(nodes, steps, TIGHT)
    assert {frozenset(members) for members in found.people} == set(people_of(steps, TIGHT).values())
    world = played(steps)
    assert {(one, other, int(reason)) for one, other, reason in found.refused} == world.store.refused()
    assert found.generic == world.store.generic


@given(steps=st.lists(links | negatives, max_size=40))
def test_nobody_ever_has_two_values_of_a_unique_namespace(steps: list[Link]) -> None:
    world = World(TIGHT)
    for step in steps:
        one, other = step.one.decode(), step.other.decode()
        if step.negative:
            world.split(one, other)
        else:
            world.link(one, other, step.event_time, LinkKind(step.kind))
        for members in world.store.people().values():
            for unique in (b"user_id:", b"crm_id:"):
                assert sum(key.startswith(unique) for key in members) <= 1


@given(before=st.lists(links, max_size=20), taken=links, after=st.lists(links, max_size=10))
def test_a_split_acts_as_if_the_link_had_never_been(before: list[Link], taken: Link, after: list[Link]) -> None:
    apart = Link(taken.one, taken.other, 0, 0, True)
    pair = {taken.one, taken.other}
    never = [step for step in before + after if {step.one, step.other} != pair]
    merged = played([*before, taken, apart, *after, taken])
    assert {m for m in merged.store.people().values() if len(m) > 1} == {
        m for m in played([apart, *never]).store.people().values() if len(m) > 1
    }


def test_a_login_joins_and_takes_the_id_of_the_better_identifier() -> None:
    world = World(NAMESPACES)
    world.link("device_id:d", "anonymous_id:c", 1)
    change = world.link("user_id:u", "device_id:d", 2)
    assert change is not None
    assert [formed.members for formed in change.formed] == [(b"user_id:u", b"device_id:d", b"anonymous_id:c")]
    assert change.formed[0].best == b"user_id:u"
    assert len(change.dissolved) == 2


def test_a_known_link_costs_one_read() -> None:
    world = World(NAMESPACES)
    world.link("user_id:u", "device_id:d", 5)
    reads = world.store.reads
    assert world.link("user_id:u", "device_id:d", 5) is None
    assert world.link("user_id:u", "device_id:d", 9) is None
    assert world.store.reads == reads + 2


def test_a_link_of_an_identifier_to_itself_is_nothing() -> None:
    world = World(NAMESPACES)
    assert world.link("user_id:u", "user_id:u") is None
    assert not world.store.edges


def test_a_device_two_people_log_in_on_stays_with_the_first_by_event_time() -> None:
    world = World(NAMESPACES)
    world.link("user_id:late", "device_id:d", 10)
    assert world.together("user_id:late", "device_id:d")
    change = world.link("user_id:early", "device_id:d", 3)
    assert change is not None
    assert [link.reason for link in change.refused] == [Refusal.UNIQUE_CONFLICT]
    assert world.together("user_id:early", "device_id:d")
    assert not world.together("user_id:late", "device_id:d")


def test_a_tablet_three_people_share_belongs_to_nobody_and_frees_what_it_had_joined() -> None:
    world = World(NAMESPACES)
    world.link("user_id:a", "device_id:tablet", 1)
    world.link("device_id:tablet", "anonymous_id:c", 1)
    world.link("user_id:b", "device_id:tablet", 2)
    change = world.link("user_id:c", "device_id:tablet", 3)
    assert change is not None
    assert change.generic == (b"device_id:tablet",)
    assert {link.reason for link in change.refused} == {Refusal.GENERIC}
    for name in ("user_id:a", "user_id:b", "user_id:c", "anonymous_id:c"):
        assert not world.together(name, "device_id:tablet")
    later = world.link("user_id:d", "device_id:tablet", 4)
    assert later is not None
    assert later.formed == ()


def test_a_tablet_that_is_split_from_two_of_three_is_restored() -> None:
    world = World(NAMESPACES)
    for number in range(3):
        world.link(f"user_id:{number}", "device_id:tablet", number)
    world.split("user_id:1", "device_id:tablet")
    world.split("user_id:2", "device_id:tablet")
    assert world.together("user_id:0", "device_id:tablet")
    assert not world.together("user_id:1", "device_id:tablet")
    assert not world.store.generic


def test_a_split_of_all_neighbours_leaves_the_identifier_alone_for_good() -> None:
    world = World(NAMESPACES)
    world.link("user_id:u", "device_id:d", 1)
    world.link("user_id:u", "email:e", 1)
    world.link("device_id:d", "anonymous_id:c", 1)
    change = world.split("device_id:d")
    assert change is not None
    assert {link.reason for link in change.refused} == {Refusal.SEPARATED}
    assert world.link("user_id:u", "device_id:d", 99, LinkKind.MANUAL) is None
    assert not world.together("user_id:u", "device_id:d")
    assert not world.together("device_id:d", "anonymous_id:c")
    assert world.together("user_id:u", "email:e")
    assert world.split("device_id:d") is None


def test_separated_identifiers_do_not_meet_over_a_third() -> None:
    world = World(NAMESPACES)
    world.split("email:a", "email:b")
    world.link("device_id:d", "email:a", 1)
    change = world.link("device_id:d", "email:b", 2)
    assert change is not None
    assert [link.reason for link in change.refused] == [Refusal.SEPARATED]
    assert world.together("device_id:d", "email:a")
    assert not world.together("email:a", "email:b")


def test_an_identifier_beyond_the_yearly_rate_is_refused_and_a_year_later_accepted() -> None:
    world = World(NAMESPACES)
    for number in range(5):
        world.link("user_id:u", f"device_id:{number}", number)
    change = world.link("user_id:u", "device_id:sixth", 100 * DAY_MS)
    assert change is not None
    assert [link.reason for link in change.refused] == [Refusal.TOO_MANY_IDENTIFIERS]
    world.link("user_id:u", "device_id:seventh", 400 * DAY_MS)
    assert world.together("user_id:u", "device_id:seventh")
    assert not world.together("user_id:u", "device_id:sixth")


def test_a_person_has_at_most_100_identifiers() -> None:
    world = World(WIDE)
    for number in range(105):
        world.link("user_id:u", f"email:{number:03}", number)
    assert max(map(len, world.store.people().values())) == 100
    assert {reason for *_, reason in world.store.refused()} == {Refusal.TOO_MANY_IDENTIFIERS}
    assert world.together("user_id:u", "email:098")
    assert not world.together("user_id:u", "email:099")


def test_a_person_has_at_most_64_fragments() -> None:
    world = World(namespaces_with({"device_id": Namespace("device_id", 6, False, 1000, 0)}))
    for number in range(70):
        world.link("user_id:u", f"device_id:{number:03}", number)
    assert max(map(len, world.store.people().values())) == 64


def test_a_component_keeps_256_refused_links_and_drops_the_rest() -> None:
    world = World(WIDE)
    total = 99 + REFUSED_PER_COMPONENT_MAX
    for number in range(total):
        world.link("user_id:u", f"email:{number:03}", number)
    assert len(world.store.refused()) == REFUSED_PER_COMPONENT_MAX
    change = world.link("user_id:u", "email:more", total)
    assert change is not None
    assert [link.reason for link in change.refused] == [Refusal.COMPONENT_FULL]
    assert change.formed == ()
    assert b"email:more" not in world.store.edges


def test_a_shared_identifier_keeps_a_bounded_number_of_links() -> None:
    world = World(NAMESPACES)
    for number in range(REFUSED_PER_COMPONENT_MAX + 5):
        change = world.link(f"user_id:{number}", "device_id:kiosk", number)
    assert change is not None
    assert [link.reason for link in change.refused] == [Refusal.COMPONENT_FULL]
    assert len(world.store.edges[b"device_id:kiosk"]) == REFUSED_PER_COMPONENT_MAX


def test_a_component_has_a_bounded_number_of_identifiers() -> None:
    world = World(WIDE)
    reasons = []
    for user in range(NODES_PER_COMPONENT_MAX // 60 + 1):
        for number in range(59):
            world.link(f"user_id:{user}", f"email:{user}-{number}", 1)
        change = world.link(f"user_id:{user}", f"email:{user - 1}-0", 2) if user else None
        reasons += [link.reason for link in change.refused] if change else []
    assert reasons == [Refusal.UNIQUE_CONFLICT] * 7 + [Refusal.COMPONENT_FULL]


def test_a_link_of_an_undeclared_namespace_is_refused_not_raised() -> None:
    world = World(NAMESPACES)
    change = world.link("user_id:u", "kiosk:k", 1)
    assert change is not None
    assert [link.reason for link in change.refused] == [Refusal.UNKNOWN_NAMESPACE]


def test_a_link_kind_that_is_trusted_more_goes_first() -> None:
    world = World(NAMESPACES)
    world.link("user_id:alias", "crm_id:c", 1, LinkKind.ALIAS)
    world.link("user_id:manual", "crm_id:c", 9, LinkKind.MANUAL)
    assert world.together("user_id:manual", "crm_id:c")
    assert not world.together("user_id:alias", "crm_id:c")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_large_world_in_two_orders_gives_the_same_people(seed: int) -> None:
    print(f"seed {seed}")
    draw = random.Random(seed)
    steps = []
    for user in range(150):
        for _ in range(draw.randint(1, 5)):
            device = draw.randrange(300)
            time = draw.randrange(600) * DAY_MS
            steps.append(Link(f"user_id:{user}".encode(), f"device_id:{device}".encode(), LinkKind.LOGIN, time))
            steps.append(Link(f"device_id:{device}".encode(), f"anonymous_id:{draw.randrange(900)}".encode(), 2, time))
    shuffled = draw.sample(steps, len(steps))
    first, second = played(steps, dict(NAMESPACES)), played(shuffled, dict(NAMESPACES))
    assert Refusal.COMPONENT_FULL not in {reason for *_, reason in first.store.refused()}
    assert first.store.people() == second.store.people() == people_of(steps, NAMESPACES)
    assert anchor("user_id:0").key in first.store.persons

"""Several decisions in one: a page repeats nothing, a batch stays of its moment and lets nobody wait or fail with another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailorbird.engine import DecideRequest, Decision, PagePart, PageRequest, Signal
from tailorbird.engine.errors import CallerError, NotFound, TailorbirdError
from tests.engine.shops import CONFIGURATION, Clock, ids, items, open_shop, signal

PAGE = CONFIGURATION + "  - {name: rail, k: 2, retrieve: {whole_catalogue: true}}\n"
WHO = {"anonymous_id": "v1"}


def decided(outcomes: list[Decision | TailorbirdError]) -> list[Decision]:
    return [outcome for outcome in outcomes if isinstance(outcome, Decision)]


def test_a_page_offers_nothing_twice_and_the_first_placement_chooses_first(tmp_path: Path) -> None:
    with open_shop(tmp_path, PAGE) as engine:
        engine.put_items(items("a", "b", "c", "d", "e", "f"))
        alone = engine.decide(placement="home")
        first, second, third = engine.decide_page(
            PageRequest(parts=(PagePart(placement="home"), PagePart(placement="rail"), PagePart(placement="rail", k=9)))
        )
        assert ids(first) == ids(alone) == ["a", "b", "c"]
        assert (ids(second), second.excluded_count) == (["d", "e"], 3)
        assert (ids(third), third.excluded_count) == (["f"], 5)
        assert first.position == second.position == third.position


def test_a_part_of_a_page_chooses_among_its_own_candidates(tmp_path: Path) -> None:
    with open_shop(tmp_path, PAGE) as engine:
        engine.put_items(items("a", "b", "c"))
        parts = (
            PagePart(placement="rail", candidates=("c", "b")),
            PagePart(placement="home", candidates=("c", "a", "x")),
        )
        first, second = engine.decide_page(PageRequest(parts=parts, request_id="r"))
        assert (ids(first), ids(second)) == (["b", "c"], ["a"])
        assert second.unknown_candidate_count == 1
        again = engine.decide_page(PageRequest(parts=parts, request_id="r"))
        assert [d.decision_id for d in again] == [first.decision_id, second.decision_id]
        assert first.decision_id != second.decision_id


def test_what_a_page_served_is_not_served_again(tmp_path: Path) -> None:
    with open_shop(tmp_path, PAGE) as engine:
        engine.put_items(items("a", "b", "c", "d", "e", "f"))
        engine.ingest([signal("s1")])
        page = PageRequest(parts=(PagePart(placement="home"), PagePart(placement="rail")), identifiers=WHO)
        served = {item for decision in engine.decide_page(page) for item in ids(decision)}
        assert len(served) == 5
        assert not served & set(ids(engine.decide(placement="home", identifiers=WHO)))


def test_a_page_of_an_unknown_placement_or_of_too_many_is_refused(tmp_path: Path) -> None:
    with open_shop(tmp_path, PAGE.replace("limits: {", "limits: {page_placements_max: 2, ")) as engine:
        with pytest.raises(NotFound, match="UNKNOWN_PLACEMENT"):
            engine.decide_page(PageRequest(parts=(PagePart(placement="home"), PagePart(placement="nowhere"))))
        for count in (0, 3):
            with pytest.raises(CallerError, match=rf"1 to limits.page_placements_max = 2 placements, got {count}"):
                engine.decide_page(PageRequest(parts=(PagePart(placement="home"),) * count))


def test_a_batch_answers_each_request_as_if_it_were_alone(tmp_path: Path) -> None:
    with open_shop(tmp_path) as engine:
        engine.put_items(items("a", "b", "c"))
        requests = [
            DecideRequest(placement="home"),
            DecideRequest(placement="nowhere"),
            DecideRequest(placement="home", candidates=("c",), k=1),
            DecideRequest(placement="home", min_position=engine.position + 1),
            DecideRequest(placement="home", k=-1),
        ]
        outcomes = list(engine.decide_each(requests))
        assert [ids(decision) for decision in decided(outcomes)] == [["a", "b", "c"], ["c"]]
        reasons = [outcome.reason for outcome in outcomes if isinstance(outcome, TailorbirdError)]
        assert reasons == ["UNKNOWN_PLACEMENT", "POSITION_NOT_REACHED", "BAD_K"]


def test_a_batch_stays_of_its_moment_and_others_do_not(tmp_path: Path) -> None:
    with open_shop(tmp_path) as engine:
        engine.put_items(items("a", "b", "c"))
        batch = engine.decide_each([DecideRequest(placement="home")] * 3)
        before = next(batch)
        assert isinstance(before, Decision)
        engine.delete_items(["a"])
        assert ids(engine.decide(placement="home")) == ["b", "c"]
        other = list(engine.decide_each([DecideRequest(placement="home")]))
        assert [ids(decision) for decision in decided(other)] == [["b", "c"]]
        rest = decided(list(batch))
        assert [ids(decision) for decision in rest] == [ids(before)] * 2 == [["a", "b", "c"]] * 2
        assert [decision.position for decision in rest] == [before.position] * 2
        again = decided(list(engine.decide_each([DecideRequest(placement="home")])))
        assert ids(again[0]) == ["b", "c"]


def test_nothing_is_served_twice_within_a_batch_even_when_it_was_written_meanwhile(tmp_path: Path) -> None:
    with open_shop(tmp_path) as engine:
        engine.put_items(items("a", "b", "c", "d", "e", "f"))
        engine.ingest([signal("s1")])
        batch = engine.decide_each([DecideRequest(placement="home", identifiers=WHO)] * 2)
        first = next(batch)
        engine.flush()
        second = next(batch)
        batch.close()
        assert not {item.id for item in decided([first])[0].items} & {item.id for item in decided([second])[0].items}


def bought(product: str) -> tuple[Signal, ...]:
    return (signal("", "order_completed", who={}, products=[{"product_id": product}]),)


def test_events_of_a_request_count_in_its_own_answer_of_a_batch_alone(tmp_path: Path) -> None:
    with open_shop(tmp_path, CONFIGURATION.replace("k: 3,", "k: 3, record_served: false,")) as engine:
        engine.put_items(items("a", "b", "c", "d"))
        engine.ingest([signal("s1")])
        before = engine.profile(WHO)
        asked = [
            DecideRequest(placement="home", identifiers=who, events=events)
            for who in (WHO, {})
            for events in (bought("a"), (), bought("b"), (signal("", "nothing known"),))
        ]
        outcomes = list(engine.decide_each(asked))
        expected = [["b", "c", "d"], ["a", "b", "c"], ["a", "c", "d"]] * 2
        assert [ids(decision) for decision in decided(outcomes)] == expected
        assert [outcome.reason for outcome in outcomes if isinstance(outcome, TailorbirdError)] == [
            "UNKNOWN_SIGNAL_TYPE"
        ] * 2
        assert engine.profile(WHO) == before


def test_what_a_request_was_served_in_a_batch_the_next_of_the_same_person_is_not(tmp_path: Path) -> None:
    """By whichever device they are asked about, and whatever else their requests bring."""
    with open_shop(tmp_path, PAGE) as engine:
        engine.put_items(items(*"abcdefghijkl"))
        engine.ingest(
            [signal("s1", who=WHO | {"user_id": "u-7"}), signal("s2", who={"device_id": "d-7", "user_id": "u-7"})]
        )
        asked = [
            DecideRequest(placement=placement, identifiers=who, events=events)
            for placement, who, events in (
                ("home", WHO, ()),
                ("rail", {"device_id": "d-7"}, bought("l")),
                ("home", {"user_id": "u-7"}, bought("f")),
                ("rail", {"anonymous_id": "another"}, ()),
            )
        ]
        first, second, third, other = decided(list(engine.decide_each(asked)))
        assert (ids(first), ids(second), ids(third)) == (["a", "b", "c"], ["d", "e"], ["g", "h", "i"])
        assert ids(other) == ["a", "b"]


def test_events_of_a_page_count_in_each_of_its_placements_and_nothing_comes_twice(tmp_path: Path) -> None:
    with open_shop(tmp_path, PAGE) as engine:
        engine.put_items(items("a", "b", "c", "d", "e", "f"))
        engine.ingest([signal("s1")])
        parts = (PagePart(placement="home"), PagePart(placement="rail"))
        for who in ({}, WHO):
            answers = engine.decide_page(PageRequest(parts=parts, identifiers=who, events=bought("b")))
            assert [ids(answer) for answer in answers] == [["a", "c", "d"], ["e", "f"]]
        # Of what the events brought nothing was stored; what was served stays away.
        assert ids(engine.decide(placement="home", identifiers=WHO)) == ["b"]


def test_a_batch_that_is_not_read_to_its_end_holds_nothing(tmp_path: Path) -> None:
    clock = Clock()
    with open_shop(tmp_path, clock=clock) as engine:
        engine.put_items(items("a"))
        batch = engine.decide_each([DecideRequest(placement="home")] * 9)
        next(batch)
        batch.close()
        assert engine._servings._batch_count == 0
        assert not any(
            reader for reader in engine._store.environment.readers().splitlines()[1:] if reader.split()[2] != "-"
        )


def test_a_batch_that_is_too_large_is_refused(tmp_path: Path) -> None:
    limits = "limits: {batch_decisions_max: 2, batch_candidates_max: 3, "
    with open_shop(tmp_path, CONFIGURATION.replace("limits: {", limits)) as engine:
        ask = DecideRequest(placement="home", candidates=("a", "b"))
        for batch, got in (([DecideRequest(placement="home")] * 3, "got 3 of 0"), ([ask] * 2, "got 2 of 4")):
            with pytest.raises(
                CallerError, match=f"limits.batch_decisions_max = 2 .*limits.batch_candidates_max = 3.*{got}"
            ):
                engine.decide_each(batch)


def test_every_decision_is_counted_by_its_tier_and_those_of_a_warm_up_are_not(tmp_path: Path) -> None:
    with open_shop(tmp_path, PAGE) as engine:
        assert engine.decide(placement="home").tier == "empty"
        engine.put_items(items("a", "b", "c", "d"))
        engine.warm()
        # A page and a batch go the general way, a single decision and an encoded one natively where they can.
        page = PageRequest(parts=(PagePart(placement="home"), PagePart(placement="rail")))
        found = [*engine.decide_page(page), *decided(list(engine.decide_each([DecideRequest(placement="home")] * 3)))]
        found += [engine.decide(placement="home", candidates=("a", "b")) for _ in range(4)]
        assert engine.decide_encoded(b"\x0a\x04home\x22\x01a") is not None
        assert {decision.tier for decision in found} == {"catalogue"}
        counts = {"person": 0, "context": 0, "popular": 0, "catalogue": len(found) + 1, "empty": 1}
        assert engine.tier_counts == counts

"""Our own codec of Decide against protobuf's: the same requests read, the same bytes written, the same bytes refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailorbird.engine.errors import CallerError
from tailorbird.engine.requests import DecidedItem, DecideRequest, Decision, ReasonDetail
from tailorbird.native.wire import Ids, decode_decide
from tailorbird.server.messages import decisions
from tailorbird.server.messages.decisions import (
    REASONS,
    TIERS,
    Asked,
    read_asked,
    write_batch,
    write_decision,
    write_page,
)
from tailorbird.v1 import decision_service_pb2 as api
from tailorbird.v1 import identity_pb2, signal_pb2

CANDIDATES_MAX = 12
TEXTS = st.one_of(st.text(max_size=6), st.sampled_from(["", "é", "日本語", "a" * 200]))
INT64 = st.integers(-(2**63), 2**63 - 1)
COUNTS = st.one_of(st.integers(0, 300), st.integers(0, 2**31 - 1))
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), max_size=4)
MESSAGES = st.builds(
    lambda identifiers, context, events, **fields: api.DecideRequest(
        identifiers=[identity_pb2.Identifier(namespace=name, value=value) for name, value in identifiers],
        context=[identity_pb2.ContextEntry(name=name, value=value) for name, value in context],
        events=[signal_pb2.Signal(type=name, event_time_ms=7) for name in events],
        **fields,
    ),
    identifiers=PAIRS,
    context=PAIRS,
    events=st.lists(TEXTS, max_size=2),
    placement=TEXTS,
    candidate_ids=st.lists(TEXTS, max_size=CANDIDATES_MAX + 2),
    at_ms=INT64,
    item_count=st.integers(-(2**31), 2**31 - 1),
    request_id=TEXTS,
    min_position=INT64,
    served_acknowledgement=st.integers(0, 2),  # the last is none
)


def outcome(read: Any, data: bytes) -> tuple[Any, ...]:
    """Return the request as plain values, or how it was refused."""
    try:
        found, waits_for_served, _ = read(data)
    except CallerError as error:
        return error.reason, error.message
    return waits_for_served, *(
        list(value) if isinstance(value, Ids | tuple) else value
        for value in (getattr(found, name) for name in found.__struct_fields__)
    )


def by_ours(data: bytes) -> Asked[DecideRequest]:
    return read_asked(data, CANDIDATES_MAX)


def by_protobuf(data: bytes) -> Asked[DecideRequest]:
    return decisions._asked_by_protobuf(data, CANDIDATES_MAX)


@given(message=MESSAGES)
def test_a_request_is_read_as_protobuf_reads_it(message: api.DecideRequest) -> None:
    data = message.SerializeToString()
    assert outcome(by_ours, data) == outcome(by_protobuf, data)


@given(message=MESSAGES, cuts=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=3))
def test_fields_in_any_order_and_number_are_read_as_protobuf_reads_them(
    message: api.DecideRequest, cuts: list[tuple[int, int]]
) -> None:
    # Joined messages are one message: scalars given twice, the last of which counts, lists that go on.
    data = message.SerializeToString()
    for start, end in cuts:
        data += data[start:end]
    assert outcome(by_ours, data) == outcome(by_protobuf, data)


@given(message=MESSAGES, edits=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=4))
@example(message=api.DecideRequest(placement="p"), edits=[(1, 0xFF)])
def test_damaged_requests_are_read_or_refused_as_by_protobuf(
    message: api.DecideRequest, edits: list[tuple[int, int]]
) -> None:
    data = bytearray(message.SerializeToString() or b"\0")
    for place, byte in edits:
        data[place % len(data)] = byte
    assert outcome(by_ours, bytes(data)) == outcome(by_protobuf, bytes(data))


@given(data=st.binary(max_size=60))
@example(data=b"\x28" + b"\xff" * 9 + b"\x01")
@example(data=b"\x28" + b"\xff" * 9 + b"\x7f")
@example(data=b"\x28" + b"\x80" * 10 + b"\x01")
@example(data=b"\x22\x05ab")
@example(data=b"\x22\x02\xc3\x28")
@example(data=b"\x12\x04\x0a\x01a\x12")
@example(data=b"\x30\xff\xff\xff\xff\x1f")
@example(data=b"\x3a\x01\x08")
def test_any_bytes_are_read_or_refused_as_by_protobuf(data: bytes) -> None:
    assert outcome(by_ours, data) == outcome(by_protobuf, data)


def test_the_common_request_needs_no_message_object() -> None:
    message = api.DecideRequest(
        placement="home",
        identifiers=[identity_pb2.Identifier(namespace="user_id", value="ü")],
        context=[identity_pb2.ContextEntry(name="country", value="GB")],
        candidate_ids=["a", "é"],
        item_count=2,
    )
    found = decode_decide(message.SerializeToString(), 2)
    assert found is not None
    assert found[:3] == ("home", {"user_id": "ü"}, {"country": "GB"})
    assert list(found[3]) == ["a", "é"]
    assert decode_decide(message.SerializeToString(), 1) is None


def test_ids_are_a_sequence_of_texts() -> None:
    found = decode_decide(api.DecideRequest(candidate_ids=["a", "", "日本"]).SerializeToString(), 9)
    assert found is not None
    ids = found[3]
    assert (len(ids), ids[0], ids[-1], ids[1:], list(ids)) == (3, "a", "日本", ["", "日本"], ["a", "", "日本"])
    assert "日本" in ids
    for index in (3, -4):
        with pytest.raises(IndexError, match="expected an index below 3, got"):
            ids[index]


REASON_LISTS = st.lists(st.builds(ReasonDetail, st.sampled_from(REASONS), TEXTS), max_size=3).map(tuple)
FLOATS = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, -0.0, 1.0]))
DECISIONS = st.builds(
    Decision,
    decision_id=TEXTS,
    placement=TEXTS,
    items=st.lists(st.builds(DecidedItem, TEXTS, FLOATS, FLOATS, REASON_LISTS), max_size=4).map(tuple),
    tier=st.sampled_from(TIERS),
    completeness=FLOATS,
    profile_age_ms=st.integers(-1, 2**62),
    masked_count=COUNTS,
    excluded_count=COUNTS,
    candidate_count=COUNTS,
    unknown_candidate_count=COUNTS,
    position=st.integers(0, 2**63 - 1),
    configuration_version=COUNTS,
    at=INT64,
    person_id=TEXTS,
    degraded=st.lists(TEXTS, max_size=2).map(tuple),
    served_position=st.integers(0, 2**63 - 1),
)


def message_of(decision: Decision) -> api.DecideResponse:
    """Return the message that protobuf's codec would write."""
    return api.DecideResponse(
        decision_id=decision.decision_id,
        items=[
            api.DecidedItem(
                item_id=item.id,
                score=item.score,
                propensity=item.propensity,
                reasons=[
                    api.ItemReason(kind=1 + REASONS.index(reason.reason), detail=reason.detail)  # type: ignore[arg-type]
                    for reason in item.reasons
                ],
            )
            for item in decision.items
        ],
        tier=1 + TIERS.index(decision.tier),  # type: ignore[arg-type]
        completeness=decision.completeness,
        profile_age_ms=decision.profile_age_ms if decision.profile_age_ms >= 0 else None,
        masked_count=decision.masked_count,
        excluded_count=decision.excluded_count,
        candidate_count=decision.candidate_count,
        unknown_candidate_count=decision.unknown_candidate_count,
        position=decision.position,
        configuration_version=decision.configuration_version,
        at_ms=decision.at,
        person_id=decision.person_id,
        degraded=decision.degraded,
        placement=decision.placement,
        served_position=decision.served_position,
    )


@given(decision=DECISIONS)
def test_a_decision_is_written_as_protobuf_writes_it(decision: Decision) -> None:
    assert write_decision(decision) == message_of(decision).SerializeToString(deterministic=True)


@given(decisions=st.lists(DECISIONS, max_size=3))
def test_a_page_is_written_as_protobuf_writes_it(decisions: list[Decision]) -> None:
    expected = api.DecidePageResponse(decisions=[message_of(decision) for decision in decisions])
    assert write_page(decisions) == expected.SerializeToString(deterministic=True)


@given(outcomes=st.lists(DECISIONS | st.tuples(TEXTS, TEXTS), max_size=3))
def test_a_batch_is_written_as_protobuf_writes_it(outcomes: list[Decision | tuple[str, str]]) -> None:
    expected = api.DecideBatchResponse(
        outcomes=[
            api.DecideOutcome(failure=api.DecideFailure(reason=outcome[0], message=outcome[1]))
            if isinstance(outcome, tuple)
            else api.DecideOutcome(decision=message_of(outcome))
            for outcome in outcomes
        ]
    )
    assert write_batch(outcomes) == expected.SerializeToString(deterministic=True)


def test_a_long_answer_is_written_whole() -> None:
    items = tuple(
        DecidedItem(f"{n}" + "x" * (n % 300), 0.5, 1.0, (ReasonDetail(REASONS[0], "y" * n),)) for n in range(400)
    )
    base = {"masked_count": 0, "excluded_count": 0, "candidate_count": 0, "unknown_candidate_count": 0, "position": 0}
    decision = Decision(
        decision_id="d", placement="p", items=items, tier=TIERS[0], completeness=0.0, profile_age_ms=-1,
        configuration_version=0, at=0, **base,
    )  # fmt: skip
    message = api.DecideResponse.FromString(write_decision(decision))
    assert [item.item_id for item in message.items] == [item.id for item in items]
    assert [item.reasons[0].detail for item in message.items] == [item.reasons[0].detail for item in items]


def test_what_is_no_member_is_refused() -> None:
    item = DecidedItem("a", 0.5, 1.0, (ReasonDetail("model", ""),))  # type: ignore[arg-type]
    counts = {"masked_count": 0, "excluded_count": 0, "candidate_count": 0, "unknown_candidate_count": 0, "position": 0}
    decision = Decision(
        decision_id="d", placement="p", items=(item,), tier=TIERS[0], completeness=0.0, profile_age_ms=-1,
        configuration_version=0, at=0, **counts,
    )  # fmt: skip
    with pytest.raises(ValueError, match="expected one of .*, got 'model'"):
        write_decision(decision)

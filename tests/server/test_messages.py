"""Messages become engine types and back, and what a message alone shows to be wrong is refused by name."""

from __future__ import annotations

import pytest

from tailorbird.engine.consent import Basis, ConsentMasks, DataType, Purpose, bit, mask_of, parse_choice
from tailorbird.engine.errors import CallerError
from tailorbird.engine.profile import FeatureStatus, FeatureValue, Profile
from tailorbird.engine.requests import DecidedItem, Decision, Reason, ReasonDetail, Tier
from tailorbird.engine.signals import Outcome, Status
from tailorbird.server.messages.consent import choice_from, standing_messages
from tailorbird.server.messages.decisions import read_request, write_decision
from tailorbird.server.messages.items import item_from
from tailorbird.server.messages.profiles import profile_message
from tailorbird.server.messages.signals import signal_from, write_report
from tailorbird.v1 import (
    catalog_service_pb2,
    consent_pb2,
    decision_service_pb2,
    identity_pb2,
    profile_service_pb2,
    signal_pb2,
    signal_service_pb2,
)


def reason_of(caught: pytest.ExceptionInfo[CallerError]) -> str:
    return caught.value.reason


def entry(
    data_type: consent_pb2.DataType, state: consent_pb2.ConsentState, *purposes: consent_pb2.Purpose
) -> consent_pb2.ConsentEntry:
    return consent_pb2.ConsentEntry(data_type=data_type, state=state, purposes=purposes)


def test_a_signal_arrives_whole() -> None:
    signal = signal_from(
        signal_pb2.Signal(
            type="order_completed",
            event_time_ms=1_316_000_000_000,
            identifiers=[identity_pb2.Identifier(namespace="crm_id", value="17850")],
            message_id="m1",
            properties=[
                signal_pb2.Property(name="order_id", string_value="536365"),
                signal_pb2.Property(name="total", double_value=139.12),
                signal_pb2.Property(name="items", int_value=2),
                signal_pb2.Property(name="gift", bool_value=False),
            ],
            products=[
                signal_pb2.ProductLine(product_id="85123A", price=2.55, quantity=0),
                signal_pb2.ProductLine(
                    product_id="71053", extra=[signal_pb2.Property(name="colour", string_value="white")]
                ),
            ],
            context=[identity_pb2.ContextEntry(name="country", value="United Kingdom")],
            source="shop",
        )
    )
    assert signal.properties == {
        "order_id": "536365",
        "total": 139.12,
        "items": 2,
        "gift": False,
        "products": [
            {"product_id": "85123A", "price": 2.55, "quantity": 0},
            {"product_id": "71053", "colour": "white"},
        ],
    }
    assert signal.identifiers == {"crm_id": "17850"}
    assert signal.context == {"country": "United Kingdom"}
    assert (signal.message_id, signal.source, signal.source_offset) == ("m1", "shop", -1)
    assert signal.consent is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (signal_pb2.Signal(source_offset=-1), "BAD_SOURCE_OFFSET"),
        (signal_pb2.Signal(message_id="m", properties=[signal_pb2.Property(name="x")]), "MISSING_VALUE"),
        (
            signal_pb2.Signal(message_id="m", properties=[signal_pb2.Property(name="x", double_value=float("nan"))]),
            "NOT_FINITE",
        ),
        (
            signal_pb2.Signal(message_id="m", properties=[signal_pb2.Property(name="x", int_value=1)] * 2),
            "DUPLICATE_NAME",
        ),
        (
            signal_pb2.Signal(
                message_id="m",
                properties=[signal_pb2.Property(name="products", int_value=1)],
                products=[signal_pb2.ProductLine(product_id="a")],
            ),
            "DUPLICATE_NAME",
        ),
        (
            signal_pb2.Signal(
                message_id="m",
                products=[signal_pb2.ProductLine(extra=[signal_pb2.Property(name="price", int_value=1)])],
            ),
            "DUPLICATE_NAME",
        ),
        (signal_pb2.Signal(message_id="m", products=[signal_pb2.ProductLine(price=float("inf"))]), "NOT_FINITE"),
        (signal_pb2.Signal(message_id="m", identifiers=[identity_pb2.Identifier(namespace="a")] * 2), "DUPLICATE_NAME"),
        (signal_pb2.Signal(message_id="m", context=[identity_pb2.ContextEntry(name="a")] * 2), "DUPLICATE_NAME"),
        (signal_pb2.Signal(message_id="m", consent=consent_pb2.ConsentChoice()), "BAD_CONSENT"),
    ],
)
def test_a_wrong_signal_is_refused_by_name(message: signal_pb2.Signal, reason: str) -> None:
    with pytest.raises(CallerError) as caught:
        signal_from(message)
    assert reason_of(caught) == reason


def test_consent_on_the_wire_says_what_the_text_form_says() -> None:
    message = consent_pb2.ConsentChoice(
        entries=[
            entry(consent_pb2.DATA_TYPE_BEHAVIOURAL, consent_pb2.CONSENT_STATE_GRANTED),
            entry(consent_pb2.DATA_TYPE_TRANSACTIONAL, consent_pb2.CONSENT_STATE_GRANTED, consent_pb2.PURPOSE_COLLECT),
            entry(consent_pb2.DATA_TYPE_LOCATION, consent_pb2.CONSENT_STATE_DENIED),
            entry(consent_pb2.DATA_TYPE_SENSITIVE, consent_pb2.CONSENT_STATE_RESTRICTED, consent_pb2.PURPOSE_MESSAGE),
        ],
        basis=consent_pb2.CONSENT_BASIS_CONTRACT,
    )
    text = "granted:behavioural,transactional/collect;denied:location;restricted:sensitive/message"
    assert choice_from(message) == parse_choice(text, Basis.CONTRACT)


@pytest.mark.parametrize(
    "bad",
    [
        entry(consent_pb2.DATA_TYPE_UNSPECIFIED, consent_pb2.CONSENT_STATE_GRANTED),
        entry(consent_pb2.DATA_TYPE_DEVICE, consent_pb2.CONSENT_STATE_UNSPECIFIED),
        entry(consent_pb2.DATA_TYPE_DEVICE, consent_pb2.CONSENT_STATE_GRANTED, consent_pb2.PURPOSE_UNSPECIFIED),
    ],
)
def test_consent_that_is_not_given_is_never_taken_for_given(bad: consent_pb2.ConsentEntry) -> None:
    with pytest.raises(CallerError) as caught:
        choice_from(consent_pb2.ConsentChoice(entries=[bad]))
    assert reason_of(caught) == "BAD_CONSENT"
    assert "consent.entries[0]" in caught.value.message


def test_consent_of_a_later_version_is_refused() -> None:
    later = consent_pb2.ConsentEntry.FromString(b"\x08\x63\x18\x01")
    with pytest.raises(CallerError) as caught:
        choice_from(consent_pb2.ConsentChoice(entries=[later]))
    assert "number 99" in caught.value.message


def test_every_data_type_and_purpose_has_a_name_on_the_wire() -> None:
    for data_type in DataType:
        for purpose in Purpose:
            (message,) = standing_messages(ConsentMasks(granted=bit(data_type, purpose)))
            number = message.data_type
            assert consent_pb2.DataType.Name(number) == f"DATA_TYPE_{data_type.name}"
            assert [consent_pb2.Purpose.Name(p) for p in message.granted_purposes] == [f"PURPOSE_{purpose.name}"]


def test_a_decision_is_answered_whole() -> None:
    reasons = tuple(ReasonDetail(reason, f"about {reason}") for reason in Reason)
    for tier in Tier:
        written = write_decision(
            Decision(
                decision_id="d1",
                placement="home",
                items=(DecidedItem("a", 0.5, 0.25, reasons),),
                tier=tier,
                completeness=0.75,
                profile_age_ms=0,
                masked_count=1,
                excluded_count=2,
                candidate_count=3,
                unknown_candidate_count=4,
                position=5,
                configuration_version=6,
                at=7,
                person_id="p1",
                degraded=("NO_PROFILE",),
            )
        )
        message = decision_service_pb2.DecideResponse.FromString(written)
        assert decision_service_pb2.Tier.Name(message.tier) == f"TIER_{tier.name}"
        assert message.HasField("profile_age_ms")
        assert [message.masked_count, message.excluded_count, message.candidate_count] == [1, 2, 3]
        assert [message.unknown_candidate_count, message.position, message.configuration_version] == [4, 5, 6]
        kinds = [decision_service_pb2.ItemReasonKind.Name(r.kind) for r in message.items[0].reasons]
        assert kinds == [f"ITEM_REASON_KIND_{reason.name}" for reason in Reason]


def test_a_request_arrives_whole() -> None:
    request = read_request(
        decision_service_pb2.DecideRequest(
            placement="home",
            identifiers=[identity_pb2.Identifier(namespace="user_id", value="7")],
            context=[identity_pb2.ContextEntry(name="device", value="phone")],
            candidate_ids=["b", "a"],
            at_ms=5,
            item_count=3,
            events=[signal_pb2.Signal(type="product_viewed", event_time_ms=4)],
            request_id="r1",
            min_position=9,
        ).SerializeToString(),
        10,
    )
    assert (request.placement, request.identifiers, request.context) == ("home", {"user_id": "7"}, {"device": "phone"})
    assert (list(request.candidates), request.at, request.k) == (["b", "a"], 5, 3)
    assert (request.events[0].event_time, request.request_id, request.min_position) == (4, "r1", 9)


def test_a_profile_is_answered_with_each_kind_of_value() -> None:
    values = (
        FeatureValue("orders", 3.0, 10, FeatureStatus.FRESH),
        FeatureValue("city", "Leeds", -1, FeatureStatus.FRESH),
        FeatureValue("taste", (("mugs", 2.5), ("lamps", 1.0)), 0, FeatureStatus.FRESH),
        FeatureValue("last_items", (), 0, FeatureStatus.FRESH),
        FeatureValue("age", None, -1, FeatureStatus.MASKED),
    )
    message = profile_message(
        Profile(
            person_id="p1",
            member_count=2,
            consent=ConsentMasks(granted=mask_of((DataType.BEHAVIOURAL,)), explicit=0),
            first_seen=1,
            last_seen=2,
            features=values,
            bought_count=3,
            at=4,
            position=5,
        )
    )
    assert [feature.WhichOneof("value") for feature in message.features] == [
        "number",
        "text",
        "weighted_keys",
        "weighted_keys",
        None,
    ]
    assert list(message.features[2].weighted_keys.weights) == [2.5, 1.0]
    assert [feature.HasField("age_ms") for feature in message.features] == [True, False, True, True, False]
    assert message.features[4].status == profile_service_pb2.FEATURE_STATUS_MASKED
    assert len(message.consent) == 1


def test_every_outcome_has_a_status() -> None:
    outcomes = [Outcome(status, "R", "m", 3) for status in Status]
    message = signal_service_pb2.IngestResponse.FromString(write_report(outcomes, 4))
    names = [signal_service_pb2.SignalStatus.Name(outcome.status) for outcome in message.outcomes]
    assert names == [f"SIGNAL_STATUS_{status.name}" for status in Status]


def test_stock_that_is_not_counted_differs_from_none_left() -> None:
    assert item_from(catalog_service_pb2.Item(id="a")).stock == -1
    assert item_from(catalog_service_pb2.Item(id="a", stock=0)).stock == 0


def test_an_attribute_given_twice_is_refused() -> None:
    twice = [catalog_service_pb2.ItemAttribute(name="brand", value=value) for value in "xy"]
    with pytest.raises(CallerError) as caught:
        item_from(catalog_service_pb2.Item(id="a", attributes=twice))
    assert reason_of(caught) == "DUPLICATE_NAME"

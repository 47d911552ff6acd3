"""Every method of the API, by stock clients, over the real engine and a loopback port."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tailorbird.server.statuses import REASON_KEY
from tailorbird.v1 import (
    catalog_service_pb2,
    catalog_service_pb2_grpc,
    consent_pb2,
    decision_service_pb2,
    decision_service_pb2_grpc,
    identity_pb2,
    profile_service_pb2,
    profile_service_pb2_grpc,
    signal_pb2,
    signal_service_pb2,
    signal_service_pb2_grpc,
)
from tests.server.conftest import Running, Serving

NOW_MS = time.time_ns() // 1_000_000
USER = [identity_pb2.Identifier(namespace="user_id", value="u1")]
COUNTRY = identity_pb2.ContextEntry(name="country", value="GB")
ITEM_IDS = ["mug", "lamp", "clock", "vase"]
GRANTED = consent_pb2.ConsentChoice(
    entries=[
        consent_pb2.ConsentEntry(data_type=data_type, state=consent_pb2.CONSENT_STATE_GRANTED)
        for data_type in (
            consent_pb2.DATA_TYPE_BEHAVIOURAL,
            consent_pb2.DATA_TYPE_CONTEXTUAL,
            consent_pb2.DATA_TYPE_TRANSACTIONAL,
        )
    ]
)
Outcomes = list[tuple[int, str]]


def order(message_id: str, *product_ids: str, **changes: Any) -> signal_pb2.Signal:
    signal = signal_pb2.Signal(
        type="order_completed",
        event_time_ms=NOW_MS,
        identifiers=USER,
        message_id=message_id,
        products=[signal_pb2.ProductLine(product_id=product_id) for product_id in product_ids],
        consent=GRANTED,
    )
    for name, value in changes.items():
        setattr(signal, name, value)
    return signal


def put_items(running: Running, message_id: str = "p1") -> int:
    catalog = catalog_service_pb2_grpc.CatalogServiceStub(running.channel)
    items = [catalog_service_pb2.Item(id=item_id, name=f"A {item_id}", price=9.5) for item_id in ITEM_IDS]
    return int(catalog.PutItems(catalog_service_pb2.PutItemsRequest(message_id=message_id, items=items)).position)


def ingest(running: Running, *signals: signal_pb2.Signal) -> signal_service_pb2.IngestResponse:
    stub = signal_service_pb2_grpc.SignalServiceStub(running.channel)
    return stub.Ingest(signal_service_pb2.IngestRequest(signals=signals))


def outcomes(response: signal_service_pb2.IngestResponse) -> Outcomes:
    return [(outcome.status, outcome.reason) for outcome in response.outcomes]


def decide(running: Running, **request: Any) -> decision_service_pb2.DecideResponse:
    stub = decision_service_pb2_grpc.DecisionServiceStub(running.channel)
    return stub.Decide(decision_service_pb2.DecideRequest(**{"placement": "home", **request}))


def get_profile(running: Running, **request: Any) -> profile_service_pb2.GetProfileResponse:
    stub = profile_service_pb2_grpc.ProfileServiceStub(running.channel)
    return stub.GetProfile(profile_service_pb2.GetProfileRequest(**request))


def item_ids(response: decision_service_pb2.DecideResponse) -> list[str]:
    return [item.item_id for item in response.items]


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, str]:
    """Return code, reason and text of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    return error.code(), dict(error.trailing_metadata())[REASON_KEY], error.details()


# ---- what it answers -------------------------------------------------------------------------------------------------


def test_an_order_is_in_force_in_the_next_decision_and_profile(running: Running) -> None:
    put_items(running)
    before = decide(running, identifiers=USER)
    assert len(before.items) == 3
    assert before.person_id == ""
    assert not before.HasField("profile_age_ms")

    response = ingest(running, order("m1", before.items[0].item_id))
    assert outcomes(response) == [(signal_service_pb2.SIGNAL_STATUS_APPLIED, "")]

    after = decide(running, identifiers=USER, min_position=response.position)
    assert before.items[0].item_id not in item_ids(after)
    assert after.person_id
    assert after.position >= response.position
    assert after.excluded_count >= 1

    profile = get_profile(running, identifiers=USER, min_position=response.position)
    assert profile.person_id == after.person_id
    assert profile.bought_count == 1
    assert [(feature.name, feature.number) for feature in profile.features] == [("orders", 1.0)]
    assert {entry.data_type for entry in profile.consent} == {
        consent_pb2.DATA_TYPE_BEHAVIOURAL,
        consent_pb2.DATA_TYPE_CONTEXTUAL,
        consent_pb2.DATA_TYPE_TRANSACTIONAL,
    }


def test_what_is_served_is_written_before_the_answer_where_that_is_asked_for(running: Running) -> None:
    put_items(running)
    position = ingest(running, order("m1", "mug")).position
    stub = decision_service_pb2_grpc.DecisionServiceStub(running.channel)
    written = decision_service_pb2.SERVED_ACKNOWLEDGEMENT_WRITTEN
    asked = {"identifiers": USER, "min_position": position, "served_acknowledgement": written}

    single = decide(running, **asked)
    assert single.served_position > position
    page = stub.DecidePage(
        decision_service_pb2.DecidePageRequest(parts=[decision_service_pb2.PagePart(placement="home")], **asked)
    )
    assert page.decisions[0].served_position >= single.served_position
    requests = [
        decision_service_pb2.DecideRequest(placement=name, **fields)
        for name, fields in (("home", {}), ("home", asked), ("none", {}))
    ]
    batch = stub.DecideBatch(decision_service_pb2.DecideBatchRequest(requests=requests)).outcomes
    assert batch[0].decision.served_position == 0
    assert batch[1].decision.served_position >= page.decisions[0].served_position
    assert batch[2].failure.reason == "UNKNOWN_PLACEMENT"
    assert decide(running, identifiers=USER).served_position == 0

    unknown = refusal(lambda: decide(running, identifiers=USER, served_acknowledgement=7))
    assert unknown[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_SERVED_ACKNOWLEDGEMENT")


def test_an_acknowledgement_is_one_of_those_there_are(running: Running) -> None:
    stub = signal_service_pb2_grpc.SignalServiceStub(running.channel)
    for number, known in enumerate(signal_service_pb2.Acknowledgement.values()):
        request = signal_service_pb2.IngestRequest(signals=[order(f"m{number}", "mug")], acknowledgement=known)
        assert outcomes(stub.Ingest(request)) == [(signal_service_pb2.SIGNAL_STATUS_APPLIED, "")]
    wrong = refusal(lambda: stub.Ingest(signal_service_pb2.IngestRequest(acknowledgement=9)))
    assert wrong[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_ACKNOWLEDGEMENT")


def test_events_of_a_decision_count_for_it_and_are_written_behind_it_once(running: Running) -> None:
    put_items(running)
    events = [order("m1", "mug"), order("", "lamp")]
    for _ in range(2):
        assert "mug" not in item_ids(decide(running, identifiers=USER, events=events))
    position = ingest(running, order("m2", "clock")).position  # behind both
    profile = get_profile(running, identifiers=USER, min_position=position)
    assert profile.features[0].number == 2.0
    assert outcomes(ingest(running, order("m1", "mug"))) == [(signal_service_pb2.SIGNAL_STATUS_DUPLICATE, "DUPLICATE")]


def test_a_page_is_answered_in_one_call_and_repeats_nothing(running: Running) -> None:
    put_items(running)
    stub = decision_service_pb2_grpc.DecisionServiceStub(running.channel)
    parts = [decision_service_pb2.PagePart(placement="home", item_count=count) for count in (3, 3)]
    page = stub.DecidePage(decision_service_pb2.DecidePageRequest(parts=parts, context=[COUNTRY]))
    assert [len(decision.items) for decision in page.decisions] == [3, 1]
    assert len({item for decision in page.decisions for item in item_ids(decision)}) == 4


def test_a_batch_is_answered_in_order_with_its_failures_between(running: Running) -> None:
    put_items(running)
    stub = decision_service_pb2_grpc.DecisionServiceStub(running.channel)
    asked = decision_service_pb2.DecideRequest
    requests = [asked(placement="home"), asked(placement="nowhere"), asked(placement="home", candidate_ids=["vase"])]
    good = decision_service_pb2.DecideBatchRequest(requests=requests)
    damaged = good.SerializeToString() + b"\x0a\x02\x0a\xff"
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = running.channel.unary_unary(
        "/tailorbird.v1.DecisionService/DecideBatch"
    )
    answer = decision_service_pb2.DecideBatchResponse.FromString(call(damaged))
    assert [outcome.WhichOneof("outcome") for outcome in answer.outcomes] == [
        "decision",
        "failure",
        "decision",
        "failure",
    ]
    assert [outcome.failure.reason for outcome in answer.outcomes if outcome.HasField("failure")] == [
        "UNKNOWN_PLACEMENT",
        "BAD_MESSAGE",
    ]
    assert item_ids(answer.outcomes[2].decision) == ["vase"]
    many = decision_service_pb2.DecideBatchRequest(requests=[asked(placement="home")] * 257)
    code, reason, text = refusal(lambda: stub.DecideBatch(many))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_TOO_LARGE")
    assert "limits.batch_decisions_max = 256" in text


def test_decisions_go_on_while_a_batch_is_answered(running: Running) -> None:
    put_items(running)
    stub = decision_service_pb2_grpc.DecisionServiceStub(running.channel)
    batch = decision_service_pb2.DecideBatchRequest(
        requests=[decision_service_pb2.DecideRequest(placement="home", candidate_ids=ITEM_IDS * 60)] * 256
    )
    waiting = [stub.DecideBatch.future(batch) for _ in range(4)]
    decided = 0
    while not all(future.done() for future in waiting):
        assert len(decide(running).items) == 3
        decided += 1
    assert decided > 0
    assert [len(future.result().outcomes) for future in waiting] == [256] * 4


def numbered(offset: int, product_id: str = "mug") -> signal_pb2.Signal:
    return order("", product_id, source="till", source_offset=offset)


def test_a_stream_acknowledges_each_batch_and_goes_on_where_the_source_stands(serving: Serving) -> None:
    batch = signal_service_pb2.IngestStreamRequest
    with serving() as running:
        put_items(running)
        stub = signal_service_pb2_grpc.SignalServiceStub(running.channel)
        answers = list(
            stub.IngestStream(
                iter(
                    [
                        batch(source="till"),
                        batch(signals=[numbered(0), numbered(1, "lamp")], source="till"),
                        batch(signals=[order("m1"), signal_pb2.Signal(type="nothing known", message_id="m2")]),
                    ]
                )
            )
        )
        assert [answer.HasField("source_offset") for answer in answers] == [False, True, False]
        assert answers[1].source_offset == 1
        assert [len(answer.outcomes) for answer in answers] == [0, 2, 2]
        assert answers[2].outcomes[1].status == signal_service_pb2.SIGNAL_STATUS_REJECTED
        assert [answer.position for answer in answers] == sorted(answer.position for answer in answers)
        after = decide(running, identifiers=USER, min_position=answers[1].position)
        assert {"mug", "lamp"} & set(item_ids(after)) == set()
    with serving() as running:
        stub = signal_service_pb2_grpc.SignalServiceStub(running.channel)
        again = [batch(source="till"), batch(signals=[numbered(1, "lamp"), numbered(2, "vase")], source="till")]
        answers = list(stub.IngestStream(iter(again)))
        assert [answer.source_offset for answer in answers] == [1, 2]
        assert [outcome.status for outcome in answers[1].outcomes] == [
            signal_service_pb2.SIGNAL_STATUS_DUPLICATE,
            signal_service_pb2.SIGNAL_STATUS_APPLIED,
        ]


def test_a_client_that_vanishes_half_way_through_a_stream_leaves_what_was_acknowledged(running: Running) -> None:
    put_items(running)
    stub = signal_service_pb2_grpc.SignalServiceStub(running.channel)
    batch = signal_service_pb2.IngestStreamRequest(signals=[order("m1", "mug")])
    sent = threading.Event()

    def batches() -> Iterator[signal_service_pb2.IngestStreamRequest]:
        yield batch
        sent.wait()

    call = stub.IngestStream(batches())
    position = next(call).position
    call.cancel()
    sent.set()
    assert "mug" not in item_ids(decide(running, identifiers=USER, min_position=position))
    assert outcomes(ingest(running, order("m1", "mug"))) == [(signal_service_pb2.SIGNAL_STATUS_DUPLICATE, "DUPLICATE")]


def test_a_signal_of_a_stream_that_cannot_be_read_stops_nothing_else(running: Running) -> None:
    call: grpc.StreamStreamMultiCallable[bytes, bytes] = running.channel.stream_stream(
        "/tailorbird.v1.SignalService/IngestStream"
    )
    batch = signal_service_pb2.IngestStreamRequest(signals=[numbered(7)], source="till").SerializeToString()
    (answer,) = map(signal_service_pb2.IngestStreamResponse.FromString, call(iter([b"\x0a\x03\x0a\x01\xff" + batch])))
    assert [(outcome.status, outcome.reason) for outcome in answer.outcomes] == [
        (signal_service_pb2.SIGNAL_STATUS_REJECTED, "BAD_UTF8"),
        (signal_service_pb2.SIGNAL_STATUS_APPLIED, ""),
    ]
    assert answer.source_offset == 7


def test_a_batch_past_the_limit_ends_a_stream_by_name(running: Running) -> None:
    stub = signal_service_pb2_grpc.SignalServiceStub(running.channel)
    large = signal_service_pb2.IngestStreamRequest(signals=[signal_pb2.Signal()] * 10_001)
    code, reason, _ = refusal(lambda: list(stub.IngestStream(iter([large]))))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_TOO_LARGE")


def test_answers_hold_no_raw_identifier(running: Running) -> None:
    put_items(running)
    secret = [identity_pb2.Identifier(namespace="email", value="someone@tailorbird.shop")]
    signal = order("m1", "mug")
    del signal.identifiers[:]
    signal.identifiers.extend(secret)
    response = ingest(running, signal)
    answers = [response, decide(running, identifiers=secret), get_profile(running, identifiers=secret)]
    assert all("someone" not in str(answer) for answer in answers)


def test_a_deleted_item_is_not_offered(running: Running) -> None:
    put_items(running)
    catalog = catalog_service_pb2_grpc.CatalogServiceStub(running.channel)
    deleted = catalog.DeleteItems(catalog_service_pb2.DeleteItemsRequest(message_id="d1", item_ids=["mug", "nothing"]))
    assert deleted.position > 0
    assert sorted(item_ids(decide(running))) == ["clock", "lamp", "vase"]


def test_given_candidates_are_the_only_ones(running: Running) -> None:
    put_items(running)
    response = decide(running, candidate_ids=["vase", "unknown", "mug"], item_count=5)
    assert sorted(item_ids(response)) == ["mug", "vase"]
    assert response.unknown_candidate_count == 1


def test_an_empty_catalogue_is_an_answer(running: Running) -> None:
    response = decide(running)
    assert response.tier == decision_service_pb2.TIER_EMPTY
    assert "EMPTY_CATALOGUE" in response.degraded


def test_an_event_of_the_request_counts_for_this_answer_alone(running: Running) -> None:
    put_items(running)
    bought = order("", "mug")
    assert "mug" not in item_ids(decide(running, identifiers=USER, events=[bought], item_count=4))
    assert "mug" in item_ids(decide(running, identifiers=USER, item_count=4))
    assert refusal(lambda: get_profile(running, identifiers=USER))[1] == "NO_PROFILE"


def test_one_request_id_gets_one_decision_id(running: Running) -> None:
    put_items(running)
    ids = [decide(running, request_id="r1").decision_id, decide(running, request_id="r1").decision_id]
    assert ids[0] == ids[1]
    assert decide(running, request_id="r2").decision_id != ids[0]


def test_what_was_served_is_written_down_and_not_offered_again(running: Running) -> None:
    put_items(running)
    position = ingest(running, order("m1", "mug")).position
    first = item_ids(decide(running, identifiers=USER, item_count=1, min_position=position))
    second = item_ids(decide(running, identifiers=USER, item_count=1))
    assert len({*first, *second}) == 2


def test_calls_at_once_get_their_own_outcomes(running: Running) -> None:
    put_items(running)

    def send(n: int) -> Outcomes:
        return outcomes(ingest(running, order(f"m{n}", "mug"), order(f"m{n}", "mug"), order(f"bad{n}", type="nothing")))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(send, range(40)))
    applied = (signal_service_pb2.SIGNAL_STATUS_APPLIED, "")
    duplicate = (signal_service_pb2.SIGNAL_STATUS_DUPLICATE, "DUPLICATE")
    rejected = (signal_service_pb2.SIGNAL_STATUS_REJECTED, "UNKNOWN_SIGNAL_TYPE")
    assert found == [[applied, duplicate, rejected]] * 40
    assert get_profile(running, identifiers=USER).features[0].number == 40


def test_acknowledged_signals_are_there_after_a_restart(serving: Serving) -> None:
    with serving() as running:
        put_items(running)
        ingest(running, order("m1", "mug"))
    with serving() as running:
        assert get_profile(running, identifiers=USER).bought_count == 1
        assert outcomes(ingest(running, order("m1", "mug")))[0][0] == signal_service_pb2.SIGNAL_STATUS_DUPLICATE
        assert len(decide(running).items) == 3


def test_a_retried_put_does_not_undo_what_came_between(running: Running) -> None:
    first = put_items(running, "p1")
    catalog = catalog_service_pb2_grpc.CatalogServiceStub(running.channel)
    catalog.DeleteItems(catalog_service_pb2.DeleteItemsRequest(message_id="p1", item_ids=["mug"]))
    assert put_items(running, "p1") == first
    assert "mug" not in item_ids(decide(running, item_count=4))


# ---- what it refuses -------------------------------------------------------------------------------------------------


def test_each_bad_signal_of_a_batch_has_its_own_reason(running: Running) -> None:
    put_items(running)
    good = order("m1", "mug")
    no_name = order("m2", "mug")
    del no_name.identifiers[:]
    no_basis = order("m3", "mug")
    no_basis.ClearField("consent")
    no_basis.identifiers[0].value = "somebody-else"
    huge = order("m5", "mug")
    huge.properties.add(name="note", string_value="x" * 10_000_000)
    wrong = order("m6", "mug")
    wrong.properties.add(name="total", string_value="a lot")
    response = ingest(
        running,
        good,
        no_name,
        no_basis,
        order("m4", "mug", type="order_complete"),
        huge,
        wrong,
        order("", "mug"),
        order("m7", "mug", event_time_ms=NOW_MS - 30 * 365 * 86_400_000),
        order("m8", "mug"),
    )
    rejected = signal_service_pb2.SIGNAL_STATUS_REJECTED
    assert outcomes(response) == [
        (signal_service_pb2.SIGNAL_STATUS_APPLIED, ""),
        (rejected, "MISSING_IDENTIFIER"),
        (signal_service_pb2.SIGNAL_STATUS_WITHHELD, "NO_CONSENT"),
        (rejected, "UNKNOWN_SIGNAL_TYPE"),
        (rejected, "FIELD_TOO_LARGE"),
        (rejected, "WRONG_TYPE"),
        (rejected, "MISSING_MESSAGE_ID"),
        (rejected, "EVENT_TOO_OLD"),
        (signal_service_pb2.SIGNAL_STATUS_APPLIED, ""),
    ]
    assert "order_completed" in response.outcomes[3].message
    assert "limits.field_bytes_max" in response.outcomes[4].message
    assert all(len(outcome.message) < 1_000 for outcome in response.outcomes)
    assert get_profile(running, identifiers=USER).features[0].number == 2


def test_bad_utf8_in_one_signal_is_that_signals_outcome(running: Running) -> None:
    bad = order("m1", "mug", source="XXXX")
    batch = signal_service_pb2.IngestRequest(signals=[order("m0", "mug"), bad, order("m2", "mug")])
    call = running.channel.unary_unary("/tailorbird.v1.SignalService/Ingest")
    answer = call(batch.SerializeToString().replace(b"XXXX", b"X\xff\xfeX"))
    response = signal_service_pb2.IngestResponse.FromString(answer)
    assert outcomes(response) == [
        (signal_service_pb2.SIGNAL_STATUS_APPLIED, ""),
        (signal_service_pb2.SIGNAL_STATUS_REJECTED, "BAD_UTF8"),
        (signal_service_pb2.SIGNAL_STATUS_APPLIED, ""),
    ]


def test_bad_utf8_in_a_decision_is_refused(running: Running) -> None:
    request = decision_service_pb2.DecideRequest(placement="XXXX").SerializeToString().replace(b"XX", b"\xff\xfe")
    code, reason, text = refusal(lambda: running.channel.unary_unary("/tailorbird.v1.DecisionService/Decide")(request))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_UTF8")
    assert "tailorbird.v1.DecideRequest" in text


def test_bytes_that_are_no_message_are_refused(running: Running) -> None:
    for method in ("SignalService/Ingest", "DecisionService/Decide", "CatalogService/PutItems"):
        call = running.channel.unary_unary(f"/tailorbird.v1.{method}")
        code, reason, _ = refusal(lambda call=call: call(b"\x0a\x7f"))  # type: ignore[misc]
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_MESSAGE")


def test_an_unknown_placement_is_not_found_and_the_known_ones_are_named(running: Running) -> None:
    code, reason, text = refusal(lambda: decide(running, placement="hom"))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_PLACEMENT")
    assert "home" in text


def test_a_million_candidate_ids_are_refused_by_the_limits_name(running: Running) -> None:
    request = decision_service_pb2.DecideRequest(
        placement="home", candidate_ids=[f"item-{n:07d}" for n in range(1_000_000)]
    )
    stub = decision_service_pb2_grpc.DecisionServiceStub(running.channel)
    code, reason, text = refusal(lambda: stub.Decide(request))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_CANDIDATES")
    assert "limits.candidates_max = 10000" in text
    assert "1000000" in text


def test_a_message_over_the_limit_is_refused_by_the_limits_name(running: Running) -> None:
    code, reason, text = refusal(lambda: decide(running, placement="x" * (33 * 1024**2)))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
    assert "message_bytes_max" in text


def test_a_batch_over_the_limit_is_refused_whole(running: Running) -> None:
    code, reason, text = refusal(lambda: ingest(running, *[signal_pb2.Signal()] * 10_001))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_TOO_LARGE")
    assert "limits.batch_signals_max = 10000" in text


def test_a_profile_needs_a_name_and_a_person(running: Running) -> None:
    assert refusal(lambda: get_profile(running))[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "MISSING_IDENTIFIER")
    assert refusal(lambda: get_profile(running, identifiers=USER))[:2] == (grpc.StatusCode.NOT_FOUND, "NO_PROFILE")


def test_a_write_to_the_catalogue_needs_an_id_and_items(running: Running) -> None:
    catalog = catalog_service_pb2_grpc.CatalogServiceStub(running.channel)
    item = catalog_service_pb2.Item(id="mug")
    for request, reason in (
        (catalog_service_pb2.PutItemsRequest(items=[item]), "MISSING_MESSAGE_ID"),
        (catalog_service_pb2.PutItemsRequest(message_id="x" * 256, items=[item]), "MESSAGE_ID_TOO_LONG"),
        (catalog_service_pb2.PutItemsRequest(message_id="m"), "BAD_ITEM_COUNT"),
    ):
        code, found, _ = refusal(lambda request=request: catalog.PutItems(request))  # type: ignore[misc]
        assert (code, found) == (grpc.StatusCode.INVALID_ARGUMENT, reason)


def test_a_position_that_is_not_reached_is_unavailable(running: Running) -> None:
    stub = decision_service_pb2_grpc.DecisionServiceStub(running.channel)
    request = decision_service_pb2.DecideRequest(placement="home", min_position=10**9)
    # The deadline is generous: what is left of it after the wait is the answer's time.
    code, reason, _ = refusal(lambda: stub.Decide(request))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "POSITION_NOT_REACHED")


# ---- what operators ask ----------------------------------------------------------------------------------------------


def test_health_is_told_per_service_and_watched_through_a_stop(serving: Serving) -> None:
    response = health_pb2.HealthCheckResponse
    with serving() as running:
        stub = health_pb2_grpc.HealthStub(running.channel)
        for service in ("", "tailorbird.v1.DecisionService", "tailorbird.v1.SignalService"):
            assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == response.SERVING
        code, _, _ = refusal(lambda: stub.Check(health_pb2.HealthCheckRequest(service="nothing")))
        assert code is grpc.StatusCode.NOT_FOUND
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nothing"))
        assert next(unknown).status == response.SERVICE_UNKNOWN
        unknown.cancel()
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == response.SERVING
        watch.cancel()


def test_reflection_lists_every_service_and_describes_it(running: Running) -> None:
    database = ProtoReflectionDescriptorDatabase(running.channel)
    services = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "tailorbird.v1.CatalogService",
        "tailorbird.v1.ConfigurationService",
        "tailorbird.v1.DecisionService",
        "tailorbird.v1.FeatureService",
        "tailorbird.v1.ProfileService",
        "tailorbird.v1.SignalService",
    ]
    assert sorted(database.get_services()) == services
    pool = DescriptorPool(database)
    for service in services:
        assert pool.FindServiceByName(service).full_name == service
    decide_method = pool.FindServiceByName("tailorbird.v1.DecisionService").FindMethodByName("Decide")
    assert "candidate_ids" in decide_method.input_type.fields_by_name
    with pytest.raises(KeyError):
        pool.FindServiceByName("tailorbird.v1.NothingService")


def test_both_versions_of_reflection_answer_alike(running: Running) -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="tailorbird.v1.Signal"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="nothing.proto"),
        reflection_pb2.ServerReflectionRequest(all_extension_numbers_of_type="tailorbird.v1.Signal"),
        reflection_pb2.ServerReflectionRequest(),
    ]
    answers = []
    for version in ("v1", "v1alpha"):
        call = running.channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
        answers.append(list(call(request.SerializeToString() for request in requests)))
    assert answers[0] == answers[1]
    parsed = [reflection_pb2.ServerReflectionResponse.FromString(answer) for answer in answers[0]]
    assert [answer.WhichOneof("message_response") for answer in parsed] == [
        "list_services_response",
        "file_descriptor_response",
        "error_response",
        "all_extension_numbers_response",
        "error_response",
    ]

"""Features over the service: read, pushed, declared while it runs and backfilled while events flow."""

from __future__ import annotations

import math
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tailorbird.engine import Engine
from tailorbird.server.metrics import Metrics
from tailorbird.v1 import (
    configuration_service_pb2,
    configuration_service_pb2_grpc,
    decision_service_pb2,
    decision_service_pb2_grpc,
    feature_service_pb2,
    feature_service_pb2_grpc,
    profile_service_pb2,
    signal_service_pb2,
)
from tests.server.conftest import CONFIGURATION, Running, Serving
from tests.server.test_service import GRANTED, ingest, order, refusal

NOW_MS = time.time_ns() // 1_000_000
FEATURES = """\
  - {name: risk, pushed: number, category: transactional}
  - {name: tier, pushed: text, category: transactional}
  - {name: bought, signal: order_completed, aggregate: "last_k(product_id, k=3)"}
  - {name: half, formula: orders / 2, default: 0}
"""
FRESH, MISSING, DEFAULTED = (
    profile_service_pb2.FEATURE_STATUS_FRESH,
    profile_service_pb2.FEATURE_STATUS_MISSING,
    profile_service_pb2.FEATURE_STATUS_DEFAULTED,
)
DECLARED = CONFIGURATION.replace(
    "placements:", FEATURES + "freshness: {transactional: 1d, behavioural: 1d}\nplacements:"
)


@pytest.fixture
def declared(shop: Path, serving: Serving) -> Serving:
    (shop / "tailorbird.yaml").write_text(DECLARED)
    return serving


def stub(running: Running) -> feature_service_pb2_grpc.FeatureServiceStub:
    return feature_service_pb2_grpc.FeatureServiceStub(running.channel)


def get(
    running: Running, *people: str, features: tuple[str, ...] = (), **fields: int
) -> feature_service_pb2.GetFeaturesResponse:
    request = feature_service_pb2.GetFeaturesRequest(namespace="user_id", people=people, features=features, **fields)
    answer = stub(running).GetFeatures(request)
    assert isinstance(answer, feature_service_pb2.GetFeaturesResponse)
    return answer


def test_features_of_people_come_in_columns(declared: Serving) -> None:
    with declared() as running:
        ingest(running, order("o1", "mug"), order("o2", "lamp"))
        answer = get(running, "u1", "nobody")
        assert list(answer.known) == [True, False]
        assert list(answer.completeness) == pytest.approx([0.6, 0.0])
        columns = {column.name: column for column in answer.columns}
        assert list(columns) == ["orders", "risk", "tier", "bought", "half"]
        assert list(columns["orders"].statuses) == [FRESH, MISSING]
        assert columns["orders"].numbers[0] == 2.0
        assert math.isnan(columns["orders"].numbers[1])
        assert [list(keys.keys) for keys in columns["bought"].weighted_keys] == [["lamp", "mug"], []] or [
            list(keys.keys) for keys in columns["bought"].weighted_keys
        ] == [["mug", "lamp"], []]
        assert list(columns["half"].statuses) == [FRESH, DEFAULTED]
        assert list(columns["half"].numbers) == [1.0, 0.0]
        assert columns["risk"].ages_ms[0] == -1
        assert list(answer.stale_categories) == ["behavioural"]
        assert list(get(running, "u1", at_ms=NOW_MS + 3 * 86_400_000).stale_categories) == [
            "transactional",
            "behavioural",
        ]


def test_pushed_values_are_read_back(declared: Serving) -> None:
    with declared() as running:
        request = feature_service_pb2.PushFeaturesRequest(
            namespace="user_id",
            people=["u1", "u2", "null"],
            event_times_ms=[NOW_MS],
            columns=[
                feature_service_pb2.PushedColumn(name="risk", numbers=[0.25, math.nan, 0.5]),
                feature_service_pb2.PushedColumn(name="tier", texts=["gold", "silver", ""]),
            ],
            consent=GRANTED,
        )
        answer = stub(running).PushFeatures(request)
        applied, rejected = signal_service_pb2.SIGNAL_STATUS_APPLIED, signal_service_pb2.SIGNAL_STATUS_REJECTED
        assert [outcome.status for outcome in answer.outcomes] == [applied, applied, rejected]
        assert answer.outcomes[2].reason == "REFUSED_VALUE"
        found = get(running, "u1", "u2", features=("risk", "tier"), min_position=answer.position)
        assert [list(column.statuses) for column in found.columns] == [[FRESH, MISSING], [FRESH, FRESH]]
        assert found.columns[0].numbers[0] == 0.25
        assert list(found.columns[1].texts) == ["gold", "silver"]
        again = stub(running).PushFeatures(request)
        assert again.outcomes[0].status == signal_service_pb2.SIGNAL_STATUS_DUPLICATE


def test_a_feature_is_declared_and_backfilled_while_the_service_runs(declared: Serving) -> None:
    with declared() as running:
        ingest(running, *(order(f"o{n}", "mug", "lamp") for n in range(5)))
        configuration = configuration_service_pb2_grpc.ConfigurationServiceStub(running.channel)
        late = DECLARED.replace(
            "freshness:", "  - {name: lines, signal: order_completed, aggregate: sum(quantity)}\nfreshness:"
        )
        late = late.replace("sum(quantity)", "decayed_count(half_life=30d)")
        put = configuration.PutConfiguration(configuration_service_pb2.PutConfigurationRequest(configuration=late))
        assert list(put.warming_features) == ["lines"]
        ingest(running, order("o5", "mug"))
        column = get(running, "u1", features=("lines",), min_position=put.position).columns[0]
        assert list(column.statuses) == [profile_service_pb2.FEATURE_STATUS_WARMING]
        told = list(stub(running).BackfillFeatures(feature_service_pb2.BackfillFeaturesRequest()))
        assert told[-1].finished
        assert list(told[-1].features) == ["lines"]
        assert (told[-2].fragments_written, told[-2].records_read > 5) == (1, True)
        assert get(running, "u1", features=("lines",)).columns[0].numbers[0] == pytest.approx(6.0, rel=1e-3)
        assert [
            answer.finished for answer in stub(running).BackfillFeatures(feature_service_pb2.BackfillFeaturesRequest())
        ] == [True]


def test_a_bad_configuration_changes_nothing(declared: Serving) -> None:
    with declared() as running:
        ingest(running, order("o1", "mug"))
        configuration = configuration_service_pb2_grpc.ConfigurationServiceStub(running.channel)
        for text, reason in (
            ("version: 1\nfeatures: [", "BAD_YAML"),
            (DECLARED.replace("aggregate: count", "aggregate: cuont"), "UNKNOWN_AGGREGATE"),
            (DECLARED.replace("aggregate: count", "aggregate: time_since"), "FEATURE_CHANGED"),
        ):
            request = configuration_service_pb2.PutConfigurationRequest(configuration=text)
            code, found, _ = refusal(lambda request=request: configuration.PutConfiguration(request))  # type: ignore[misc]
            assert (code, found) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
        assert get(running, "u1", features=("orders",)).columns[0].numbers[0] == 1.0


@pytest.mark.parametrize(
    ("columns", "times", "reason"),
    [
        ([("risk", [0.5], [])], [NOW_MS], "BAD_TABLE"),
        ([("risk", [0.5, 0.5], ["a", "b"])], [NOW_MS], "BAD_TABLE"),
        ([("risk", [0.5, 0.5], [])], [NOW_MS] * 3, "BAD_TABLE"),
        ([("risk", [0.5, 0.5], [])], [], "BAD_TABLE"),
        ([("orders", [0.5, 0.5], [])], [NOW_MS], "NOT_PUSHED"),
        ([("rsik", [0.5, 0.5], [])], [NOW_MS], "UNKNOWN_FEATURE"),
    ],
)
def test_a_pushed_table_that_cannot_be_is_refused_whole(
    declared: Serving, columns: list[tuple[str, list[float], list[str]]], times: list[int], reason: str
) -> None:
    with declared() as running:
        request = feature_service_pb2.PushFeaturesRequest(
            namespace="user_id",
            people=["u1", "u2"],
            event_times_ms=times,
            columns=[feature_service_pb2.PushedColumn(name=n, numbers=v, texts=t) for n, v, t in columns],
        )
        assert refusal(lambda: stub(running).PushFeatures(request))[1] == reason


def test_what_cannot_be_read_is_refused(declared: Serving) -> None:
    with declared() as running:
        assert refusal(lambda: get(running, "u1", features=("rsik",)))[:2] == (
            grpc.StatusCode.NOT_FOUND,
            "UNKNOWN_FEATURE",
        )
        assert refusal(lambda: get(running, *["u"] * 1_001))[1] == "BATCH_TOO_LARGE"
        assert refusal(lambda: get(running, "u1", min_position=10**9))[:2] == (
            grpc.StatusCode.UNAVAILABLE,
            "POSITION_NOT_REACHED",
        )


def test_a_category_past_its_target_is_told_in_health_metrics_and_answers(declared: Serving, shop: Path) -> None:
    with declared() as running:
        health = health_pb2_grpc.HealthStub(running.channel)

        def standing(category: str) -> int:
            return int(health.Check(health_pb2.HealthCheckRequest(service=f"freshness.{category}")).status)

        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        assert [standing(name) for name in ("transactional", "demographic")] == [not_serving, serving]
        watch = health.Watch(health_pb2.HealthCheckRequest(service="freshness.transactional"))
        assert next(watch).status == not_serving
        ingest(running, order("o1", "mug"))
        assert next(watch).status == serving
        watch.cancel()
        decisions = decision_service_pb2_grpc.DecisionServiceStub(running.channel)
        decided = decisions.Decide(decision_service_pb2.DecideRequest(placement="home"))
        assert "STALE_BEHAVIOURAL" in decided.degraded
        assert "STALE_TRANSACTIONAL" not in decided.degraded
    with Engine.open(shop) as engine:
        metrics = Metrics(engine)
        table = engine.get_features("user_id", ["u1", "u2"], at=NOW_MS + 30_000)
        metrics.feature_ages.of("")(table)
        found = {
            (sample.name, sample.labels.get("category", ""), sample.labels.get("le", "")): sample.value
            for family in metrics.registry.collect()
            for sample in family.samples
        }
        assert found["tailorbird_category_stale", "behavioural", ""] == 1.0
        assert found["tailorbird_category_stale", "transactional", ""] == 0.0
        assert 0.0 <= found["tailorbird_category_age_seconds", "transactional", ""] < 3_600.0
        # orders, bought and half of one person, all of the moment the test began
        assert found["tailorbird_feature_age_seconds_bucket", "transactional", "10.0"] == 0.0
        assert found["tailorbird_feature_age_seconds_bucket", "transactional", "60.0"] == 3.0
        assert found["tailorbird_feature_age_seconds_count", "transactional", ""] == 3.0


def test_segments_are_watched_as_they_change(shop: Path, serving: Serving) -> None:
    (shop / "tailorbird.yaml").write_text(
        CONFIGURATION.replace("placements:", "  - {name: regular, formula: orders >= 2, segment: true}\nplacements:")
    )
    with serving() as running:
        watch = stub(running).WatchSegments(feature_service_pb2.WatchSegmentsRequest())
        ingest(running, order("o1", "mug"))
        ingest(running, order("o2", "mug"))
        change = next(watch)
        assert (change.sequence, change.segment, change.entered) == (0, "regular", True)
        watch.cancel()
        again = stub(running).WatchSegments(feature_service_pb2.WatchSegmentsRequest(first_sequence=0))
        assert next(again) == change
        again.cancel()
        assert get(running, "u1", features=("regular",)).columns[0].numbers[0] == 1.0

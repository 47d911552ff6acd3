"""The methods of the API, typed. A test holds the list against the services' descriptors."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from tailorbird.client.method import Method
from tailorbird.v1 import (
    catalog_service_pb2,
    configuration_service_pb2,
    decision_service_pb2,
    feature_service_pb2,
    profile_service_pb2,
    signal_service_pb2,
)

M = TypeVar("M", bound=Message)
N = TypeVar("N", bound=Message)


def _method(path: str, request: type[M], response: type[N]) -> Method[M, N]:
    return Method(f"/tailorbird.v1.{path}", request.SerializeToString, response.FromString)


PUT_ITEMS = _method(
    "CatalogService/PutItems", catalog_service_pb2.PutItemsRequest, catalog_service_pb2.PutItemsResponse
)
DELETE_ITEMS = _method(
    "CatalogService/DeleteItems", catalog_service_pb2.DeleteItemsRequest, catalog_service_pb2.DeleteItemsResponse
)
PUT_CONFIGURATION = _method(
    "ConfigurationService/PutConfiguration",
    configuration_service_pb2.PutConfigurationRequest,
    configuration_service_pb2.PutConfigurationResponse,
)
DECIDE = _method("DecisionService/Decide", decision_service_pb2.DecideRequest, decision_service_pb2.DecideResponse)
DECIDE_PAGE = _method(
    "DecisionService/DecidePage", decision_service_pb2.DecidePageRequest, decision_service_pb2.DecidePageResponse
)
DECIDE_BATCH = _method(
    "DecisionService/DecideBatch", decision_service_pb2.DecideBatchRequest, decision_service_pb2.DecideBatchResponse
)
GET_FEATURES = _method(
    "FeatureService/GetFeatures", feature_service_pb2.GetFeaturesRequest, feature_service_pb2.GetFeaturesResponse
)
PUSH_FEATURES = _method(
    "FeatureService/PushFeatures", feature_service_pb2.PushFeaturesRequest, feature_service_pb2.PushFeaturesResponse
)
BACKFILL_FEATURES = _method(
    "FeatureService/BackfillFeatures",
    feature_service_pb2.BackfillFeaturesRequest,
    feature_service_pb2.BackfillFeaturesResponse,
)
WATCH_SEGMENTS = _method(
    "FeatureService/WatchSegments", feature_service_pb2.WatchSegmentsRequest, feature_service_pb2.WatchSegmentsResponse
)
GET_PROFILE = _method(
    "ProfileService/GetProfile", profile_service_pb2.GetProfileRequest, profile_service_pb2.GetProfileResponse
)
INGEST = _method("SignalService/Ingest", signal_service_pb2.IngestRequest, signal_service_pb2.IngestResponse)
INGEST_STREAM = _method(
    "SignalService/IngestStream", signal_service_pb2.IngestStreamRequest, signal_service_pb2.IngestStreamResponse
)

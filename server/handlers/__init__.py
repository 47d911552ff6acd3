"""The handler table of the API. Each handler: bytes to message, message to engine, engine's answer to bytes."""

from __future__ import annotations

from collections.abc import Callable

from tailorbird.engine import Engine
from tailorbird.engine.feature_table import FeatureTable
from tailorbird.server.handlers.catalog import CatalogHandlers
from tailorbird.server.handlers.decisions import DecisionHandlers
from tailorbird.server.handlers.features import FeatureHandlers
from tailorbird.server.handlers.profiles import ProfileHandlers
from tailorbird.server.handlers.signals import SignalHandlers
from tailorbird.server.transport import Bidirectional, HandlerTable, ServerStream, Unary
from tailorbird.server.writer import GroupWriter

SERVICES = (
    "tailorbird.v1.CatalogService",
    "tailorbird.v1.ConfigurationService",
    "tailorbird.v1.DecisionService",
    "tailorbird.v1.FeatureService",
    "tailorbird.v1.ProfileService",
    "tailorbird.v1.SignalService",
)


def build_table(
    engine: Engine, writer: GroupWriter, observe: Callable[[FeatureTable], None] | None = None
) -> HandlerTable:
    """Return the API's handlers: reads happen where they are called, writes go through `writer`.

    `observe` is told of every table of features that is read.
    """
    catalog = CatalogHandlers(engine, writer)
    decisions = DecisionHandlers(engine, writer)
    features = FeatureHandlers(engine, writer, observe)
    signals = SignalHandlers(engine, writer)
    return {
        "/tailorbird.v1.CatalogService/DeleteItems": Unary(catalog.delete_items),
        "/tailorbird.v1.CatalogService/PutItems": Unary(catalog.put_items),
        "/tailorbird.v1.ConfigurationService/PutConfiguration": Unary(features.put_configuration),
        "/tailorbird.v1.DecisionService/Decide": Unary(decisions.decide, prompt=True),
        "/tailorbird.v1.DecisionService/DecideBatch": Unary(decisions.decide_batch),
        "/tailorbird.v1.DecisionService/DecidePage": Unary(decisions.decide_page, prompt=True),
        "/tailorbird.v1.FeatureService/BackfillFeatures": ServerStream(features.backfill_features),
        "/tailorbird.v1.FeatureService/GetFeatures": Unary(features.get_features, prompt=True),
        "/tailorbird.v1.FeatureService/PushFeatures": Unary(features.push_features),
        "/tailorbird.v1.FeatureService/WatchSegments": ServerStream(features.watch_segments),
        "/tailorbird.v1.ProfileService/GetProfile": Unary(ProfileHandlers(engine, writer).get_profile, prompt=True),
        "/tailorbird.v1.SignalService/Ingest": Unary(signals.ingest),
        "/tailorbird.v1.SignalService/IngestStream": Bidirectional(signals.ingest_stream),
    }

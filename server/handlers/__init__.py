"""The handler table of the API. Each handler: bytes to message, message to engine, engine's answer to bytes.

What reads is answered where the call arrives; what writes, where the writer is. In one process that is one table; else workers
serve `read_table` and relay what `lanes.WRITES` names to the process that serves `write_table`.
"""

from __future__ import annotations

from collections.abc import Callable

from tailorbird.engine import Engine
from tailorbird.engine.feature_table import FeatureTable
from tailorbird.server.handlers.catalog import CatalogHandlers
from tailorbird.server.handlers.decisions import DecisionHandlers
from tailorbird.server.handlers.features import FeatureReads, FeatureWrites
from tailorbird.server.handlers.profiles import ProfileHandlers
from tailorbird.server.handlers.served import LeftBehind
from tailorbird.server.handlers.signals import SignalHandlers
from tailorbird.server.lanes import INGEST
from tailorbird.server.positions import Positions
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
    """Return the API's handlers for the process that also writes.

    `observe` is told of every table of features that is read.
    """
    writes = write_table(engine, writer)
    ingest = writes[INGEST]
    assert isinstance(ingest, Unary)
    left_behind = LeftBehind(lambda: writer.call(engine.flush), ingest.function)
    return {**read_table(engine, writer.positions, left_behind, observe), **writes}


def read_table(
    engine: Engine,
    positions: Positions,
    left_behind: LeftBehind,
    observe: Callable[[FeatureTable], None] | None = None,
) -> HandlerTable:
    """Return the handlers of what only reads; what decisions leave to be written goes to `left_behind`."""
    decisions = DecisionHandlers(engine, positions, left_behind)
    features = FeatureReads(engine, positions, observe)
    return {
        "/tailorbird.v1.DecisionService/Decide": Unary(decisions.decide, prompt=True),
        "/tailorbird.v1.DecisionService/DecideBatch": Unary(decisions.decide_batch),
        "/tailorbird.v1.DecisionService/DecidePage": Unary(decisions.decide_page, prompt=True),
        "/tailorbird.v1.FeatureService/GetFeatures": Unary(features.get_features, prompt=True),
        "/tailorbird.v1.FeatureService/WatchSegments": ServerStream(features.watch_segments),
        "/tailorbird.v1.ProfileService/GetProfile": Unary(ProfileHandlers(engine, positions).get_profile, prompt=True),
    }


def write_table(engine: Engine, writer: GroupWriter) -> HandlerTable:
    """Return the handlers of what writes, see `lanes.WRITES`."""
    catalog = CatalogHandlers(engine, writer)
    features = FeatureWrites(engine, writer)
    signals = SignalHandlers(engine, writer)
    return {
        "/tailorbird.v1.CatalogService/DeleteItems": Unary(catalog.delete_items),
        "/tailorbird.v1.CatalogService/PutItems": Unary(catalog.put_items),
        "/tailorbird.v1.ConfigurationService/PutConfiguration": Unary(features.put_configuration),
        "/tailorbird.v1.FeatureService/BackfillFeatures": ServerStream(features.backfill_features),
        "/tailorbird.v1.FeatureService/PushFeatures": Unary(features.push_features),
        INGEST: Unary(signals.ingest),
        "/tailorbird.v1.SignalService/IngestStream": Bidirectional(signals.ingest_stream),
    }

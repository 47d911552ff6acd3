"""Which methods write, and in which lane they wait for the writer: one table for the handlers, the relay and the tests."""

from __future__ import annotations

from enum import StrEnum


class Lane(StrEnum):
    """Where a write waits. `LIVE` goes first; `BULK` gets what is left, and a turn now and then whatever is live."""

    LIVE = "live"
    BULK = "bulk"


INGEST = "/tailorbird.v1.SignalService/Ingest"
# Every other method only reads.
WRITES: dict[str, Lane] = {
    INGEST: Lane.LIVE,
    "/tailorbird.v1.SignalService/IngestStream": Lane.BULK,
    "/tailorbird.v1.CatalogService/DeleteItems": Lane.LIVE,
    "/tailorbird.v1.CatalogService/PutItems": Lane.BULK,
    "/tailorbird.v1.ConfigurationService/PutConfiguration": Lane.LIVE,
    "/tailorbird.v1.FeatureService/BackfillFeatures": Lane.BULK,
    "/tailorbird.v1.FeatureService/PushFeatures": Lane.BULK,
}


def lane_of(path: str) -> Lane:
    """Return the lane of a method, `LIVE` for one that is not in the table."""
    return WRITES.get(path, Lane.LIVE)

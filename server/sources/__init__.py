"""Files read into signals and items: what `tailorbird ingest --format NAME` knows by name."""

from __future__ import annotations

from tailorbird.server.sources import online_retail, otto
from tailorbird.server.sources.batch import Reader

FORMATS: dict[str, Reader] = {"online-retail": online_retail.read, "otto": otto.read}

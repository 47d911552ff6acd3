"""Logged decisions as columns, for whatever reads Parquet. Needs pyarrow: the extra `parquet`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tailorbird.engine.decision_id import DecisionIds
from tailorbird.engine.decision_record import LoggedDecision, Stored
from tailorbird.engine.directory import write_failed
from tailorbird.engine.extras import extra

ROWS_PER_GROUP = 10_000


def export_parquet(path: Path, decisions: Iterable[Stored], ids: DecisionIds) -> int:
    """Write decisions, one a row, and return how many; what was erased or is damaged is left out.

    Raises `PreconditionFailed` MISSING_EXTRA, `ResourceExhausted` DISK_FULL, `Unavailable` FILE_WRITE_FAILED; then no file is left.
    """
    pa, parquet = extra("pyarrow", "parquet"), extra("pyarrow.parquet", "parquet")
    schema = _schema(pa)
    temporary = path.with_name(path.name + ".new")
    row_count = 0
    try:
        with parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for group in _groups(decisions, ids):
                writer.write_table(pa.Table.from_pylist(group, schema))
                row_count += len(group)
        temporary.rename(path)
    except OSError as error:
        raise write_failed(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)
    return row_count


def _groups(decisions: Iterable[Stored], ids: DecisionIds) -> Iterable[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for stored in decisions:
        if not stored.payload:
            continue
        logged = stored.logged()
        assert logged is not None
        rows.append(row_of(stored, logged, ids))
        if len(rows) == ROWS_PER_GROUP:
            yield rows
            rows = []
    if rows:
        yield rows


def row_of(stored: Stored, logged: LoggedDecision, ids: DecisionIds) -> dict[str, Any]:
    """Return one decision by column."""
    return {
        "decision_id": id_of(stored, logged, ids),
        "at": stored.at,
        "position": stored.position,
        "configuration_version": logged.configuration_version,
        "model": logged.model,
        "placement": logged.placement,
        "person_id": logged.person_id,
        "withheld": logged.withheld,
        "context": sorted(logged.context.items()),
        "events": json.dumps(msgspec.to_builtins(logged.events)),
        "given_count": logged.given_count,
        "candidates": list(logged.candidates),
        "features": np.frombuffer(logged.vector, "<f4").tolist(),
        "recent_items": np.frombuffer(logged.recent, "<u4").tolist(),
        "seed": logged.seed,
        "items": [item.id for item in logged.items],
        "scores": [item.score for item in logged.items],
        "propensities": [item.propensity for item in logged.items],
        "reasons": [" ".join(f"{reason} {detail}".strip() for reason, detail in item.reasons) for item in logged.items],
        "tier": str(logged.tier),
        "completeness": logged.completeness,
        "profile_age_ms": logged.profile_age_ms,
        "masked_count": logged.masked_count,
        "excluded_count": logged.excluded_count,
        "candidate_count": logged.candidate_count,
        "unknown_candidate_count": logged.unknown_candidate_count,
        "degraded": list(logged.degraded),
    }


def id_of(stored: Stored, logged: LoggedDecision, ids: DecisionIds) -> str:
    """Return the id that a decision was answered under."""
    return ids.named(logged.name) if logged.name else ids.placed(stored.place)


def _schema(pa: Any) -> Any:
    texts, numbers = pa.list_(pa.string()), pa.list_(pa.float64())
    return pa.schema(
        [
            ("decision_id", pa.string()),
            ("at", pa.timestamp("ms", "UTC")),
            ("position", pa.int64()),
            ("configuration_version", pa.int32()),
            ("model", pa.string()),
            ("placement", pa.string()),
            ("person_id", pa.string()),
            ("withheld", pa.bool_()),
            ("context", pa.map_(pa.string(), pa.string())),
            ("events", pa.string()),
            ("given_count", pa.int32()),
            ("candidates", texts),
            ("features", pa.list_(pa.float32())),
            ("recent_items", pa.list_(pa.uint32())),
            ("seed", pa.uint64()),
            ("items", texts),
            ("scores", numbers),
            ("propensities", numbers),
            ("reasons", texts),
            ("tier", pa.string()),
            ("completeness", pa.float64()),
            ("profile_age_ms", pa.int64()),
            ("masked_count", pa.int32()),
            ("excluded_count", pa.int32()),
            ("candidate_count", pa.int32()),
            ("unknown_candidate_count", pa.int32()),
            ("degraded", texts),
        ]
    )

"""Features computed in batches: tables of events through Ibis, results as pushed facts."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tailorbird.engine.batch import BatchFeatures
from tailorbird.engine.compiled import CompiledConfiguration
from tailorbird.engine.errors import CallerError
from tailorbird.engine.pushes import PushedRow
from tailorbird.engine.signals import IngestReport, Outcome, Status
from tailorbird.server.offline import connected

ROWS_AT_ONCE = 1_000

# Takes the rows of a batch, all of one namespace, and tells what became of each.
Push = Callable[[Sequence[PushedRow]], IngestReport]


@dataclass(frozen=True, slots=True)
class Materialized:
    """What a run did: people with values, outcomes by status, and the first few that were not applied."""

    people: int
    counts: dict[Status, int]
    refusals: tuple[Outcome, ...]


def batch_names(compiled: CompiledConfiguration, names: Sequence[str]) -> list[str]:
    """Return the features to compute: those asked for, else all with `compute: batch`. Raises `CallerError` NOT_BATCHED."""
    batched_names = [feature.name for feature in compiled.features.features if feature.sources]
    if not batched_names:
        raise CallerError("NOT_BATCHED", "expected features declared with `compute: batch`, got none")
    for name in names:
        if name not in batched_names:
            raise CallerError(
                "NOT_BATCHED",
                f"expected features declared with `compute: batch`, {', '.join(batched_names)}, got {name!r:.100}",
            )
    return list(names) or batched_names


def materialize(
    compiled: CompiledConfiguration,
    names: Sequence[str],
    events: Sequence[str],
    namespace: str,
    at: int,
    push: Push,
    *,
    engine: str = "duckdb",
    currency: str = "",
) -> Materialized:
    """Compute features of everybody in event files (paths or patterns) as of `at` (ms), and push them with that time."""
    wanted = batch_names(compiled, names)
    types = compiled.configuration.signal_types()
    people = 0
    counts = dict.fromkeys(Status, 0)
    refusals: list[Outcome] = []
    with connected(engine) as connection:
        table = _events(connection, events)
        batch = BatchFeatures(compiled.features, types, wanted, table, namespace, at, currency)
        found = _rows(batch, at)
        while rows := list(islice(found, ROWS_AT_ONCE)):
            people += len(rows)
            for outcome in push(rows).outcomes:
                counts[outcome.status] += 1
                if outcome.status in (Status.REJECTED, Status.WITHHELD) and len(refusals) < 5:
                    refusals.append(outcome)
    return Materialized(people, counts, tuple(refusals))


def _rows(batch: BatchFeatures, at: int) -> Iterator[PushedRow]:
    for chunk in batch.expression.to_pyarrow_batches():
        columns = chunk.to_pydict()
        for person, values in batch.rows(columns):
            if values:
                yield PushedRow(person, values, at)


def _events(connection: Any, patterns: Sequence[str]) -> Any:
    """Return the events of files as one table, their times in ms. Raises `CallerError` BAD_FILE."""
    paths = sorted({path for pattern in patterns for path in glob.glob(pattern)})
    if not paths:
        raise CallerError("BAD_FILE", f"expected event files, found none at {' '.join(patterns)}")
    kinds = {Path(path).suffix for path in paths}
    reader = {".parquet": "read_parquet", ".csv": "read_csv", ".jsonl": "read_json"}.get(kinds.pop())
    if reader is None or kinds:
        raise CallerError("BAD_FILE", f"expected files of one kind, .parquet, .csv or .jsonl, got {' '.join(paths)}")
    try:
        table = getattr(connection, reader)(paths if len(paths) > 1 else paths[0])
    except Exception as error:  # every engine has errors of its own
        first = str(error).strip().splitlines()[:1]
        raise CallerError(
            "BAD_FILE", f"expected readable event files, got {' '.join(paths)}: {''.join(first)}"
        ) from None
    if "event_time" in table.columns and table.event_time.type().is_timestamp():
        time = table.event_time
        table = table.mutate(event_time=time.epoch_seconds().cast("int64") * 1_000 + time.millisecond().cast("int64"))
    return table

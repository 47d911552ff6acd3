"""Tables of features, in and out."""

from __future__ import annotations

from collections.abc import Sequence

from tailorbird.engine.backfill import BackfillProgress
from tailorbird.engine.errors import CallerError
from tailorbird.engine.feature_table import FeatureTable
from tailorbird.engine.pushes import PushedRow
from tailorbird.v1 import feature_service_pb2 as api
from tailorbird.v1 import profile_service_pb2


def table_message(table: FeatureTable, stale: Sequence[str]) -> api.GetFeaturesResponse:
    """Return the answer of a table."""
    message = api.GetFeaturesResponse(
        known=table.known.tolist(),
        completeness=table.completeness.tolist(),
        at_ms=table.at,
        position=table.position,
        stale_categories=stale,
    )
    statuses = (table.statuses + 1).T.tolist()  # the wire's enumeration begins with UNSPECIFIED
    ages, values = table.ages_ms.T.tolist(), table.values.T.tolist()
    for index, name in enumerate(table.names):
        column = message.columns.add(name=name, statuses=statuses[index], ages_ms=ages[index])
        if name in table.texts:
            column.texts.extend(text or "" for text in table.texts[name])
        elif name in table.weighted:
            for pairs in table.weighted[name]:
                keys = profile_service_pb2.WeightedKeys()
                keys.keys.extend(key for key, _ in pairs or ())
                keys.weights.extend(weight for _, weight in pairs or ())
                column.weighted_keys.append(keys)
        else:
            column.numbers.extend(values[index])
    return message


def rows_from(message: api.PushFeaturesRequest) -> list[PushedRow]:
    """Return the rows of a pushed table. Raises `CallerError` BAD_TABLE."""
    people, times = list(message.people), list(message.event_times_ms)
    count = len(people)
    if len(times) not in (1, count):
        raise CallerError(
            "BAD_TABLE", f"expected one event time for all, or one for each of {count} people, got {len(times)}"
        )
    values: list[dict[str, float | str]] = [{} for _ in people]
    for column in message.columns:
        given: Sequence[float | str] = column.numbers or column.texts
        if len(given) != count or (column.numbers and column.texts):
            raise CallerError(
                "BAD_TABLE",
                f"expected {count} numbers or {count} texts, one per person, got {len(column.numbers)} and "
                f"{len(column.texts)}, in column {column.name[:64]!r}",
            )
        for row, value in zip(values, given, strict=True):
            if value != "" and value == value:  # NaN is no value
                row[column.name] = value
    times = times * count if len(times) == 1 else times
    return [PushedRow(*row) for row in zip(people, values, times, strict=True)]


def progress_message(progress: BackfillProgress) -> api.BackfillFeaturesResponse:
    """Return how far a backfill is."""
    return api.BackfillFeaturesResponse(
        features=progress.names,
        records_read=progress.read,
        records_end=progress.end,
        fragments_written=progress.written,
        fragments_found=progress.found,
    )

"""Where tables are computed and kept: DuckDB in process or a local Spark through Ibis, files through Arrow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tailorbird.engine.errors import CallerError
from tailorbird.engine.extras import extra
from tailorbird.engine.feature_table import FeatureTable
from tailorbird.engine.profile import FeatureStatus

ENGINES = ("duckdb", "spark")


@contextmanager
def connected(engine: str) -> Iterator[Any]:
    """Give an Ibis connection to `duckdb` or `spark`. Raises `CallerError` BAD_ARGUMENT, `PreconditionFailed` MISSING_EXTRA."""
    if engine not in ENGINES:
        raise CallerError("BAD_ARGUMENT", f"expected an engine of {', '.join(ENGINES)}, got {engine!r}")
    ibis = extra("ibis", "offline")
    if engine == "duckdb":
        connection = ibis.duckdb.connect()
        try:
            yield connection
        finally:
            connection.disconnect()
        return
    extra("pyspark", "spark")
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.appName("tailorbird")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    try:
        yield ibis.pyspark.connect(session)
    finally:
        session.stop()


def read_table(path: Path) -> Any:
    """Return a CSV, JSON lines or Parquet file as an Arrow table. Raises `CallerError` BAD_FILE."""
    extra("pyarrow", "offline")
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    reader = {
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
        ".parquet": pyarrow.parquet.read_table,
    }.get(suffixes[-1] if suffixes else "")
    if reader is None:
        raise CallerError("BAD_FILE", f"expected a file of .csv, .jsonl or .parquet, got {path}")
    try:
        return reader(path)
    except (OSError, pa.ArrowException) as error:
        raise CallerError("BAD_FILE", f"expected a readable {suffixes[-1][1:]} file, got {path}: {error}") from None


def table_columns(table: FeatureTable) -> dict[str, Any]:
    """Return a table of features as columns for Arrow: of each its value, null where nothing speaks, and `NAME__status`."""
    columns: dict[str, Any] = {}
    statuses = [status.name.lower() for status in FeatureStatus]
    for index, name in enumerate(table.names):
        if name in table.texts:
            columns[name] = table.texts[name]
        elif name in table.weighted:
            columns[name] = [None if keys is None else [key for key, _ in keys] for keys in table.weighted[name]]
            columns[f"{name}__weights"] = [
                None if keys is None else [weight for _, weight in keys] for keys in table.weighted[name]
            ]
        else:
            columns[name] = [None if math.isnan(value) else value for value in table.values[:, index].tolist()]
        columns[f"{name}__status"] = [statuses[status] for status in table.statuses[:, index].tolist()]
    return columns


def write_parquet(columns: dict[str, Any], path: Path) -> None:
    """Write columns of equal length, over what is there."""
    extra("pyarrow", "offline")
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table(columns), path)

"""Golden cases: the same declarations over a stream, over DuckDB and over Spark give the same numbers."""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tailorbird.engine import Engine, Signal
from tailorbird.engine.batch import BatchFeatures
from tailorbird.engine.compiled import CompiledConfiguration
from tailorbird.engine.errors import CallerError
from tailorbird.engine.profile import FeatureStatus
from tests.engine.shops import DAY, EVERYTHING, START, Clock, open_shop

NOW = START + 100 * DAY
HOUR = 3_600_000
CONFIGURATION = """\
version: 1
limits: {map_bytes: 134217728}
money: {currency: EUR, rates: {GBP: 1.17, JPY: 0.0061}}
signals:
  - {name: measured, category: behavioural, properties: {size: number, label: string}}
features:
  - {name: orders, signal: order_completed, aggregate: count}
  - {name: events, signal: [order_completed, order_refunded, measured], aggregate: count}
  - {name: orders_30d, signal: order_completed, aggregate: count, window: 30d}
  - {name: net, signal: [order_completed, order_refunded], aggregate: sum(revenue)}
  - {name: net_7d, signal: [order_completed, order_refunded], aggregate: sum(revenue), window: 7d, hop: 12h}
  - {name: size, signal: measured, aggregate: sum(size)}
  - {name: mean_size, signal: measured, aggregate: mean(size)}
  - {name: mean_30d, signal: measured, aggregate: mean(size), window: 30d}
  - {name: least, signal: measured, aggregate: min(size)}
  - {name: most_90d, signal: measured, aggregate: max(size), window: 90d}
  - {name: first_size, signal: measured, aggregate: first(size)}
  - {name: last_size, signal: measured, aggregate: last(size)}
  - {name: since, signal: order_completed, aggregate: time_since}
  - {name: labels, signal: measured, aggregate: distinct(label), store: lists}
  - {name: labels_30d, signal: measured, aggregate: distinct(label), window: 30d}
  - {name: median, signal: measured, aggregate: quantile(size), store: lists}
  - {name: high, signal: measured, aggregate: "quantile(size, q=0.9)", store: lists}
  - {name: fading, signal: [order_completed, measured],
     aggregate: "decayed_count(half_life=9d, weights={order_completed: 3, measured: 0.5})"}
  - {name: fading_size, signal: measured, aggregate: "decayed_sum(size, half_life=30d)"}
"""
EXACT = ("orders", "events", "orders_30d", "net", "net_7d", "size", "least", "most_90d", "first_size", "last_size")
EXACT += ("since", "labels", "labels_30d", "median", "high")

Row = dict[str, Any]


def rows(seed: int, count: int = 600) -> list[Row]:
    """Return events as a warehouse has them: a row each, every property a column."""
    rng = random.Random(seed)
    found: list[Row] = []
    for number in range(count):
        kind = rng.choice(("order_completed", "order_refunded", "measured", "measured"))
        row: Row = dict.fromkeys(("revenue", "currency", "size", "label"))
        row |= {"type": kind, "event_time": NOW - rng.randrange(99 * DAY) * 1, "user_id": f"u{rng.randrange(12)}"}
        if kind == "measured":
            row["size"] = rng.choice((rng.uniform(-5, 900), rng.randrange(100) / 2, 0.00005, -0.0, 1e-7))
            row["label"] = f"label {rng.randrange(40)}"
        else:
            row["revenue"] = rng.choice((rng.randrange(1, 99_999) / 100, 0.125, 2.675))
            row["currency"] = rng.choice((None, "EUR", "GBP", "JPY"))
        if rng.random() < 0.1:
            row["size"] = row["revenue"] = None
        row["id"] = f"m{number}"
        found.append(row)
    found += [
        {**found[0], "type": "measured", "size": 1.5, "event_time": NOW - hours * HOUR, "id": f"h{hours}"}
        for hours in range(40)
    ]
    found.append({**found[0], "user_id": None, "id": "nobody"})
    found.append({**found[0], "user_id": "late", "event_time": NOW + DAY, "id": "future"})
    return found


def stream(engine: Engine, events: list[Row]) -> None:
    for row in events:
        if row["user_id"] is None:
            continue
        properties = {name: row[name] for name in ("revenue", "currency", "size", "label") if row[name] is not None}
        if row["type"] != "measured":
            properties["products"] = []
        signal = Signal(
            type=row["type"],
            event_time=row["event_time"],
            identifiers={"user_id": row["user_id"]},
            message_id=row["id"],
            properties=properties,
            consent=EVERYTHING,
        )
        (outcome,) = engine.ingest([signal]).outcomes
        assert outcome.status == "applied", outcome


@pytest.fixture(scope="module")
def duckdb() -> Iterator[Callable[[Path], Any]]:
    import ibis

    connection = ibis.duckdb.connect()
    yield lambda path: connection.read_parquet(path)
    connection.disconnect()


@pytest.fixture(scope="module")
def spark() -> Iterator[Callable[[Path], Any]]:
    if importlib.util.find_spec("pyspark") is None:
        pytest.skip("pyspark is not installed: pip install '.[spark]'")
    from tailorbird.server.offline import connected

    with connected("spark") as connection:
        yield lambda path: connection.read_parquet(str(path))


def compiled(engine: Engine) -> CompiledConfiguration:
    layouts = engine.writer.applier.state.layouts
    assert layouts is not None
    return layouts.current


def write(events: list[Row], path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(events), path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("backend", ["duckdb", "spark"])
def test_stream_and_batch_agree(tmp_path: Path, backend: str, seed: int, request: pytest.FixtureRequest) -> None:
    print(f"seed {seed}")
    read: Callable[[Path], Any] = request.getfixturevalue(backend)
    events = rows(seed)
    table = read(write(events, tmp_path / "events.parquet"))
    with open_shop(tmp_path, CONFIGURATION, clock=Clock(NOW + 2 * DAY)) as engine:
        stream(engine, events)
        people = sorted({row["user_id"] for row in events if row["user_id"]})
        online = engine.get_features("user_id", people, at=NOW)
        configuration = compiled(engine)
        types = configuration.configuration.signal_types()
        batch = BatchFeatures(configuration.features, types, online.names, table, "user_id", NOW)
        answer = batch.expression.execute()
        offline = dict(batch.rows({name: answer[name].tolist() for name in answer.columns}))
    assert set(offline) == set(people) - {"late"}
    compared = 0
    for number, person in enumerate(people):
        for column, name in enumerate(online.names):
            value = offline.get(person, {}).get(name)
            if online.statuses[number, column] != FeatureStatus.FRESH or person == "late":
                assert value is None or person == "late", (person, name, value)
                continue
            expected = online.values[number, column]
            assert value is not None, (person, name, expected)
            if name in EXACT:
                assert value == expected, (person, name, value, expected)
            else:
                assert math.isclose(value, expected, rel_tol=1e-9), (person, name, value, expected)
            compared += 1
    assert compared > 150


@pytest.mark.filterwarnings("ignore")
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, duckdb: Callable[[Path], Any]) -> None:
    events = rows(3, 20)
    whole = duckdb(write(events, tmp_path / "events.parquet"))
    with open_shop(tmp_path, CONFIGURATION) as engine:
        configuration = compiled(engine)

    def refused(names: list[str], table: Any, namespace: str = "user_id") -> str:
        with pytest.raises(CallerError) as caught:
            BatchFeatures(
                configuration.features, configuration.configuration.signal_types(), names, table, namespace, NOW
            )
        return str(caught.value)

    assert "BAD_TABLE: expected a column 'crm_id' of type string, got none; the table has" in refused(
        ["orders"], whole, "crm_id"
    )
    assert "a column 'revenue' of type number, got none" in refused(["net"], whole.drop("revenue"))
    assert "a column 'revenue' of type number, got string" in refused(["net"], whole.mutate(revenue=whole.label))
    assert "a column 'event_time' of type int64, got string" in refused(
        ["orders"], whole.mutate(event_time=whole.label)
    )
    assert "a column 'label' of type string, got float64" in refused(
        ["labels"], whole.mutate(label=whole.size.cast("float64"))
    )

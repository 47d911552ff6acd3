"""Feast as its documentation has it for one process: SQLite as the online store, features by name, no server.

Run by Feast's own interpreter. Reads a JSON line per request from standard input and answers with one: `prepare` makes the store
and writes everybody's features, `get` times `get_online_features` of each list of people and answers with nanoseconds.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any


def prepare(folder: str, people: int, features: int) -> Any:
    """Return a store that holds `features` numbers of each of `people`, named f0, f1, ..."""
    import numpy as np
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig
    from feast.types import Float64

    names = [f"f{n}" for n in range(features)]
    rng = np.random.default_rng(7)
    frame = pd.DataFrame({name: rng.random(people) for name in names})
    frame["user_id"] = [f"user-{n}" for n in range(people)]
    frame["event_timestamp"] = datetime.now(UTC)
    source = Path(folder, "features.parquet")
    frame.to_parquet(source)
    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            provider="local",
            registry=str(Path(folder, "registry.db")),
            online_store=SqliteOnlineStoreConfig(path=str(Path(folder, "online.db"))),
            entity_key_serialization_version=3,
        )
    )
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    view = FeatureView(
        name="people",
        entities=[user],
        ttl=timedelta(days=30),
        schema=[Field(name=name, dtype=Float64) for name in names],
        source=FileSource(path=str(source), timestamp_field="event_timestamp"),
    )
    store.apply([user, view])
    store.write_to_online_store("people", frame)
    return store


def main() -> None:
    """Answer requests until standard input ends."""
    store: Any = None
    asked: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            request = json.loads(line)
            if request["op"] == "prepare":
                store = prepare(folder, request["people"], request["features"])
                asked = [f"people:f{n}" for n in range(request["features"])]
                answer: dict[str, Any] = {"version": metadata.version("feast"), "python": sys.version.split()[0]}
            else:
                spent = []
                for people in request["people"]:
                    rows = [{"user_id": person} for person in people]
                    began = time.perf_counter_ns()
                    found = store.get_online_features(features=asked, entity_rows=rows)
                    spent.append(time.perf_counter_ns() - began)
                values = found.to_dict()
                absent = sum(value is None for name in values for value in values[name])
                answer = {"ns": spent, "absent": absent}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

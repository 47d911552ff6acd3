"""Feast in its own process, see subject.py: features of one person and of 100, in process, from SQLite.

One feature view of 20 float32 features, so that a read is one query, and the registry cached for good; references to the
features rather than a feature service, which Feast would resolve first; entities by column, which it would otherwise
transpose. Its vectors computed ahead (`precompute_online`) are for Redis only.
"""

from __future__ import annotations

import platform
import random
import sqlite3
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tailorbird.bench.peers.subject import Operation, Subject

FEATURE_COUNT = 20
PEOPLE_PER_WRITE = 5_000
VIEW = "person_features"
SETTINGS = (
    "SQLite online store, entity keys in serialization version 3, one feature view, registry cached for good, "
    "references to features, entities by column; its server: gRPC, one process"
)
CONFIGURATION = """\
project: bench
provider: local
registry: {path: registry.db, cache_ttl_seconds: 0}
online_store: {type: sqlite, path: online.db}
offline_store: {type: file}
entity_key_serialization_version: 3
"""


def open_subject(options: dict[str, Any]) -> Subject:
    """Open the store in `options["directory"]`, written with `options["people"]` people unless it is there."""
    from feast import FeatureStore
    from feast.protos.feast.serving.ServingService_pb2 import FeatureList, GetOnlineFeaturesRequest
    from feast.protos.feast.types.Value_pb2 import Value

    directory, people = Path(options["directory"]), int(options["people"])
    mark = directory / "people.txt"
    if not mark.exists():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "feature_store.yaml").write_text(CONFIGURATION)
        fill(FeatureStore(repo_path=str(directory)), directory, people)
        mark.write_text(f"{people}\n")
    elif mark.read_text() != f"{people}\n":
        raise ValueError(
            f"expected {people} people in {directory}, got {mark.read_text().strip()}; remove the directory"
        )
    store = FeatureStore(repo_path=str(directory))
    references = [f"{VIEW}:{name}" for name in feature_names()]
    check(store, references, people)

    def get(entities: dict[str, list[str]]) -> object:
        return store.get_online_features(features=references, entity_rows=entities)

    def of(count: int) -> Operation:
        return Operation(get, lambda draws: {"user_id": [user_id(draws.randrange(people)) for _ in range(count)]})

    message = GetOnlineFeaturesRequest(features=FeatureList(val=references))
    message.entities["user_id"].val.append(Value(string_val=user_id(people // 2)))
    return Subject(
        operations={"get_1": of(1), "get_100": of(100)},
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("feast", "grpcio", "protobuf", "numpy")},
            "sqlite": sqlite3.sqlite_version,
        },
        settings=SETTINGS,
        facts={"request_hex": message.SerializeToString().hex()},
    )


def fill(store: Any, directory: Path, people: int) -> None:
    """Declare the features and write those of all people, through Feast itself."""
    import pandas
    from feast import Entity, FeatureView, Field, FileSource
    from feast.types import Float32
    from feast.value_type import ValueType

    def frame(begin: int, end: int) -> Any:
        draws = random.Random(begin)
        columns = {
            name: pandas.array([draws.random() for _ in range(begin, end)], dtype="float32") for name in feature_names()
        }
        ids = pandas.array([user_id(person) for person in range(begin, end)], dtype="str")
        return pandas.DataFrame({"user_id": ids, "event_timestamp": datetime.now(UTC), **columns})

    source = directory / "source.parquet"
    frame(0, 1).to_parquet(source)
    person = Entity(name="person", join_keys=["user_id"], value_type=ValueType.STRING)
    view = FeatureView(
        name=VIEW,
        entities=[person],
        schema=[Field(name=name, dtype=Float32) for name in feature_names()],
        source=FileSource(path=str(source), timestamp_field="event_timestamp"),
        ttl=timedelta(0),
    )
    store.apply([person, view])
    for begin in range(0, people, PEOPLE_PER_WRITE):
        store.write_to_online_store(VIEW, frame(begin, min(people, begin + PEOPLE_PER_WRITE)))


def check(store: Any, references: list[str], people: int) -> None:
    """Raise unless the last person has every feature."""
    found = store.get_online_features(features=references, entity_rows={"user_id": [user_id(people - 1)]}).to_dict()
    missing = [name for name in feature_names() if found.get(name, [None])[0] is None]
    if missing:
        raise ValueError(f"expected {FEATURE_COUNT} features of {user_id(people - 1)}, got none of {missing}")


def feature_names() -> list[str]:
    """Return the names of the features."""
    return [f"feature_{number:02d}" for number in range(FEATURE_COUNT)]


def user_id(person: int) -> str:
    """Return the id of a person."""
    return f"user-{person:07d}"

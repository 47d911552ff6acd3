"""Labels: moments of people, and whatever was true of them, in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailorbird.engine.compiled import namespaces_of
from tailorbird.engine.configuration import Configuration
from tailorbird.engine.errors import CallerError
from tailorbird.server.moments import moments_ms
from tailorbird.server.offline import read_table

MOMENT = "at"


@dataclass(frozen=True, slots=True)
class Labels:
    """A file's rows: `people` by identifiers of one namespace, `times` in ms, and the Arrow `table` they came in."""

    namespace: str
    people: list[str]
    times: list[int]
    table: Any


def read_labels(path: Path, configuration: Configuration) -> Labels:
    """Read a file of labels. Raises `CallerError` BAD_FILE."""
    table = read_table(path)
    namespaces = [name for name in table.column_names if name in namespaces_of(configuration)]
    if len(namespaces) != 1 or MOMENT not in table.column_names:
        raise CallerError(
            "BAD_FILE",
            f"expected one column of identifiers, such as user_id, and one of times, `{MOMENT}`, got "
            f"{', '.join(table.column_names)}, in {path}",
        )
    people = [str(value) for value in table.column(namespaces[0]).to_pylist()]
    return Labels(namespaces[0], people, moments_ms(table.column(MOMENT).to_pylist(), MOMENT), table)

"""Feature values computed elsewhere, as signals: what came from a batch is admitted, consented to and stored like any event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import islice

import msgspec

from tailorbird.engine.configuration import Configuration
from tailorbird.engine.errors import CallerError, NotFound
from tailorbird.engine.signals import IngestReport, Outcome, Signal, Status


class PushedRow(msgspec.Struct, frozen=True):
    """Values of one person: `person` is an identifier of the namespace pushed for, `event_time` (ms) when they were true.

    A row without a message id may come twice without harm: its content is its id.
    """

    person: str
    values: Mapping[str, float | str]
    event_time: int
    message_id: str = ""


def pushed_signals(
    configuration: Configuration, namespace: str, rows: Sequence[PushedRow], source: str
) -> tuple[list[Signal], list[int]]:
    """Return the signals that bring the rows, one per row and category, and how many each row has.

    Raises as `Engine.push_features`.
    """
    types = {
        name: signal.name
        for signal in configuration.signal_types().values()
        if signal.pushes
        for name in signal.properties
    }
    declared = {feature.name for feature in configuration.features}
    signals: list[Signal] = []
    counts = []
    for row in rows:
        by_type: dict[str, dict[str, float | str]] = {}
        for name, value in row.values.items():
            if name not in types:
                if name in declared:
                    raise CallerError(
                        "NOT_PUSHED",
                        f"expected features declared with `pushed` or `compute: batch`, got {name!r}, which its signals feed",
                    )
                raise NotFound(
                    "UNKNOWN_FEATURE", f"expected a feature of {', '.join(types) or 'none'}; got {name!r:.100}"
                )
            by_type.setdefault(types[name], {})[name] = value
        counts.append(len(by_type))
        for type_name, values in by_type.items():
            message_id = row.message_id or _content_id(row.person, row.event_time, values)
            signals.append(
                Signal(
                    type=type_name,
                    event_time=row.event_time,
                    identifiers={namespace: row.person},
                    message_id=f"{message_id}/{type_name}",
                    properties=values,
                    source=source,
                )
            )
    return signals, counts


def _content_id(person: str, event_time: int, values: Mapping[str, float | str]) -> str:
    content = repr((person, event_time, sorted(values.items())))
    return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def by_row(report: IngestReport, counts: Sequence[int]) -> IngestReport:
    """Return the outcome of each row: of several the first that was not applied. A row without values is one at no position."""
    outcomes = iter(report.outcomes)
    found = []
    for count in counts:
        own = list(islice(outcomes, count)) or [Outcome(Status.APPLIED)]
        found.append(next((outcome for outcome in own if outcome.status is not Status.APPLIED), own[-1]))
    return IngestReport(tuple(found), report.position)

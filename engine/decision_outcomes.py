"""Outcomes: signals whose property `decision_id` names the decision they came of.

The id leads from a signal to its decision by one read. From a decision to its outcomes leads the fact log: from the decision's
position on, for as long as `decision_log.outcome_window` says, whatever has its id in it, and was sent by somebody
who lets be measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tailorbird.engine.consent import DataType, Purpose, bit
from tailorbird.engine.decision_id import DECISION_ID
from tailorbird.engine.facts import FactKind, decode_fact
from tailorbird.engine.log import LocalLog

READ_FACTS = 10_000
MEASURE = bit(DataType.BEHAVIOURAL, Purpose.MEASURE)


class Attributed(NamedTuple):
    """A signal that came of a decision: where it stands in the log, its type, time (ms since 1970 UTC) and items."""

    offset: int
    type: str
    event_time: int
    items: tuple[str, ...]


def find_outcomes(log: LocalLog, decision_id: str, position: int, until: int) -> Iterator[Attributed]:
    """Yield the outcomes of a decision in the facts from `position` on that were appended before `until` (ms)."""
    wanted = decision_id.encode()
    offset = max(position, log.start)
    while offset < log.end:
        for record in log.read(offset, READ_FACTS):
            offset = record.offset + 1
            if record.append_time >= until:
                return
            if record.kind != FactKind.SIGNAL or wanted not in record.payload:
                continue
            fact = decode_fact(record.kind, record.payload)
            if fact.properties.get(DECISION_ID) == decision_id and fact.mask & MEASURE:
                lines = [*(fact.properties.get("products") or ()), fact.properties]
                items = tuple(line["product_id"] for line in lines if isinstance(line.get("product_id"), str))
                yield Attributed(record.offset, fact.type, fact.event_time, items)

"""Training sets: what the features of a person were at a moment of the past, from the log, with nothing of what came later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import lmdb
import numpy as np

from tailorbird.engine.consent import ALL_BITS, Purpose, permitted
from tailorbird.engine.evidence import Evidence
from tailorbird.engine.feature_history import Change, FeatureHistory
from tailorbird.engine.feature_table import FeatureTable, TablePlan, TableRows, known_of, load_view, symbols_of
from tailorbird.engine.log_record import LogRecord
from tailorbird.engine.state import masks_of, members_of_row, packed_head, read_record, seek_head
from tailorbird.engine.store import HEAD_ROW, Store
from tailorbird.engine.symbols import symbol_of
from tailorbird.native.feature_rows import FeatureRows
from tailorbird.native.record import Record, RecordView


class _Person(NamedTuple):
    """Who is asked about, as they are known today: what may be read, and of which fragment what may be merged."""

    permitted: int
    fragments: tuple[tuple[bytes, int], ...]


def training_set(
    store: Store,
    txn: lmdb.Transaction[Any],
    evidence: Evidence,
    log: Iterable[LogRecord],
    keys: Sequence[bytes],
    times: Sequence[int],
    names: Sequence[str],
) -> FeatureTable:
    """Return the features of each person (anchor key) just before the time (ms) beside it, from what the log holds.

    An event counts where its event time is before the moment, whenever it arrived; the one that a label tells of, of the same
    time, does not. Devices belong to the person they belong to today. Only what consent to training covered when it came,
    and still does, takes part. `at` of the table is the last of the times.
    """
    assert evidence.layouts is not None
    compiled = evidence.layouts.current
    plan = TablePlan(compiled.features, names)
    stored = plan.stored
    history = FeatureHistory(compiled, stored, store, evidence.head.currency, Purpose.TRAIN)
    source = plan.source(history.layout, {name: index for index, name in enumerate(stored)})
    people = {key: _find(store, txn, evidence, key) for key in set(keys)}
    wanted = {fragment for person in people.values() if person is not None for fragment, _ in person.fragments}
    changes = [change for change in history.changes(log, txn) if change.fragment in wanted]
    changes.sort(key=lambda change: change.event_time)

    texts = {symbol_of(text): text for text in history.texts}
    stored_text = symbols_of(store, txn)

    def text_of(symbol: int) -> str:
        return texts.get(symbol) or stored_text(symbol)

    rows = TableRows(plan, FeatureRows(len(keys), len(plan.columns)), text_of, evidence)
    records: dict[bytes, Record] = {}
    empty, view = Record(history.layout).pack(), RecordView()
    folded, known = 0, known_of(rows.native)
    for row in np.argsort(np.asarray(times, np.int64), kind="stable").tolist():
        at = times[row]
        while folded < len(changes) and changes[folded].event_time < at:
            _fold(history, records, changes[folded])
            folded += 1
        person = people[keys[row]]
        known[row] = person is not None
        load_view(view, history.layout, empty if person is None else _merged(history, records, person, empty))
        rows.fill(row, view, source, at, ALL_BITS if person is None else person.permitted)
    return rows.table(max(times, default=0), evidence.head.position)


def sample_people(store: Store, txn: lmdb.Transaction[Any], limit: int) -> list[bytes]:
    """Return the keys of all people, or of every n-th in the order of their keys, which are hashes, where there are more."""
    found = [
        bytes(key[:16]) for key in txn.cursor(db=store.tables["people"]).iternext(values=False) if key[16:] == HEAD_ROW
    ]
    return found[:: -(-len(found) // limit)] if found else []


def _find(store: Store, txn: lmdb.Transaction[Any], evidence: Evidence, key: bytes) -> _Person | None:
    layouts = evidence.layouts
    assert layouts is not None
    found = seek_head(txn.cursor(db=store.tables["people"]), key) if key else None
    if found is None:
        return None
    head = read_record(layouts, packed_head(found[1]))
    jurisdiction = layouts.current.configuration.jurisdiction
    members = members_of_row(found[1])
    fragments = []
    for member in members:
        own = txn.get(member, db=store.tables["fragments"]) if len(members) > 1 else None
        masks = masks_of(read_record(layouts, own)) if own is not None else masks_of(head)
        fragments.append((member, ALL_BITS & ~masks.denied & ~masks.restricted))
    return _Person(permitted(head.granted, head.denied, head.restricted, jurisdiction), tuple(fragments))


def _fold(history: FeatureHistory, records: dict[bytes, Record], change: Change) -> None:
    record = records.get(change.fragment)
    if record is None:
        record = records[change.fragment] = Record(history.layout)
    history.fold(change, record)


def _merged(history: FeatureHistory, records: dict[bytes, Record], person: _Person, empty: bytes) -> bytes:
    """Return a person's record as it stands: their only fragment's, or all merged in canonical order."""
    held = [(records[fragment], mask) for fragment, mask in person.fragments if fragment in records]
    if not held:
        return empty
    if len(held) == 1:
        return held[0][0].pack()
    merged = Record(history.layout)
    for record, mask in held:
        merged.merge(record, mask)
    return merged.pack()

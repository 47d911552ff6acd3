"""Reading a profile for people to look at: every declared feature with its value, age and status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lmdb

from tailorbird.engine.applier import LIST_KINDS
from tailorbird.engine.consent import ConsentMasks
from tailorbird.engine.evidence import Evidence
from tailorbird.engine.facts import Anchor
from tailorbird.engine.feature_table import SPEAKING, FeatureReader, FeatureTable, Weighted
from tailorbird.engine.identifiers import IdentifierHasher
from tailorbird.engine.profile import FeatureStatus, FeatureValue, Profile
from tailorbird.engine.state import members_of_row, packed_head, read_record, seek_head
from tailorbird.engine.store import LIST_ROWS, Store, scan
from tailorbird.engine.vocabulary import ItemList


def read_profile(
    store: Store,
    txn: lmdb.Transaction[Any],
    evidence: Evidence,
    hasher: IdentifierHasher,
    anchors: Sequence[Anchor],
    at: int,
) -> Profile | None:
    """Return the profile of the best known of several identifiers, None when nobody is known by them."""
    layouts = evidence.layouts
    assert layouts is not None
    cursor = txn.cursor(db=store.tables["people"])
    found = next(filter(None, (seek_head(cursor, anchor.key) for anchor in anchors)), None)
    if found is None:
        return None
    person, data = found
    members = members_of_row(data)
    head = read_record(layouts, packed_head(data))
    reader = FeatureReader(layouts.current.features, ())
    table = reader.read(store, txn, evidence, [person], at)
    bought = 0
    for member in members:
        for _, chunk in scan(txn, store.tables["people"], member + bytes([LIST_ROWS + LIST_KINDS[ItemList.BOUGHT]])):
            bought += (len(chunk) - 8) // 8
    return Profile(
        person_id=hasher.person_id(person).hex(),
        member_count=len(members),
        consent=ConsentMasks(head.granted, head.denied, head.restricted, head.explicit),
        first_seen=head.first_seen,
        last_seen=head.last_seen,
        features=tuple(_value(table, column) for column in range(len(table.names))),
        bought_count=bought,
        at=at,
        position=evidence.head.position,
    )


def _value(table: FeatureTable, column: int) -> FeatureValue:
    """Return one feature of the only person of a table."""
    name = table.names[column]
    status = FeatureStatus(int(table.statuses[0, column]))
    value: float | str | Weighted | None
    if name in table.texts:
        value = table.texts[name][0]
    elif name in table.weighted:
        value = table.weighted[name][0]
    else:
        value = float(table.values[0, column]) if status in SPEAKING else None
    return FeatureValue(name, value, int(table.ages_ms[0, column]), status)

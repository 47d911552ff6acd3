"""Reading a profile for people to look at: every declared feature with its value, age and status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lmdb
import numpy as np

from tailorbird.engine.applier import LIST_KINDS
from tailorbird.engine.consent import ConsentMasks
from tailorbird.engine.evidence import Evidence
from tailorbird.engine.facts import Anchor
from tailorbird.engine.features import Feature, ValueKind
from tailorbird.engine.identifiers import IdentifierHasher
from tailorbird.engine.profile import FeatureStatus, FeatureValue, Profile
from tailorbird.engine.state import members_of_row, packed_head, read_record, seek_head
from tailorbird.engine.store import LIST_ROWS, Store, scan, u64
from tailorbird.engine.vocabulary import ItemList
from tailorbird.native import record
from tailorbird.native.record import RecordView


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
    view = RecordView()
    view.load(layouts.current.features.layout, head.pack())
    masks = ConsentMasks(head.granted, head.denied, head.restricted, head.explicit)
    permitted = masks.permits(layouts.current.configuration.jurisdiction)
    features = tuple(
        _read_feature(store, txn, evidence, view, feature, at, permitted)
        for feature in layouts.current.features.features
    )
    bought = 0
    for member in members:
        for _, chunk in scan(txn, store.tables["people"], member + bytes([LIST_ROWS + LIST_KINDS[ItemList.BOUGHT]])):
            bought += (len(chunk) - 8) // 8
    return Profile(
        person_id=hasher.person_id(person).hex(),
        member_count=len(members),
        consent=masks,
        first_seen=head.first_seen,
        last_seen=head.last_seen,
        features=features,
        bought_count=bought,
        at=at,
        position=evidence.head.position,
    )


def _read_feature(
    store: Store,
    txn: lmdb.Transaction[Any],
    evidence: Evidence,
    view: RecordView,
    feature: Feature,
    at: int,
    permitted: int,
) -> FeatureValue:
    status = FeatureStatus(view.status(feature.index, at, permitted))
    if status is not FeatureStatus.FRESH:
        age = -1 if status is FeatureStatus.MASKED else view.age(feature.index, at)
        return FeatureValue(feature.name, None, age, status)
    age = view.age(feature.index, at)

    def text_of(symbol: int) -> str:
        raw = txn.get(u64(symbol), db=store.tables["symbols"])
        return bytes(raw).decode() if raw is not None else f"#{symbol:x}"

    value: float | str | tuple[tuple[str, float], ...]
    if feature.op == record.TOP_K:
        keys, weights = np.zeros(record.TOP_K_MAX, np.uint64), np.zeros(record.TOP_K_MAX, np.float32)
        n = view.top(feature.index, at, permitted, keys, weights)
        value = tuple((text_of(int(keys[i])), float(weights[i])) for i in range(n))
    elif feature.op == record.LAST_K:
        items, times = np.zeros(record.LAST_K_MAX, np.uint32), np.zeros(record.LAST_K_MAX, np.int64)
        n = view.recent(feature.index, at, permitted, items, times)
        value = tuple((evidence.catalogue.items.id(int(items[i])), (at - int(times[i])) / 1000) for i in range(n))
    elif feature.value_kind is ValueKind.SYMBOL:
        symbol = view.symbol(feature.index, at, permitted)
        value = text_of(symbol) if symbol is not None else ""
    else:
        out, statuses = np.zeros(1, np.float32), np.zeros(1, np.uint8)
        view.read_vector(np.array([feature.index], np.int32), at, permitted, out, statuses)
        value = float(out[0])
    return FeatureValue(feature.name, value, age, status)

"""Training from the log: the facts of consenting people become interactions, interactions become a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from tailorbird.engine.applier import product_lines
from tailorbird.engine.baskets import Interactions
from tailorbird.engine.consent import Purpose, bit
from tailorbird.engine.cooccurrence import train
from tailorbird.engine.durations import duration_ms
from tailorbird.engine.errors import PreconditionFailed
from tailorbird.engine.facts import FactKind, SignalFact, decode_fact
from tailorbird.engine.log import LocalLog
from tailorbird.engine.neighbours_file import write_neighbours
from tailorbird.engine.state import Layouts, item_key, masks_of, packed_head, read_layouts, read_record
from tailorbird.engine.store import HEAD_ROW, IDENTIFIER_ROW, Head, Store


def train_cooccurrence(log: LocalLog, store: Store, folder: Path) -> tuple[str, int, int, dict[str, Any]]:
    """Return (file name, checksum, log position, summary) of a model trained on every order and visit in the log.

    Only events of signal types that count in `statistics.signals` and whose consent covered training when they
    came, and whose person's still does, take part.
    """
    with store.reading() as txn:
        interactions, layouts, head = read_interactions(log, store, txn)
    half_life = float(duration_ms(layouts.current.configuration.statistics.half_life, "statistics.half_life"))
    neighbours = train(interactions, head.items, popularity_half_life_ms=half_life)
    path, checksum = write_neighbours(folder, neighbours, head.position)
    parameters = {name: getattr(neighbours.parameters, name) for name in neighbours.parameters.__dataclass_fields__}
    summary = {
        "file": path.name,
        "position": head.position,
        "kind": neighbours.kind,
        "interactions": len(interactions),
        "rows": neighbours.row_count,
        "items": neighbours.item_count,
        "neighbours": len(neighbours.items),
        "parameters": parameters,
    }
    return path.name, checksum, head.position, summary


def read_interactions(log: LocalLog, store: Store, txn: lmdb.Transaction[bytes]) -> tuple[Interactions, Layouts, Head]:
    """Return who had to do with what, as far as consent lets it be learned from, and what it was read under.

    Groups are people by their first appearance, not by key: the same log trains the same model whatever key its directory
    hashes with.
    """
    head = store.read_head(txn)
    layouts = read_layouts(store, txn, head)
    if layouts is None:
        raise PreconditionFailed("NO_CONFIGURATION", "expected a configured data directory, got an empty one")
    configuration = layouts.current.configuration
    wanted = {
        name: bit(plan.type.category, Purpose.TRAIN)
        for name, plan in layouts.current.plans.items()
        if name in configuration.statistics.signals
    }
    permitted: dict[bytes, int] = {}
    group_of: dict[bytes, int] = {}
    numbers: dict[str, int] = {}
    groups: list[int] = []
    times: list[int] = []
    items: list[int] = []
    table = store.tables["item_ids"]
    for record in log.read(log.start, head.position):
        if record.offset >= head.position:
            break
        if record.kind != FactKind.SIGNAL:
            continue
        fact: SignalFact = decode_fact(record.kind, record.payload)
        if fact.type not in wanted or not fact.mask & wanted[fact.type]:
            continue
        # All devices of a person train as one; their fragments' person is the one known today.
        row = txn.get(fact.anchors[0].key + IDENTIFIER_ROW, db=store.tables["people"])
        assert row is not None, "every identifier in an applied fact has a row"
        person = row[:16]
        if person not in permitted:
            permitted[person] = _permitted(layouts, txn.get(person + HEAD_ROW, db=store.tables["people"]))
        if not permitted[person] & wanted[fact.type]:
            continue
        group = group_of.setdefault(person, len(group_of))
        for line in product_lines(fact.properties):
            item_id = line["product_id"]
            number = numbers.get(item_id)
            if number is None:
                packed = txn.get(item_key(item_id), db=table)
                if packed is None:  # neither listed, counted nor in the catalogue: it cannot be recommended
                    continue
                number = numbers[item_id] = int.from_bytes(packed, "big")
            groups.append(group)
            times.append(fact.event_time)
            items.append(number)
    found = Interactions(np.array(groups, np.int64), np.array(times, np.int64), np.array(items, np.uint32))
    return found, layouts, head


def _permitted(layouts: Layouts, data: bytes | None) -> int:
    """Return what the choices standing today permit of a stored person."""
    if data is None:
        return 0
    masks = masks_of(read_record(layouts, packed_head(data)))
    return masks.permits(layouts.current.configuration.jurisdiction)

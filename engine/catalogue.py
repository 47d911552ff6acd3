"""The catalogue as deciders hold it: item columns in memory, kept in step with the store's change feed.

A reader follows the feed inside its own read transaction, so that profile and catalogue are of one moment and an
acknowledged change of stock is in force in the next decision.
"""

from __future__ import annotations

from typing import Any

import lmdb
import numpy as np
import numpy.typing as npt

from tailorbird.engine.compiled import CompiledConfiguration
from tailorbird.engine.configuration import Placement
from tailorbird.engine.errors import Damaged
from tailorbird.engine.state import CHANGES_KEPT, ItemRow, decode_item
from tailorbird.engine.store import Head, Store, u32, u64
from tailorbird.engine.symbols import NO_SYMBOL, symbol_of
from tailorbird.native.scoring import ItemTable


class Catalogue:
    """Item columns with the names and rules that go with them."""

    def __init__(self, compiled: CompiledConfiguration) -> None:
        self.compiled = compiled
        configuration = compiled.configuration
        self.attributes = configuration.attributes
        self.items = ItemTable(len(self.attributes), configuration.embedding_dimension)
        self.names: list[str] = []
        self.followed = 0
        self.version = 0
        self._rules = {p.name: p for p in configuration.placements if p.where or p.tags}
        # By placement with rules of its own.
        self.allowances: dict[str, npt.NDArray[np.uint8]] = {name: np.zeros(1024, np.uint8) for name in self._rules}

    def follow(self, store: Store, txn: lmdb.Transaction[Any], head: Head) -> None:
        """Take in every item changed since the last call."""
        if head.item_changes_end == self.followed:
            return
        tables = store.tables
        if self.followed == 0 or head.item_changes_end - self.followed > CHANGES_KEPT:
            numbers = range(head.items)
        else:
            changed = set()
            for sequence in range(self.followed, head.item_changes_end):
                packed = txn.get(u64(sequence), db=tables["item_changes"])
                if packed is None:
                    raise Damaged("DAMAGED_CATALOGUE", f"expected change {sequence} in the feed of items, found none")
                changed.add(int.from_bytes(bytes(packed), "big"))
            numbers = sorted(changed)  # type: ignore[assignment]
        for number in numbers:
            self._put(number, decode_item(number, txn.get(u32(number), db=tables["items"])))
        self.followed = head.item_changes_end
        self.version += 1

    def _put(self, number: int, row: ItemRow) -> None:
        item = row.item
        symbols = tuple(
            symbol_of(value) if (value := item.attributes.get(name)) else NO_SYMBOL for name in self.attributes
        )
        # Embeddings put under a configuration of another dimension say nothing until they are put again.
        fits = len(item.embedding) == self.items.dimension > 0
        embedding = np.array(item.embedding, np.float32) if fits else None
        self.items.put(
            number, item.id, row.live, item.stock, -(-item.start // 1000), -(-item.end // 1000), symbols, embedding
        )
        if number == len(self.names):
            self.names.append(item.name)
        else:
            self.names[number] = item.name
        for name, placement in self._rules.items():
            allowed = self.allowances[name]
            if number >= len(allowed):
                self.allowances[name] = allowed = np.concatenate([allowed, np.zeros_like(allowed)])
            allowed[number] = _satisfies(placement, row)

    def allowed(self, placement: str) -> npt.NDArray[np.uint8] | None:
        """Return which items a placement's own rules admit, None when it has none."""
        return self.allowances.get(placement)


def _satisfies(placement: Placement, row: ItemRow) -> bool:
    attributes, tags = row.item.attributes, row.item.tags
    return all(attributes.get(name) in values for name, values in placement.where.items()) and all(
        tag in tags for tag in placement.tags
    )

"""The catalogue as deciders hold it: item columns in memory, kept in step with the store's change feed.

A reader follows the feed inside its own read transaction, so that profile and catalogue are of one moment and an
acknowledged change of stock is in force in the next decision.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import lmdb
import numpy as np
import numpy.typing as npt

from tailorbird.engine.configuration import Configuration
from tailorbird.engine.errors import Damaged
from tailorbird.engine.state import CHANGES_KEPT, ItemRow, decode_item
from tailorbird.engine.store import Head, Store, u32, u64
from tailorbird.engine.symbols import NO_SYMBOL, symbol_of
from tailorbird.native.scoring import ItemTable


class Rule(NamedTuple):
    """Which items a placement admits: by attribute the values, and the tags that it wants all of."""

    where: dict[str, list[str]]
    tags: list[str]


class Catalogue:
    """Item columns with the names and rules that go with them."""

    def __init__(self, configuration: Configuration) -> None:
        self.attributes = configuration.attributes
        self.items = ItemTable(len(self.attributes), configuration.embedding_dimension)
        self.names: list[str] = []
        self.followed = 0
        self.version = 0
        self._rules = _rules_of(configuration)
        # By placement with rules of its own.
        self.allowances: dict[str, npt.NDArray[np.uint8]] = {name: np.zeros(1024, np.uint8) for name in self._rules}

    def fits(self, configuration: Configuration) -> bool:
        """Return whether another configuration has the same columns and rules: then it may go on with this catalogue."""
        return (
            self.attributes == configuration.attributes
            and self.items.dimension == configuration.embedding_dimension
            and self._rules == _rules_of(configuration)
        )

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
        for name, rule in self._rules.items():
            allowed = self.allowances[name]
            if number >= len(allowed):
                self.allowances[name] = allowed = np.concatenate([allowed, np.zeros_like(allowed)])
            allowed[number] = _satisfies(rule, row)

    def allowed(self, placement: str) -> npt.NDArray[np.uint8] | None:
        """Return which items a placement's own rules admit, None when it has none."""
        return self.allowances.get(placement)


def _rules_of(configuration: Configuration) -> dict[str, Rule]:
    return {p.name: Rule(p.where, p.tags) for p in configuration.placements if p.where or p.tags}


def _satisfies(rule: Rule, row: ItemRow) -> bool:
    attributes, tags = row.item.attributes, row.item.tags
    return all(attributes.get(name) in values for name, values in rule.where.items()) and all(
        tag in tags for tag in rule.tags
    )

"""What the log says about chosen features: the same events, folded by the same kernels, outside the state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import lmdb

from tailorbird.engine.applier import message_digest, product_lines
from tailorbird.engine.compiled import CompiledConfiguration
from tailorbird.engine.consent import Purpose
from tailorbird.engine.errors import CallerError
from tailorbird.engine.facts import FactKind, ItemsPutFact, SignalFact, decode_fact
from tailorbird.engine.features import UpdateProgram
from tailorbird.engine.log_record import LogRecord
from tailorbird.engine.state import item_key
from tailorbird.engine.store import Store
from tailorbird.engine.symbols import symbol_of
from tailorbird.engine.update_programs import history_layout, history_programs, slot_values
from tailorbird.native.record import Record
from tailorbird.native.scoring import UNKNOWN_ITEM


class Change(NamedTuple):
    """What one signal folds into the features of one fragment; `program` is one of the history's layout."""

    fragment: bytes
    program: int
    event_time: int
    digest: int
    slots: tuple[object, ...]
    mask: int


class FeatureHistory:
    """Reads facts in the order of the log and gives what they fold into the named features (stored ones).

    `layout` is that of records of the named features alone, in their order. Item numbers are the state's, which gives each
    item one at its first mention and never another; attributes are those the item had when the signal came.
    """

    def __init__(
        self,
        compiled: CompiledConfiguration,
        names: Sequence[str],
        store: Store,
        currency: str,
        purpose: Purpose | None = None,
    ) -> None:
        self.names = tuple(names)
        self.layout = history_layout(compiled.features, self.names, purpose)
        self.texts: dict[str, None] = {}
        self.unreadable_count = 0  # signals whose values do not fit the declaration of today
        self._programs: Mapping[str, UpdateProgram] = history_programs(
            compiled.configuration.signal_types(), compiled.features, self.names, self.layout
        )
        self._store = store
        self._currency = currency
        self.attributes: dict[str, Mapping[str, str]] = {}
        self._numbers: dict[str, int] = {}

    def changes(self, records: Iterable[LogRecord], txn: lmdb.Transaction[Any]) -> Iterator[Change]:
        """Yield what log records fold into the features. They must follow those given before."""
        for record in records:
            if record.kind == FactKind.ITEMS_PUT:
                fact: ItemsPutFact = decode_fact(record.kind, record.payload)
                for item in fact.items:
                    self.attributes[item.id] = item.attributes
            elif record.kind == FactKind.SIGNAL:
                change = self._change(decode_fact(record.kind, record.payload), txn)
                if change is not None:
                    yield change

    def _change(self, fact: SignalFact, txn: lmdb.Transaction[Any]) -> Change | None:
        program = self._programs.get(fact.type)
        if program is None:
            return None
        slots: tuple[object, ...] = ()
        if program.slots:
            try:
                slots = slot_values(
                    program,
                    fact.properties,
                    fact.context,
                    product_lines(fact.properties),
                    self._symbol,
                    lambda item_id: self._item_number(txn, item_id),
                    self._attribute,
                    self._currency,
                )
            except (CallerError, TypeError, ValueError):  # admitted under other declarations
                self.unreadable_count += 1
                return None
        return Change(fact.anchors[0].key, program.program, fact.event_time, message_digest(fact), slots, fact.mask)

    def fold(self, change: Change, into: Record) -> None:
        """Fold a change into a record of `layout`."""
        into.update(change.program, change.event_time, change.digest, change.slots, change.mask)

    def _attribute(self, item_id: str, name: str) -> str | None:
        attributes = self.attributes.get(item_id)
        return None if attributes is None else attributes.get(name)

    def _symbol(self, text: str) -> int:
        self.texts[text] = None
        return symbol_of(text)

    def _item_number(self, txn: lmdb.Transaction[Any], item_id: str) -> int:
        number = self._numbers.get(item_id)
        if number is None:
            packed = txn.get(item_key(item_id), db=self._store.tables["item_ids"])
            number = self._numbers[item_id] = UNKNOWN_ITEM if packed is None else int.from_bytes(packed, "big")
        return number

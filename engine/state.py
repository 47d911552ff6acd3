"""The state under one write transaction: people, fragments, items, symbols, lists, through caches written back at its end.

A person of one fragment is stored once: the head in `people` is the fragment. Only people of several fragments have rows in
`fragments` and `members`, and a head that is the merge of their fragments in canonical order. `fragment_of` and
`put_person` are the only places that know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lmdb
import msgspec
import xxhash

from tailorbird.engine.compiled import CompiledConfiguration, compile_configuration
from tailorbird.engine.consent import ALL_BITS, ConsentMasks
from tailorbird.engine.errors import Damaged
from tailorbird.engine.items import Item
from tailorbird.engine.store import Head, Store, scan, u32, u64
from tailorbird.engine.symbols import symbol_of
from tailorbird.native.record import Record, RecordError, stored_layout_version

RECORDS_CACHED_MAX = 16_384
KEYS_CACHED_MAX = 400_000
ITEMS_CACHED_MAX = 50_000
LISTS_CHUNK_BYTES = 1_800
CHANGES_KEPT = 200_000


class ItemRow(msgspec.Struct, array_like=True, frozen=True):
    """A stored item: whether it is in the catalogue, and what was last put. A number outlives its item."""

    live: bool
    item: Item


class IdentifierRow(msgspec.Struct, array_like=True, frozen=True):
    """A stored identifier: days are counted from 1970 and written at most once a day."""

    namespace: str
    generic: bool
    first_day: int
    last_day: int


class ConfigurationRow(msgspec.Struct, array_like=True, frozen=True):
    """A stored configuration version."""

    layout_version: int
    text: str


_encode = msgspec.msgpack.Encoder().encode
_decode_item = msgspec.msgpack.Decoder(ItemRow).decode
_decode_identifier = msgspec.msgpack.Decoder(IdentifierRow).decode
_decode_configuration = msgspec.msgpack.Decoder(ConfigurationRow).decode


def read_record(layouts: Layouts, data: bytes | memoryview) -> Record:
    """Return a stored record in the layout in force. Raises `Damaged` DAMAGED_RECORD."""
    try:
        version = stored_layout_version(data)
        if version == layouts.current.layout_version:
            return Record.unpack(layouts.current.features.layout, data)
        older = layouts.older(version)
        old = Record.unpack(older.features.layout, data)
        return old.upgraded(layouts.current.features.layout, layouts.current.features.mapping_from(older.features))
    except RecordError as error:
        raise Damaged(
            "DAMAGED_RECORD", f"expected a profile record, got: {error}; remove the state directory to rebuild it from the log"
        ) from error


class Layouts:
    """The configuration in force and, by layout version, the older ones whose records may still be stored."""

    def __init__(self, current: CompiledConfiguration, stored: Mapping[int, ConfigurationRow]) -> None:
        self.current = current
        self._stored = stored
        self._older: dict[int, CompiledConfiguration] = {}

    def older(self, layout_version: int) -> CompiledConfiguration:
        """Return a configuration of an older layout. Raises `Damaged` when it was never stored."""
        if layout_version not in self._older:
            for version, row in sorted(self._stored.items()):
                if row.layout_version == layout_version:
                    self._older[layout_version] = compile_configuration(row.text, version, layout_version)
                    break
            else:
                raise Damaged("DAMAGED_RECORD", f"expected a known layout version, got {layout_version}")
        return self._older[layout_version]


def read_layouts(store: Store, txn: lmdb.Transaction[Any], head: Head) -> Layouts | None:
    """Return the configurations of a transaction, None before the first."""
    rows = {
        int.from_bytes(bytes(key), "big"): _decode_configuration(bytes(value))
        for key, value in txn.cursor(db=store.tables["configurations"])
    }
    if not rows:
        return None
    row = rows[head.configuration]
    return Layouts(compile_configuration(row.text, head.configuration, row.layout_version), rows)


class State:
    """Reads and writes of one writer. `begin`, then any number of calls, then `flush` and the commit, or `abort`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.tables = store.tables
        self.txn: lmdb.Transaction[bytes]
        self.head = Head()
        self.layouts: Layouts | None = None
        self._clear()

    def _clear(self) -> None:
        self._person_of: dict[bytes, bytes] = {}
        self._identifier_day: dict[bytes, int] = {}
        self._records: dict[bytes, Record] = {}
        self._fragments: dict[bytes, Record] = {}
        self._item_numbers: dict[str, int] = {}
        self._items: dict[int, ItemRow | None] = {}
        self._symbols: set[int] = set()
        self._dirty_people: set[bytes] = set()
        self._dirty_fragments: set[bytes] = set()
        self._stale_views: set[bytes] = set()

    # ---- transaction ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open the write transaction and read where the state stands."""
        self.txn = self.store.begin(write=True)
        self.head = self.store.read_head(self.txn)
        if self.layouts is None:
            self.layouts = read_layouts(self.store, self.txn, self.head)

    def abort(self) -> None:
        """Throw the transaction and everything cached away."""
        self.txn.abort()
        self._clear()
        self.layouts = None

    @property
    def compiled(self) -> CompiledConfiguration:
        """The configuration in force."""
        assert self.layouts is not None, "a log starts with its configuration"
        return self.layouts.current

    def use_configuration(self, version: int, text: str) -> None:
        """Put a configuration in force; records keep their layout version until next written."""
        layout_version = version
        compiled = compile_configuration(text, version, layout_version)
        if self.layouts is not None and compiled.same_layout(self.layouts.current):
            layout_version = self.layouts.current.layout_version
            compiled = compile_configuration(text, version, layout_version)
        self.flush()
        row = ConfigurationRow(layout_version, text)
        self.txn.put(u32(version), _encode(row), db=self.tables["configurations"])
        self.head.configuration = version
        self.layouts = read_layouts(self.store, self.txn, self.head)
        self._records.clear()
        self._fragments.clear()

    def flush(self) -> None:
        """Write everything cached and dirty into the transaction, in key order."""
        for person in sorted(self._stale_views):
            self._rebuild_view(person)
        self._stale_views.clear()
        put = self.txn.put
        table = self.tables["fragments"]
        for fragment in sorted(self._dirty_fragments):
            put(fragment, self._fragments[fragment].pack(), db=table)
        self._dirty_fragments.clear()
        table = self.tables["people"]
        for person in sorted(self._dirty_people):
            put(person, self._records[person].pack(), db=table)
        self._dirty_people.clear()
        put(b"head", _encode(self.head), db=self.tables["meta"])
        if len(self._records) > RECORDS_CACHED_MAX:
            self._records.clear()
        if len(self._fragments) > RECORDS_CACHED_MAX:
            self._fragments.clear()
        if len(self._items) > ITEMS_CACHED_MAX:
            self._items.clear()
        for cache in (self._person_of, self._identifier_day, self._item_numbers, self._symbols):
            if len(cache) > KEYS_CACHED_MAX:
                cache.clear()

    # ---- people and fragments ------------------------------------------------------------------------------------

    def person_of(self, fragment: bytes) -> bytes | None:
        """Return the person a fragment belongs to."""
        person = self._person_of.get(fragment)
        if person is None:
            person = self.txn.get(fragment, db=self.tables["canonical"])
            if person is not None:
                self._person_of[fragment] = person
        return person

    def members_of(self, person: bytes) -> tuple[bytes, ...]:
        """Return a person's fragments in canonical order."""
        record = self.person(person)
        if record.member_count == 1:
            return (record.fragment_id,)
        packed = self.txn.get(person, db=self.tables["members"]) or b""
        return tuple(packed[i : i + 16] for i in range(0, len(packed), 16))

    def person(self, person: bytes) -> Record:
        """Return a person's head. Its features may wait for `flush` when fragments changed; its masks never do."""
        record = self._records.get(person)
        if record is None:
            data = self.txn.get(person, db=self.tables["people"])
            if data is None:
                raise Damaged("DAMAGED_RECORD", "expected a head for every person named in `canonical`, found none")
            assert self.layouts is not None
            record = self._records[person] = read_record(self.layouts, data)
        return record

    def add_person(self, person: bytes, fragment: bytes) -> Record:
        """Return the empty head of a new person of one fragment."""
        record = Record(self.compiled.features.layout)
        record.fragment_id = fragment
        record.member_count = 1
        self._records[person] = record
        self._dirty_people.add(person)
        self.txn.put(fragment, person, db=self.tables["canonical"])
        self._person_of[fragment] = person
        return record

    def fragment(self, fragment: bytes) -> Record:
        """Return the record of one fragment, for reading."""
        person = self.person_of(fragment)
        if person is not None and self.person(person).member_count == 1:
            return self.person(person)
        record = self._fragments.get(fragment)
        if record is None:
            data = self.txn.get(fragment, db=self.tables["fragments"])
            if data is None:
                raise Damaged("DAMAGED_RECORD", "expected a row for every fragment of a person of several, found none")
            assert self.layouts is not None
            record = self._fragments[fragment] = read_record(self.layouts, data)
        return record

    def touch(self, fragment: bytes) -> Record:
        """Return the record of one fragment, to be written: the head, if there is one, follows at `flush`."""
        person = self.person_of(fragment)
        assert person is not None
        record = self.person(person)
        if record.member_count == 1:
            self._dirty_people.add(person)
            return record
        self._dirty_fragments.add(fragment)
        self._stale_views.add(person)
        return self.fragment(fragment)

    def refresh_view(self, fragment: bytes) -> None:
        """Bring the head of a fragment's person up to date now: its masks changed."""
        person = self.person_of(fragment)
        assert person is not None
        if person in self._stale_views:
            self._rebuild_view(person)
            self._stale_views.discard(person)

    def regroup(self, dissolved: tuple[bytes, ...], formed: tuple[tuple[bytes, tuple[bytes, ...]], ...]) -> None:
        """Replace the people of `dissolved` by those of `formed` (person, fragments in canonical order)."""
        records = {fragment: self.fragment(fragment).copy() for _, members in formed for fragment in members}
        for person in dissolved:
            self._records.pop(person, None)
            self._dirty_people.discard(person)
            self._stale_views.discard(person)
            self.txn.delete(person, db=self.tables["people"])
            self.txn.delete(person, db=self.tables["members"])
        for person, members in formed:
            for fragment in members:
                self._person_of[fragment] = person
                self.txn.put(fragment, person, db=self.tables["canonical"])
                self._fragments.pop(fragment, None)
                self._dirty_fragments.discard(fragment)
                record = records[fragment]
                record.fragment_id, record.member_count = fragment, 1
                if len(members) == 1:
                    self._records[person] = record
                    self._dirty_people.add(person)
                    self.txn.delete(fragment, db=self.tables["fragments"])
                else:
                    self._fragments[fragment] = record
                    self._dirty_fragments.add(fragment)
            if len(members) > 1:
                self.txn.put(person, b"".join(members), db=self.tables["members"])
                head = Record(self.compiled.features.layout)
                head.member_count = len(members)
                self._records[person] = head
                self._rebuild_view(person)

    def _rebuild_view(self, person: bytes) -> None:
        """Merge a person's fragments in canonical order; of each only what its own choices permit."""
        members = self.members_of(person)
        head = Record(self.compiled.features.layout)
        masks: ConsentMasks | None = None
        for fragment in members:
            record = self.fragment(fragment)
            own = masks_of(record)
            masks = own if masks is None else masks.stricter(own)
            head.merge(record, ALL_BITS & ~own.denied & ~own.restricted)
            head.consent_time = max(head.consent_time, record.consent_time)
        assert masks is not None
        set_masks(head, masks)
        head.fragment_id, head.member_count = members[0], len(members)
        self._records[person] = head
        self._dirty_people.add(person)

    # ---- identifiers ---------------------------------------------------------------------------------------------

    def identifier(self, key: bytes) -> IdentifierRow | None:
        """Return the row of an identifier."""
        data = self.txn.get(key, db=self.tables["identifiers"])
        return None if data is None else _decode_identifier(data)

    def see_identifier(self, namespace: str, key: bytes, append_time: int) -> None:
        """Note that an identifier was seen; written once a day."""
        day = append_time // 86_400_000
        if self._identifier_day.get(key) == day:
            return
        row = self.identifier(key)
        if row is None or row.last_day < day:
            row = IdentifierRow(namespace, row.generic if row else False, row.first_day if row else day, day)
            self.txn.put(key, _encode(row), db=self.tables["identifiers"])
        self._identifier_day[key] = day

    def mark_generic(self, key: bytes, generic: bool) -> None:
        """Note that an identifier is, or no longer is, shared by many people."""
        row = self.identifier(key)
        if row is not None and row.generic != generic:
            row = msgspec.structs.replace(row, generic=generic)
            self.txn.put(key, _encode(row), db=self.tables["identifiers"])

    # ---- items and symbols ---------------------------------------------------------------------------------------

    def item_number(self, item_id: str) -> int:
        """Return an item's dense number, giving it one at its first mention."""
        number = self._item_numbers.get(item_id)
        if number is None:
            key = item_key(item_id)
            packed = self.txn.get(key, db=self.tables["item_ids"])
            if packed is None:
                number = self.head.items
                self.head.items += 1
                self.txn.put(key, u32(number), db=self.tables["item_ids"])
                self._put_item(number, ItemRow(False, Item(id=item_id)))
            else:
                number = int.from_bytes(packed, "big")
            self._item_numbers[item_id] = number
        return number

    def item(self, number: int) -> ItemRow:
        """Return an item's row."""
        row = self._items.get(number)
        if row is None:
            data = self.txn.get(u32(number), db=self.tables["items"])
            if data is None:
                raise Damaged("DAMAGED_CATALOGUE", f"expected a row for item number {number}, found none")
            row = self._items[number] = _decode_item(data)
        return row

    def put_item(self, item: Item) -> None:
        """Put an item into the catalogue, replacing it whole."""
        self._put_item(self.item_number(item.id), ItemRow(True, item))

    def delete_item(self, item_id: str) -> None:
        """Take an item out of the catalogue; its number stays its own."""
        number = self.item_number(item_id)
        self._put_item(number, ItemRow(False, self.item(number).item))

    def _put_item(self, number: int, row: ItemRow) -> None:
        self._items[number] = row
        self.txn.put(u32(number), _encode(row), db=self.tables["items"])
        end = self.head.item_changes_end
        self.txn.put(u64(end), u32(number), db=self.tables["item_changes"], append=True)
        if end >= CHANGES_KEPT:
            self.txn.delete(u64(end - CHANGES_KEPT), db=self.tables["item_changes"])
        self.head.item_changes_end = end + 1

    def attribute(self, item_id: str, name: str) -> str | None:
        """Return an attribute of an item as the catalogue has it now."""
        return self.item(self.item_number(item_id)).item.attributes.get(name)

    def symbol(self, text: str) -> int:
        """Return the number of a text, remembering what it stands for."""
        number = symbol_of(text)
        if number not in self._symbols:
            self.txn.put(u64(number), text.encode(), overwrite=False, db=self.tables["symbols"])
            self._symbols.add(number)
        return number

    # ---- lists ---------------------------------------------------------------------------------------------------

    def extend_list(self, fragment: bytes, kind: int, entries: bytes, entries_max: int) -> None:
        """Append (item u32, time s u32) entries to one list of a fragment; beyond `entries_max` the oldest chunk goes.

        Chunks are keyed newest first. Each begins with how many entries were dropped before it (u32) and 4 bytes of zeros.
        """
        prefix = fragment + bytes([kind])
        newest = next(scan(self.txn, self.tables["lists"], prefix), None)
        number, chunk = (0xFFFFFFFF, bytes(8)) if newest is None else (int.from_bytes(newest[0][17:], "big"), newest[1])
        while entries:
            room = (LISTS_CHUNK_BYTES - len(chunk)) // 8 * 8
            if room <= 0:
                number -= 1
                oldest = number + 1 + entries_max * 8 // LISTS_CHUNK_BYTES
                dropped = int.from_bytes(chunk[:4], "little")
                if oldest <= 0xFFFFFFFF:
                    lost = self.txn.pop(prefix + u32(oldest), db=self.tables["lists"])
                    dropped += (len(lost) - 8) // 8 if lost else 0
                chunk = dropped.to_bytes(4, "little") + bytes(4)
                continue
            chunk += entries[:room]
            entries = entries[room:]
            self.txn.put(prefix + u32(number), chunk, db=self.tables["lists"])

    # ---- ledgers -------------------------------------------------------------------------------------------------

    def append_link_entry(self, entry: object) -> None:
        """Append to the ledger of links, splits and refusals."""
        self.txn.put(u64(self.head.links_end), _encode(entry), db=self.tables["links"], append=True)
        self.head.links_end += 1

    def append_consent_entry(self, entry: object) -> None:
        """Append to the ledger of consent choices."""
        self.txn.put(u64(self.head.consents_end), _encode(entry), db=self.tables["consents"], append=True)
        self.head.consents_end += 1

    def edges(self, key: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (other end, stored edge) of the links of an identifier, in key order."""
        for edge_key, value in scan(self.txn, self.tables["edges"], key):
            yield edge_key[16:], value


def item_key(item_id: str) -> bytes:
    """Return the key of an item id: its bytes, or for ids over 400 bytes their beginning and a hash."""
    raw = item_id.encode()
    return raw if len(raw) <= 400 else raw[:384] + xxhash.xxh3_128_digest(raw)


def masks_of(record: Record) -> ConsentMasks:
    """Return the consent masks of a record."""
    return ConsentMasks(record.granted, record.denied, record.restricted, record.explicit)


def set_masks(record: Record, masks: ConsentMasks) -> None:
    """Set the consent masks of a record."""
    record.granted, record.denied = masks.granted, masks.denied
    record.restricted, record.explicit = masks.restricted, masks.explicit

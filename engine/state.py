"""The state under one write transaction: people, fragments, items, symbols, lists, through caches written back at its end.

A person goes by the key of the best of their identifiers. Most people are known by several identifiers of which one holds
all their state: it is stored once, as their head, whose `fragment_id` names that fragment. Only where two fragments of a person
hold state are there rows in `fragments`; the head is then the merge of them in canonical order and its `fragment_id` is zeros.
`fragment`, `touch` and `regroup` are the only places that know. The head of a person of several fragments ends in the list of
them. What lies where in `people` is said in `store.py`. Long windows and sketches have a record per fragment in `windows`,
merged only when they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import lmdb
import msgspec
import xxhash

from tailorbird.engine.compiled import CompiledConfiguration, compile_configuration
from tailorbird.engine.consent import ALL_BITS, ConsentMasks
from tailorbird.engine.errors import Damaged
from tailorbird.engine.facts import Anchor
from tailorbird.engine.features import FeatureSet, Place
from tailorbird.engine.items import Item
from tailorbird.engine.store import HEAD_ROW, IDENTIFIER_ROW, LIST_ROWS, Head, Store, scan, u32, u64
from tailorbird.engine.symbols import symbol_of
from tailorbird.engine.update_programs import history_layout, history_mapping
from tailorbird.native.record import Record, RecordError, stored_layout_version
from tailorbird.native.servings import entries_by_fragment

RECORDS_CACHED_MAX = 16_384
KEYS_CACHED_MAX = 400_000
ITEMS_CACHED_MAX = 50_000
LISTS_CHUNK_BYTES = 1_800
LISTS_CHUNK_ENTRIES = (LISTS_CHUNK_BYTES - 8) // 8
OLDEST_CHUNK_NUMBER = 0xFFFFFFFF  # chunks count down from it, so that the newest is met first
NO_FRAGMENT = bytes(16)
SERVED_LIST = 3
SERVED_ROW_BYTES_MAX = 1_800  # two to a page
# Of all servings kept by time, which deciders hold in memory, and of those that go into lists at once.
SERVED_BYTES_MAX = 32 << 20
SERVED_BYTES_FOLDED = 4 << 20
CHANGES_KEPT = 200_000


class ItemRow(msgspec.Struct, array_like=True, frozen=True):
    """A stored item: whether it is in the catalogue, and what was last put. A number outlives its item."""

    live: bool
    item: Item


class IdentifierRow(msgspec.Struct, array_like=True):
    """A stored identifier, which is also a fragment: whose it is, and when it was seen.

    Days are counted from 1970 and written at most once a day. Stored as person id, then msgpack of the rest, so that
    readers need no decoding.
    """

    namespace: str
    generic: bool
    first_day: int
    last_day: int
    person: bytes = b""


class ConfigurationRow(msgspec.Struct, array_like=True, frozen=True):
    """A stored configuration version."""

    layout_version: int
    text: str


_encode = msgspec.msgpack.Encoder().encode
_decode_item_row = msgspec.msgpack.Decoder(ItemRow).decode
_decode_identifier = msgspec.msgpack.Decoder(IdentifierRow).decode
_decode_configuration = msgspec.msgpack.Decoder(ConfigurationRow).decode


def decode_item(number: int, data: bytes | memoryview | None) -> ItemRow:
    """Return a stored item. Raises `Damaged` DAMAGED_CATALOGUE."""
    try:
        if data is not None:
            return _decode_item_row(data)
        found = "none"
    except msgspec.DecodeError as error:
        found = str(error)
    raise Damaged(
        "DAMAGED_CATALOGUE",
        f"expected a row for item number {number}, got: {found}; remove the state directory to have it rebuilt from the log",
    )


def read_record(layouts: Layouts, data: bytes | memoryview, place: Place = Place.HEAD) -> Record:
    """Return a stored record in the layout in force. Raises `Damaged` DAMAGED_RECORD."""
    current = layouts.current.features
    try:
        version = stored_layout_version(data)
        if version == layouts.current.layout_version:
            return Record.unpack(current.layout_of(place), data)
        older = layouts.older(version).features
        old = Record.unpack(older.layout_of(place), data)
        return old.upgraded(current.layout_of(place), current.mapping_from(older, place))
    except RecordError as error:
        raise damaged_record(error) from error


def damaged_record(error: RecordError) -> Damaged:
    """Return our error for a stored record that is none."""
    return Damaged(
        "DAMAGED_RECORD",
        f"expected a profile record, got: {error}; remove the state directory to rebuild it from the log",
    )


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
    warming = frozenset(head.warming)
    return Layouts(compile_configuration(row.text, head.configuration, row.layout_version, warming), rows)


def stored_features(store: Store, txn: lmdb.Transaction[Any], head: Head) -> tuple[FeatureSet, list[FeatureSet]]:
    """Return the features of the configuration in force, and those of every one that ever was, it included."""
    texts = {
        int.from_bytes(bytes(key), "big"): _decode_configuration(bytes(value)).text
        for key, value in txn.cursor(db=store.tables["configurations"])
    }
    found = {version: compile_configuration(text, 1, 1).features for version, text in texts.items()}
    return found[head.configuration], list(found.values())


def read_windows(store: Store, txn: lmdb.Transaction[Any], layouts: Layouts, head: bytes) -> bytes | None:
    """Return the packed long windows and sketches of a stored person: of each fragment only what its own choices permit."""
    table = store.tables["windows"]
    holder = head[16:32]
    if holder != NO_FRAGMENT:
        data = txn.get(holder, db=table)
        if data is None or stored_layout_version(data) == layouts.current.layout_version:
            return data
        return read_record(layouts, data, Place.LISTS).pack()
    merged: Record | None = None
    for fragment in members_of_row(head):
        data, own = txn.get(fragment, db=table), txn.get(fragment, db=store.tables["fragments"])
        if data is None or own is None:
            continue
        masks = masks_of(read_record(layouts, own))
        if merged is None:
            merged = Record(layouts.current.features.lists_layout)
        merged.merge(read_record(layouts, data, Place.LISTS), ALL_BITS & ~masks.denied & ~masks.restricted)
    return None if merged is None else merged.pack()


class State:
    """Reads and writes of one writer. `begin`, then any number of calls, then `flush` and the commit, or `abort`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.tables = store.tables
        self.txn: lmdb.Transaction[bytes]
        self.head = Head()
        self.layouts: Layouts | None = None
        self._has_new_layouts = False
        self._clear()

    def _clear(self) -> None:
        self._identifiers: dict[bytes, IdentifierRow] = {}
        self._records: dict[bytes, Record] = {}
        self._members: dict[bytes, tuple[bytes, ...]] = {}
        self._fragments: dict[bytes, Record] = {}
        self._windows: dict[bytes, Record] = {}
        self._item_numbers: dict[str, int] = {}
        self._items: dict[int, ItemRow] = {}
        self._symbols: dict[str, int] = {}
        self._dirty_people: set[bytes] = set()
        self._dirty_fragments: set[bytes] = set()
        self._dirty_windows: set[bytes] = set()
        self._stale_views: set[bytes] = set()

    # ---- transaction ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open the write transaction and read where the state stands."""
        self.txn = self.store.begin(write=True)
        self.head = self.store.read_head(self.txn)
        self._has_new_layouts = False
        if self.layouts is None:
            self.layouts = read_layouts(self.store, self.txn, self.head)

    def abort(self) -> None:
        """Throw the transaction and everything cached away, but a configuration that was in force before: reading one is slow."""
        self.txn.abort()
        self._clear()
        if self._has_new_layouts:
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
        if self.layouts is not None:
            self.head.warming = self._to_warm(self.layouts.current.features, compiled.features)
        row = ConfigurationRow(layout_version, text)
        self.txn.put(u32(version), _encode(row), db=self.tables["configurations"])
        self.head.configuration = version
        self._use_layouts()

    def _to_warm(self, before: FeatureSet, after: FeatureSet) -> list[str]:
        """Return the stored features that lack what happened before they were declared."""
        known = {feature.definition for feature in before.features}
        return [
            feature.name
            for feature in after.features
            if feature.place is not Place.DERIVED
            and (feature.name in self.head.warming or self.head.latest_event_time)
            and (feature.name in self.head.warming or feature.definition not in known)
        ]

    def _use_layouts(self) -> None:
        self._has_new_layouts = True
        self.layouts = read_layouts(self.store, self.txn, self.head)
        self._records.clear()
        self._members.clear()
        self._fragments.clear()
        self._windows.clear()

    def take_backfilled(
        self, names: tuple[str, ...], texts: Iterable[str], records: Iterable[tuple[bytes, bytes]]
    ) -> None:
        """Replace warming features of fragments by what their whole history adds up to."""
        features = self.compiled.features
        if not set(names) <= set(self.head.warming):
            return  # another configuration came in between
        layout = history_layout(features, names)
        head, lists = (history_mapping(features, names, place) for place in (Place.HEAD, Place.LISTS))
        for text in texts:
            self.symbol(text)
        for fragment, packed in records:
            if self.person_of(fragment) is None:
                continue
            record = Record.unpack(layout, packed)
            if head.max(initial=-1) >= 0:
                self.touch(fragment).take(record, head)
            if lists.max(initial=-1) >= 0:
                self.windows(fragment).take(record, lists)

    def end_warming(self, names: tuple[str, ...]) -> None:
        """Let backfilled features speak."""
        self.flush()
        self.head.warming = [name for name in self.head.warming if name not in names]
        self._use_layouts()

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
        table = self.tables["windows"]
        for fragment in sorted(self._dirty_windows):
            record = self._windows[fragment]
            if record.feature_count:
                put(fragment, record.pack(), db=table)
        self._dirty_windows.clear()
        table = self.tables["people"]
        for person in sorted(self._dirty_people):
            members = self._members[person]
            tail = b"".join(members) if len(members) > 1 else b""
            put(person + HEAD_ROW, self._records[person].pack() + tail, db=table)
        self._dirty_people.clear()
        put(b"head", _encode(self.head), db=self.tables["meta"])
        if len(self._records) > RECORDS_CACHED_MAX:
            self._records.clear()
            self._members.clear()
        if len(self._fragments) > RECORDS_CACHED_MAX:
            self._fragments.clear()
        if len(self._windows) > RECORDS_CACHED_MAX // 4:
            self._windows.clear()
        if len(self._items) > ITEMS_CACHED_MAX:
            self._items.clear()
        if len(self._identifiers) > KEYS_CACHED_MAX:
            self._identifiers.clear()
        for cache in (self._item_numbers, self._symbols):
            if len(cache) > KEYS_CACHED_MAX:
                cache.clear()

    # ---- identifiers ---------------------------------------------------------------------------------------------

    def identifier(self, key: bytes) -> IdentifierRow | None:
        """Return the row of an identifier."""
        row = self._identifiers.get(key)
        if row is None:
            data = self.txn.get(key + IDENTIFIER_ROW, db=self.tables["people"])
            if data is not None:
                row = self._identifiers[key] = _decode_identifier(data[16:])
                row.person = data[:16]
        return row

    def person_of(self, key: bytes) -> bytes | None:
        """Return the person an identifier belongs to."""
        row = self._identifiers.get(key) or self.identifier(key)
        return None if row is None else row.person

    def see_identifier(self, namespace: str, key: bytes, append_time: int) -> bool:
        """Note that an identifier was seen, written once a day; return False when it was never seen before."""
        row = self._identifiers.get(key) or self.identifier(key)
        if row is None:
            return False
        day = append_time // 86_400_000
        if row.last_day < day:
            row.last_day = day
            self._put_identifier(key, row)
        return True

    def mark_generic(self, key: bytes, generic: bool) -> None:
        """Note that an identifier is, or no longer is, shared by many people."""
        row = self.identifier(key)
        if row is not None and row.generic != generic:
            row.generic = generic
            self._put_identifier(key, row)

    def _put_identifier(self, key: bytes, row: IdentifierRow) -> None:
        rest = (row.namespace, row.generic, row.first_day, row.last_day)
        self.txn.put(key + IDENTIFIER_ROW, row.person + _encode(rest), db=self.tables["people"])

    # ---- people and fragments ------------------------------------------------------------------------------------

    def add_person(self, person: bytes, anchors: tuple[Anchor, ...], append_time: int) -> None:
        """Make a person of identifiers in canonical order that nobody knows, but for the first, who may be there alone."""
        day = append_time // 86_400_000
        for anchor in anchors:
            if anchor.key not in self._identifiers:
                row = self._identifiers[anchor.key] = IdentifierRow(anchor.namespace, False, day, day, person)
                self._put_identifier(anchor.key, row)
        if person not in self._records:
            record = self._records[person] = Record(self.compiled.features.layout)
            record.fragment_id = anchors[0].key
        self._records[person].member_count = len(anchors)
        self._members[person] = tuple(anchor.key for anchor in anchors)
        self._dirty_people.add(person)

    def person(self, person: bytes) -> Record:
        """Return a person's head. Its features may wait for `flush` when fragments changed; its masks never do."""
        record = self._records.get(person)
        if record is None:
            data = self.txn.get(person + HEAD_ROW, db=self.tables["people"])
            if data is None:
                raise Damaged("DAMAGED_RECORD", "expected a head for every person named by an identifier, found none")
            assert self.layouts is not None
            record = self._records[person] = read_record(self.layouts, packed_head(data))
            self._members[person] = members_of_row(data)
        return record

    def members_of(self, person: bytes) -> tuple[bytes, ...]:
        """Return a person's fragments in canonical order."""
        self.person(person)
        return self._members[person]

    def fragment(self, fragment: bytes) -> Record | None:
        """Return the record of one fragment, for reading; None when it holds nothing."""
        person = self.person_of(fragment)
        assert person is not None
        head = self.person(person)
        if head.fragment_id == fragment:
            return head
        return self._merged_fragment(fragment) if head.fragment_id == NO_FRAGMENT else None

    def _merged_fragment(self, fragment: bytes) -> Record | None:
        record = self._fragments.get(fragment)
        if record is None:
            data = self.txn.get(fragment, db=self.tables["fragments"])
            if data is not None:
                assert self.layouts is not None
                record = self._fragments[fragment] = read_record(self.layouts, data)
        return record

    def touch(self, fragment: bytes) -> Record:
        """Return the record of one fragment, to be written: a head that merges several follows at `flush`."""
        person = self.person_of(fragment)
        assert person is not None
        head = self.person(person)
        holder = head.fragment_id
        if holder == fragment:
            self._dirty_people.add(person)
            return head
        if holder != NO_FRAGMENT:
            if _is_blank(head):
                head.fragment_id = fragment
                self._dirty_people.add(person)
                return head
            first = head.copy()
            first.member_count = 1
            self._fragments[holder] = first
            self._dirty_fragments.add(holder)
            head.fragment_id = NO_FRAGMENT
        record = self._merged_fragment(fragment)
        if record is None:
            record = self._fragments[fragment] = Record(self.compiled.features.layout)
            record.fragment_id, record.member_count = fragment, 1
        self._dirty_fragments.add(fragment)
        self._stale_views.add(person)
        return record

    def windows(self, fragment: bytes) -> Record:
        """Return the long windows and sketches of one fragment, to be written."""
        record = self._windows.get(fragment)
        if record is None:
            data = self.txn.get(fragment, db=self.tables["windows"])
            if data is None:
                record = Record(self.compiled.features.lists_layout)
                record.fragment_id, record.member_count = fragment, 1
            else:
                assert self.layouts is not None
                record = read_record(self.layouts, data, Place.LISTS)
            self._windows[fragment] = record
        self._dirty_windows.add(fragment)
        return record

    def refresh_view(self, fragment: bytes) -> None:
        """Bring the head of a fragment's person up to date now: its masks changed."""
        person = self.person_of(fragment)
        assert person is not None
        if person in self._stale_views:
            self._rebuild_view(person)
            self._stale_views.discard(person)

    def regroup(self, dissolved: tuple[bytes, ...], formed: tuple[tuple[bytes, tuple[bytes, ...]], ...]) -> None:
        """Replace the people of `dissolved` by those of `formed` (person, fragments in canonical order)."""
        records: dict[bytes, Record] = {}
        for _, members in formed:
            for fragment in members:
                record = self.fragment(fragment)
                if record is not None and not _is_blank(record):
                    records[fragment] = record.copy()
        for person in dissolved:
            self._records.pop(person, None)
            self._members.pop(person, None)
            self._dirty_people.discard(person)
            self._stale_views.discard(person)
            self.txn.delete(person + HEAD_ROW, db=self.tables["people"])
        for person, members in formed:
            holders = [fragment for fragment in members if fragment in records]
            for fragment in members:
                row = self.identifier(fragment)
                assert row is not None
                if row.person != person:
                    row.person = person
                    self._put_identifier(fragment, row)
                self._fragments.pop(fragment, None)
                self._dirty_fragments.discard(fragment)
                self.txn.delete(fragment, db=self.tables["fragments"])
            self._members[person] = members
            self._dirty_people.add(person)
            if len(holders) > 1:
                for fragment in holders:
                    record = self._fragments[fragment] = records[fragment]
                    record.fragment_id, record.member_count = fragment, 1
                    self._dirty_fragments.add(fragment)
                self._records[person] = Record(self.compiled.features.layout)
                self._rebuild_view(person)
            else:
                head = records[holders[0]] if holders else Record(self.compiled.features.layout)
                head.fragment_id = holders[0] if holders else members[0]
                head.member_count = len(members)
                self._records[person] = head

    def _rebuild_view(self, person: bytes) -> None:
        """Merge a person's fragments in canonical order; of each only what its own choices permit."""
        members = self._members[person]
        head = Record(self.compiled.features.layout)
        masks: ConsentMasks | None = None
        for fragment in members:
            record = self._merged_fragment(fragment)
            if record is None:
                continue
            own = masks_of(record)
            masks = own if masks is None else masks.stricter(own)
            head.merge(record, ALL_BITS & ~own.denied & ~own.restricted)
            head.consent_time = max(head.consent_time, record.consent_time)
        assert masks is not None
        set_masks(head, masks)
        head.fragment_id, head.member_count = NO_FRAGMENT, len(members)
        self._records[person] = head
        self._dirty_people.add(person)

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
            row = self._items[number] = decode_item(number, self.txn.get(u32(number), db=self.tables["items"]))
        return row

    def holds(self, item: Item) -> bool:
        """Return whether the catalogue holds exactly this item."""
        packed = self.txn.get(item_key(item.id), db=self.tables["item_ids"])
        return packed is not None and self.item(int.from_bytes(packed, "big")) == ItemRow(True, item)

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
        """Return the number of a text, remembering what it stands for, `limits.symbols_max` of them at most."""
        number = self._symbols.get(text)
        if number is None:
            number = self._symbols[text] = symbol_of(text)
            if self.head.symbols < self.compiled.configuration.limits.symbols_max:
                self.head.symbols += self.txn.put(
                    u64(number), text.encode(), overwrite=False, db=self.tables["symbols"]
                )
        return number

    # ---- lists ---------------------------------------------------------------------------------------------------

    def extend_list(self, fragment: bytes, kind: int, entries: bytes, entries_max: int) -> None:
        """Append (item u32, time s u32) entries to one list of a fragment. The newest `entries_max` stay, and
        what fills up their chunk; older ones go by the chunk.

        Chunks are keyed newest first. Each begins with how many entries were dropped before it (u32) and 4 bytes of zeros.
        """
        prefix = fragment + bytes([LIST_ROWS + kind])
        newest = next(scan(self.txn, self.tables["people"], prefix), None)
        number, chunk = (
            (OLDEST_CHUNK_NUMBER, bytes(8)) if newest is None else (int.from_bytes(newest[0][17:], "big"), newest[1])
        )
        while entries:
            room = (LISTS_CHUNK_BYTES - len(chunk)) // 8 * 8
            if room <= 0:
                number -= 1
                oldest = number + 1 + -(-entries_max // LISTS_CHUNK_ENTRIES)
                dropped = int.from_bytes(chunk[:4], "little")
                if oldest <= OLDEST_CHUNK_NUMBER:
                    lost = self.txn.pop(prefix + u32(oldest), db=self.tables["people"])
                    dropped += (len(lost) - 8) // 8 if lost else 0
                chunk = dropped.to_bytes(4, "little") + bytes(4)
                continue
            chunk += entries[:room]
            entries = entries[room:]
            self.txn.put(prefix + u32(number), chunk, db=self.tables["people"])

    def keep_servings(self, rows: Iterable[bytes], append_time: int) -> None:
        """Keep packed servings, appended at `append_time` (ms), for as long as a placement looks back.

        Past `SERVED_BYTES_MAX` the oldest go into the lists of their fragments, many of a fragment in one write.
        """
        head, table, put = self.head, self.tables["served"], self.txn.put
        prefix = u64(append_time)
        for row in rows:
            put(u64(head.served_end), prefix + row, db=table, append=True)
            head.served_end += 1
            head.served_bytes += len(row)
        oldest = append_time - self.compiled.served_window_ms
        cursor = self.txn.cursor(db=table)
        while cursor.first() and int.from_bytes(cursor.value()[:8], "big") < oldest:
            head.served_bytes -= len(cursor.value()) - 8
            cursor.delete()
        if head.served_bytes <= SERVED_BYTES_MAX:
            return
        found: dict[bytes, bytearray] = {}
        while head.served_bytes > SERVED_BYTES_MAX - SERVED_BYTES_FOLDED and cursor.first():
            row = cursor.value()[8:]
            entries_by_fragment(row, found)
            head.served_bytes -= len(row)
            cursor.delete()
        entries_max = self.compiled.configuration.limits.list_entries_max
        for fragment in sorted(found):
            self.extend_list(fragment, SERVED_LIST, bytes(found[fragment]), entries_max)

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


def seek_head(cursor: lmdb.Cursor[bytes], key: bytes) -> tuple[bytes, bytes] | None:
    """Return (person, stored head) of whom an identifier's key belongs to, None when nobody has it.

    The cursor, one of `people`, is left on the head. Raises `Damaged` DAMAGED_RECORD when there is none.
    """
    if not cursor.set_key(key + IDENTIFIER_ROW):
        return None
    person = cursor.value()[:16]
    found = cursor.next() if person == key else cursor.set_key(person + HEAD_ROW)
    if not found or cursor.key() != person + HEAD_ROW:
        raise Damaged("DAMAGED_RECORD", "expected a head for every person, found none; replay the log")
    return person, cursor.value()


def packed_head(row: bytes) -> bytes:
    """Return the packed head of a stored person."""
    member_count = int.from_bytes(row[6:8], "little")
    return row if member_count <= 1 else row[: -16 * member_count]


def members_of_row(row: bytes) -> tuple[bytes, ...]:
    """Return the fragments of a stored person in canonical order."""
    member_count = int.from_bytes(row[6:8], "little")
    if member_count <= 1:
        return (row[16:32],)
    return tuple(row[start : start + 16] for start in range(len(row) - 16 * member_count, len(row), 16))


def _is_blank(record: Record) -> bool:
    """Return whether nothing ever happened to a record: no signal, no serving, no choice."""
    return not (record.first_seen or record.granted or record.denied or record.restricted)


def masks_of(record: Record) -> ConsentMasks:
    """Return the consent masks of a record."""
    return ConsentMasks(record.granted, record.denied, record.restricted, record.explicit)


def set_masks(record: Record, masks: ConsentMasks) -> None:
    """Set the consent masks of a record."""
    record.granted, record.denied = masks.granted, masks.denied
    record.restricted, record.explicit = masks.restricted, masks.explicit

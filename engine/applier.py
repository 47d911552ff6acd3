"""The applier: facts in log order become state. A pure function of the log: no clock, no randomness, no hash order.

The writer calls it for every admitted fact before the group is durable, in a transaction that is only committed after the
log is; replay calls it with the same facts at the same positions and so reaches the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from tailorbird.engine.consent import DataType, Purpose, bit
from tailorbird.engine.context.moments import DAYPART, daypart
from tailorbird.engine.facts import (
    BackfillFact,
    ConfigurationFact,
    ConsentFact,
    FactKind,
    ItemsDeletedFact,
    ItemsPutFact,
    LinkFact,
    ModelFact,
    ServedFact,
    ServingsFact,
    SignalFact,
    SplitFact,
    TickFact,
    WarmedFact,
)
from tailorbird.engine.identifiers import IdentifierHasher
from tailorbird.engine.money import CURRENCY
from tailorbird.engine.people import People
from tailorbird.engine.segments import Segments
from tailorbird.engine.state import CHANGES_KEPT, SERVED_LIST, State, masks_of, set_masks
from tailorbird.engine.statistics import (
    CELLS_MAX,
    EVERYTHING,
    CellRow,
    Change,
    Increment,
    Statistics,
    context_cells,
    pack_rows,
)
from tailorbird.engine.store import Head, Store, scan, u32, u64
from tailorbird.engine.symbols import symbol_of
from tailorbird.engine.update_programs import slot_values
from tailorbird.engine.vocabulary import ItemList

LIST_KINDS = {ItemList.BOUGHT: 1, ItemList.SHOWN: 2, ItemList.SERVED: SERVED_LIST}
LINK_BIT = bit(DataType.DEVICE, Purpose.LINK)
GENERATIONS = 3
CONTEXTS_CACHED_MAX = 50_000
INCREMENT = struct.Struct("<QIfq")  # statistics.Increment


def product_lines(properties: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the product lines of an event: its `products`, or itself where it is about one product."""
    products = properties.get("products")
    if products is not None:
        return products  # type: ignore[no-any-return]
    return [properties] if "product_id" in properties else []


class Applier:
    """Applies facts through a `State`. Holds the writer's copy of the statistics, rebuilt from the store when missing."""

    def __init__(self, store: Store, hasher: IdentifierHasher) -> None:
        self.store = store
        self.hasher = hasher
        self.state = State(store)
        self.people = People(self.state)
        self.segments = Segments(self.state, hasher)
        self._statistics: Statistics | None = None
        self._increments: list[bytes] = []
        self._cells_of: dict[tuple[str, ...], list[int]] = {}
        self._apply: dict[int, Callable[[Any, int, int], None]] = {
            int(FactKind.SIGNAL): self._signal,
            int(FactKind.CONSENT): self._consent,
            int(FactKind.LINK): self._link,
            int(FactKind.SPLIT): self._split,
            int(FactKind.ITEMS_PUT): self._items_put,
            int(FactKind.ITEMS_DELETED): self._items_deleted,
            int(FactKind.SERVED): self._served,
            int(FactKind.SERVINGS): self._servings,
            int(FactKind.TICK): self._tick,
            int(FactKind.MODEL): self._model,
            int(FactKind.BACKFILL): self._backfill,
            int(FactKind.WARMED): self._warmed,
            int(FactKind.CONFIGURATION): self._configuration,
        }

    # ---- a group -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open the transaction of a group."""
        self.state.begin()
        self._increments = []

    def apply(self, offset: int, append_time: int, kind: int, fact: Any) -> None:
        """Apply one fact standing at `offset`, appended at `append_time` (ms)."""
        self._apply[kind](fact, offset, append_time)
        self.state.head.position = offset + 1

    def flush(self) -> None:
        """Write everything of the group into the transaction; the caller commits it."""
        self._store_increments()
        self.state.flush()

    def abort(self) -> None:
        """Throw the group away."""
        self.state.abort()
        self.people.forget()
        self._cells_of.clear()
        self._statistics = None
        self._increments = []

    # ---- facts ---------------------------------------------------------------------------------------------------

    def _configuration(self, fact: ConfigurationFact, offset: int, append_time: int) -> None:
        self._store_increments()
        before = self.state.layouts.current.configuration.statistics if self.state.layouts is not None else None
        self.state.use_configuration(fact.version, fact.text)
        self.people.use(self.state.compiled)
        if before is not None and before != self.state.compiled.configuration.statistics:
            self._forget_counts()
        self._cells_of.clear()
        self._statistics = None

    def _signal(self, fact: SignalFact, offset: int, append_time: int) -> None:
        state = self.state
        plan = state.compiled.plans[fact.type]
        self._remember_message(fact, offset, append_time)
        head, properties = state.head, fact.properties
        if fact.event_time > head.latest_event_time:
            head.latest_event_time = fact.event_time
        category = plan.type.category
        if fact.event_time > head.newest_of_category[category]:
            head.newest_of_category[category] = fact.event_time
        if not head.currency and isinstance(properties.get(CURRENCY), str):
            head.currency = properties[CURRENCY]
        self.people.meet(fact.anchors, fact.event_time, append_time)
        best = fact.anchors[0].key
        record = state.touch(best)
        lines = product_lines(properties)
        slots: tuple[object, ...] = ()
        if plan.update.slots:
            slots = slot_values(
                plan.update,
                properties,
                fact.context,
                lines,
                state.symbol,
                state.item_number,
                state.attribute,
                head.currency,
            )
        self.segments.touched(best)
        digest = message_digest(fact)
        record.update(plan.update.program, fact.event_time, digest, slots, fact.mask)
        if plan.update.updates_lists:
            state.windows(best).update(plan.update.lists_program, fact.event_time, digest, slots, fact.mask)
        if record.first_seen == 0 or fact.event_time < record.first_seen:
            record.first_seen = fact.event_time
        if fact.event_time > record.last_seen and not plan.type.pushes:
            record.last_seen = fact.event_time
        # Every item is numbered at its first mention, whether or not anything reads it yet: a feature declared later, and
        # backfilled, finds the numbers it would have found then.
        for name in plan.item_properties:
            if name in properties:
                state.item_number(properties[name])
        if not lines:
            return
        items = [state.item_number(line["product_id"]) for line in lines]
        if plan.adds_to is not None and fact.mask & plan.profile:
            self._extend_list(best, plan.adds_to, items, fact.event_time)
        if plan.count_weight and fact.mask & plan.measure:
            self._count(fact, plan.count_weight, items)

    def _consent(self, fact: ConsentFact, offset: int, append_time: int) -> None:
        state = self.state
        self.people.see(fact.anchor, append_time)
        self.segments.touched(fact.anchor.key)
        record = state.touch(fact.anchor.key)
        before = masks_of(record)
        after = before.after(fact.choice)
        set_masks(record, after)
        record.consent_time = max(record.consent_time, fact.effective_time)
        state.refresh_view(fact.anchor.key)
        state.append_consent_entry(
            (fact.anchor.key, before, after, fact.choice.basis, fact.choice.notice, fact.effective_time, append_time)
        )

    def _link(self, fact: LinkFact, offset: int, append_time: int) -> None:
        self.people.see(fact.one, append_time)
        self.people.see(fact.other, append_time)
        self.people.link(fact.one, fact.other, fact.kind, fact.event_time)
        self.segments.touched(fact.one.key)

    def _split(self, fact: SplitFact, offset: int, append_time: int) -> None:
        self.people.see(fact.one, append_time)
        if fact.other is not None:
            self.people.see(fact.other, append_time)
        self.people.split(fact.one, fact.other, fact.event_time, fact.reason)
        self.segments.touched(fact.one.key)
        if fact.other is not None:
            self.segments.touched(fact.other.key)

    def _items_put(self, fact: ItemsPutFact, offset: int, append_time: int) -> None:
        for item in fact.items:
            self.state.put_item(item)

    def _items_deleted(self, fact: ItemsDeletedFact, offset: int, append_time: int) -> None:
        for item_id in fact.ids:
            self.state.delete_item(item_id)

    def _served(self, fact: ServedFact, offset: int, append_time: int) -> None:
        if self.state.person_of(fact.key) is not None:
            record = self.state.touch(fact.key)  # Lists belong to fragments that hold state: decisions read no others.
            record.first_seen = record.first_seen or fact.at
            self._extend_list(fact.key, ItemList.SERVED, list(fact.items), fact.at)

    def _servings(self, fact: ServingsFact, offset: int, append_time: int) -> None:
        self.state.keep_servings(fact.rows, append_time)

    def _model(self, fact: ModelFact, offset: int, append_time: int) -> None:
        self.state.head.models = {**self.state.head.models, fact.role: (fact.file, fact.checksum)}

    def _backfill(self, fact: BackfillFact, offset: int, append_time: int) -> None:
        self.state.take_backfilled(fact.names, fact.texts, fact.records)
        for fragment, _ in fact.records:
            self.segments.touched(fragment)

    def _warmed(self, fact: WarmedFact, offset: int, append_time: int) -> None:
        self.state.end_warming(fact.names)

    # ---- repeats -------------------------------------------------------------------------------------------------

    def is_repeat(self, message_key: bytes, source: str, source_offset: int) -> bool:
        """Return whether a message was applied before, in this group or any earlier one within the window."""
        txn, tables = self.state.txn, self.state.tables
        if source_offset >= 0:
            seen = txn.get(source.encode(), db=tables["sources"])
            return seen is not None and int.from_bytes(seen, "big") >= source_offset
        get = txn.get
        return (
            get(message_key, None, tables["messages_0"]) is not None
            or get(message_key, None, tables["messages_1"]) is not None
            or get(message_key, None, tables["messages_2"]) is not None
        )

    def _remember_message(self, fact: SignalFact, offset: int, append_time: int) -> None:
        txn, tables, head = self.state.txn, self.state.tables, self.state.head
        if fact.source_offset >= 0:
            txn.put(fact.source.encode(), u64(fact.source_offset), db=tables["sources"])
        elif fact.message_key:
            # Half the window a generation: two whole ones behind the present one hold the window, the oldest is emptied.
            length = max(1, self.state.compiled.duplicate_window_ms // (GENERATIONS - 1))
            generation = append_time // length
            if generation > head.generation:
                for stale in range(max(head.generation + 1, generation - GENERATIONS + 1), generation + 1):
                    txn.drop(tables[f"messages_{stale % GENERATIONS}"], delete=False)
                head.generation = generation
            txn.put(fact.message_key, u64(offset), db=tables[f"messages_{head.generation % GENERATIONS}"])

    # ---- lists ---------------------------------------------------------------------------------------------------

    def _extend_list(self, fragment: bytes, kind: ItemList, items: list[int], time: int) -> None:
        entries = np.empty((len(items), 2), "<u4")
        entries[:, 0] = items
        entries[:, 1] = max(0, time // 1000)
        limits = self.state.compiled.configuration.limits
        self.state.extend_list(fragment, LIST_KINDS[kind], entries.tobytes(), limits.list_entries_max)

    # ---- statistics ----------------------------------------------------------------------------------------------

    def statistics(self) -> Statistics:
        """Return the writer's statistics, read from the store when this process has none."""
        if self._statistics is None:
            self._statistics = load_statistics(
                self.store, self.state.txn, Statistics(self.state.compiled.configuration.statistics), self.state.head
            )
        return self._statistics

    def _count(self, fact: SignalFact, weight: float, items: list[int]) -> None:
        """Note what an event adds to the cells of its context; what its context lacks, such as an order's country, its
        properties may say."""
        values = []
        for name in self.state.compiled.count_dimensions:
            value = fact.context.get(name)
            if value is None:
                value = fact.properties.get(name)
                if not isinstance(value, str):
                    value = daypart(fact.event_time, self.state.compiled.configuration.zone) if name == DAYPART else ""
            values.append(value)
        context = tuple(values)
        keys = self._cells_of.get(context)
        if keys is None:
            if len(self._cells_of) > CONTEXTS_CACHED_MAX:
                self._cells_of.clear()
            keys = self._cells_of[context] = self._cells(
                dict(zip(self.state.compiled.count_dimensions, values, strict=True))
            )
        time = fact.event_time
        add = self._increments.append
        pack = INCREMENT.pack
        for item in items if len(items) == 1 else dict.fromkeys(items):
            for key in keys:
                add(pack(key, item, weight, time))

    def _cells(self, context: dict[str, str]) -> list[int]:
        """Return the cells of a context, coarse to fine, making those that are new."""
        statistics = self.statistics()
        keys = [EVERYTHING]
        for level, (key, label) in enumerate(context_cells(statistics.levels, context)):
            if key == EVERYTHING:
                continue
            if key not in statistics.cells:
                if len(statistics.cells) >= CELLS_MAX:
                    continue
                row = CellRow(level, keys[-1], label)
                statistics.put_cell(key, row)
                self.state.txn.put(u64(key), encode_cell(row), db=self.state.tables["cells"])
            keys.append(key)
        return keys

    def _store_increments(self) -> None:
        """Keep what was counted since the last tick with the group that counted it."""
        head = self.state.head
        waiting = b"".join(self._increments)
        for packed in pack_rows(np.frombuffer(waiting, Increment)):
            self.state.txn.put(u64(head.pending_end), packed, db=self.state.tables["pending"], append=True)
            head.pending_end += 1
        self._increments = []

    def tick_due(self, append_time: int) -> bool:
        """Return whether counts wait to be published and it is time: by the clock, by a day of events, or by their number."""
        head = self.state.head
        if not self._increments and head.pending_end == 0 and head.touched == 0:
            return False
        return (
            append_time - head.last_tick_append >= self.state.compiled.tick_ms
            or head.latest_event_time - head.last_tick_event >= 86_400_000
            or len(self._increments) >= 100_000
        )

    def _tick(self, fact: TickFact, offset: int, append_time: int) -> None:
        """Count what waits, fit the strengths on it, let deciders know what changed, and tell who came into a segment."""
        self._store_increments()
        self.segments.tick(fact.event_time)
        state, tables, txn = self.state, self.state.tables, self.state.txn
        statistics = self.statistics()
        waiting = b"".join(value for _, value in scan(txn, tables["pending"], b""))
        txn.drop(tables["pending"], delete=False)
        state.head.pending_end = 0
        increments = np.frombuffer(waiting, Increment)
        parts = []
        if statistics.needs_landmark(fact.event_time):
            parts.append(statistics.move_landmark(fact.event_time))
            state.head.landmark = statistics.landmark
        parts.append(statistics.absorb(increments, max(1, state.head.items)))
        changes = np.concatenate(parts)
        for row in changes:
            txn.put(u64(int(row["cell"])) + u32(int(row["item"])), row["count"].tobytes(), db=tables["counts"])
        for packed in pack_rows(changes):
            end = state.head.count_changes_end
            txn.put(u64(end), packed, db=tables["count_changes"], append=True)
            if end >= CHANGES_KEPT:
                txn.delete(u64(end - CHANGES_KEPT), db=tables["count_changes"])
            state.head.count_changes_end = end + 1
        for key in np.unique(increments["cell"]).tolist():
            txn.put(u64(key), encode_cell(statistics.cells[key].row()), db=tables["cells"])
        state.head.level_evidence = statistics.level_evidence.tolist()
        state.head.last_tick_append, state.head.last_tick_event = append_time, fact.event_time

    def _forget_counts(self) -> None:
        """Start the statistics over: they were declared anew."""
        txn, tables, head = self.state.txn, self.state.tables, self.state.head
        for table in ("cells", "counts", "count_changes", "pending"):
            txn.drop(tables[table], delete=False)
        head.count_changes_end += CHANGES_KEPT  # what deciders have followed so far is void
        head.pending_end = head.landmark = 0
        head.level_evidence = []


def message_digest(fact: SignalFact) -> int:
    """Return what tells this message from others at the same time; a property of the message, not of its place in the log."""
    if fact.message_key:
        return int.from_bytes(fact.message_key[:8], "little")
    return (symbol_of(fact.source) ^ (fact.source_offset * 0x9E3779B97F4A7C15)) & 0xFFFFFFFFFFFFFFFF


encode_cell = msgspec.msgpack.Encoder().encode
_decode_cell = msgspec.msgpack.Decoder(CellRow).decode


def follow_cells(store: Store, txn: Any, statistics: Statistics, head: Head) -> None:
    """Take in what the stored cells say now."""
    if head.level_evidence:
        statistics.level_evidence = np.array(head.level_evidence)
    for key, value in txn.cursor(db=store.tables["cells"]):
        statistics.put_cell(int.from_bytes(bytes(key), "big"), _decode_cell(bytes(value)))


def load_statistics(store: Store, txn: Any, statistics: Statistics, head: Head) -> Statistics:
    """Fill statistics from the stored cells and counts of a transaction."""
    statistics.landmark = head.landmark
    follow_cells(store, txn, statistics, head)
    packed = [
        (int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big"), np.frombuffer(value, "<f8")[0])
        for key, value in ((bytes(k), bytes(v)) for k, v in txn.cursor(db=store.tables["counts"]))
    ]
    statistics.apply(np.array(packed, Change))
    return statistics

"""What a decider knows at one moment, read-only: configuration, catalogue, statistics and models of one transaction."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import numpy.typing as npt

from tailorbird.engine.applier import follow_cells, load_statistics
from tailorbird.engine.catalogue import Catalogue
from tailorbird.engine.configuration import Configuration
from tailorbird.engine.errors import Damaged, PreconditionFailed
from tailorbird.engine.neighbours_file import Neighbours, open_neighbours
from tailorbird.engine.requests import ReasonDetail
from tailorbird.engine.score_model import ROLE, Learned, open_model
from tailorbird.engine.state import CHANGES_KEPT, Layouts, read_layouts
from tailorbird.engine.statistics import Cell, Change, Statistics
from tailorbird.engine.store import Head, Store, u64
from tailorbird.engine.symbols import NO_SYMBOL
from tailorbird.native.scoring import Prior
from tailorbird.native.servings import ServedLog

COOCCURRENCE = "cooccurrence"
ORDER_MAX = 5_000
CHAINS_KEPT = 1_024


class Level(NamedTuple):
    """Evidence of a level at the newest event, and how much its parent is worth."""

    total: float
    strength: float


class Chain(NamedTuple):
    """The context cells of one context: for the ranking, for its reasons, for its retrievers."""

    prior: Prior
    label: str
    has_evidence: bool
    cells: tuple[Cell, ...]
    reasons: dict[int, tuple[ReasonDetail, ...]]  # by native reason code, of those that are the same for every item


class Postings(NamedTuple):
    """Live item numbers by attribute value, and the span of each value's symbol."""

    order: npt.NDArray[np.uint32]
    spans: dict[int, tuple[int, int]]


class OrderKind(IntEnum):
    """What is derived from the counts now and then; numbers are stored and never reused."""

    POPULAR = 0
    SHARES = 1
    POSTINGS = 2


# An order a decision used: its kind, its cell or attribute, and the log position it was derived at.
UsedOrder = tuple[int, int, int]


class Evidence:
    """Keeps what decisions read in step with the store. `follow` first, in every transaction."""

    def __init__(self, store: Store, models: Path) -> None:
        self.store = store
        self.models = models
        self.head = Head()
        self.moment = -1  # changes with the state
        self.layouts: Layouts | None = None
        self._in_force: tuple[int, list[str]] = (-1, [])
        self.catalogue: Catalogue
        self._prepared: Catalogue | None = None
        self._lacks_counts = False  # the catalogue is another one than the counts were last given to
        self.statistics: Statistics
        self.neighbours: Neighbours | None = None
        self.model_damages: dict[str, Damaged] = {}  # by role
        self.scores: dict[str, Learned] = {}  # by the feature they speak for
        self._models_followed: dict[str, str] = {}  # the file of each role
        self.served = ServedLog()  # not in the lists yet
        self._served_ends: deque[tuple[int, int]] = deque()  # of its rows: the sequence, and the end in `served`
        self._served_followed = 0
        self._counts_followed = -1
        self.scratch: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        self.touched: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)
        self.over_all = Level(0.0, 0.0)
        self.scale = 1.0
        self._strengths: dict[int, float] = {}  # by cell, of the counts followed
        self._orders_of = (-1, -1)
        self._chains: dict[tuple[str, ...], Chain] = {}
        self._popular: dict[int, npt.NDArray[np.uint32]] = {}
        self._shares: dict[int, dict[int, float]] = {}
        self._postings: dict[int, Postings] = {}
        self._derived_at: dict[tuple[OrderKind, int], int] = {}
        # Orders used since whoever decides emptied it, and the log positions they were derived at.
        self.used_orders: dict[tuple[int, int], int] = {}

    def follow(self, txn: lmdb.Transaction[Any]) -> Head:
        """Bring everything to the moment of a read transaction and return its head."""
        if txn.id() == self.moment:
            return self.head
        head = self.store.read_head(txn)
        in_force = head.configuration, head.warming
        if self.layouts is None or in_force != self._in_force:
            layouts = read_layouts(self.store, txn, head)
            if layouts is None:
                raise PreconditionFailed("NO_CONFIGURATION", "expected a configured data directory, got an empty one")
            self._take_up(layouts.current.configuration)
            self.layouts, self._in_force = layouts, in_force
        self.catalogue.follow(self.store, txn, head)
        if self._lacks_counts:
            self.catalogue.items.set_counts(*self.statistics.everything.table.entries())
            self._lacks_counts = False
        self._follow_counts(txn, head)
        self.follow_models(head)
        self._follow_servings(txn, head)
        if len(self.scratch) < self.catalogue.items.count:
            size = max(1024, 2 * self.catalogue.items.count)
            self.scratch, self.touched = np.zeros(size, np.float32), np.zeros(size, np.uint32)
        # Counts fade against the newest event, not the clock: where nothing more arrived, nothing more is known.
        statistics = self.statistics
        self.scale = statistics.scale(head.latest_event_time) if statistics.landmark else 1.0
        self.over_all = Level(statistics.everything.total * self.scale, self._strength(statistics.everything))
        self._chains.clear()
        self.head, self.moment = head, txn.id()
        return head

    def prepare(self, configuration: Configuration) -> None:
        """Make the catalogue that a configuration not in force yet will need, so that no decision has to.

        In a thread of its own, beside decisions. Nothing is made where the present one will do.
        """
        self._prepared = None
        if self.layouts is None or self.catalogue.fits(configuration):
            return
        catalogue = Catalogue(configuration)
        with self.store.reading() as txn:
            catalogue.follow(self.store, txn, self.store.read_head(txn))
        self._prepared = catalogue

    def _take_up(self, configuration: Configuration) -> None:
        """Have a catalogue as a configuration wants it: the present one, the one that was prepared, else another."""
        prepared, self._prepared = self._prepared, None
        if self.layouts is not None and self.catalogue.fits(configuration):
            return
        self.catalogue = prepared if prepared is not None and prepared.fits(configuration) else Catalogue(configuration)
        self._lacks_counts = self._counts_followed >= 0
        self._orders_of = (-1, -1)

    def _follow_counts(self, txn: lmdb.Transaction[Any], head: Head) -> None:
        assert self.layouts is not None
        behind = head.count_changes_end - self._counts_followed
        if behind == 0:
            return
        self._strengths.clear()
        if self._counts_followed < 0 or behind >= CHANGES_KEPT or head.landmark != self.statistics.landmark:
            self.statistics = load_statistics(
                self.store, txn, Statistics(self.layouts.current.configuration.statistics), head
            )
            items, counts = self.statistics.everything.table.entries()
            if self._counts_followed >= 0:
                self.catalogue.items.set_counts(
                    np.arange(self.catalogue.items.count, dtype=np.uint32), np.zeros(self.catalogue.items.count)
                )
            self.catalogue.items.set_counts(items, counts)
            self._orders_of = (-1, -1)
        else:
            follow_cells(self.store, txn, self.statistics, head)
            parts = []
            for sequence in range(self._counts_followed, head.count_changes_end):
                packed = txn.get(u64(sequence), db=self.store.tables["count_changes"])
                if packed is None:
                    raise Damaged("DAMAGED_STATISTICS", f"expected change {sequence} in the feed of counts, found none")
                parts.append(np.frombuffer(bytes(packed), Change))
            changes = np.concatenate(parts)
            self.statistics.apply(changes)
            over_all = changes[(changes["cell"] == 0) & (changes["item"] < head.items)]
            self.catalogue.items.set_counts(over_all["item"].copy(), over_all["count"].copy())
        self._counts_followed = head.count_changes_end

    def _follow_servings(self, txn: lmdb.Transaction[Any], head: Head) -> None:
        """Take in what was served since, and forget what the state keeps no longer, or has in lists now."""
        if head.served_end == self._served_followed:
            return
        cursor = txn.cursor(db=self.store.tables["served"])
        first = int.from_bytes(cursor.key(), "big") if cursor.first() else head.served_end
        if first > self._served_followed:
            self.served, self._served_ends = ServedLog(), deque()
            self._served_followed = first
        found = cursor.set_range(u64(self._served_followed))
        while found:
            self.served.extend(bytes(cursor.value()), 8)
            self._served_ends.append((int.from_bytes(cursor.key(), "big"), self.served.end))
            found = cursor.next()
        while self._served_ends and self._served_ends[0][0] < first:
            self.served.drop_before(self._served_ends.popleft()[1])
        self._served_followed = head.served_end

    @property
    def model_name(self) -> str:
        """The model file in force, empty without one."""
        return self._models_followed.get(COOCCURRENCE, "")

    def follow_models(self, head: Head) -> None:
        """Read the models in force. One that is damaged or gone is left out and told in `model_damages`: decisions go on."""
        for role, (name, checksum) in head.models.items():
            if self._models_followed.get(role) == name:
                continue
            self._models_followed[role] = name
            self.model_damages.pop(role, None)
            command = "train cooccurrence" if role == COOCCURRENCE else "train score"
            again = f"in {self.models / name}; run `tailorbird {command}` again"
            try:
                found = self._read_model(role, self.models / name)
                if found != checksum:
                    raise Damaged("DAMAGED_MODEL", f"expected checksum {checksum:016x}, got {found:016x}, {again}")
            except Damaged as error:
                self._leave_out(role, error)
            except OSError as error:
                self._leave_out(role, Damaged("DAMAGED_MODEL", f"expected a model, got: {error.strerror}, {again}"))

    def _read_model(self, role: str, path: Path) -> int:
        """Put the model of a role in use; return its checksum."""
        if role == COOCCURRENCE:
            self.neighbours, _, checksum = open_neighbours(path)
        else:
            self.scores[role.removeprefix(ROLE)], checksum = open_model(path)
        return checksum

    def _leave_out(self, role: str, damage: Damaged) -> None:
        self.model_damages[role] = damage
        if role == COOCCURRENCE:
            self.neighbours = None
        else:
            self.scores.pop(role.removeprefix(ROLE), None)

    # ---- derived from the counts -----------------------------------------------------------------------------------

    def chain(self, context: Mapping[str, str]) -> Chain:
        """Return the known context cells of a context, coarse to fine, as the ranking takes them."""
        assert self.layouts is not None
        key = tuple([context.get(name, "") for name in self.layouts.current.count_dimensions])
        chain = self._chains.get(key)
        if chain is None:
            cells = self.statistics.chain(context)
            chain = Chain(
                Prior(
                    self.scale,
                    self.over_all.total,
                    self.over_all.strength,
                    tuple((cell.table, cell.total * self.scale, self._strength(cell)) for cell in cells),
                ),
                cells[-1].label if cells else "",
                any(cell.total > 0.0 for cell in cells),
                tuple(cells),
                {},
            )
            if len(self._chains) >= CHAINS_KEPT:
                self._chains.clear()
            self._chains[key] = chain
        return chain

    def _strength(self, cell: Cell) -> float:
        """Return how much evidence the parent of a cell is worth to it; it changes with the counts alone, not with every moment."""
        strength = self._strengths.get(cell.key)
        if strength is None:
            strength = self._strengths[cell.key] = self.statistics.strength(cell)
        return strength

    # Orders by popularity only find candidates, whose scores are always computed afresh: they may be a little behind.

    @property
    def _epoch(self) -> tuple[int, int]:
        """How old orders may be: it changes with every 1 % of changed items, and with as many rows of counts, 256 at most."""
        few = 1 + self.catalogue.items.count // 100
        return self.catalogue.followed // few, self._counts_followed // min(256, few)

    def _refresh_orders(self) -> None:
        if self._orders_of != self._epoch:
            self._orders_of = self._epoch
            self._forget_orders()

    def _forget_orders(self) -> None:
        self._popular.clear()
        self._shares.clear()
        self._postings.clear()
        self._derived_at.clear()

    def _use(self, kind: OrderKind, key: int) -> None:
        """Note which order a decision used. Whoever replays it derives the same one, at the same position."""
        self.used_orders[kind, key] = self._derived_at.setdefault((kind, key), self.head.position)

    def popular(self, cell: Cell) -> npt.NDArray[np.uint32]:
        """Return the items most counted in a cell, best first, ties by number, at most `ORDER_MAX`."""
        self._refresh_orders()
        self._use(OrderKind.POPULAR, cell.key)
        order = self._popular.get(cell.key)
        if order is None:
            items, counts = cell.table.entries()
            if (
                len(items) > ORDER_MAX
            ):  # All that tie with the last one stay: which of them do must not hang on their places.
                best = counts >= np.partition(counts, -ORDER_MAX)[-ORDER_MAX]
                items, counts = items[best], counts[best]
            order = self._popular[cell.key] = np.ascontiguousarray(items[np.lexsort((items, -counts))[:ORDER_MAX]])
        return order

    def attribute_shares(self, attribute: int) -> dict[int, float]:
        """Return, per symbol of an attribute, its share of all counts, smoothed by one event spread over all live items."""
        self._refresh_orders()
        self._use(OrderKind.SHARES, attribute)
        shares = self._shares.get(attribute)
        if shares is None:
            items = self.catalogue.items
            symbols, positions = np.unique(items.attribute(attribute), return_inverse=True)
            live = items.live().astype(np.float64)
            sums = np.bincount(positions, weights=(items.counts() * self.scale + 1.0 / max(1, items.live_count)) * live)
            known = max(1e-300, float(sums[symbols != NO_SYMBOL].sum()))
            shares = self._shares[attribute] = dict(zip(symbols.tolist(), (sums / known).tolist(), strict=True))
        return shares

    def posting(self, attribute: int, symbol: int) -> npt.NDArray[np.uint32]:
        """Return the live items with one attribute value, most counted first."""
        postings = self.postings(attribute)
        start, end = postings.spans.get(symbol, (0, 0))
        return postings.order[start:end]

    def postings(self, attribute: int) -> Postings:
        """Return the live items by the values of one attribute."""
        self._refresh_orders()
        self._use(OrderKind.POSTINGS, attribute)
        postings = self._postings.get(attribute)
        if postings is None:
            items = self.catalogue.items
            symbols = items.attribute(attribute)
            order = np.lexsort((np.arange(items.count), -items.counts(), symbols))
            order = order[items.live()[order] != 0].astype(np.uint32)
            values, starts = np.unique(symbols[order], return_index=True)
            ends = [*starts[1:].tolist(), len(order)]
            spans = dict(zip(values.tolist(), zip(starts.tolist(), ends, strict=True), strict=True))
            postings = self._postings[attribute] = Postings(order, spans)
        return postings

    def newest(self, count: int) -> npt.NDArray[np.uint32]:
        """Return the items mentioned last, newest first."""
        end = self.catalogue.items.count
        return np.arange(end - 1, max(-1, end - 1 - count), -1, dtype=np.int64).astype(np.uint32)

"""What a decider knows at one moment, read-only: configuration, catalogue, statistics and models of one read transaction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import numpy.typing as npt

from tailorbird.engine.applier import follow_cells, load_statistics
from tailorbird.engine.catalogue import Catalogue
from tailorbird.engine.errors import Damaged, PreconditionFailed
from tailorbird.engine.neighbours_file import Neighbours, open_neighbours
from tailorbird.engine.state import CHANGES_KEPT, Layouts, read_layouts
from tailorbird.engine.statistics import Change, Statistics
from tailorbird.engine.store import Head, Store, u64

COOCCURRENCE = "cooccurrence"


class Evidence:
    """Keeps what decisions read in step with the store. `follow` first, in every transaction."""

    def __init__(self, store: Store, models: Path) -> None:
        self.store = store
        self.models = models
        self.head = Head()
        self._raw_head = b""
        self.layouts: Layouts | None = None
        self.catalogue: Catalogue
        self.statistics: Statistics
        self.neighbours: Neighbours | None = None
        self._counts_followed = -1
        self._neighbours_name = ""
        self.scratch: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        self.touched: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._popular: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._popular_of = (-1, -1)
        self._shares: dict[int, tuple[tuple[int, int], dict[int, float]]] = {}
        self._postings: dict[tuple[int, int], tuple[tuple[int, int], npt.NDArray[np.uint32]]] = {}

    def follow(self, txn: lmdb.Transaction[Any]) -> Head:
        """Bring everything to the moment of a read transaction and return its head."""
        raw = bytes(txn.get(b"head", db=self.store.tables["meta"]) or b"")
        if raw == self._raw_head and raw:
            return self.head
        head = self.store.read_head(txn)
        if self.layouts is None or head.configuration != self.layouts.current.version:
            layouts = read_layouts(self.store, txn, head)
            if layouts is None:
                raise PreconditionFailed("NO_CONFIGURATION", "expected a configured data directory, got an empty one")
            self.layouts = layouts
            self.catalogue = Catalogue(layouts.current)
            self._counts_followed = -1
        self.catalogue.follow(self.store, txn, head)
        self._follow_counts(txn, head)
        self._follow_models(head)
        if len(self.scratch) < self.catalogue.items.count:
            size = max(1024, 2 * self.catalogue.items.count)
            self.scratch, self.touched = np.zeros(size, np.float32), np.zeros(size, np.uint32)
        self.head, self._raw_head = head, raw
        return head

    def _follow_counts(self, txn: lmdb.Transaction[Any], head: Head) -> None:
        assert self.layouts is not None
        behind = head.count_changes_end - self._counts_followed
        if behind == 0:
            return
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
            self.catalogue.items.set_counts(
                np.ascontiguousarray(over_all["item"]), np.ascontiguousarray(over_all["count"])
            )
        self._counts_followed = head.count_changes_end

    def _follow_models(self, head: Head) -> None:
        name, checksum = head.models.get(COOCCURRENCE, ("", 0))
        if name == self._neighbours_name:
            return
        if name:
            self.neighbours, _, found = open_neighbours(self.models / name)
            if found != checksum:
                raise Damaged(
                    "DAMAGED_MODEL", f"expected checksum {checksum:x} of {name}, got {found:x}; train the model again"
                )
        else:
            self.neighbours = None
        self._neighbours_name = name

    # ---- derived, rebuilt when what they come from changed ---------------------------------------------------------

    @property
    def _stamp(self) -> tuple[int, int]:
        return self.catalogue.version, self._counts_followed

    def popular(self, count: int) -> npt.NDArray[np.uint32]:
        """Return the most counted live items over all contexts, best first, ties by number."""
        if self._popular_of != self._stamp:
            counts = self.catalogue.items.counts()
            counts[self.catalogue.items.live() == 0] = -1.0
            wanted = min(len(counts), 5_000)
            best = np.argpartition(-counts, wanted - 1)[:wanted] if wanted else np.zeros(0, np.int64)
            self._popular = best[np.lexsort((best, -counts[best]))].astype(np.uint32)
            self._popular_of = self._stamp
        return self._popular[:count]

    def attribute_shares(self, attribute: int) -> dict[int, float]:
        """Return, per symbol of an attribute, its smoothed share of all counts."""
        known = self._shares.get(attribute)
        if known is None or known[0] != self._stamp:
            counts = self.catalogue.items.counts() + 1e-3
            symbols, positions = np.unique(self.catalogue.items.attribute(attribute), return_inverse=True)
            live = self.catalogue.items.live().astype(np.float64)
            # The counts are landmark-scaled; shares do not depend on the scale. One uniform event smooths them.
            scale = self.statistics.scale(self.head.latest_event_time) if self.statistics.landmark else 1.0
            sums = np.bincount(positions, weights=counts * scale * live + live / max(1.0, live.sum()))
            shares = sums / max(1e-300, float(sums[symbols != 0].sum()))
            known = (self._stamp, dict(zip(symbols.tolist(), shares.tolist(), strict=True)))
            self._shares[attribute] = known
        return known[1]

    def posting(self, attribute: int, symbol: int, count: int) -> npt.NDArray[np.uint32]:
        """Return the most counted live items with one attribute value, best first."""
        known = self._postings.get((attribute, symbol))
        if known is None or known[0] != self._stamp:
            if len(self._postings) > 10_000:
                self._postings.clear()
            found = np.flatnonzero((self.catalogue.items.attribute(attribute) == symbol) & (self.catalogue.items.live() != 0))
            counts = self.catalogue.items.counts()[found]
            ordered = found[np.lexsort((found, -counts))][:1_000].astype(np.uint32)
            known = (self._stamp, ordered)
            self._postings[attribute, symbol] = known
        return known[1][:count]

    def newest(self, count: int) -> npt.NDArray[np.uint32]:
        """Return the items mentioned last, newest first."""
        end = self.catalogue.items.count
        return np.arange(end - 1, max(-1, end - 1 - count), -1, dtype=np.int64).astype(np.uint32)

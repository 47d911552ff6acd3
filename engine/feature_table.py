"""Named features of many people at one moment, read from the records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import lmdb
import numpy as np
import numpy.typing as npt

from tailorbird.engine.catalogue import Catalogue
from tailorbird.engine.consent import ALL_BITS, DataType, Jurisdiction
from tailorbird.engine.errors import NotFound
from tailorbird.engine.features import Feature, FeatureSet, Place
from tailorbird.engine.profile import FeatureStatus
from tailorbird.engine.score_model import Learned
from tailorbird.engine.state import Layouts, damaged_record, packed_head, read_record, read_windows, seek_head
from tailorbird.engine.store import HEAD_ROW, Head, Store, u64
from tailorbird.native import record
from tailorbird.native.feature_rows import FeatureColumns, FeatureRows
from tailorbird.native.record import Record, RecordError, RecordLayout, RecordView

# What a formula says where one of its inputs does not speak: the first of these that any input has.
_GRAVEST = (FeatureStatus.MASKED, FeatureStatus.WARMING, FeatureStatus.STALE, FeatureStatus.MISSING)
NO_BITS = 2**64 - 1 & ~ALL_BITS
READERS_KEPT = 64  # sets of names
_FLOAT64 = np.dtype(np.float64)
_NOTHING: dict[str, Any] = {}
SPEAKING = (FeatureStatus.FRESH, FeatureStatus.DEFAULTED)

Weighted = tuple[tuple[str, float], ...]
Symbols = Callable[[int], str]


class FeatureTable:
    """Features of people at `at`, read at log `position`: a row per person, a column per name, in the order asked for.

    `values` float64, NaN where the status is neither FRESH nor DEFAULTED and where the feature is no number: those are in
    `texts` and `weighted` by name, None where they do not speak. `statuses` are numbers of `FeatureStatus`, uint8; `ages_ms`
    int64, -1 where unknown. `categories` are the kinds of data each feature draws on, `known` tells who is, bool.
    """

    __slots__ = ("_plan", "_rows", "at", "position", "texts", "weighted")

    def __init__(
        self,
        plan: TablePlan,
        rows: FeatureRows,
        texts: Mapping[str, list[str | None]],
        weighted: Mapping[str, list[Weighted | None]],
        at: int,
        position: int,
    ) -> None:
        self._plan = plan
        self._rows = rows
        self.texts = texts
        self.weighted = weighted
        self.at = at
        self.position = position

    @property
    def names(self) -> tuple[str, ...]:
        """The features, in the order of the columns."""
        return self._plan.names

    @property
    def categories(self) -> tuple[tuple[DataType, ...], ...]:
        """The kinds of data each feature draws on."""
        return self._plan.categories

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The numbers: [person, feature]."""
        found = values_of(self._rows)
        return found if self._plan.is_plain else found[:, : len(self._plan.names)]

    @property
    def statuses(self) -> npt.NDArray[np.uint8]:
        """Why each value is, or is not, there: [person, feature]."""
        return statuses_of(self._rows)[:, : len(self._plan.names)]

    @property
    def ages_ms(self) -> npt.NDArray[np.int64]:
        """The time since the last event of each value: [person, feature]."""
        return ages_of(self._rows)[:, : len(self._plan.names)]

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Who is known: [person]."""
        return known_of(self._rows)

    @property
    def completeness(self) -> npt.NDArray[np.float64]:
        """The share of the features that are fresh, 0 to 1: [person]."""
        if not self.names:
            return np.ones(len(self.known))
        return np.asarray(np.mean(self.statuses == FeatureStatus.FRESH, axis=1), np.float64)

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """Return the values of one feature: [person]."""
        return self.values[:, self.names.index(name)]


def values_of(rows: FeatureRows) -> npt.NDArray[np.float64]:
    """Return the values of native rows, without a copy."""
    return np.ndarray((rows.row_count, rows.column_count), _FLOAT64, rows)  # type: ignore[arg-type]  # a buffer


def ages_of(rows: FeatureRows) -> npt.NDArray[np.int64]:
    """Return the ages of native rows, without a copy."""
    return np.ndarray((rows.row_count, rows.column_count), np.int64, rows, rows.ages_at)  # type: ignore[arg-type]  # a buffer


def statuses_of(rows: FeatureRows) -> npt.NDArray[np.uint8]:
    """Return the statuses of native rows, without a copy."""
    return np.ndarray((rows.row_count, rows.column_count), np.uint8, rows, rows.statuses_at)  # type: ignore[arg-type]  # a buffer


def known_of(rows: FeatureRows) -> npt.NDArray[np.bool_]:
    """Return which of native rows are of people who are known, without a copy."""
    return np.ndarray((rows.row_count,), np.bool_, rows, rows.known_at)  # type: ignore[arg-type]  # a buffer


class Moment(Protocol):
    """What a table is read from, beside the records: `evidence.Evidence`, or the writer's own transaction."""

    layouts: Layouts | None
    head: Head
    catalogue: Catalogue

    @property
    def scores(self) -> Mapping[str, Learned]:
        """The learned scores, by feature."""


class Source(NamedTuple):
    """What one kind of record brings to a table: the native columns, and (feature, its index, column) of those that are no
    numbers."""

    columns: FeatureColumns
    others: tuple[tuple[Feature, int, int], ...]


class TablePlan:
    """The columns of a table of the named features, all where none is named. Raises `NotFound` UNKNOWN_FEATURE.

    What formulas read has columns too, behind those that were asked for.
    """

    def __init__(self, features: FeatureSet, names: Sequence[str]) -> None:
        self.features = features
        self.names = tuple(dict.fromkeys(names)) or tuple(features.by_name)
        asked = [_find(features, name) for name in self.names]
        self.categories = tuple(feature.categories for feature in asked)
        self.columns = {feature.name: column for column, feature in enumerate(asked)}
        self.derived = _needed(features, asked)
        for feature in self.derived:
            for read in (*feature.reads, feature.name):
                self.columns.setdefault(read, len(self.columns))
        self.texts = tuple(name for name in self.columns if _is_text(features.by_name[name]))
        self.weighted = tuple(f.name for f in asked if f.op in (record.TOP_K, record.LAST_K))
        # Nothing but numbers that are stored: what the native rows hold is the whole table.
        self.is_plain = not (self.texts or self.weighted or self.derived)

    @property
    def stored(self) -> tuple[str, ...]:
        """The features that are read from records, in the order of their columns."""
        return tuple(name for name in self.columns if self.features.by_name[name].place is not Place.DERIVED)

    def source(self, layout: RecordLayout, index: Mapping[str, int]) -> Source:
        """Return what a record of `layout` brings, where `index` says which of its features each name is."""
        chosen = [
            (self.features.by_name[name], index[name], column) for name, column in self.columns.items() if name in index
        ]
        columns = FeatureColumns(
            layout,
            np.array([place for _, place, _ in chosen], np.int32),
            np.array([column for *_, column in chosen], np.int32),
            np.array([feature.is_number for feature, *_ in chosen], np.uint8),
        )
        others = [(feature, place, column) for feature, place, column in chosen if not feature.is_number]
        return Source(columns, tuple(others))


class TableRows:
    """A table on its way: `fill` each row from each source, then `table`."""

    def __init__(self, plan: TablePlan, native: FeatureRows, symbols: Symbols, moment: Moment) -> None:
        count = native.row_count
        self._plan = plan
        self.native = native
        self._moment = moment
        self._symbols = symbols
        self._texts: dict[str, list[str | None]] = {name: [None] * count for name in plan.texts}
        self._weighted: dict[str, list[Weighted | None]] = {name: [None] * count for name in plan.weighted}
        self._values, self._statuses, self._ages = values_of(native), statuses_of(native), ages_of(native)

    def fill(self, row: int, view: RecordView, source: Source, at: int, mask: int) -> None:
        """Write what a loaded record says at `at` under `mask`."""
        self.native.read(row, view, source.columns, at, mask)
        if source.others:
            self.fill_others(row, view, source, at, mask)

    def fill_others(self, row: int, view: RecordView, source: Source, at: int, mask: int) -> None:
        """Write what is no number; the numbers and statuses of the row are there."""
        statuses = self._statuses[row]
        for feature, index, column in source.others:
            if statuses[column] != FeatureStatus.FRESH:
                continue
            if feature.name in self._texts:
                symbol = view.symbol(index, at, mask)
                self._texts[feature.name][row] = None if symbol is None else self._symbols(symbol)
            else:
                self._weighted[feature.name][row] = self._keys(view, feature, index, at, mask)

    def _keys(self, view: RecordView, feature: Feature, index: int, at: int, mask: int) -> Weighted:
        """Return the keys of a top-k with their weights, heaviest first, or the items of a last-k with their ages in s."""
        if feature.op == record.TOP_K:
            keys, weights = np.zeros(record.TOP_K_MAX, np.uint64), np.zeros(record.TOP_K_MAX, np.float32)
            n = view.top(index, at, mask, keys, weights)
            return tuple((self._symbols(int(keys[i])), float(weights[i])) for i in range(n))
        items, times = np.zeros(record.LAST_K_MAX, np.uint32), np.zeros(record.LAST_K_MAX, np.int64)
        n = view.recent(index, at, mask, items, times)
        return tuple((self._moment.catalogue.items.id(int(items[i])), (at - int(times[i])) / 1000) for i in range(n))

    def table(self, at: int, position: int) -> FeatureTable:
        """Compute what is derived and return the table."""
        plan, texts = self._plan, self._texts
        if plan.derived:
            for feature in plan.derived:
                self._derive(feature)
            texts = {name: column for name, column in texts.items() if name in plan.names}
        return FeatureTable(plan, self.native, texts, self._weighted, at, position)

    def _derive(self, feature: Feature) -> None:
        columns = self._plan.columns
        column, reads = columns[feature.name], [columns[name] for name in feature.reads]
        result, status = self._score(feature) if feature.learned_from else self._formula(feature)
        if not np.isnan(feature.default):
            open_to_default = (status != FeatureStatus.FRESH) & (status != FeatureStatus.MASKED)
            result = np.where(open_to_default, feature.default, result)
            status[open_to_default] = FeatureStatus.DEFAULTED
        self._values[:, column] = np.where(np.isin(status, SPEAKING), result, np.nan)
        self._statuses[:, column] = status
        # A result is as old as the oldest thing it rests on; a score rests on what speaks.
        ages = self._ages[:, reads]
        unknown = (ages < 0).all(axis=1) if feature.learned_from else (ages < 0).any(axis=1)
        unknown |= status == FeatureStatus.MASKED
        self._ages[:, column] = np.where(unknown, -1, ages.max(axis=1, initial=-1))

    def _formula(self, feature: Feature) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
        assert feature.formula is not None
        columns = self._plan.columns
        result = feature.formula.values({name: self._values[:, columns[name]] for name in feature.reads})
        result = np.broadcast_to(result, len(self._values))
        status = np.where(np.isnan(result), np.uint8(FeatureStatus.MISSING), np.uint8(FeatureStatus.FRESH))
        statuses = self._statuses[:, [columns[name] for name in feature.reads]]
        for reason in reversed(_GRAVEST):
            status[(statuses == reason).any(axis=1)] = reason
        return result, status

    def _score(self, feature: Feature) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
        """Return a learned score: WARMING before it is trained, and of nobody of whom no input speaks."""
        columns = self._plan.columns
        count = len(self._values)
        model = self._moment.scores.get(feature.name)
        if model is None or not set(model.names) <= set(feature.reads):
            return np.full(count, np.nan), np.full(count, FeatureStatus.WARMING, np.uint8)
        numbers = {name: self._values[:, columns[name]] for name in model.names if name not in self._texts}
        statuses = self._statuses[:, [columns[name] for name in model.names]]
        speaks = np.isin(statuses, SPEAKING).any(axis=1)
        masked = (statuses == FeatureStatus.MASKED).any(axis=1)
        silent = np.where(masked, np.uint8(FeatureStatus.MASKED), np.uint8(FeatureStatus.MISSING))
        status = np.where(speaks, np.uint8(FeatureStatus.FRESH), silent)
        return model.values(numbers, self._texts), status


class FeatureReader:
    """Reads some features, asked for by name, from the state under one configuration. Raises `NotFound` UNKNOWN_FEATURE."""

    def __init__(self, features: FeatureSet, names: Sequence[str]) -> None:
        self.plan = TablePlan(features, names)
        self._set = features
        self._head = self.plan.source(features.layout, features.index)
        lists = {feature.name: feature.index for feature in features.kept(Place.LISTS)}
        self._lists = self.plan.source(features.lists_layout, lists)
        self._from_lists = len(self._lists.columns) > 0
        self._width = len(self.plan.columns)
        self._layouts: Layouts | None = None  # what the next two belong to
        self._people: Any = None
        self._always = 0
        self._view, self._lists_view = RecordView(), RecordView()
        self._empty = Record(features.layout).pack()
        self._empty_lists = Record(features.lists_layout).pack()

    def read(
        self,
        store: Store,
        txn: lmdb.Transaction[Any],
        moment: Moment,
        keys: Sequence[bytes],
        at: int,
    ) -> FeatureTable:
        """Return the features of the people whom anchor keys belong to; an empty key is nobody's."""
        layouts = moment.layouts
        assert layouts is not None
        if layouts is not self._layouts:
            self._layouts, self._people = layouts, store.tables["people"]
            self._always = ALL_BITS if layouts.current.configuration.jurisdiction is Jurisdiction.OPT_OUT else 0
        plan = self.plan
        native = FeatureRows(len(keys), self._width)
        rows = None
        if not plan.is_plain:
            rows = TableRows(plan, native, symbols_of(store, txn), moment)
        people, get, always = self._people, txn.get, self._always
        view, head, layout = self._view, self._head, self._set.layout
        read_person, columns, from_lists = native.read_person, head.columns, self._from_lists
        for row, key in enumerate(keys):
            stored = None
            if key:
                # Most ask by the best identifier of a person, under which the head lies; any other leads there.
                stored = get(key + HEAD_ROW, db=people)
                if stored is None:
                    found = seek_head(txn.cursor(db=people), key)
                    stored = found[1] if found is not None else None
            mask: int | None = ALL_BITS
            if stored is None:  # Of a stranger nothing is there that could be masked.
                view.load(layout, self._empty)
                native.read(row, view, columns, at, ALL_BITS)
            else:
                try:
                    mask = read_person(row, view, stored, columns, at, always, NO_BITS)
                    if mask is None:
                        packed = packed_head(stored)
                        current = read_record(layouts, packed).pack() + stored[len(packed) :]
                        mask = read_person(row, view, current, columns, at, always, NO_BITS)
                except RecordError as error:
                    raise damaged_record(error) from error
            assert mask is not None
            if rows is not None and head.others:
                rows.fill_others(row, view, head, at, mask)
            if from_lists:
                windows = read_windows(store, txn, layouts, stored) if stored is not None else None
                load_view(
                    self._lists_view, self._set.lists_layout, windows if windows is not None else self._empty_lists
                )
                native.read(row, self._lists_view, self._lists.columns, at, mask)
                if rows is not None:
                    rows.fill_others(row, self._lists_view, self._lists, at, mask)
        if rows is None:
            return FeatureTable(plan, native, _NOTHING, _NOTHING, at, moment.head.position)
        return rows.table(at, moment.head.position)


class FeatureReaders:
    """The readers of what was asked for lately, each made once under a configuration."""

    def __init__(self) -> None:
        self._readers: dict[tuple[str, ...], FeatureReader] = {}
        self._layouts: Layouts | None = None
        self._names: Sequence[str] | None = None  # asked for last
        self._reader: FeatureReader

    def of(self, layouts: Layouts, names: Sequence[str]) -> FeatureReader:
        """Return what reads these features; asked again with the same tuple, at once. Raises `NotFound` UNKNOWN_FEATURE."""
        if names is self._names and layouts is self._layouts:
            return self._reader
        names = tuple(names)
        if layouts is not self._layouts or len(self._readers) >= READERS_KEPT:
            self._readers.clear()
            self._layouts, self._names = layouts, None
        reader = self._readers.get(names)
        if reader is None:
            reader = self._readers[names] = FeatureReader(layouts.current.features, names)
        self._reader, self._names = reader, names
        return reader


def symbols_of(store: Store, txn: lmdb.Transaction[Any]) -> Symbols:
    """Return what gives the texts of symbols."""

    def text_of(symbol: int) -> str:
        raw = txn.get(u64(symbol), db=store.tables["symbols"])
        return bytes(raw).decode() if raw is not None else f"#{symbol:x}"

    return text_of


def load_view(view: RecordView, layout: RecordLayout, data: bytes) -> None:
    """Load a stored record. Raises `Damaged` DAMAGED_RECORD."""
    try:
        view.load(layout, data)
    except RecordError as error:
        raise damaged_record(error) from error


def _find(features: FeatureSet, name: str) -> Feature:
    feature = features.by_name.get(name)
    if feature is None:
        known = ", ".join(features.by_name) or "none; declare one under `features:`"
        raise NotFound("UNKNOWN_FEATURE", f"expected a feature of {known}; got {name!r:.100}")
    return feature


def _is_text(feature: Feature) -> bool:
    return (
        feature.place is not Place.DERIVED and not feature.is_number and feature.op not in (record.TOP_K, record.LAST_K)
    )


def _needed(features: FeatureSet, asked: Sequence[Feature]) -> list[Feature]:
    """Return the derived features that the asked ones are or rest on, each after those it reads."""
    needed = {feature.name for feature in asked}
    for name in reversed(features.derived_order):
        if name in needed:
            needed.update(features.by_name[name].reads)
    return [features.by_name[name] for name in features.derived_order if name in needed]

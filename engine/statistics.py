"""Popularity by context cell: what is bought (or clicked) where, faded by age, and how far each level is to be trusted.

A count is stored landmark-scaled: an event of weight w at time t adds w * 2^((t - landmark) / half_life), so fading costs
nothing and the order of events does not matter; multiplied by `scale(at)` it is the decayed count at `at` (forward decay;
Cormode et al., ICDE 2009). The landmark moves on, whole, every 256 half-lives.

A cell is one combination of context values on one level, coarse to fine; cell 0 is everything. The estimate of a level is
(n_item + s * parent) / (n + s). The strength s is fitted on held-out time: each tick, before the new events are counted,
every s of a grid predicts them from what was known, and the best score so far wins (prequential; Dawid 1984).
A cell is judged by its own evidence and that of its level, to which no cell gives more than `LEVEL_EVIDENCE_MAX` events:
the one country where most orders come from must not decide for all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from tailorbird.engine.configuration import Statistics as StatisticsDeclaration
from tailorbird.engine.durations import duration_ms
from tailorbird.engine.symbols import symbol_of
from tailorbird.native import exp2 as native_exp2
from tailorbird.native.scoring import CellTable

EVERYTHING = 0
TOTAL = 0xFFFFFFFE  # the item number under which a cell keeps its sum
STRENGTHS = (1.0, 5.0, 20.0, 80.0, 320.0, 1280.0, 5120.0, 20480.0)
LANDMARK_HALF_LIVES = 256
CELLS_MAX = 20_000
LEVEL_EVIDENCE_MAX = 1_000.0

Increment = np.dtype([("cell", "<u8"), ("item", "<u4"), ("weight", "<f4"), ("time", "<i8")])
Change = np.dtype([("cell", "<u8"), ("item", "<u4"), ("count", "<f8")])


class CellRow(msgspec.Struct, array_like=True, frozen=True):
    """A stored cell: its place in the hierarchy, and how well each strength predicted its events so far."""

    level: int
    parent: int
    label: str
    weight: float = 0.0
    evidence: tuple[float, ...] = ()


@dataclass(slots=True)
class Cell:
    """One context cell in memory. `evidence` is the score per strength over events of weight `weight`."""

    level: int
    label: str
    parent: int
    table: CellTable = field(default_factory=CellTable)
    total: float = 0.0
    weight: float = 0.0
    evidence: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(STRENGTHS)))
    key: int = EVERYTHING

    def row(self) -> CellRow:
        """Return what is stored of it."""
        return CellRow(self.level, self.parent, self.label, self.weight, tuple(self.evidence.tolist()))

    def for_level(self) -> npt.NDArray[np.float64]:
        """Return what it says of its level."""
        return self.evidence * (min(1.0, LEVEL_EVIDENCE_MAX / self.weight) if self.weight else 0.0)


def context_cells(levels: list[list[str]], context: Mapping[str, str]) -> list[tuple[int, str]]:
    """Return (cell, label) of each level the context has all values of, coarse to fine."""
    cells = []
    for level, names in enumerate(levels):
        values = [context.get(name) for name in names]
        if all(values):
            label = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
            cells.append((symbol_of(f"{level}|{label}"), label))
        else:
            cells.append((EVERYTHING, ""))
    return cells


def exp2(exponents: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return 2**x by the kernel whose bits are the same on every machine."""
    out = np.empty_like(exponents)
    native_exp2.exp2(np.ascontiguousarray(exponents), out)
    return out


class Statistics:
    """The counts in memory, as of one point of the change feed."""

    def __init__(self, declaration: StatisticsDeclaration) -> None:
        self.levels = declaration.levels
        self.half_life_ms = duration_ms(declaration.half_life, "statistics.half_life")
        self.landmark = 0
        self.everything = Cell(-1, "", EVERYTHING)
        self.cells: dict[int, Cell] = {EVERYTHING: self.everything}
        self.level_evidence = np.zeros((len(self.levels) + 1, len(STRENGTHS)))
        self.prior_strength = declaration.strength

    # ---- reading -------------------------------------------------------------------------------------------------

    def scale(self, at: int) -> float:
        """Return what turns stored counts into decayed counts at `at` (ms)."""
        return float(exp2(np.array([(self.landmark - at) / self.half_life_ms]))[0])

    def strength(self, cell: Cell) -> float:
        """Return how much evidence the parent of a cell is worth to it."""
        evidence = self.level_evidence[cell.level + 1] - cell.for_level() + cell.evidence
        return STRENGTHS[int(np.argmax(evidence))] if evidence.any() else self.prior_strength

    def chain(self, context: Mapping[str, str]) -> list[Cell]:
        """Return the known cells of a context, coarse to fine."""
        found = []
        for key, _ in context_cells(self.levels, context):
            cell = self.cells.get(key) if key != EVERYTHING else None
            if cell is not None:
                found.append(cell)
        return found

    # ---- loading and following -----------------------------------------------------------------------------------

    def put_cell(self, key: int, row: CellRow) -> None:
        """Make a cell known, or take in what its row says now."""
        cell = self.cells.get(key)
        if cell is None:
            cell = self.cells[key] = Cell(row.level, row.label, row.parent, key=key)
        if row.evidence:
            cell.weight, cell.evidence = row.weight, np.array(row.evidence)

    def apply(self, changes: npt.NDArray[Any]) -> None:
        """Set counts as a change feed or the stored counts give them."""
        for key, rows in _by_cell(changes):
            cell = self.cells[key]
            sums = rows["item"] == TOTAL
            if sums.any():
                cell.total = float(rows["count"][sums][-1])
            items = ~sums
            if items.any():
                cell.table.set_counts(
                    np.ascontiguousarray(rows["item"][items]), np.ascontiguousarray(rows["count"][items])
                )

    # ---- absorbing (the writer) ----------------------------------------------------------------------------------

    def needs_landmark(self, latest: int) -> bool:
        """Return whether the landmark has to move before an event of time `latest` is counted."""
        return self.landmark == 0 or latest - self.landmark > LANDMARK_HALF_LIVES * self.half_life_ms

    def move_landmark(self, latest: int) -> npt.NDArray[Any]:
        """Move the landmark to `latest` and return every count rescaled to it."""
        factor = float(exp2(np.array([(self.landmark - latest) / self.half_life_ms]))[0]) if self.landmark else 0.0
        self.landmark = latest
        parts = []
        for key in sorted(self.cells):
            cell = self.cells[key]
            items, counts = cell.table.entries()
            rows = np.empty(len(items) + 1, Change)
            rows["cell"] = key
            rows["item"][:-1], rows["count"][:-1] = items, counts * factor
            rows[-1] = (key, TOTAL, cell.total * factor)
            parts.append(rows)
        changes = np.concatenate(parts) if parts else np.empty(0, Change)
        self.apply(changes)
        return changes

    def absorb(self, increments: npt.NDArray[Any], live_count: int) -> npt.NDArray[Any]:
        """Count the events since the last tick, fit the strengths on them first, and return the changed counts."""
        if not len(increments):
            return np.empty(0, Change)
        self._fit(increments, live_count)
        scaled = increments["weight"].astype(np.float64) * exp2(
            (increments["time"] - self.landmark).astype(np.float64) / self.half_life_ms
        )
        # Sums run in log order within each (cell, item), so that they are the same on every replay.
        order = np.lexsort((increments["item"], increments["cell"]))
        cells, items, scaled = increments["cell"][order], increments["item"][order], scaled[order]
        first = np.flatnonzero(np.r_[True, (cells[1:] != cells[:-1]) | (items[1:] != items[:-1])])
        sums = np.bincount(np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(scaled)])), weights=scaled)
        changes = np.empty(len(first), Change)
        changes["cell"], changes["item"], changes["count"] = cells[first], items[first], sums
        parts = []
        for key, rows in _by_cell(changes):
            cell = self.cells[key]
            added = float(np.add.accumulate(rows["count"])[-1])
            rows["count"] += cell.table.counts(np.ascontiguousarray(rows["item"]))
            total = np.array([(key, TOTAL, cell.total + added)], Change)
            parts.append(np.concatenate([rows, total]))
        changed = np.concatenate(parts)
        self.apply(changed)
        return changed

    def _fit(self, increments: npt.NDArray[Any], live_count: int) -> None:
        """Add the quadratic score that each strength's prediction earns on the new events, from what is counted so far.

        The score of an event of item i is 2 p_i - sum over items of p^2 (Brier 1950): proper like the logarithm, but
        ruled by the items that will be ranked first instead of by the rarest one that happened.
        """
        uniform = 1.0 / max(1, live_count)
        grid = np.array(STRENGTHS)
        squares: dict[tuple[int, float], float] = {}
        for key, rows in _by_cell(increments):
            cell = self.cells[key]
            scale = self.scale(int(rows["time"].max()))
            predicted = self._predict(cell, np.ascontiguousarray(rows["item"]), scale, uniform, grid)
            weights = rows["weight"].astype(np.float64)
            expected = self._sums_of_squares(cell, scale, uniform, grid, squares)
            gains = ((2.0 * predicted - expected) * weights[:, None]).cumsum(axis=0)[-1]
            before = cell.for_level()
            cell.evidence = cell.evidence + gains
            cell.weight += float(weights.cumsum()[-1])
            self.level_evidence[cell.level + 1] += cell.for_level() - before

    def _predict(
        self,
        cell: Cell,
        items: npt.NDArray[np.uint32],
        scale: float,
        uniform: float,
        strengths: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float64]:
        """Return the estimates of items in a cell, items x strengths."""
        parent = self._parent(cell, items, scale, uniform)
        counts = cell.table.counts(items) * scale
        estimates: npt.NDArray[np.float64] = (counts[:, None] + strengths * parent[:, None]) / (
            cell.total * scale + strengths
        )
        return estimates

    def _parent(
        self, cell: Cell, items: npt.NDArray[np.uint32], scale: float, uniform: float
    ) -> npt.NDArray[np.float64]:
        """Return the estimates of items in a cell's parent."""
        if cell.level < 0:
            return np.full(len(items), uniform)
        parent = self.cells[cell.parent]
        return self._predict(parent, items, scale, uniform, np.array([self.strength(parent)]))[:, 0]

    def _sums_of_squares(
        self,
        cell: Cell,
        scale: float,
        uniform: float,
        strengths: npt.NDArray[np.float64],
        known: dict[tuple[int, float], float],
    ) -> npt.NDArray[np.float64]:
        """Return the sum over all items of the squared estimate, per strength; only the cell's own items are visited."""
        items, counts = cell.table.entries()
        counts *= scale
        if cell.level < 0:
            parent_squares = uniform
        else:
            place = (cell.parent, scale)
            if place not in known:
                parent = self.cells[cell.parent]
                fitted = np.array([self.strength(parent)])
                known[place] = float(self._sums_of_squares(parent, scale, uniform, fitted, known)[0])
            parent_squares = known[place]
        own = float((counts * counts).cumsum()[-1]) if len(counts) else 0.0
        cross = float((counts * self._parent(cell, items, scale, uniform)).cumsum()[-1]) if len(counts) else 0.0
        total = cell.total * scale
        sums: npt.NDArray[np.float64] = (own + 2.0 * strengths * cross + strengths * strengths * parent_squares) / (
            (total + strengths) * (total + strengths)
        )
        return sums


def _by_cell(rows: npt.NDArray[Any]) -> list[tuple[int, npt.NDArray[Any]]]:
    """Return the rows of each cell in their order, cells ascending."""
    if not len(rows):
        return []
    ordered = rows[np.argsort(rows["cell"], kind="stable")]
    starts = np.flatnonzero(np.r_[True, ordered["cell"][1:] != ordered["cell"][:-1]])
    return [
        (int(ordered["cell"][start]), ordered[start:end])
        for start, end in zip(starts, [*starts[1:], len(ordered)], strict=True)
    ]


def pack_rows(rows: npt.NDArray[Any], rows_each: int = 80) -> Iterable[bytes]:
    """Yield the rows as values small enough to stay in an LMDB page."""
    for first in range(0, len(rows), rows_each):
        yield rows[first : first + rows_each].tobytes()

"""Popularity by context cell: what is bought (or clicked) where, faded by age, and how far each level is to be trusted.

A count is stored landmark-scaled: an event of weight w at time t adds w * 2^((t - landmark) / half_life), so fading costs
nothing and the order of events does not matter; multiplied by `scale(at)` it is the decayed count at `at` (forward decay;
Cormode et al., ICDE 2009). The landmark moves on, whole, every 256 half-lives.

A cell is one combination of context values on one level, coarse to fine; cell 0 is everything. The estimate of a level is
(n_item + s * parent) / (n + s). Its strength s is fitted on held-out time: each tick, before the new events are counted,
every s of a grid predicts them from what was known, and the best log-likelihood so far wins (prequential; Dawid 1984).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

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

Increment = np.dtype([("cell", "<u8"), ("item", "<u4"), ("weight", "<f4"), ("time", "<i8")])
Change = np.dtype([("cell", "<u8"), ("item", "<u4"), ("count", "<f8")])


@dataclass(slots=True)
class Cell:
    """One context cell in memory."""

    level: int
    label: str
    parent: int
    table: CellTable = field(default_factory=CellTable)
    total: float = 0.0


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
        self.evidence: list[list[float]] = [[0.0] * len(STRENGTHS) for _ in range(len(self.levels) + 1)]
        self.prior_strength = declaration.strength

    # ---- reading -------------------------------------------------------------------------------------------------

    def scale(self, at: int) -> float:
        """Return what turns stored counts into decayed counts at `at` (ms)."""
        return float(exp2(np.array([(self.landmark - at) / self.half_life_ms]))[0])

    def strength(self, level: int) -> float:
        """Return the fitted strength of a level's parent; -1 is the level over all contexts."""
        evidence = self.evidence[level + 1]
        if not any(evidence):
            return self.prior_strength
        return STRENGTHS[max(range(len(STRENGTHS)), key=lambda i: evidence[i])]

    def chain(self, context: Mapping[str, str]) -> list[Cell]:
        """Return the known cells of a context, coarse to fine."""
        found = []
        for key, _ in context_cells(self.levels, context):
            cell = self.cells.get(key) if key != EVERYTHING else None
            if cell is not None:
                found.append(cell)
        return found

    # ---- loading and following -----------------------------------------------------------------------------------

    def add_cell(self, key: int, level: int, label: str, parent: int) -> None:
        """Make a cell known."""
        self.cells.setdefault(key, Cell(level, label, parent))

    def apply(self, changes: npt.NDArray[Any]) -> None:
        """Set counts as a change feed or the stored counts give them."""
        if not len(changes):
            return
        order = np.argsort(changes["cell"], kind="stable")
        changes = changes[order]
        starts = np.flatnonzero(np.r_[True, changes["cell"][1:] != changes["cell"][:-1]])
        for start, end in zip(starts, [*starts[1:], len(changes)], strict=True):
            cell = self.cells[int(changes["cell"][start])]
            rows = changes[start:end]
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
        starts = np.flatnonzero(np.r_[True, changes["cell"][1:] != changes["cell"][:-1]])
        for start, end in zip(starts, [*starts[1:], len(changes)], strict=True):
            rows = changes[start:end].copy()
            key = int(rows["cell"][0])
            cell = self.cells[key]
            added = float(np.add.accumulate(rows["count"])[-1])
            rows["count"] += cell.table.counts(np.ascontiguousarray(rows["item"]))
            total = np.array([(key, TOTAL, cell.total + added)], Change)
            parts.append(np.concatenate([rows, total]))
        changed = np.concatenate(parts)
        self.apply(changed)
        return changed

    def _fit(self, increments: npt.NDArray[Any], live_count: int) -> None:
        """Add the log-likelihood that each strength gives the new events from what is counted so far."""
        uniform = 1.0 / max(1, live_count)
        for key in np.unique(increments["cell"]):
            cell = self.cells[int(key)]
            rows = increments[increments["cell"] == key]
            scale = self.scale(int(rows["time"].max()))
            items = np.ascontiguousarray(rows["item"])
            parent = self._estimates(cell.parent, items, scale, uniform) if cell.level >= 0 else np.full(len(rows), uniform)
            counts = cell.table.counts(items) * scale
            grid = np.array(STRENGTHS)
            predicted = (counts[:, None] + grid * parent[:, None]) / (cell.total * scale + grid)
            logs = np.empty(predicted.size)
            native_exp2.log2(np.ascontiguousarray(predicted.ravel()), logs)
            gains = (logs.reshape(predicted.shape) * rows["weight"].astype(np.float64)[:, None]).cumsum(axis=0)[-1]
            evidence = self.evidence[cell.level + 1]
            for i in range(len(STRENGTHS)):
                evidence[i] += float(gains[i])

    def _estimates(self, key: int, items: npt.NDArray[np.uint32], scale: float, uniform: float) -> npt.NDArray[np.float64]:
        cell = self.cells[key]
        parent: npt.NDArray[np.float64] | float = (
            self._estimates(cell.parent, items, scale, uniform) if cell.level >= 0 else uniform
        )
        strength = self.strength(cell.level)
        estimates: npt.NDArray[np.float64] = (cell.table.counts(items) * scale + strength * parent) / (
            cell.total * scale + strength
        )
        return estimates


def pack_rows(rows: npt.NDArray[Any], rows_each: int = 80) -> Iterable[bytes]:
    """Yield the rows as values small enough to stay in an LMDB page."""
    for first in range(0, len(rows), rows_each):
        yield rows[first : first + rows_each].tobytes()

"""From a person's interactions to the rows a co-occurrence model is trained on: visits and histories.

A visit is a run of one group's interactions without a gap longer than `VISIT_GAP_MS`; an order, whose lines share one
time, is a visit. A history is all visits of a group that has several. Both count: visits say what goes into one basket,
histories what the same person comes back for. Measured on real orders, both together do better than either at either
question.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

VISIT_GAP_MS = 30 * 60_000
VISIT_ITEMS_MAX = 100
HISTORY_ITEMS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Interactions:
    """Who had to do with what, when: `groups` int64[n] (any number per person), `times` int64[n] (ms), `items`
    uint32[n].
    """

    groups: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    items: npt.NDArray[np.uint32]

    def __post_init__(self) -> None:
        assert len(self.groups) == len(self.times) == len(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def where(self, chosen: npt.NDArray[np.bool_]) -> Interactions:
        """Return the chosen interactions, in the same order."""
        return Interactions(self.groups[chosen], self.times[chosen], self.items[chosen])

    def sorted(self) -> Interactions:
        """Return them by group, then time; what is equal in both keeps its order."""
        order = np.lexsort((self.times, self.groups))
        return Interactions(self.groups[order], self.times[order], self.items[order])


@dataclass(frozen=True, slots=True)
class Rows:
    """Sets of items: the pairs (`rows` int64, `items` uint32), each pair once, by row; `row_count` rows."""

    rows: npt.NDArray[np.int64]
    items: npt.NDArray[np.uint32]
    row_count: int


def visit_of(ordered: Interactions) -> npt.NDArray[np.int64]:
    """Return the visit number of each of the interactions, which must be `sorted()`; numbers ascend from 0."""
    if len(ordered) == 0:
        return np.zeros(0, np.int64)
    opens = (np.diff(ordered.groups) != 0) | (np.diff(ordered.times) > VISIT_GAP_MS)
    return np.concatenate(([0], np.cumsum(opens)))


def training_rows(interactions: Interactions) -> Rows:
    """Return the visits, sampled at `VISIT_ITEMS_MAX` items, then the histories, sampled at `HISTORY_ITEMS_MAX`."""
    ordered = interactions.sorted()
    visits = visit_of(ordered)
    pairs = _distinct(visits, ordered.items, ordered.groups, VISIT_ITEMS_MAX)
    visit_count = int(visits[-1]) + 1 if len(visits) else 0
    people, person_of = np.unique(ordered.groups, return_inverse=True)
    visits_of_person = np.zeros(len(people), np.int64)
    np.add.at(visits_of_person, person_of[np.diff(visits, prepend=-1) != 0], 1)
    several = visits_of_person > 1
    history_of_person = np.cumsum(several) - 1
    chosen = several[person_of]
    histories = _distinct(
        visit_count + history_of_person[person_of[chosen]],
        ordered.items[chosen],
        ordered.groups[chosen],
        HISTORY_ITEMS_MAX,
    )
    return Rows(
        np.concatenate((pairs[0], histories[0])),
        np.concatenate((pairs[1], histories[1])),
        visit_count + int(several.sum()),
    )


def _distinct(
    rows: npt.NDArray[np.int64], items: npt.NDArray[np.uint32], groups: npt.NDArray[np.int64], items_max: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    """Return each (row, item) once, at most `items_max` a row: those of the smallest hash of group and item."""
    order = np.lexsort((items, rows))
    rows, items, groups = rows[order], items[order], groups[order]
    fresh = np.ones(len(rows), bool)
    fresh[1:] = (np.diff(rows) != 0) | (np.diff(items.astype(np.int64)) != 0)
    rows, items, groups = rows[fresh], items[fresh], groups[fresh]
    order = np.lexsort((sampling_hash(groups, items), rows))
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    rank = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    kept = np.sort(order[rank < items_max])
    return rows[kept], items[kept]


def sampling_hash(groups: npt.NDArray[np.int64], items: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """Return 64 well-mixed bits per (group, item): the finalizer of splitmix64 (Steele, Lea, Flood 2014), in whole
    arrays.
    """
    mixed = groups.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + items.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))

"""A placement of the configuration, with what its decisions would look up in it each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tailorbird.engine.applier import LIST_KINDS
from tailorbird.engine.caps import ListCap
from tailorbird.engine.compiled import CompiledConfiguration
from tailorbird.engine.configuration import Placement
from tailorbird.engine.consent import DataType, Purpose, bit
from tailorbird.engine.vocabulary import ItemList

LIST_CONSENT = {
    ItemList.BOUGHT: bit(DataType.TRANSACTIONAL, Purpose.PERSONALISE),
    ItemList.SHOWN: bit(DataType.BEHAVIOURAL, Purpose.PERSONALISE),
    ItemList.SERVED: bit(DataType.BEHAVIOURAL, Purpose.PERSONALISE),
}


class ListWindow(NamedTuple):
    """A list whose items a placement does not offer again, and what reading it takes."""

    code: int
    window_ms: int
    consent: int


@dataclass(slots=True)
class Placed:
    """A placement with what is looked up in it once."""

    declaration: Placement
    windows: tuple[ListWindow, ...]
    caps: tuple[ListCap, ...]
    speaking: frozenset[int]  # codes of the lists that also say what goes together with their items
    vector: npt.NDArray[np.int32] | None
    vector_values: npt.NDArray[np.float32]  # written by each decision
    vector_statuses: npt.NDArray[np.uint8]
    vector_log: bool
    features: tuple[int, ...]
    recent: tuple[int, ...]
    exclude_recent: tuple[int, ...]
    affinity: tuple[tuple[int, int], ...]
    feature_count: int


def placed_of(
    placement: Placement, compiled: CompiledConfiguration, index: Mapping[str, int], attributes: list[str]
) -> Placed:
    """Return a placement with what its decisions look up; `index` is that of features by name."""
    vector = placement.rank.vector
    affinity = tuple((attributes.index(name), index[feature]) for name, feature in placement.rank.affinity.items())
    recent = tuple(index[name] for name in placement.rank.recent)
    features = tuple(dict.fromkeys([*recent, *(feature for _, feature in affinity)]))
    length = len(vector.features) if vector else 0
    windows = tuple(
        ListWindow(LIST_KINDS[kind], window, LIST_CONSENT[kind])
        for kind, window in compiled.exclusion_windows_ms[placement.name].items()
        if window
    )
    return Placed(
        placement,
        windows,
        tuple(
            ListCap(LIST_KINDS[kind], placement.caps[kind].times, window, LIST_CONSENT[kind])
            for kind, window in compiled.cap_windows_ms[placement.name].items()
        ),
        frozenset({LIST_KINDS[ItemList.BOUGHT]} if placement.rank.bought else ()),
        np.array([index[name] for name in vector.features], np.int32) if vector else None,
        np.zeros(length, np.float32),
        np.zeros(length, np.uint8),
        vector is not None and vector.transform == "log1p",
        features,
        recent,
        tuple(index[name] for name in placement.exclude_recent),
        affinity,
        len(features) + length,
    )

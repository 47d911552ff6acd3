"""Compiled features: what each is, where it is kept, and what feeds it.

Nothing about a feature is known anywhere else: the layouts, the update programs, the consent bits and the value kinds all
come from the declaration. What a decision reads lies in the head of a person's record; long windows and sketches lie with
the lists, in a record of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from tailorbird.engine.aggregates import ValueKind
from tailorbird.engine.consent import DataType
from tailorbird.engine.expressions import Aggregate
from tailorbird.engine.formulas import Formula
from tailorbird.engine.money import Money
from tailorbird.native import record

CONTEXT_PREFIX = "context."
ITEM_PREFIX = "item."
DERIVED = 0  # the operation of a feature that is not stored


class Place(StrEnum):
    """Where a feature is kept: in the head that decisions read, with the lists, or nowhere: it is derived when read."""

    HEAD = "head"
    LISTS = "lists"
    DERIVED = "derived"


@dataclass(frozen=True, slots=True)
class Feature:
    """One compiled feature; `index` is its number in the layout of its place.

    `required` are the consent bits to read it, `admit` those to update it. `default` is NaN where there is none. One computed
    in batches is kept as the last value that was pushed; `aggregate`, window and `sources` then say how to compute it.
    """

    index: int
    name: str
    version: int
    place: Place
    aggregate: Aggregate
    op: int
    value_kind: ValueKind
    signals: tuple[str, ...]
    categories: tuple[DataType, ...]
    required: int
    admit: int
    max_age_ms: int
    half_life_ms: float
    k: int
    window_ms: int = 0
    hop_ms: int = 0
    quantile: float = 0.5
    default: float = math.nan
    formula: Formula | None = None
    learned_from: tuple[str, ...] = ()
    is_segment: bool = False
    clusters: int = 0
    is_money: bool = False
    sources: tuple[str, ...] = ()  # the signals a batch computes it from
    bytes_max: int = 0

    @property
    def reads(self) -> tuple[str, ...]:
        """The features that it is derived from."""
        return self.learned_from or (self.formula.names if self.formula is not None else ())

    @property
    def definition(self) -> tuple[object, ...]:
        """What makes two declarations the same feature; the same name and version never mean another one."""
        formula = self.formula.text if self.formula is not None else ""
        stored = (
            self.op,
            self.half_life_ms,
            self.k,
            self.window_ms,
            self.hop_ms,
            self.quantile,
            str(self.aggregate),
            self.sources,
        )
        return (
            self.name,
            self.version,
            formula,
            self.learned_from,
            self.is_segment,
            self.place,
            self.signals,
            self.admit,
            *stored,
        )

    @property
    def is_number(self) -> bool:
        """Whether the feature is read as one number."""
        return self.op not in (record.TOP_K, record.LAST_K) and not (
            self.op in (record.LAST, record.FIRST) and self.value_kind is ValueKind.SYMBOL
        )


@dataclass(frozen=True, slots=True)
class SlotReader:
    """Where one slot of an update program comes from.

    `hashed`: the text itself is not kept. `money`: an amount that is converted; `sign` is -1 where it is taken back.
    """

    reads: str
    kind: ValueKind
    hashed: bool = False
    money: Money | None = None
    sign: float = 0.0


@dataclass(frozen=True, slots=True)
class UpdateProgram:
    """What one signal type updates: the native programs of head and lists, and the slots they want, in order."""

    program: int
    lists_program: int
    updates_lists: bool
    reads_money: bool
    slots: tuple[SlotReader, ...]


@dataclass(frozen=True)
class FeatureSet:
    """All features of a configuration with their record layouts. `index` numbers those of the head."""

    features: tuple[Feature, ...]
    layout: record.RecordLayout
    lists_layout: record.RecordLayout
    programs: Mapping[str, UpdateProgram]
    index: Mapping[str, int]
    money: Money
    derived_order: tuple[str, ...]
    by_name: Mapping[str, Feature] = field(default_factory=dict)

    def layout_of(self, place: Place) -> record.RecordLayout:
        """Return the record layout of a place."""
        return self.layout if place is Place.HEAD else self.lists_layout

    def kept(self, place: Place) -> list[Feature]:
        """Return the features of one place, in the order of its layout."""
        return [feature for feature in self.features if feature.place is place]

    def mapping_from(self, older: FeatureSet, place: Place = Place.HEAD) -> npt.NDArray[np.int32]:
        """Return, per feature of a place, the index of the same definition in an older set, -1 where there is none."""
        known = {feature.definition: feature.index for feature in older.kept(place)}
        return np.array([known.get(feature.definition, -1) for feature in self.kept(place)], np.int32)

    def same_layout(self, other: FeatureSet) -> bool:
        """Return whether records of the two are stored alike."""
        return all(
            [feature.definition for feature in self.kept(place)]
            == [feature.definition for feature in other.kept(place)]
            for place in (Place.HEAD, Place.LISTS)
        )


def layout_of(
    features: Sequence[Feature], place: Place | None, version: int, warming: frozenset[str] = frozenset()
) -> record.RecordLayout:
    """Return the record layout of the features of one place, or of all of them."""
    kept = [feature for feature in features if place is None or feature.place is place]
    return record.RecordLayout(
        version,
        bytes(feature.op for feature in kept),
        k=np.array([feature.k for feature in kept], np.uint32),
        half_life_ms=np.array([feature.half_life_ms for feature in kept], np.float64),
        required=np.array([feature.required for feature in kept], np.uint64),
        admit=np.array([feature.admit for feature in kept], np.uint64),
        max_age_ms=np.array([feature.max_age_ms for feature in kept], np.int64),
        window_ms=np.array([feature.window_ms for feature in kept], np.int64),
        hop_ms=np.array([feature.hop_ms for feature in kept], np.int64),
        quantile=np.array([feature.quantile for feature in kept], np.float64),
        default=np.array([feature.default for feature in kept], np.float64),
        warming=np.array([feature.name in warming for feature in kept], np.uint8),
    )

"""Layouts for the tests of records: one descriptor per line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tailorbird.native import record as native
from tailorbird.native.record import RecordLayout

ALL = 2**64 - 1  # a mask that permits everything

EVERY_KIND = (native.COUNT, native.SUM, native.LAST, native.TIME_SINCE, native.DECAYED, native.TOP_K, native.LAST_K)
SKETCHES = (native.MEAN, native.MIN, native.MAX, native.FIRST, native.DISTINCT, native.QUANTILE)
WINDOWS = (
    native.WINDOW_COUNT,
    native.WINDOW_SUM,
    native.WINDOW_MEAN,
    native.WINDOW_MIN,
    native.WINDOW_MAX,
    native.WINDOW_DISTINCT,
)


@dataclass(frozen=True, slots=True)
class Feature:
    op: int
    k: int = 4
    half_life_ms: float = 1000.0
    required: int = 0
    admit: int = 0
    max_age_ms: int = 0
    window_ms: int = 1000
    hop_ms: int = 100
    quantile: float = 0.5
    default: float = math.nan
    warming: bool = False


def layout_of(features: Sequence[Feature], version: int = 1) -> RecordLayout:
    return RecordLayout(
        version,
        bytes(feature.op for feature in features),
        k=np.array([feature.k for feature in features], np.uint32),
        half_life_ms=np.array([feature.half_life_ms for feature in features], np.float64),
        required=np.array([feature.required for feature in features], np.uint64),
        admit=np.array([feature.admit for feature in features], np.uint64),
        max_age_ms=np.array([feature.max_age_ms for feature in features], np.int64),
        window_ms=np.array([feature.window_ms for feature in features], np.int64),
        hop_ms=np.array([feature.hop_ms for feature in features], np.int64),
        quantile=np.array([feature.quantile for feature in features], np.float64),
        default=np.array([feature.default for feature in features], np.float64),
        warming=np.array([feature.warming for feature in features], np.uint8),
    )


def layout_with_program(features: Sequence[Feature], version: int = 1) -> RecordLayout:
    """Return a layout whose program 0 updates every feature from the slot of its own number, with weight 1."""
    layout = layout_of(features, version)
    layout.add_program([(index, index, 1.0) for index in range(len(features))])
    return layout

"""Rows of features: the numbers a view reads one by one, and nothing outside the arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tailorbird.native.feature_rows import FeatureColumns, FeatureRows
from tailorbird.native.record import (
    COUNT,
    FRESH,
    LAST,
    MASKED,
    MISSING,
    SUM,
    WINDOW_SUM,
    Record,
    RecordLayout,
    RecordView,
)

NOW = 1_750_000_000_000


def layout(version: int = 1) -> RecordLayout:
    ops = bytes([COUNT, SUM, LAST, WINDOW_SUM])
    return RecordLayout(
        version,
        ops,
        k=np.zeros(4, np.uint32),
        half_life_ms=np.zeros(4),
        required=np.array([0, 0, 2, 0], np.uint64),
        admit=np.zeros(4, np.uint64),
        max_age_ms=np.zeros(4, np.int64),
        window_ms=np.array([0, 0, 0, 1_000], np.int64),
        hop_ms=np.array([0, 0, 0, 500], np.int64),
    )


def loaded(of: RecordLayout) -> RecordView:
    program = of.add_program([(0, -1, 1.0), (1, 0, 1.0), (3, 0, 1.0)])
    record = Record(of)
    record.update(program, NOW - 100, 7, (0.1,), 0)
    record.update(program, NOW - 50, 8, (0.2,), 0)
    view = RecordView()
    view.load(of, record.pack())
    return view


def arrays(rows: int = 3, columns: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.full((rows, columns), -9.0),
        np.full((rows, columns), 99, np.uint8),
        np.full((rows, columns), -9, np.int64),
    )


def chosen(of: RecordLayout, indices: list[int], columns: list[int], numbers: list[int]) -> FeatureColumns:
    return FeatureColumns(of, np.array(indices, np.int32), np.array(columns, np.int32), np.array(numbers, np.uint8))


def test_a_row_holds_what_the_record_says_in_the_columns_asked_for() -> None:
    of = layout()
    values, statuses, ages = arrays()
    which = chosen(of, [1, 0, 2, 3], [4, 0, 2, 1], [1, 1, 0, 1])
    FeatureRows(values, statuses, ages).read(1, loaded(of), which, NOW, 0)
    assert values[1].tolist()[:2] == [2.0, 0.3]
    assert math.isnan(values[1, 2])
    assert values[1, 4] == 0.3
    assert statuses[1].tolist() == [FRESH, FRESH, MASKED, 99, FRESH]
    assert ages[1].tolist() == [50, 50, -1, -9, 50]
    untouched = [values[0], values[2]]
    assert all((row == -9.0).all() for row in untouched)
    FeatureRows(values, statuses, ages).read(0, loaded(of), chosen(of, [2], [0], [1]), NOW, 2)
    assert (statuses[0, 0], math.isnan(values[0, 0])) == (MISSING, True)


def test_what_does_not_fit_is_refused() -> None:
    of = layout()
    view, (values, statuses, ages) = loaded(of), arrays()
    rows = FeatureRows(values, statuses, ages)
    with pytest.raises(IndexError, match="features of 0 to 3, got 4"):
        chosen(of, [4], [0], [1])
    with pytest.raises(ValueError, match="as many columns"):
        chosen(of, [0, 1], [0], [1])
    with pytest.raises(IndexError, match="columns of 0 to 4, got 5"):
        rows.read(0, view, chosen(of, [0], [5], [1]), NOW, 0)
    for row in (-1, 3):
        with pytest.raises(IndexError, match="a row of 0 to 2"):
            rows.read(row, view, chosen(of, [0], [0], [1]), NOW, 0)
    with pytest.raises(ValueError, match="of the layout"):
        rows.read(0, view, chosen(layout(2), [0], [0], [1]), NOW, 0)
    with pytest.raises(ValueError, match="of one shape"):
        FeatureRows(values, statuses[:2], ages)
    assert (values == -9.0).all()

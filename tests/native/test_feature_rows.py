"""Rows of features: the numbers a view reads one by one, and nothing outside the arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tailorbird.engine.feature_table import ages_of, known_of, statuses_of, values_of
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
    RecordError,
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


def chosen(of: RecordLayout, indices: list[int], columns: list[int], numbers: list[int]) -> FeatureColumns:
    return FeatureColumns(of, np.array(indices, np.int32), np.array(columns, np.int32), np.array(numbers, np.uint8))


def test_a_row_holds_what_the_record_says_in_the_columns_asked_for() -> None:
    of = layout()
    rows = FeatureRows(3, 5)
    values, statuses, ages = values_of(rows), statuses_of(rows), ages_of(rows)
    values[:], statuses[:], ages[:] = -9.0, 99, -9
    rows.read(1, loaded(of), chosen(of, [1, 0, 2, 3], [4, 0, 2, 1], [1, 1, 0, 1]), NOW, 0)
    assert values[1].tolist()[:2] == [2.0, 0.3]
    assert math.isnan(values[1, 2])
    assert values[1, 4] == 0.3
    assert statuses[1].tolist() == [FRESH, FRESH, MASKED, 99, FRESH]
    assert ages[1].tolist() == [50, 50, -1, -9, 50]
    assert (values[[0, 2]] == -9.0).all()
    rows.read(0, loaded(of), chosen(of, [2], [0], [1]), NOW, 2)
    assert (statuses[0, 0], math.isnan(values[0, 0])) == (MISSING, True)
    assert known_of(rows).tolist() == [False] * 3


def test_a_person_is_read_under_their_own_choices() -> None:
    of = layout()
    which = chosen(of, [0, 2], [0, 1], [1, 1])
    program = of.add_program([(0, -1, 1.0), (2, 0, 1.0)])
    record = Record(of)
    record.update(program, NOW, 7, (1.5,), 0)
    record.member_count = 2
    record.granted, record.denied, record.restricted = 0b1110, 0b0100, 0b1000
    rows, view = FeatureRows(2, 2), RecordView()
    stored = record.pack() + bytes(32)  # and the two fragments
    assert rows.read_person(1, view, stored, which, NOW, 0, 0) == 0b0010
    assert rows.read_person(0, view, stored, which, NOW, 0b10001, 0b0010) == 0b10001
    assert known_of(rows).tolist() == [True, True]
    assert statuses_of(rows).tolist() == [[FRESH, MASKED], [FRESH, FRESH]]
    assert values_of(rows)[1].tolist() == [1.0, 1.5]
    assert rows.read_person(0, view, stored, chosen(layout(2), [0], [0], [1]), NOW, 0, 0) is None
    for damaged in (b"", stored[:7], stored[:90], stored[:-33], stored[:20] + b"x" + stored[21:]):
        with pytest.raises(RecordError):
            rows.read_person(0, view, damaged, which, NOW, 0, 0)


def test_what_does_not_fit_is_refused() -> None:
    of = layout()
    view, rows = loaded(of), FeatureRows(3, 5)
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
    with pytest.raises(ValueError, match="no negative counts"):
        FeatureRows(-1, 2)
    assert not np.frombuffer(rows, np.uint8).any()

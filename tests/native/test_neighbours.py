"""Sums over neighbour rows against their numpy twins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.native import neighbours, reference


@dataclass
class Model:
    indptr: npt.NDArray[np.uint32]
    items: npt.NDArray[np.uint32]
    weights: npt.NDArray[np.float32]


WEIGHTS = st.sampled_from([0.0, 0.25, 0.5, 0.5, 1.0, -1.0, 1e-45, 3e38, float("inf"), float("nan")])


@st.composite
def models(draw: st.DrawFn) -> tuple[Model, int]:
    item_count = draw(st.integers(0, 12))
    rows = [
        sorted(draw(st.sets(st.integers(0, item_count + 2), max_size=6)))
        for _ in range(draw(st.integers(0, item_count)))
    ]
    flat = [item for row in rows for item in row]
    model = Model(
        np.cumsum([0] + [len(row) for row in rows]).astype(np.uint32),
        np.array(flat, np.uint32),
        np.array(draw(st.lists(WEIGHTS, min_size=len(flat), max_size=len(flat))), np.float32),
    )
    return model, item_count


@st.composite
def questions(draw: st.DrawFn) -> tuple[Model, int, npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
    model, item_count = draw(models())
    given_items = draw(st.lists(st.integers(0, item_count + 3), max_size=8))
    weights = draw(st.lists(WEIGHTS, min_size=len(given_items), max_size=len(given_items)))
    return model, item_count, np.array(given_items, np.uint32), np.array(weights, np.float32)


@given(question=questions(), limit=st.integers(0, 15))
def test_accumulate_and_top_equal_their_twins(
    question: tuple[Model, int, npt.NDArray[np.uint32], npt.NDArray[np.float32]], limit: int
) -> None:
    model, item_count, items, item_weights = question
    scratch, touched = np.zeros(item_count, np.float32), np.zeros(item_count, np.uint32)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        expected = reference.accumulate(model.indptr, model.items, model.weights, items, item_weights, item_count)
    count = neighbours.accumulate(model.indptr, model.items, model.weights, items, item_weights, scratch, touched)
    np.testing.assert_array_equal(scratch, expected)
    assert sorted(touched[:count]) == np.flatnonzero(expected).tolist()
    assert neighbours.total(scratch, touched, count) == pytest.approx(float(expected.sum(dtype=np.float64)))

    out_items, out_scores = np.zeros(limit, np.uint32), np.zeros(limit, np.float32)
    kept = neighbours.top(scratch, touched, count, limit, out_items, out_scores)
    best = reference.best_items(expected, limit)
    assert out_items[:kept].tolist() == best
    np.testing.assert_array_equal(out_scores[:kept], expected[best])

    neighbours.clear(scratch, touched, count)
    assert not scratch.any()


@given(question=questions(), target=st.integers(0, 15))
def test_explain_names_the_item_that_contributed_most(
    question: tuple[Model, int, npt.NDArray[np.uint32], npt.NDArray[np.float32]], target: int
) -> None:
    model, _, items, item_weights = question
    best, best_share = -1, np.float32(0)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for index, item in enumerate(items):
            alone = reference.accumulate(
                model.indptr, model.items, model.weights, items[index : index + 1], item_weights[index : index + 1], 16
            )
            if int(item) < len(model.indptr) - 1 and alone[target] > best_share:
                best, best_share = index, alone[target]
    assert neighbours.explain(model.indptr, model.items, model.weights, items, item_weights, target) == best


@given(question=questions())
def test_two_calls_add_up_to_one(
    question: tuple[Model, int, npt.NDArray[np.uint32], npt.NDArray[np.float32]],
) -> None:
    model, item_count, items, item_weights = question
    rows = (model.indptr, model.items, model.weights)
    once, again = np.zeros(item_count, np.float32), np.zeros(item_count, np.float32)
    touched, touched_again = np.zeros(item_count, np.uint32), np.zeros(item_count, np.uint32)
    count = neighbours.accumulate(*rows, items, item_weights, once, touched)
    part = neighbours.accumulate(*rows, items[:3], item_weights[:3], again, touched_again)
    whole = neighbours.accumulate(*rows, items[3:], item_weights[3:], again, touched_again, part)
    assert touched_again[:whole].tolist() == touched[:count].tolist()
    np.testing.assert_array_equal(once, again)


def test_a_damaged_row_end_is_skipped_and_never_followed() -> None:
    scratch, touched = np.zeros(3, np.float32), np.zeros(3, np.uint32)
    indptr = np.array([0, 4_000_000_000, 1, 2], np.uint32)
    count = neighbours.accumulate(
        indptr,
        np.array([0, 4_000_000_000], np.uint32),
        np.ones(2, np.float32),
        np.arange(4, dtype=np.uint32),
        np.ones(4, np.float32),
        scratch,
        touched,
    )
    assert count == 0
    assert not scratch.any()


def test_lengths_that_disagree_are_refused() -> None:
    one, zero, u32 = np.zeros(1, np.float32), np.zeros(0, np.float32), np.zeros(1, np.uint32)
    rows = (np.zeros(2, np.uint32), np.zeros(0, np.uint32), zero)
    with pytest.raises(ValueError, match="as many item weights"):
        neighbours.accumulate(*rows, u32, zero, one, u32)
    with pytest.raises(ValueError, match="places in touched"):
        neighbours.accumulate(*rows, u32, one, np.zeros(2, np.float32), u32)
    with pytest.raises(ValueError, match="as many weights"):
        neighbours.accumulate(rows[0], u32, zero, u32, one, one, u32)
    with pytest.raises(ValueError, match="indptr"):
        neighbours.accumulate(rows[1], rows[1], zero, u32, one, one, u32)
    with pytest.raises(ValueError, match="touched_count"):
        neighbours.clear(one, u32, 2)
    with pytest.raises(ValueError, match="touched items below"):
        neighbours.clear(one, np.array([1], np.uint32), 1)
    with pytest.raises(ValueError, match="places in the outputs"):
        neighbours.top(one, u32, 1, 2, u32, one)
    with pytest.raises(ValueError, match="as many item weights"):
        neighbours.explain(*rows, u32, zero, 0)

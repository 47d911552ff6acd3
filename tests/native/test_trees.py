"""Sums of trees against their twin, and trees that cannot be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.native import reference
from tailorbird.native.trees import Trees

VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 1e300])
Node = tuple[int, float, int, int, bool]


@st.composite
def forests(draw: st.DrawFn) -> tuple[list[int], list[Node], list[float], int]:
    inputs, count, leaf_count = draw(st.integers(1, 3)), draw(st.integers(0, 8)), draw(st.integers(1, 5))
    leaves = draw(st.lists(st.floats(-10, 10), min_size=leaf_count, max_size=leaf_count))

    def child(after: int) -> int:
        return draw(st.sampled_from([*range(after + 1, count), *range(-leaf_count, 0)]))

    nodes = [
        (
            draw(st.integers(0, inputs - 1)),
            draw(VALUES.filter(lambda v: not math.isnan(v))),
            child(n),
            child(n),
            draw(st.booleans()),
        )
        for n in range(count)
    ]
    roots = draw(st.lists(st.sampled_from([*range(count), *range(-leaf_count, 0)]), max_size=4))
    return roots, nodes, leaves, inputs


def native(roots: list[int], nodes: list[Node], leaves: list[float], inputs: int) -> Trees:
    columns = list(zip(*nodes, strict=True)) or [()] * 5
    return Trees(
        inputs,
        np.array(roots, np.int32),
        np.array(columns[0], np.int32),
        np.array(columns[1], np.float64),
        np.array(columns[2], np.int32),
        np.array(columns[3], np.int32),
        np.array(columns[4], np.uint8),
        np.array(leaves, np.float64),
    )


@given(forest=forests(), data=st.data())
def test_the_sum_equals_its_twin(forest: tuple[list[int], list[Node], list[float], int], data: st.DataObject) -> None:
    roots, nodes, leaves, inputs = forest
    rows = data.draw(st.lists(st.lists(VALUES, min_size=inputs, max_size=inputs), max_size=4))
    out = np.full(len(rows), 9.0)
    native(*forest).total(np.array(rows, np.float64).reshape(len(rows), inputs), out)
    assert out.tolist() == [reference.trees_total(roots, nodes, leaves, row) for row in rows]


@pytest.mark.parametrize(
    ("roots", "nodes", "leaves", "said"),
    [
        ([1], [(0, 0.0, -1, -1, True)], [1.0], "roots among 1 nodes"),
        ([-2], [], [1.0], "roots among 0 nodes and 1 leaves"),
        ([0], [(1, 0.0, -1, -1, True)], [1.0], "inputs of 0 to 0, got 1"),
        ([0], [(0, 0.0, 0, -1, True)], [1.0], "a later node"),
        ([0], [(0, 0.0, -1, -2, True)], [1.0], "one of 1 leaves behind node 0, got -2"),
    ],
)
def test_trees_that_lead_nowhere_are_refused(
    roots: list[int], nodes: list[Node], leaves: list[float], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        native(roots, nodes, leaves, 1)


def test_rows_of_another_width_are_refused() -> None:
    trees = native([-1], [], [2.5], 2)
    for rows, out in ((np.zeros((1, 3)), np.zeros(1)), (np.zeros((2, 2)), np.zeros(1))):
        with pytest.raises(ValueError, match="expected 2 inputs"):
            trees.total(rows, out)

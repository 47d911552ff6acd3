"""Histograms of durations: quantiles within 1 % of numpy's own, whatever was recorded and however it was merged."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tailorbird.native import histogram

WITHIN = 0.01
# Latencies lie anywhere between nanoseconds and minutes, so exponents are drawn and not numbers.
DURATIONS = st.lists(
    st.integers(0, 39).flatmap(lambda power: st.integers(0, (1 << (power + 1)) - 1)), min_size=1, max_size=300
)
QUANTILES = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 1.0]), st.floats(0, 1))


def recorded(durations: list[int]) -> NDArray[np.uint32]:
    counts = histogram.empty()
    histogram.record(counts, np.array(durations, np.int64))
    return counts


@given(DURATIONS, QUANTILES)
def test_a_quantile_is_numpys_within_a_hundredth(durations: list[int], quantile: float) -> None:
    expected = float(np.quantile(np.array(durations), quantile, method="inverted_cdf"))
    found = histogram.quantile_ns(recorded(durations).astype(np.uint64), quantile)
    # numpy rounds quantile x count in its own way: where that hits a count, either neighbour is right.
    ordered = np.sort(durations)
    at = min(max(math.ceil(quantile * len(ordered)) - 1, 0), len(ordered) - 1)
    near = [expected, *(float(each) for each in ordered[max(at - 1, 0) : at + 2])]
    assert any(found == pytest.approx(each, rel=WITHIN, abs=0.5) for each in near)


@given(DURATIONS, DURATIONS, QUANTILES)
def test_merged_histograms_are_those_of_all_durations(one: list[int], two: list[int], quantile: float) -> None:
    merged = recorded(one) + recorded(two)
    assert (merged == recorded(one + two)).all()
    assert histogram.quantile_ns(merged.astype(np.uint64), quantile) == histogram.quantile_ns(
        recorded(one + two).astype(np.uint64), quantile
    )


@given(st.integers(0, (1 << 40) - 1))
def test_a_duration_is_within_a_hundredth_of_its_buckets_middle(duration: int) -> None:
    (bucket,) = np.flatnonzero(recorded([duration]))
    assert histogram.middles_ns()[bucket] == pytest.approx(duration, rel=WITHIN / 2, abs=0.5)


def test_what_is_out_of_range_is_counted_at_the_ends() -> None:
    counts = recorded([-5, 0, 1 << 40, 1 << 62])
    assert (counts[0], counts[-1], counts.sum()) == (2, 2, 4)
    assert (np.diff(histogram.middles_ns()) > 0).all()


def test_nothing_recorded_has_no_quantile() -> None:
    assert math.isnan(histogram.quantile_ns(histogram.empty().astype(np.uint64), 0.5))


def test_other_shapes_and_quantiles_are_refused() -> None:
    counts = histogram.empty().astype(np.uint64)
    with pytest.raises(ValueError, match="expected a quantile from 0 to 1, got 1.5"):
        histogram.quantile_ns(counts, 1.5)
    with pytest.raises(ValueError, match="expected 4352 buckets, got 3"):
        histogram.quantile_ns(counts[:3], 0.5)
    with pytest.raises(ValueError, match="expected 4352 buckets, got 3"):
        histogram.record(histogram.empty()[:3], np.zeros(1, np.int64))

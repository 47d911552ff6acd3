"""2^x and log2 x: relative error against 50-digit decimals, exact where the answer is exact, and the edges."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.native import exp2 as native

RELATIVE_ERROR = Decimal("1e-15")


def exp2_of(*exponents: float) -> list[float]:
    out = np.empty(len(exponents), np.float64)
    native.exp2(np.array(exponents, np.float64), out)
    return [float(number) for number in out]


def log2_of(*numbers: float) -> list[float]:
    out = np.empty(len(numbers), np.float64)
    native.log2(np.array(numbers, np.float64), out)
    return [float(number) for number in out]


@given(st.floats(-1021.9, 1023.9))
def test_exp2_is_within_1e_15_of_the_true_value(exponent: float) -> None:
    with localcontext() as context:
        context.prec = 50
        true = (Decimal(2).ln() * Decimal(exponent)).exp()
        assert abs(Decimal(exp2_of(exponent)[0]) - true) <= RELATIVE_ERROR * true


@given(st.floats(min_value=5e-324, allow_infinity=False))
def test_log2_is_within_1e_15_of_the_true_value(number: float) -> None:
    with localcontext() as context:
        context.prec = 50
        true = Decimal(number).ln() / Decimal(2).ln()
        assert abs(Decimal(log2_of(number)[0]) - true) <= RELATIVE_ERROR * abs(true)


def test_many_values_agree_with_the_extended_precision_of_the_library() -> None:
    rng = np.random.default_rng(20240229)
    if np.finfo(np.longdouble).nmant < 63:
        pytest.skip("long double is no wider than double here; the decimal tests remain")
    exponents = np.concatenate([rng.uniform(-1021, 1023, 200_000), rng.uniform(-1, 1, 200_000)])
    out = np.empty_like(exponents)
    native.exp2(exponents, out)
    true = np.exp2(exponents.astype(np.longdouble))
    assert float(np.max(np.abs(out - true) / true)) < 1e-15
    numbers = np.concatenate([np.exp(rng.uniform(-700, 700, 200_000)), 1 + rng.uniform(-1e-3, 1e-3, 200_000)])
    native.log2(numbers, out)
    true = np.log2(numbers.astype(np.longdouble))
    assert float(np.max(np.abs(out - true) / np.maximum(np.abs(true), 1e-30))) < 1e-15


def test_whole_powers_are_exact_both_ways() -> None:
    exponents = list(range(-1074, 1024))
    powers = [math.ldexp(1.0, exponent) for exponent in exponents]
    assert exp2_of(*map(float, exponents)) == powers
    assert log2_of(*powers) == exponents


def test_the_edges_of_exp2() -> None:
    assert exp2_of(-math.inf, -1e308, -1080.0, -1075.5) == [0.0, 0.0, 0.0, 0.0]
    assert exp2_of(1024.0, 1e308, math.inf) == [math.inf] * 3
    below = math.nextafter(1024.0, 0.0)
    assert math.isfinite(exp2_of(below)[0])
    assert exp2_of(below)[0] == pytest.approx(2.0**below, rel=1e-15)
    assert math.isnan(exp2_of(math.nan)[0])
    assert exp2_of(0.0, -0.0, 5e-324) == [1.0, 1.0, 1.0]


def test_subnormal_results_are_within_one_unit_of_the_last_place() -> None:
    for exponent in np.linspace(-1074.0, -1022.0, 401):
        assert abs(exp2_of(float(exponent))[0] - 2.0 ** float(exponent)) <= 5e-324


def test_the_edges_of_log2() -> None:
    assert log2_of(0.0, -0.0) == [-math.inf, -math.inf]
    assert log2_of(math.inf) == [math.inf]
    assert all(math.isnan(result) for result in log2_of(-1.0, -math.inf, math.nan, -5e-324))
    assert log2_of(5e-324, 1.0) == [-1074.0, 0.0]


def test_decay_never_grows_with_time() -> None:
    results = exp2_of(*(-step / 4096 for step in range(4096 * 4)))
    assert all(later <= earlier for earlier, later in pairwise(results))


@pytest.mark.parametrize("function", [native.exp2, native.log2])
def test_an_output_of_another_length_is_refused(function: object) -> None:
    assert callable(function)
    empty: npt.NDArray[np.float64] = np.empty(0, np.float64)
    function(empty, empty)
    with pytest.raises(ValueError, match="expected 1 places in out, got 0"):
        function(np.ones(1), empty)

"""Histograms of durations, all of one shape: recorded by the load generator, merged and read here."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

import numpy as np

cdef extern from "histogram.h" nogil:
    int TB_HISTOGRAM_BUCKETS
    int tb_histogram_bucket(int64_t duration_ns) noexcept
    double tb_histogram_middle(int bucket) noexcept
    void tb_histogram_add(uint32_t* counts, int64_t duration_ns) noexcept

BUCKET_COUNT = TB_HISTOGRAM_BUCKETS


def record(uint32_t[::1] counts__b not None, const int64_t[::1] durations_ns not None):
    """Count each duration in its bucket of `counts__b`, BUCKET_COUNT long; negative ones count as 0, those of 2**40 ns and
    more in the last bucket. Raises ValueError for another length."""
    cdef Py_ssize_t i
    if counts__b.shape[0] != TB_HISTOGRAM_BUCKETS:
        raise ValueError(f"expected {TB_HISTOGRAM_BUCKETS} buckets, got {counts__b.shape[0]}; make them with `empty`")
    with nogil:
        for i in range(durations_ns.shape[0]):
            tb_histogram_add(&counts__b[0], durations_ns[i])


def empty():
    """Return BUCKET_COUNT zeros, uint32."""
    return np.zeros(TB_HISTOGRAM_BUCKETS, np.uint32)


def middles_ns():
    """Return the middle of each bucket in nanoseconds, float64, ascending."""
    cdef int b
    middles__b = np.empty(TB_HISTOGRAM_BUCKETS)
    cdef double[::1] view = middles__b
    for b in range(TB_HISTOGRAM_BUCKETS):
        view[b] = tb_histogram_middle(b)
    return middles__b


def quantile_ns(const uint64_t[::1] counts__b not None, double quantile):
    """Return a duration in nanoseconds that at least `quantile` (0 to 1) of those counted do not exceed, within 1/256 of the
    least such; NaN where nothing was counted. Raises ValueError for another length or quantile."""
    cdef Py_ssize_t b
    cdef uint64_t total = 0, below = 0
    cdef double wanted
    if counts__b.shape[0] != TB_HISTOGRAM_BUCKETS:
        raise ValueError(f"expected {TB_HISTOGRAM_BUCKETS} buckets, got {counts__b.shape[0]}; make them with `empty`")
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"expected a quantile from 0 to 1, got {quantile}")
    for b in range(TB_HISTOGRAM_BUCKETS):
        total += counts__b[b]
    wanted = quantile * <double> total
    for b in range(TB_HISTOGRAM_BUCKETS):
        below += counts__b[b]
        if below and <double> below >= wanted:
            return tb_histogram_middle(<int> b)
    return float("nan")

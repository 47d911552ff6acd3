"""Lists of items as they are stored, and the distinct newest items of a person. The kernels are in history.h.

A chunk of a list is 8 bytes of header, then entries of (item u32, time u32 in seconds since 1970), little endian.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

import numpy as np

cdef extern from "history.h" nogil:
    enum: TB_CHUNK_HEADER
    ctypedef struct tb_entry:
        uint32_t item
        uint32_t time_s
    ctypedef struct tb_mention:
        int64_t time
        uint32_t item
    int64_t tb_chunk_entries(size_t bytes_)
    tb_entry tb_chunk_entry(const char* chunk, int64_t i)
    size_t tb_distinct_newest(tb_mention* mentions, size_t count, size_t limit)
    void tb_recency_weights(const tb_mention* mentions, size_t count, double half_life_ms, float* weights)

CHUNK_HEADER_BYTES = TB_CHUNK_HEADER


def read_chunk(bytes chunk not None, int64_t since_s):
    """Return (items uint32, times int64 in ms) of the entries of a list chunk that are no older than `since_s`, in order."""
    cdef int64_t total = tb_chunk_entries(PyBytes_GET_SIZE(chunk)), found = 0, i
    cdef tb_entry entry
    if total < 0:
        raise ValueError(f"expected chunks of 8 bytes and 8 an entry, got {len(chunk)} bytes")
    items_out, times_out = np.empty(total, np.uint32), np.empty(total, np.int64)
    cdef uint32_t[::1] items = items_out
    cdef int64_t[::1] times = times_out
    for i in range(total):
        entry = tb_chunk_entry(PyBytes_AS_STRING(chunk), i)
        if entry.time_s >= since_s:
            items[found], times[found] = entry.item, <int64_t>entry.time_s * 1000
            found += 1
    return items_out[:found], times_out[:found]


def distinct_newest(list parts not None, Py_ssize_t limit, double half_life_ms):
    """Return (items uint32, weights float32), each item once, newest first, at most `limit`.

    `parts` are pairs of (items uint32[n], times int64[n] in ms). The newest weighs 1, one half life older 1/2.
    """
    cdef Py_ssize_t total = 0, i, at = 0
    cdef const uint32_t[::1] items
    cdef const int64_t[::1] times
    cdef size_t kept
    cdef tb_mention* mentions
    if limit < 0 or not half_life_ms >= 0.0:
        raise ValueError(f"expected a limit and a half life of 0 or more, got {limit} and {half_life_ms}")
    for items, times in parts:
        if items.shape[0] != times.shape[0]:
            raise ValueError(f"expected as many times as items = {items.shape[0]}, got {times.shape[0]}")
        total += items.shape[0]
    mentions = <tb_mention*>malloc((total + 1) * sizeof(tb_mention))
    if mentions == NULL:
        raise MemoryError()
    try:
        for items, times in parts:
            for i in range(items.shape[0]):
                mentions[at].item, mentions[at].time = items[i], times[i]
                at += 1
        kept = tb_distinct_newest(mentions, total, limit)
        items_out, weights_out = np.empty(kept, np.uint32), np.empty(kept, np.float32)
        _give(mentions, kept, half_life_ms, items_out, weights_out)
        return items_out, weights_out
    finally:
        free(mentions)


cdef int _give(const tb_mention* mentions, size_t count, double half_life_ms, uint32_t[::1] items, float[::1] weights) except -1:
    cdef size_t i
    if count:
        for i in range(count):
            items[i] = mentions[i].item
        tb_recency_weights(mentions, count, half_life_ms, &weights[0])
    return 0

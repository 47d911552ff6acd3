"""Lists of items as they are stored, and the distinct newest items of a person. The kernels are in history.h.

A chunk of a list is 8 bytes of header, then entries of (item u32, time u32 in seconds since 1970), little endian.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

import numpy as np

cdef extern from "history.h" nogil:
    ctypedef struct tb_mention:
        int64_t time
        uint32_t item
    size_t tb_distinct_newest(tb_mention* mentions, size_t count, size_t limit)
    void tb_recency_weights(const tb_mention* mentions, size_t count, double half_life_ms, float* weights)

CHUNK_HEADER_BYTES = 8


def read_chunks(list chunks not None, uint32_t since_s):
    """Return (items uint32, times int64 in ms) of the entries of list chunks not older than `since_s`, in their order."""
    cdef Py_ssize_t total = 0, found = 0, i, entries
    cdef const uint8_t[::1] chunk
    cdef uint32_t entry[2]
    for chunk in chunks:
        if chunk.shape[0] < 8 or (chunk.shape[0] - 8) % 8:
            raise ValueError(f"expected chunks of 8 bytes and 8 an entry, got {chunk.shape[0]} bytes")
        total += (chunk.shape[0] - 8) // 8
    items_out, times_out = np.empty(total, np.uint32), np.empty(total, np.int64)
    cdef uint32_t[::1] items = items_out
    cdef int64_t[::1] times = times_out
    for chunk in chunks:
        entries = (chunk.shape[0] - 8) // 8
        for i in range(entries):
            memcpy(entry, &chunk[8 + 8 * i], 8)
            if entry[1] >= since_s:
                items[found] = entry[0]
                times[found] = <int64_t>entry[1] * 1000
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

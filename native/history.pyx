"""Lists of items as they are stored, and the distinct newest items of a person. The kernels are in history.h.

A chunk of a list is 8 bytes of header, then entries of (item u32, time u32 in seconds since 1970), little endian.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

import numpy as np

cdef extern from "history.h" nogil:
    ctypedef struct tb_entry:
        uint32_t item
        uint32_t time_s
    ctypedef struct tb_mention:
        int64_t time
        uint32_t item
    size_t tb_distinct_newest(tb_mention* mentions, size_t count, size_t limit)
    void tb_recency_weights(const tb_mention* mentions, size_t count, double half_life_ms, float* weights)

cdef enum: CHUNK_HEADER = 8
CHUNK_HEADER_BYTES = CHUNK_HEADER


cdef Py_ssize_t entry_count(bytes chunk) except -1:
    """Return how many entries a chunk has room for."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(chunk) - CHUNK_HEADER
    if size < 0 or size % sizeof(tb_entry):
        raise ValueError(f"expected chunks of 8 bytes and 8 an entry, got {len(chunk)} bytes")
    return size // <Py_ssize_t>sizeof(tb_entry)


cdef Py_ssize_t entries_of(list chunks) except -1:
    cdef Py_ssize_t total = 0
    for chunk, _ in chunks:
        total += entry_count(chunk)
    return total


cdef Py_ssize_t take_entries(list chunks, uint32_t[::1] items, int64_t[::1] times) except -1:
    """Write the entries that are new enough, without their times where `times` is None; return how many."""
    cdef Py_ssize_t found = 0, i
    cdef tb_entry entry
    cdef uint32_t since
    cdef bytes chunk
    for chunk, since in chunks:
        for i in range(entry_count(chunk)):
            memcpy(&entry, PyBytes_AS_STRING(chunk) + CHUNK_HEADER + i * sizeof(tb_entry), sizeof(tb_entry))
            if entry.time_s >= since:
                items[found] = entry.item
                if times is not None:
                    times[found] = <int64_t>entry.time_s * 1000
                found += 1
    return found


def read_chunks(list chunks not None):
    """Return (items uint32, times int64 in ms) of the entries of list chunks, in their order.

    `chunks` are pairs of (bytes, since_s): entries older than `since_s` are left out.
    """
    cdef Py_ssize_t total = entries_of(chunks)
    items, times = np.empty(total, np.uint32), np.empty(total, np.int64)
    cdef Py_ssize_t found = take_entries(chunks, items, times)
    return items[:found], times[:found]


def read_items(list chunks not None):
    """Return the items alone of what `read_chunks` returns."""
    items = np.empty(entries_of(chunks), np.uint32)
    cdef Py_ssize_t found = take_entries(chunks, items, None)
    return items[:found]


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

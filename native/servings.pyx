"""What was served, in the order it came, found by fragment. The kernels are in servings.h.

Packed, a serving is the fragment (16 bytes), when (i64, ms since 1970), the placement's number and how many items (u32 each), then
their numbers (u32), little endian.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

import numpy as np

SERVING_BYTES = sizeof(tb_serving)


@cython.final
cdef class ServedLog:
    """Servings in memory. Adding and finding one costs the same however many there are; the oldest can be dropped."""

    def __dealloc__(self):
        free(self.log.block)
        free(self.log.slots)

    def __len__(self):
        return self.log.count

    @property
    def end(self):
        """The place behind the newest serving, for `drop_before`; it never comes again."""
        return self.log.end

    def add(self, bytes fragment not None, int64_t at, uint32_t placement, items not None):
        """Add a serving of item numbers at `at`, ms since 1970. Raises ValueError for a fragment that is not 16 bytes."""
        cdef const uint32_t[::1] numbers = np.ascontiguousarray(items, np.uint32)
        self._add(<const uint8_t*>_fragment(fragment), at, placement, &numbers[0] if numbers.shape[0] else NULL, numbers.shape[0])

    cdef int _add(self, const uint8_t* fragment, int64_t at, uint32_t placement, const uint32_t* items,
                  size_t item_count) except -1:
        cdef tb_serving serving
        if item_count > TB_SERVED_ITEMS_MAX:
            raise ValueError(f"expected at most {TB_SERVED_ITEMS_MAX} items of a serving, got {item_count}")
        memcpy(serving.fragment, fragment, TB_FRAGMENT_BYTES)
        serving.at, serving.placement, serving.item_count = at, placement, <uint32_t>item_count
        if not tb_served_add(&self.log, &serving, items):
            raise MemoryError()
        return 0

    def extend(self, bytes packed not None, Py_ssize_t start=0):
        """Add packed servings, which begin at byte `start`. Raises ValueError for bytes that are none; those before them are added."""
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(packed)
        cdef const uint8_t* end = at + PyBytes_GET_SIZE(packed)
        cdef tb_serving serving
        cdef const void* items
        if not 0 <= start <= PyBytes_GET_SIZE(packed):
            raise ValueError(f"expected a start of 0 to {len(packed)}, got {start}")
        at += start
        while at < end:
            if not tb_serving_read(&at, end, &serving, &items):
                raise ValueError(f"expected packed servings, got others in {len(packed)} bytes")
            if not tb_served_add(&self.log, &serving, items):
                raise MemoryError()

    def rows(self, size_t bytes_max):
        """Return all servings packed, oldest first, in rows of at most `bytes_max` bytes; a larger serving is a row of its own."""
        cdef uint64_t place = self.log.start, first
        cdef size_t used, more
        cdef bytes row
        rows = []
        while place < self.log.end:
            first, used = place, 0
            while place < self.log.end:
                more = tb_serving_bytes(tb_served_at(&self.log, place))
                if used and used + more > bytes_max:
                    break
                used += more
                place += tb_served_bytes(tb_served_at(&self.log, place).serving.item_count)
            row = PyBytes_FromStringAndSize(NULL, used)
            tb_served_pack(&self.log, first, place, <uint8_t*>PyBytes_AS_STRING(row))
            rows.append(row)
        return tuple(rows)

    def of(self, bytes fragment not None):
        """Return (at, items) of each serving of a fragment, oldest first."""
        cdef uint64_t place = tb_served_newest(&self.log, <const uint8_t*>_fragment(fragment))
        cdef tb_served* served
        cdef uint32_t i
        found = []
        while place != TB_NOWHERE:
            served = tb_served_at(&self.log, place)
            found.append((served.serving.at, tuple([tb_served_items(served)[i] for i in range(served.serving.item_count)])))
            place = tb_served_before(&self.log, place)
        found.reverse()
        return found

    def drop(self):
        """Forget the oldest serving. Raises IndexError without one."""
        if self.log.count == 0:
            raise IndexError("expected a serving to drop, got none")
        tb_served_drop(&self.log)

    def drop_before(self, uint64_t place):
        """Forget the servings before a place, one that `end` was."""
        while self.log.count and self.log.start < place:
            tb_served_drop(&self.log)


def entries_by_fragment(bytes packed not None, dict found not None):
    """Add to the list entries of each fragment those of packed servings: (item u32, time u32 in seconds) as in history.pyx.

    Raises ValueError for bytes that are no servings.
    """
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(packed)
    cdef const uint8_t* end = at + PyBytes_GET_SIZE(packed)
    cdef tb_serving serving
    cdef const void* items
    cdef uint32_t[2] entry
    cdef uint32_t i
    cdef bytearray entries
    while at < end:
        if not tb_serving_read(&at, end, &serving, &items):
            raise ValueError(f"expected packed servings, got others in {len(packed)} bytes")
        fragment = PyBytes_FromStringAndSize(<const char*>serving.fragment, TB_FRAGMENT_BYTES)
        entries = found.get(fragment)
        if entries is None:
            entries = found[fragment] = bytearray()
        for i in range(serving.item_count):
            memcpy(&entry[0], <const uint8_t*>items + 4 * i, 4)
            entry[1] = <uint32_t>min(max(0, serving.at // 1000), 0xFFFFFFFF)
            entries += (<const char*>entry)[:8]


cdef const char* _fragment(bytes fragment) except NULL:
    if PyBytes_GET_SIZE(fragment) != TB_FRAGMENT_BYTES:
        raise ValueError(f"expected a fragment of {TB_FRAGMENT_BYTES} bytes, got {len(fragment)}")
    return PyBytes_AS_STRING(fragment)

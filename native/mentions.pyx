"""How often items are mentioned in the lists of a person, and which of them were mentioned too often. The kernels are in mentions.h."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free

from tailorbird.native.scoring cimport ItemTable, tb_mark
from tailorbird.native.servings cimport (
    ServedLog, TB_FRAGMENT_BYTES, TB_NOWHERE, tb_served, tb_served_at, tb_served_before, tb_served_items, tb_served_log,
    tb_served_newest,
)

cdef extern from "history.h" nogil:
    ctypedef struct tb_entry:
        uint32_t item
        uint32_t time_s
    int64_t tb_chunk_entries(size_t bytes_)
    tb_entry tb_chunk_entry(const char* chunk, int64_t i)


@cython.final
cdef class MentionCount:
    """Counts mentions of item numbers. It grows with the items it counts and lets go of a large table when it is cleared."""

    def __dealloc__(self):
        free(self.counted.slots)

    def clear(self):
        """Forget all counts."""
        self._clear()

    cdef void _clear(self) noexcept:
        tb_mentions_clear(&self.counted)

    def add(self, numbers not None):
        """Count one mention of each number."""
        cdef uint32_t number
        for number in numbers:
            if not tb_mentions_add(&self.counted, number):
                raise MemoryError()

    def add_chunk(self, bytes chunk not None, int64_t since_s):
        """Count the entries of a list chunk that are no older than `since_s`, seconds since 1970. Raises ValueError for no chunk."""
        self._add_chunk(PyBytes_AS_STRING(chunk), PyBytes_GET_SIZE(chunk), since_s)

    cdef int _add_chunk(self, const char* chunk, size_t length, int64_t since_s) except -1:
        cdef int64_t count = tb_chunk_entries(length), i
        cdef tb_entry entry
        if count < 0:
            raise ValueError(f"expected chunks of 8 bytes and 8 an entry, got {length} bytes")
        for i in range(count):
            entry = tb_chunk_entry(chunk, i)
            if entry.time_s >= since_s and not tb_mentions_add(&self.counted, entry.item):
                raise MemoryError()
        return 0

    def add_served(self, ServedLog log not None, bytes fragment not None, int64_t since_s):
        """Count what a fragment was served no longer ago than `since_s`, seconds since 1970."""
        if PyBytes_GET_SIZE(fragment) != TB_FRAGMENT_BYTES:
            raise ValueError(f"expected a fragment of {TB_FRAGMENT_BYTES} bytes, got {len(fragment)}")
        self._add_served(&log.log, <const uint8_t*>PyBytes_AS_STRING(fragment), since_s)

    cdef int _add_served(self, const tb_served_log* log, const uint8_t* fragment, int64_t since_s) except -1:
        cdef uint64_t place = tb_served_newest(log, fragment)
        cdef const tb_served* served
        cdef const uint32_t* items
        cdef uint32_t i
        while place != TB_NOWHERE:
            served = tb_served_at(log, place)
            if served.serving.at // 1000 >= since_s:
                items = tb_served_items(served)
                for i in range(served.serving.item_count):
                    if not tb_mentions_add(&self.counted, items[i]):
                        raise MemoryError()
            place = tb_served_before(log, place)
        return 0

    def exclude(self, ItemTable items not None, uint32_t times):
        """Keep those mentioned at least `times` times, 1 or more, out of the rankings of a table until its next `begin`."""
        if times == 0:
            raise ValueError("expected times of at least 1, got 0")
        self._exclude(items, times)

    cdef void _exclude(self, ItemTable items, uint32_t times) noexcept:
        cdef size_t i
        cdef tb_mention_slot* slot
        if self.counted.used == 0:
            return
        for i in range(self.counted.slot_count):
            slot = &self.counted.slots[i]
            if slot.count >= times and slot.item < items.items.count:
                tb_mark(&items.marks, items.marks.excluded, slot.item)

    def counts(self):
        """Return the counts by item number."""
        cdef size_t i
        found = {}
        for i in range(self.counted.slot_count):
            if self.counted.slots[i].count:
                found[self.counted.slots[i].item] = self.counted.slots[i].count
        return found

"""What was served, for the extensions that pass over it."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "servings.h" nogil:
    enum: TB_FRAGMENT_BYTES
    enum: TB_SERVED_ITEMS_MAX
    const uint64_t TB_NOWHERE
    ctypedef struct tb_serving:
        uint8_t* fragment
        int64_t at
        uint32_t placement
        uint32_t item_count
    ctypedef struct tb_served:
        tb_serving serving
    ctypedef struct tb_served_log:
        uint8_t* block
        uint64_t start
        uint64_t end
        size_t count
        tb_served_slot* slots
    ctypedef struct tb_served_slot:
        pass
    size_t tb_served_bytes(uint32_t item_count) noexcept
    tb_served* tb_served_at(const tb_served_log* log, uint64_t place) noexcept
    const uint32_t* tb_served_items(const tb_served* served) noexcept
    uint64_t tb_served_newest(const tb_served_log* log, const uint8_t* fragment) noexcept
    void tb_served_prefetch(const tb_served_log* log, const uint8_t* fragment) noexcept
    void tb_served_prefetch_at(const tb_served_log* log, uint64_t place) noexcept
    uint64_t tb_served_before(const tb_served_log* log, uint64_t place) noexcept
    bint tb_served_add(tb_served_log* log, const tb_serving* serving, const void* items) noexcept
    void tb_served_drop(tb_served_log* log) noexcept
    bint tb_serving_read(const uint8_t** at, const uint8_t* end, tb_serving* serving, const void** items) noexcept
    size_t tb_serving_bytes(const tb_served* served) noexcept
    void tb_served_pack(const tb_served_log* log, uint64_t place, uint64_t end, uint8_t* out) noexcept


cdef class ServedLog:
    cdef tb_served_log log

    cdef int _add(self, const uint8_t* fragment, int64_t at, uint32_t placement, const uint32_t* items, size_t item_count) except -1

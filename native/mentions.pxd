"""Counts of mentions, for the extensions that keep items away by them."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from tailorbird.native.scoring cimport ItemTable
from tailorbird.native.servings cimport tb_served_log

cdef extern from "mentions.h" nogil:
    ctypedef struct tb_mention_slot:
        uint32_t item
        uint32_t count
    ctypedef struct tb_mention_count:
        tb_mention_slot* slots
        size_t slot_count
        size_t used
    bint tb_mentions_add(tb_mention_count* counted, uint32_t item) noexcept
    void tb_mentions_clear(tb_mention_count* counted) noexcept


cdef class MentionCount:
    cdef tb_mention_count counted

    cdef void _clear(self) noexcept
    cdef int _add_chunk(self, const char* chunk, size_t length, int64_t since_s) except -1
    cdef int _add_served(self, const tb_served_log* log, const uint8_t* fragment, int64_t since_s) except -1
    cdef void _exclude(self, ItemTable items, uint32_t times) noexcept

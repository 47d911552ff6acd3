"""The wire format and Decide's messages, for the extensions that read signals, look ids up and decide."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

cdef extern from "wire.h" nogil:
    int tb_varint_read(const uint8_t** at, const uint8_t* end, uint64_t* value) noexcept
    int tb_length_read(const uint8_t** at, const uint8_t* end, size_t* length) noexcept
    size_t tb_varint_bytes(uint64_t value) noexcept
    uint8_t* tb_varint_write(uint8_t* at, uint64_t value) noexcept
    int tb_is_ascii(const char* text, size_t length) noexcept
    size_t tb_short_texts_read(const uint8_t** at, const uint8_t* end, uint8_t key, const char** texts, size_t* lengths,
                               size_t room) noexcept

cdef enum:
    PAIRS_MAX = 16

cdef struct Text:
    const char* at
    size_t length

# Names and their values, no name twice.
cdef struct Pairs:
    Py_ssize_t count
    Text[16] names
    Text[16] values

# Of a decision, what stands behind its items; `tier` is the number on the wire.
cdef struct Answered:
    int64_t tier
    double completeness
    int64_t profile_age_ms
    int64_t masked_count
    int64_t excluded_count
    int64_t candidate_count
    int64_t unknown_candidate_count
    int64_t position
    int64_t configuration_version
    int64_t at
    int64_t served_position
    Text person_id
    Text placement


cdef inline bint same_text(const Text* a, const Text* b) noexcept nogil:
    return a.length == b.length and memcmp(a.at, b.at, a.length) == 0


cdef class Ids:
    cdef bytes data           # owns the texts
    cdef const char** texts   # count pointers into data, valid UTF-8, then as many lengths
    cdef size_t* lengths
    cdef Py_ssize_t count
    cdef Py_ssize_t room

    cdef int _make_room(self) except -1


cdef class Asked:
    cdef Text placement
    cdef Pairs identifiers
    cdef Pairs context
    cdef Ids ids
    cdef int64_t at_ms
    cdef int32_t item_count
    cdef list events  # None without
    cdef Text request_id
    cdef int64_t min_position
    cdef int32_t served_acknowledgement

    cdef bint read(self, bytes data, Py_ssize_t candidates_max) except *


cdef class Encoder:
    cdef uint8_t* buffer
    cdef size_t used
    cdef size_t room

    cdef bytes _encoded(self)
    cdef int _append(self, bytes encoded) except -1
    cdef uint8_t* _make_room(self, size_t more) except NULL
    cdef int _key_and_number(self, uint32_t field, int64_t number) except -1
    cdef int _number(self, uint32_t field, int64_t number) except -1
    cdef int _float(self, uint32_t field, float number) except -1
    cdef int _text(self, uint32_t field, str text) except -1
    cdef int _any_text(self, uint32_t field, str text) except -1
    cdef int _bytes(self, uint32_t field, const char* bytes_, size_t length) except -1
    cdef size_t _open(self, uint32_t field) except? 0
    cdef int _close(self, size_t start) except -1


cdef class DecisionEncoder(Encoder):
    cdef tuple reasons
    cdef tuple tiers

    cdef int _decision(self, decision) except -1
    cdef int _end_of_decision(self, const Answered* answered, tuple degraded) except -1
    cdef int _item(self, item) except -1
    cdef size_t _begin_item(self, const char* id_, size_t length, float score, float propensity) except? 0
    cdef bytes _reasons(self, tuple reasons)
    cdef int _reason(self, reason) except -1


cdef bint read_text(const uint8_t** at, const uint8_t* end, Text* text) except *
cdef Py_ssize_t number_of(tuple members, member) except -1
cdef str str_of(const Text* text)
cdef dict dict_of(const Pairs* pairs)

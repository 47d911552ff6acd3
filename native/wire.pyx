"""Decide's messages between the wire and the engine, without a message object in between.

`decode_decide` reads what our clients send and protobuf's own codec would accept; for anything else - damaged bytes, unknown
fields, a name given twice - it returns None, and the caller asks protobuf's codec, whose word on it is the last.
`DecisionEncoder` writes what protobuf would write, byte for byte (tests/server/test_wire_codec.py).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeUTF8

from collections.abc import Sequence

cdef extern from "wire.h" nogil:
    int tb_varint_read(const uint8_t** at, const uint8_t* end, uint64_t* value) noexcept
    int tb_length_read(const uint8_t** at, const uint8_t* end, size_t* length) noexcept
    size_t tb_varint_bytes(uint64_t value) noexcept
    uint8_t* tb_varint_write(uint8_t* at, uint64_t value) noexcept
    int tb_is_ascii(const char* text, size_t length) noexcept

# Keys of DecideRequest, its pairs, and DecideResponse: field number << 3 | wire type.
cdef enum:
    PLACEMENT = 0x0A
    IDENTIFIERS = 0x12
    CONTEXT = 0x1A
    CANDIDATE_IDS = 0x22
    AT_MS = 0x28
    ITEM_COUNT = 0x30
    EVENTS = 0x3A
    REQUEST_ID = 0x42
    MIN_POSITION = 0x48
    PAIR_NAME = 0x0A
    PAIR_VALUE = 0x12


cdef class Ids:
    """Item ids inside a request: a sequence of texts that are only made when asked for."""

    def __dealloc__(self):
        free(<void*>self.texts)
        free(self.lengths)

    cdef int _add(self, const char* text, size_t length) except -1:
        cdef void* grown
        if self.count == self.room:
            grown = realloc(<void*>self.texts, (2 * self.room + 128) * sizeof(char*))
            if grown == NULL:
                raise MemoryError()
            self.texts = <const char**>grown
            grown = realloc(self.lengths, (2 * self.room + 128) * sizeof(size_t))
            if grown == NULL:
                raise MemoryError()
            self.lengths = <size_t*>grown
            self.room = 2 * self.room + 128
        self.texts[self.count], self.lengths[self.count] = text, length
        self.count += 1
        return 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.count))]
        cdef Py_ssize_t i = index + self.count if index < 0 else index
        if not 0 <= i < self.count:
            raise IndexError(f"expected an index below {self.count}, got {index}")
        return PyUnicode_DecodeUTF8(self.texts[i], self.lengths[i], NULL)


Sequence.register(Ids)


cdef str text_of(const uint8_t** at, const uint8_t* end):
    """Return the text at `at`, and move behind it; None where there is none."""
    cdef size_t length
    if not tb_length_read(at, end, &length):
        return None
    cdef const char* bytes_ = <const char*>at[0]
    at[0] += length
    try:
        return PyUnicode_DecodeUTF8(bytes_, length, NULL)
    except UnicodeDecodeError:
        return None


cdef bint read_pair(const uint8_t** at, const uint8_t* end, dict pairs) except *:
    """Read a message of a name and a value into `pairs`; tell whether it is one, and its name new."""
    cdef size_t length
    if not tb_length_read(at, end, &length):
        return False
    cdef const uint8_t* stop = at[0] + length
    cdef str name = "", value = ""
    cdef uint8_t key
    while at[0] < stop:
        key = at[0][0]
        at[0] += 1
        if key == PAIR_NAME:
            name = text_of(at, stop)
        elif key == PAIR_VALUE:
            value = text_of(at, stop)
        else:
            return False
        if name is None or value is None:
            return False
    if name in pairs:
        return False
    pairs[name] = value
    return True


def decode_decide(bytes data not None, Py_ssize_t candidates_max):
    """Return (placement, identifiers, context, candidates, at_ms, item_count, events, request_id, min_position), or None.

    `candidates` is an `Ids`, `events` a list of encoded Signals. None where protobuf's codec must be asked: see the module; also
    for more than `candidates_max` candidates.
    """
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(data)
    cdef const uint8_t* end = at + PyBytes_GET_SIZE(data)
    cdef str placement = "", request_id = ""
    cdef dict identifiers = {}, context = {}
    cdef list events = []
    cdef Ids ids = Ids.__new__(Ids)
    cdef uint64_t at_ms = 0, item_count = 0, min_position = 0
    cdef size_t length
    cdef uint8_t key
    ids.data = data
    while at < end:
        key = at[0]
        at += 1
        if key == CANDIDATE_IDS:
            if not tb_length_read(&at, end, &length) or ids.count == candidates_max:
                return None
            if not tb_is_ascii(<const char*>at, length):
                try:
                    PyUnicode_DecodeUTF8(<const char*>at, length, NULL)
                except UnicodeDecodeError:
                    return None
            ids._add(<const char*>at, length)
            at += length
        elif key == IDENTIFIERS:
            if not read_pair(&at, end, identifiers):
                return None
        elif key == CONTEXT:
            if not read_pair(&at, end, context):
                return None
        elif key == PLACEMENT:
            placement = text_of(&at, end)
            if placement is None:
                return None
        elif key == REQUEST_ID:
            request_id = text_of(&at, end)
            if request_id is None:
                return None
        elif key == EVENTS:
            if not tb_length_read(&at, end, &length):
                return None
            events.append(PyBytes_FromStringAndSize(<const char*>at, length))
            at += length
        elif key == AT_MS:
            if not tb_varint_read(&at, end, &at_ms):
                return None
        elif key == ITEM_COUNT:
            if not tb_varint_read(&at, end, &item_count):
                return None
        elif key == MIN_POSITION:
            if not tb_varint_read(&at, end, &min_position):
                return None
        else:
            return None
    return (placement, identifiers, context, ids, <int64_t>at_ms, <int32_t><uint32_t>item_count, events, request_id,
            <int64_t>min_position)


# ---- answers ---------------------------------------------------------------------------------------------------------

cdef class DecisionEncoder:
    """Writes decisions: of one request, of a page, of a batch.

    `reasons` and `tiers` are the engine's members in the order of their numbers on the wire, from 1.
    """

    cdef tuple reasons
    cdef tuple tiers
    cdef uint8_t* buffer
    cdef size_t used
    cdef size_t room

    def __init__(self, tuple reasons not None, tuple tiers not None):
        self.reasons, self.tiers = reasons, tiers

    def __dealloc__(self):
        free(self.buffer)

    def encode(self, decision):
        """Return a `Decision` as DecideResponse."""
        self.used = 0
        self._decision(decision)
        return self._encoded()

    def encode_page(self, decisions):
        """Return the `Decision`s of a page as DecidePageResponse."""
        cdef size_t start
        self.used = 0
        for decision in decisions:
            start = self._open(1)
            self._decision(decision)
            self._close(start)
        return self._encoded()

    def encode_batch(self, outcomes):
        """Return outcomes, each a `Decision` or (reason, message), as DecideBatchResponse."""
        cdef size_t outer, inner
        self.used = 0
        for outcome in outcomes:
            outer = self._open(1)
            if type(outcome) is tuple:
                inner = self._open(2)
                self._text(1, outcome[0])
                self._text(2, outcome[1])
            else:
                inner = self._open(1)
                self._decision(outcome)
            self._close(inner)
            self._close(outer)
        return self._encoded()

    cdef bytes _encoded(self):
        return PyBytes_FromStringAndSize(<const char*>self.buffer, self.used)

    cdef int _decision(self, decision) except -1:
        self._text(1, decision.decision_id)
        for item in decision.items:
            self._item(item)
        self._number(3, number_of(self.tiers, decision.tier))
        self._float(4, decision.completeness)
        if decision.profile_age_ms >= 0:
            self._key_and_number(5, decision.profile_age_ms)
        self._number(6, decision.masked_count)
        self._number(7, decision.excluded_count)
        self._number(8, decision.candidate_count)
        self._number(9, decision.unknown_candidate_count)
        self._number(10, decision.position)
        self._number(11, decision.configuration_version)
        self._number(12, decision.at)
        self._text(13, decision.person_id)
        for name in decision.degraded:
            self._any_text(14, name)
        return self._text(15, decision.placement)

    cdef int _item(self, item) except -1:
        cdef size_t start = self._open(2)
        self._text(1, item.id)
        self._float(2, item.score)
        self._float(3, item.propensity)
        for reason in item.reasons:
            self._reason(reason)
        return self._close(start)

    cdef int _reason(self, reason) except -1:
        cdef size_t start = self._open(4)
        self._number(1, number_of(self.reasons, reason.reason))
        self._text(2, reason.detail)
        return self._close(start)

    cdef uint8_t* _make_room(self, size_t more) except NULL:
        cdef uint8_t* grown
        if self.used + more > self.room:
            grown = <uint8_t*>realloc(self.buffer, 2 * (self.used + more) + 1024)
            if grown == NULL:
                raise MemoryError()
            self.buffer, self.room = grown, 2 * (self.used + more) + 1024
        return self.buffer + self.used

    cdef int _key_and_number(self, uint32_t field, int64_t number) except -1:
        cdef uint8_t* at = self._make_room(20)
        at = tb_varint_write(at, field << 3)
        self.used = tb_varint_write(at, <uint64_t>number) - self.buffer
        return 0

    cdef int _number(self, uint32_t field, int64_t number) except -1:
        return self._key_and_number(field, number) if number else 0

    cdef int _float(self, uint32_t field, float number) except -1:
        cdef uint8_t* at
        cdef uint32_t bits
        memcpy(&bits, &number, 4)
        if bits:
            at = tb_varint_write(self._make_room(14), field << 3 | 5)
            memcpy(at, &bits, 4)
            self.used = at + 4 - self.buffer
        return 0

    cdef int _text(self, uint32_t field, str text) except -1:
        return self._any_text(field, text) if len(text) else 0

    cdef int _any_text(self, uint32_t field, str text) except -1:
        cdef Py_ssize_t length
        cdef const char* bytes_ = PyUnicode_AsUTF8AndSize(text, &length)
        cdef uint8_t* at = self._make_room(20 + length)
        at = tb_varint_write(at, field << 3 | 2)
        at = tb_varint_write(at, length)
        memcpy(at, bytes_, length)
        self.used = at + length - self.buffer
        return 0

    cdef size_t _open(self, uint32_t field) except? 0:
        """Begin a message in a field; its length, one byte for now, goes before what follows."""
        self.used = tb_varint_write(self._make_room(11), field << 3 | 2) + 1 - self.buffer
        return self.used

    cdef int _close(self, size_t start) except -1:
        cdef size_t length = self.used - start, size = tb_varint_bytes(self.used - start)
        if size > 1:
            self._make_room(size)
            memmove(self.buffer + start + size - 1, self.buffer + start, length)
            self.used += size - 1
        tb_varint_write(self.buffer + start - 1, length)
        return 0


cdef Py_ssize_t number_of(tuple members, member) except -1:
    """Return the place of a member, from 1. By identity: hashing an enumeration's member is a call into Python."""
    cdef Py_ssize_t i
    for i in range(len(members)):
        if members[i] is member:
            return i + 1
    raise ValueError(f"expected one of {members}, got {member!r}")

"""Decide's messages between the wire and the engine, without a message object in between.

`decode_decide` reads what our clients send and protobuf's own codec would accept; for anything else - damaged bytes, unknown
fields, a name given twice - it returns None, and the caller asks protobuf's codec, whose word on it is the last.
`DecisionEncoder` writes what protobuf would write, byte for byte (tests/server/test_wire_codec.py).
"""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeUTF8

from collections.abc import Sequence

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
    SERVED_ACKNOWLEDGEMENT = 0x50
    PAIR_NAME = 0x0A
    PAIR_VALUE = 0x12


cdef class Ids:
    """Item ids inside a request: a sequence of texts that are only made when asked for."""

    def __dealloc__(self):
        free(<void*>self.texts)
        free(self.lengths)

    cdef int _make_room(self) except -1:
        """Have room for one more."""
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


cdef bint read_text(const uint8_t** at, const uint8_t* end, Text* text) except *:
    """Read the text at `at`, and move behind it; tell whether there is one."""
    if not tb_length_read(at, end, &text.length):
        return False
    text.at = <const char*>at[0]
    at[0] += text.length
    return is_text(text.at, text.length)


cdef bint is_text(const char* bytes_, size_t length) except *:
    """Tell whether bytes are UTF-8."""
    if tb_is_ascii(bytes_, length):
        return True
    try:
        PyUnicode_DecodeUTF8(bytes_, length, NULL)
    except UnicodeDecodeError:
        return False
    return True


cdef str str_of(const Text* text):
    return PyUnicode_DecodeUTF8(text.at, text.length, NULL)


cdef dict dict_of(const Pairs* pairs):
    cdef Py_ssize_t i
    return {str_of(&pairs.names[i]): str_of(&pairs.values[i]) for i in range(pairs.count)}


cdef bint read_pair(const uint8_t** at, const uint8_t* end, Pairs* pairs) except *:
    """Read a message of a name and a value; tell whether it is one, its name new, and there was room for it."""
    cdef size_t length
    cdef Text name, value
    cdef Py_ssize_t i
    cdef uint8_t key
    if pairs.count == PAIRS_MAX or not tb_length_read(at, end, &length):
        return False
    cdef const uint8_t* stop = at[0] + length
    name.at = value.at = ""
    name.length = value.length = 0
    while at[0] < stop:
        key = at[0][0]
        at[0] += 1
        if key == PAIR_NAME:
            if not read_text(at, stop, &name):
                return False
        elif key == PAIR_VALUE:
            if not read_text(at, stop, &value):
                return False
        else:
            return False
    for i in range(pairs.count):
        if same_text(&pairs.names[i], &name):
            return False
    pairs.names[pairs.count], pairs.values[pairs.count] = name, value
    pairs.count += 1
    return True


@cython.final
cdef class Asked:
    """A DecideRequest as its bytes have it: texts are where they stand in them. Read again and again, or handed on."""

    cdef bint read(self, bytes data, Py_ssize_t candidates_max) except *:
        """Read a message; tell whether it was all read, see `decode_decide`."""
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef const uint8_t* end = at + PyBytes_GET_SIZE(data)
        cdef uint64_t number
        cdef size_t length
        cdef uint8_t key
        cdef Text candidate
        cdef Ids ids = self.ids
        if ids is None:
            ids = self.ids = Ids.__new__(Ids)
        ids.data, ids.count = data, 0
        self.placement.at = self.request_id.at = ""
        self.placement.length = self.request_id.length = 0
        self.identifiers.count = self.context.count = 0
        self.at_ms = self.item_count = self.min_position = self.served_acknowledgement = 0
        self.events = None
        while at < end:
            key = at[0]
            at += 1
            if key == CANDIDATE_IDS:
                if ids.count == candidates_max:
                    return False
                ids._make_room()
                if not read_text(&at, end, &candidate):
                    return False
                ids.texts[ids.count], ids.lengths[ids.count] = candidate.at, candidate.length
                ids.count += 1
                ids.count += tb_short_texts_read(&at, end, CANDIDATE_IDS, ids.texts + ids.count, ids.lengths + ids.count,
                                                 min(ids.room, candidates_max) - ids.count)
            elif key == IDENTIFIERS:
                if not read_pair(&at, end, &self.identifiers):
                    return False
            elif key == CONTEXT:
                if not read_pair(&at, end, &self.context):
                    return False
            elif key == PLACEMENT:
                if not read_text(&at, end, &self.placement):
                    return False
            elif key == REQUEST_ID:
                if not read_text(&at, end, &self.request_id):
                    return False
            elif key == EVENTS:
                if not tb_length_read(&at, end, &length):
                    return False
                if self.events is None:
                    self.events = []
                self.events.append(PyBytes_FromStringAndSize(<const char*>at, length))
                at += length
            elif key == AT_MS:
                if not tb_varint_read(&at, end, &number):
                    return False
                self.at_ms = <int64_t>number
            elif key == ITEM_COUNT:
                if not tb_varint_read(&at, end, &number):
                    return False
                self.item_count = <int32_t><uint32_t>number
            elif key == MIN_POSITION:
                if not tb_varint_read(&at, end, &number):
                    return False
                self.min_position = <int64_t>number
            elif key == SERVED_ACKNOWLEDGEMENT:
                if not tb_varint_read(&at, end, &number):
                    return False
                self.served_acknowledgement = <int32_t><uint32_t>number
            else:
                return False
        return True


def decode_decide(bytes data not None, Py_ssize_t candidates_max):
    """Return (placement, identifiers, context, candidates, at_ms, item_count, events, request_id, min_position,
    served_acknowledgement), or None.

    `candidates` is an `Ids`, `events` a list of encoded Signals. None where protobuf's codec must be asked: see the module; also
    for more than `candidates_max` candidates, and for more than 16 identifiers or values of context.
    """
    cdef Asked asked = Asked.__new__(Asked)
    if not asked.read(data, candidates_max):
        return None
    return (str_of(&asked.placement), dict_of(&asked.identifiers), dict_of(&asked.context), asked.ids, asked.at_ms,
            asked.item_count, asked.events or [], str_of(&asked.request_id), asked.min_position, asked.served_acknowledgement)


# ---- answers ---------------------------------------------------------------------------------------------------------

cdef class Encoder:
    """Bytes of a message as they grow: fields one behind the other, as protobuf writes them; a value of 0 or no text is left out."""

    def __dealloc__(self):
        free(self.buffer)

    cdef bytes _encoded(self):
        return PyBytes_FromStringAndSize(<const char*>self.buffer, self.used)

    cdef int _append(self, bytes encoded) except -1:
        memcpy(self._make_room(PyBytes_GET_SIZE(encoded)), PyBytes_AS_STRING(encoded), PyBytes_GET_SIZE(encoded))
        self.used += PyBytes_GET_SIZE(encoded)
        return 0

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
        return self._bytes(field, bytes_, length)

    cdef int _bytes(self, uint32_t field, const char* bytes_, size_t length) except -1:
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


cdef class DecisionEncoder:
    """Writes decisions: of one request, of a page, of a batch.

    `reasons` and `tiers` are the engine's members in the order of their numbers on the wire, from 1.
    """

    def __init__(self, tuple reasons not None, tuple tiers not None):
        self.reasons, self.tiers = reasons, tiers

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

    cdef int _decision(self, decision) except -1:
        cdef Answered answered
        cdef Py_ssize_t length
        self._text(1, decision.decision_id)
        for item in decision.items:
            self._item(item)
        answered.tier = number_of(self.tiers, decision.tier)
        answered.completeness = decision.completeness
        answered.profile_age_ms = decision.profile_age_ms
        answered.masked_count, answered.excluded_count = decision.masked_count, decision.excluded_count
        answered.candidate_count = decision.candidate_count
        answered.unknown_candidate_count = decision.unknown_candidate_count
        answered.position, answered.configuration_version = decision.position, decision.configuration_version
        answered.at, answered.served_position = decision.at, decision.served_position
        answered.person_id.at = PyUnicode_AsUTF8AndSize(decision.person_id, &length)
        answered.person_id.length = length
        answered.placement.at = PyUnicode_AsUTF8AndSize(decision.placement, &length)
        answered.placement.length = length
        return self._end_of_decision(&answered, decision.degraded)

    cdef int _end_of_decision(self, const Answered* answered, tuple degraded) except -1:
        """Write what stands behind the items."""
        self._number(3, answered.tier)
        self._float(4, <float>answered.completeness)
        if answered.profile_age_ms >= 0:
            self._key_and_number(5, answered.profile_age_ms)
        self._number(6, answered.masked_count)
        self._number(7, answered.excluded_count)
        self._number(8, answered.candidate_count)
        self._number(9, answered.unknown_candidate_count)
        self._number(10, answered.position)
        self._number(11, answered.configuration_version)
        self._number(12, answered.at)
        if answered.person_id.length:
            self._bytes(13, answered.person_id.at, answered.person_id.length)
        for name in degraded:
            self._any_text(14, name)
        if answered.placement.length:
            self._bytes(15, answered.placement.at, answered.placement.length)
        return self._number(16, answered.served_position)

    cdef int _item(self, item) except -1:
        cdef Py_ssize_t length
        cdef const char* id_ = PyUnicode_AsUTF8AndSize(item.id, &length)
        cdef size_t start = self._begin_item(id_, length, item.score, item.propensity)
        for reason in item.reasons:
            self._reason(reason)
        return self._close(start)

    cdef size_t _begin_item(self, const char* id_, size_t length, float score, float propensity) except? 0:
        """Begin an item; its reasons follow, then `_close`."""
        cdef size_t start = self._open(2)
        if length:
            self._bytes(1, id_, length)
        self._float(2, score)
        self._float(3, propensity)
        return start

    cdef bytes _reasons(self, tuple reasons):
        """Return the reasons of an item as they stand in it."""
        self.used = 0
        for reason in reasons:
            self._reason(reason)
        return self._encoded()

    cdef int _reason(self, reason) except -1:
        cdef size_t start = self._open(4)
        self._number(1, number_of(self.reasons, reason.reason))
        self._text(2, reason.detail)
        return self._close(start)


cdef Py_ssize_t number_of(tuple members, member) except -1:
    """Return the place of a member, from 1. By identity: hashing an enumeration's member is a call into Python."""
    cdef Py_ssize_t i
    for i in range(len(members)):
        if members[i] is member:
            return i + 1
    raise ValueError(f"expected one of {members}, got {member!r}")

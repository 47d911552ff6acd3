"""The record of a decision, header and msgpack payload, written in one call (engine/decision_record.py has the layout)."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize

cdef extern from "xxh64.h" nogil:
    uint64_t tb_xxh64(const void* data, size_t length, uint64_t seed) noexcept

cdef enum:
    HEADER_BYTES = 32
    DEPTH_MAX = 32


cdef class RecordPacker:
    """Packs records. Of `item_type` it writes (id, score, propensity, reasons), of `reason_type` (reason, detail)."""

    cdef object item_type
    cdef object reason_type
    cdef uint8_t* buffer
    cdef size_t used
    cdef size_t room

    def __init__(self, item_type not None, reason_type not None):
        self.item_type, self.reason_type = item_type, reason_type

    def __dealloc__(self):
        free(self.buffer)

    def pack(self, uint64_t salt, int64_t at, int64_t position, tuple fields not None):
        """Return the record of some fields: texts, bytes, numbers, booleans, None, tuples, lists, dicts, items and reasons.

        Raises TypeError for anything else, OverflowError for integers beyond 64 bits, ValueError for what is nested more than
        32 deep, UnicodeEncodeError for a lone surrogate.
        """
        cdef uint64_t checksum
        cdef uint32_t low, length
        self.used = 0
        self._make_room(HEADER_BYTES)
        self.used = HEADER_BYTES
        self._write(fields, 0)
        if self.used - HEADER_BYTES > <size_t>0xFFFFFFFF:
            raise OverflowError(f"expected a payload below 4 GiB, got {self.used - HEADER_BYTES} bytes")
        length = <uint32_t>(self.used - HEADER_BYTES)
        checksum = tb_xxh64(self.buffer + HEADER_BYTES, length, salt)
        memcpy(self.buffer + 4, &length, 4)
        memcpy(self.buffer + 8, &checksum, 8)
        memcpy(self.buffer + 16, &at, 8)
        memcpy(self.buffer + 24, &position, 8)
        low = <uint32_t>tb_xxh64(self.buffer + 4, HEADER_BYTES - 4, salt)
        memcpy(self.buffer, &low, 4)
        return PyBytes_FromStringAndSize(<const char*>self.buffer, self.used)

    cdef int _write(self, value, int depth) except -1:
        cdef Py_ssize_t length
        cdef const char* text
        if depth > DEPTH_MAX:
            raise ValueError(f"expected values nested at most {DEPTH_MAX} deep, got more")
        if isinstance(value, str):
            text = PyUnicode_AsUTF8AndSize(value, &length)
            self._head(length, 0xA0, 32, 0xD9)
            self._copy(text, length)
        elif type(value) is float:
            self._float(value)
        elif value is None or value is True or value is False:
            self._byte(0xC0 if value is None else 0xC3 if value is True else 0xC2)
        elif isinstance(value, int):
            self._int(value)
        elif type(value) is tuple or type(value) is list:
            self._head(len(value), 0x90, 16, 0)
            for each in value:
                self._write(each, depth + 1)
        elif type(value) is self.item_type:
            self._byte(0x94)
            self._write(value.id, depth + 1)
            self._float(value.score)
            self._float(value.propensity)
            self._write(value.reasons, depth + 1)
        elif type(value) is self.reason_type:
            self._byte(0x92)
            self._write(value.reason, depth + 1)
            self._write(value.detail, depth + 1)
        elif type(value) is bytes:
            length = PyBytes_GET_SIZE(value)
            self._head(length, 0, 0, 0xC4)
            self._copy(PyBytes_AS_STRING(value), length)
        elif type(value) is dict:
            self._head(len(value), 0x80, 16, 0)
            for name, each in value.items():
                self._write(name, depth + 1)
                self._write(each, depth + 1)
        else:
            raise TypeError(f"expected texts, bytes, numbers, tuples, lists and dicts, got {type(value).__name__}")
        return 0

    cdef int _head(self, size_t length, uint8_t fixed, size_t fixed_below, uint8_t with_8_bits) except -1:
        """Write what a text, some bytes, an array (0x90) or a map (0x80) of a length begins with.

        Texts and bytes have forms with lengths of 8, 16 and 32 bits, arrays and maps of 16 and 32.
        """
        cdef uint8_t* at = self._make_room(5)
        cdef uint8_t with_16_bits = with_8_bits + 1 if with_8_bits else 0xDC if fixed == 0x90 else 0xDE
        if length < fixed_below:
            at[0] = fixed | <uint8_t>length
            self.used += 1
        elif length < 0x100 and with_8_bits:
            at[0], at[1] = with_8_bits, <uint8_t>length
            self.used += 2
        elif length < 0x10000:
            at[0], at[1], at[2] = with_16_bits, <uint8_t>(length >> 8), <uint8_t>length
            self.used += 3
        elif length <= 0xFFFFFFFF:
            at[0] = with_16_bits + 1
            self._big_endian(at + 1, length, 4)
            self.used += 5
        else:
            raise OverflowError(f"expected lengths below 2**32, got {length}")
        return 0

    cdef int _int(self, value) except -1:
        cdef uint8_t* at = self._make_room(9)
        cdef uint64_t number
        cdef int64_t negative
        if value >= 0:
            number = value
            if number < 0x80:
                at[0] = <uint8_t>number
                self.used += 1
            elif number < 0x100:
                self._number(at, 0xCC, number, 1)
            elif number < 0x10000:
                self._number(at, 0xCD, number, 2)
            elif number <= 0xFFFFFFFF:
                self._number(at, 0xCE, number, 4)
            else:
                self._number(at, 0xCF, number, 8)
        else:
            negative = value
            if negative >= -32:
                at[0] = <uint8_t>negative
                self.used += 1
            elif negative >= -0x80:
                self._number(at, 0xD0, <uint64_t>negative, 1)
            elif negative >= -0x8000:
                self._number(at, 0xD1, <uint64_t>negative, 2)
            elif negative >= -<int64_t>0x80000000:
                self._number(at, 0xD2, <uint64_t>negative, 4)
            else:
                self._number(at, 0xD3, <uint64_t>negative, 8)
        return 0

    cdef int _float(self, double value) except -1:
        cdef uint64_t bits
        memcpy(&bits, &value, 8)
        self._number(self._make_room(9), 0xCB, bits, 8)
        return 0

    cdef int _byte(self, uint8_t value) except -1:
        self._make_room(1)[0] = value
        self.used += 1
        return 0

    cdef int _copy(self, const char* data, size_t length) except -1:
        memcpy(self._make_room(length), data, length)
        self.used += length
        return 0

    cdef void _number(self, uint8_t* at, uint8_t kind, uint64_t number, int size) noexcept:
        at[0] = kind
        self._big_endian(at + 1, number, size)
        self.used += 1 + size

    cdef void _big_endian(self, uint8_t* at, uint64_t number, int size) noexcept:
        cdef int i
        for i in range(size):
            at[i] = <uint8_t>(number >> (8 * (size - 1 - i)))

    cdef uint8_t* _make_room(self, size_t more) except NULL:
        cdef uint8_t* grown
        if self.used + more > self.room:
            grown = <uint8_t*>realloc(self.buffer, 2 * (self.used + more) + 1024)
            if grown == NULL:
                raise MemoryError()
            self.buffer, self.room = grown, 2 * (self.used + more) + 1024
        return self.buffer + self.used

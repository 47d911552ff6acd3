"""Keyed hashes of plain identifiers, many in one call. What is not plain is the caller's to judge.

Plain is a text of 3 to 64 letters, digits, `_`, `.`, `:` and `-` of ASCII, with two different characters and a digit other than 0,
that is not in the form of a UUID: nothing that has another spelling, and none of the placeholders that nobody is known by.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    void* PyUnicode_DATA(object text)


cdef uint8_t IS_PLAIN[256]
for code in range(256):
    IS_PLAIN[code] = chr(code) in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:-"


cdef bint is_plain(const uint8_t* text, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t i
    cdef bint differs = False, numbered = False, all_plain = True
    if not 3 <= length <= PLAIN_BYTES_MAX or length == 32 or length == 36 or length == 38 or length == 45 or length == 16:
        return False
    for i in range(length):
        all_plain &= IS_PLAIN[text[i]]
        differs |= text[i] != text[0]
        numbered |= 49 <= text[i] <= 57
    return all_plain and differs and numbered


@cython.final
cdef class PlainHasher:
    """BLAKE2b-128 of `prefix` and an identifier, with a key of 16 to 64 bytes and a personalisation of at most 16."""

    def __cinit__(self, bytes key not None, bytes person not None, bytes prefix not None):
        cdef bytes padded = person.ljust(16, b"\0")
        if not 1 <= len(key) <= 64 or len(person) > 16 or len(prefix) > PREFIX_BYTES_MAX:
            raise ValueError(f"expected a key of 1 to 64 bytes, a person of at most 16, a prefix of at most {PREFIX_BYTES_MAX}")
        tb_blake2b_begin(&self.begun, TB_BLAKE2B_DIGEST, <const uint8_t*>(<char*>key), len(key), <const uint8_t*>(<char*>padded))
        memcpy(self.message, <char*>prefix, len(prefix))
        self.prefix_bytes = len(prefix)

    cdef object _digest(self, object text):
        cdef uint8_t digest[16]
        cdef const uint8_t* data
        cdef Py_ssize_t length
        if not PyUnicode_Check(text) or not PyUnicode_IS_COMPACT_ASCII(text):
            return None
        data = <const uint8_t*>PyUnicode_DATA(text)
        length = PyUnicode_GET_LENGTH(text)
        if not is_plain(data, length):
            return None
        self.hash(data, length, digest)
        return PyBytes_FromStringAndSize(<char*>digest, 16)

    cdef void hash(self, const uint8_t* text, Py_ssize_t length, uint8_t* digest) noexcept:
        """Write the digest of at most `PLAIN_BYTES_MAX` bytes, whatever they are."""
        memcpy(self.message + self.prefix_bytes, text, length)
        tb_blake2b_digest(&self.begun, self.message, self.prefix_bytes + length, digest)

    def digest(self, text):
        """The digest of one identifier, None where it is not plain."""
        return self._digest(text)

    def digests(self, texts):
        """The digest of each of a sequence of identifiers, None where it is not plain."""
        return [self._digest(text) for text in texts]

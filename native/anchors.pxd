"""Keyed hashes of plain identifiers, for the extension that decides."""

from libc.stdint cimport uint8_t, uint64_t

cdef extern from "blake2b.h" nogil:
    ctypedef struct tb_blake2b:
        pass
    enum: TB_BLAKE2B_DIGEST
    void tb_blake2b_begin(tb_blake2b* state, size_t digest_bytes, const uint8_t* key, size_t key_bytes,
                          const uint8_t* person) noexcept
    void tb_blake2b_digest(const tb_blake2b* begun, const uint8_t* message, size_t length, uint8_t* digest) noexcept

cdef enum:
    PREFIX_BYTES_MAX = 128
    PLAIN_BYTES_MAX = 64


cdef bint is_plain(const uint8_t* text, Py_ssize_t length) noexcept nogil


cdef class PlainHasher:
    cdef tb_blake2b begun
    cdef uint8_t[192] message  # prefix and text
    cdef Py_ssize_t prefix_bytes

    cdef object _digest(self, object text)
    cdef void hash(self, const uint8_t* text, Py_ssize_t length, uint8_t* digest) noexcept

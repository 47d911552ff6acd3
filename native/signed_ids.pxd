"""Signed ids, for the extension that decides."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from tailorbird.native.anchors cimport tb_blake2b


cdef class IdSigner:
    cdef tb_blake2b begun
    cdef Py_ssize_t signature_bytes

    cdef str _text(self, const uint8_t* body, Py_ssize_t body_bytes)


cdef class CountedIds:
    cdef IdSigner signer
    cdef uint8_t kind
    cdef uint32_t count

    cdef str _next(self, int64_t at)

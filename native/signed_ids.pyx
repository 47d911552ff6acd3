"""Signed ids as text: what an id says, and a keyed BLAKE2b of it, in base64url."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from tailorbird.native.anchors cimport TB_BLAKE2B_DIGEST, tb_blake2b_begin, tb_blake2b_digest

cdef enum:
    ID_BYTES_MAX = 96
    COUNTED_BYTES = 14  # a kind, 8 of a time, 4 of a count, little endian, and a zero

cdef const char* ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@cython.final
cdef class IdSigner:
    """Signs with the first `signature_bytes` (at most 16) bytes of a BLAKE2b of that length, a key of 1 to 64 bytes and a
    personalisation of at most 16."""

    def __cinit__(self, bytes key not None, bytes person not None, Py_ssize_t signature_bytes):
        cdef bytes padded = person.ljust(16, b"\0")
        if not 1 <= len(key) <= 64 or len(person) > 16 or not 1 <= signature_bytes <= TB_BLAKE2B_DIGEST:
            raise ValueError("expected a key of 1 to 64 bytes, a person of at most 16, a signature of 1 to 16")
        tb_blake2b_begin(&self.begun, signature_bytes, <const uint8_t*>(<char*>key), len(key), <const uint8_t*>(<char*>padded))
        self.signature_bytes = signature_bytes

    def text(self, bytes body not None):
        """Return the id of a body. Raises ValueError where body and signature are not 3, 6, ... 96 bytes."""
        return self._text(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))

    cdef str _text(self, const uint8_t* body, Py_ssize_t body_bytes):
        cdef uint8_t[16] digest
        cdef uint8_t[96] id_
        cdef char[128] out  # four characters for three bytes
        cdef Py_ssize_t length = body_bytes + self.signature_bytes, i
        if length % 3 or length > ID_BYTES_MAX or body_bytes == 0:
            raise ValueError(f"expected an id of 3, 6, ... {ID_BYTES_MAX} bytes, got {length}")
        memcpy(id_, body, body_bytes)
        tb_blake2b_digest(&self.begun, id_, body_bytes, digest)
        memcpy(id_ + body_bytes, digest, self.signature_bytes)
        for i in range(length // 3):
            out[4 * i] = ALPHABET[id_[3 * i] >> 2]
            out[4 * i + 1] = ALPHABET[(id_[3 * i] & 3) << 4 | id_[3 * i + 1] >> 4]
            out[4 * i + 2] = ALPHABET[(id_[3 * i + 1] & 15) << 2 | id_[3 * i + 2] >> 6]
            out[4 * i + 3] = ALPHABET[id_[3 * i + 2] & 63]
        return PyUnicode_DecodeASCII(out, length // 3 * 4, NULL)


@cython.final
cdef class CountedIds:
    """Ids that say a kind (u8), a time (i64, ms), how many there were before, from `first` (u32), and nothing else."""

    def __cinit__(self, IdSigner signer not None, uint8_t kind, uint32_t first):
        self.signer, self.kind, self.count = signer, kind, first

    def next(self, int64_t at):
        """Return a new id of a time."""
        return self._next(at)

    cdef str _next(self, int64_t at):
        cdef uint8_t[COUNTED_BYTES] body
        body[0], body[COUNTED_BYTES - 1] = self.kind, 0
        memcpy(body + 1, &at, 8)
        memcpy(body + 9, &self.count, 4)
        self.count += 1
        return self.signer._text(body, COUNTED_BYTES)

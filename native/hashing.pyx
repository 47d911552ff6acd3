"""XXH64 over any contiguous buffer, for hashes where nobody is hurt by a collision."""

from libc.stdint cimport uint64_t


cdef extern from "xxh64.h" nogil:
    uint64_t tb_xxh64(const void* data, size_t length, uint64_t seed) noexcept


def xxh64(const unsigned char[::1] data not None, uint64_t seed=0):
    """Return the 64-bit XXH64 of `data`.

    `data` is any C-contiguous buffer of bytes and is not copied. The GIL is released while hashing. Raises TypeError for
    anything that is no buffer, BufferError for one with gaps, OverflowError for a seed outside 0 .. 2**64 - 1.
    """
    cdef size_t length = data.shape[0]
    cdef const unsigned char* start = NULL
    cdef uint64_t digest
    if length > 0:
        start = &data[0]
    with nogil:
        digest = tb_xxh64(start, length, seed)
    return digest

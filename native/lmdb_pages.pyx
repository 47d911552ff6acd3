"""Tables of an LMDB file read from its pages, without a call of LMDB, a lock or an object per entry. The kernels are in lmdb_pages.h.

Whoever reads keeps a read transaction of the same environment open meanwhile: it is what keeps the pages of its snapshot as they
are. Writing, and all reading that is not of every decision, is LMDB's own.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, mmap, munmap
from posix.unistd cimport sysconf, _SC_PAGESIZE

import os


@cython.final
cdef class LmdbFile:
    """The data file of an environment, mapped as far as it may grow: `map_bytes`, and never less than it has.

    Raises OSError where it cannot be opened, ValueError where it is too short for any, MemoryError without address space."""

    def __cinit__(self, path, size_t map_bytes):
        cdef size_t page_bytes = sysconf(_SC_PAGESIZE)
        cdef void* found
        cdef int descriptor = os.open(path, os.O_RDONLY)
        cdef size_t file_bytes = os.fstat(descriptor).st_size
        if file_bytes < 2 * page_bytes:
            os.close(descriptor)
            raise ValueError(f"expected an LMDB data file of two pages at least, got {file_bytes} bytes: {path}")
        map_bytes = (max(map_bytes, file_bytes) + page_bytes - 1) // page_bytes * page_bytes
        found = mmap(NULL, map_bytes, PROT_READ, MAP_SHARED, descriptor, 0)
        os.close(descriptor)
        if found == MAP_FAILED:
            raise MemoryError(f"expected {map_bytes} bytes of address space for {path}; lower limits.map_bytes")
        self.map, self.map_bytes = <const uint8_t*>found, map_bytes

    def __dealloc__(self):
        if self.map != NULL:
            munmap(<void*>self.map, self.map_bytes)

    def table(self, uint64_t txn, bytes name not None):
        """Return a table as of the open read transaction whose id is `txn`; None where it has no such table, or the file has gone on by
        more than a commit since. Raises ValueError for no file of LMDB 0.9, a damaged one, or a table of another kind of keys."""
        cdef LmdbTable table = LmdbTable.__new__(LmdbTable)
        cdef tb_lmdb_tree all_
        cdef int status = tb_lmdb_snapshot(self.map, self.map_bytes, txn, &all_)
        if status == TB_LMDB_FOUND:
            status = tb_lmdb_table(&all_, <const uint8_t*>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), &table.tree)
        if status == TB_LMDB_DAMAGED:
            raise ValueError("expected an LMDB data file of version 0.9, got another or a damaged one")
        table.file = self
        return table if status == TB_LMDB_FOUND else None


@cython.final
cdef class LmdbTable:
    """A table of one snapshot: bytes by key, in the order of the keys."""

    def get(self, bytes key not None):
        """Return the value of a key, or None. Raises ValueError where the file is damaged."""
        cdef tb_lmdb_cursor cursor
        cdef tb_lmdb_bytes found, value
        cdef bint is_exact
        cdef int status = tb_lmdb_seek(&self.tree, &cursor, <const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), &is_exact)
        if checked(status) != TB_LMDB_FOUND or not is_exact:
            return None
        checked(tb_lmdb_entry(&cursor, &found, &value))
        return bytes_of(&value)

    def entries(self, bytes key not None, Py_ssize_t count_max):
        """Return up to `count_max` (key, value), from the first key on that is not below one. Raises ValueError as `get`."""
        cdef tb_lmdb_cursor cursor
        cdef tb_lmdb_bytes found, value
        cdef bint is_exact
        cdef list entries = []
        cdef int status = tb_lmdb_seek(&self.tree, &cursor, <const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), &is_exact)
        while checked(status) == TB_LMDB_FOUND and len(entries) < count_max:
            checked(tb_lmdb_entry(&cursor, &found, &value))
            entries.append((bytes_of(&found), bytes_of(&value)))
            status = tb_lmdb_next(&cursor)
        return entries


cdef int checked(int status) except -1:
    if status == TB_LMDB_DAMAGED:
        raise ValueError("expected an LMDB data file, got a damaged one")
    return status


cdef inline bytes bytes_of(const tb_lmdb_bytes* text):
    return PyBytes_FromStringAndSize(<const char*>text.data, text.length)

"""Tables of an LMDB file, for the extension that decides."""

from libc.stdint cimport uint8_t, uint64_t

cdef extern from "lmdb_pages.h" nogil:
    enum: TB_LMDB_DAMAGED
    enum: TB_LMDB_END
    enum: TB_LMDB_FOUND
    ctypedef struct tb_lmdb_tree:
        pass
    ctypedef struct tb_lmdb_bytes:
        const uint8_t* data
        size_t length
    ctypedef struct tb_lmdb_cursor:
        pass
    int tb_lmdb_snapshot(const uint8_t* map, size_t map_bytes, uint64_t txn, tb_lmdb_tree* tree) noexcept
    int tb_lmdb_table(const tb_lmdb_tree* all, const uint8_t* name, size_t length, tb_lmdb_tree* table) noexcept
    int tb_lmdb_seek(const tb_lmdb_tree* tree, tb_lmdb_cursor* cursor, const uint8_t* key, size_t length, bint* is_exact) noexcept
    int tb_lmdb_next(tb_lmdb_cursor* cursor) noexcept
    int tb_lmdb_entry(const tb_lmdb_cursor* cursor, tb_lmdb_bytes* key, tb_lmdb_bytes* value) noexcept


cdef class LmdbFile:
    cdef const uint8_t* map
    cdef size_t map_bytes


cdef class LmdbTable:
    cdef tb_lmdb_tree tree
    cdef LmdbFile file

"""Features of many people as numbers: a row per person, a column per feature."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.math cimport NAN
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from tailorbird.native.record cimport RecordLayout, RecordView, tb_age_ms, tb_block_status, tb_block_time, tb_feature
from tailorbird.native.record cimport tb_read_double, TB_DEFAULTED, TB_FRESH, TB_MASKED


@cython.final
cdef class FeatureColumns:
    """Which features of a record go into which columns: `indices` of the layout, `columns`, and whether each `is_number`.

    Where it is none (a text, a list of keys), status and age are written and the value is NaN.
    """

    cdef const int32_t[::1] indices__c
    cdef const int32_t[::1] columns__c
    cdef const uint8_t[::1] is_number__c
    cdef readonly RecordLayout layout
    cdef Py_ssize_t column_end

    def __cinit__(self, RecordLayout layout not None, const int32_t[::1] indices not None,
                  const int32_t[::1] columns not None, const uint8_t[::1] is_number not None):
        cdef Py_ssize_t c
        if not indices.shape[0] == columns.shape[0] == is_number.shape[0]:
            raise ValueError(f"expected as many columns and kinds as the {indices.shape[0]} indices, got "
                             f"{columns.shape[0]} and {is_number.shape[0]}")
        for c in range(indices.shape[0]):
            if not 0 <= indices[c] < layout.feature_count:
                raise IndexError(f"expected features of 0 to {layout.feature_count - 1}, got {indices[c]}")
            if columns[c] < 0:
                raise IndexError(f"expected no column below 0, got {columns[c]}")
            self.column_end = max(self.column_end, columns[c] + 1)
        self.layout = layout
        self.indices__c = indices
        self.columns__c = columns
        self.is_number__c = is_number

    def __len__(self):
        return self.indices__c.shape[0]


@cython.final
cdef class FeatureRows:
    """A table of `row_count` people and `column_count` features, in one buffer: values float64, ages int64, statuses and whether
    each person is known uint8, in this order. `values_at`, ... are where each begins, in bytes.

    A value is NaN where nothing speaks, an age in ms, -1 where unknown or masked.
    """

    cdef uint8_t* data
    cdef double* values__pf
    cdef int64_t* ages__pf
    cdef uint8_t* statuses__pf
    cdef uint8_t* known__p
    cdef readonly Py_ssize_t row_count, column_count, ages_at, statuses_at, known_at, byte_count

    def __cinit__(self, Py_ssize_t row_count, Py_ssize_t column_count):
        cdef Py_ssize_t cells = row_count * column_count
        if row_count < 0 or column_count < 0:
            raise ValueError(f"expected no negative counts, got {row_count} and {column_count}")
        self.row_count, self.column_count = row_count, column_count
        self.ages_at = 8 * cells
        self.statuses_at = 16 * cells
        self.known_at = 17 * cells
        self.byte_count = 17 * cells + row_count
        self.data = <uint8_t*> PyMem_Malloc(max(self.byte_count, 1))
        if self.data == NULL:
            raise MemoryError
        memset(self.data, 0, self.byte_count)
        self.values__pf = <double*>self.data
        self.ages__pf = <int64_t*>(self.data + self.ages_at)
        self.statuses__pf = self.data + self.statuses_at
        self.known__p = self.data + self.known_at

    def __dealloc__(self):
        PyMem_Free(self.data)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.byte_count, 0, flags)

    cdef int _check(self, Py_ssize_t row, FeatureColumns which) except -1:
        if not 0 <= row < self.row_count:
            raise IndexError(f"expected a row of 0 to {self.row_count - 1}, got {row}")
        if which.column_end > self.column_count:
            raise IndexError(f"expected columns of 0 to {self.column_count - 1}, got {which.column_end - 1}")
        return 0

    def read(self, Py_ssize_t row, RecordView view not None, FeatureColumns which not None, int64_t at, uint64_t mask):
        """Write the features of a loaded record, read at `at` under `mask`, into one row.

        Numbers are those of `RecordView.read_vector`, as float64. Raises IndexError, and ValueError where the record is
        of another layout.
        """
        if view._layout is not which.layout:
            raise ValueError("expected a record of the layout that the columns were chosen from")
        self._check(row, which)
        self._read(row, view, which, at, mask)

    def read_person(self, Py_ssize_t row, RecordView view not None, bytes stored not None, FeatureColumns which not None,
                    int64_t at, uint64_t always, uint64_t never):
        """Load a stored person, mark the row as known and write it; return the mask it was read under, None for a record of
        another layout, of which nothing is written.

        A person is a head and, where they have several fragments, the list of these. The mask is what is granted or in
        `always`, and neither denied, restricted nor in `never`. Raises RecordError.
        """
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(stored)
        cdef Py_ssize_t length = PyBytes_GET_SIZE(stored), members
        cdef uint64_t mask
        self._check(row, which)
        if length >= 8:
            if data[4] + 256 * data[5] != which.layout.version:
                return None
            members = data[6] + 256 * data[7]
            if members > 1:
                length = max(0, length - 16 * members)
        view._take(which.layout, data, length)
        mask = (view.header.granted | always) & ~view.header.denied & ~view.header.restricted & ~never
        self.known__p[row] = 1
        self._read(row, view, which, at, mask)
        return mask

    cdef void _read(self, Py_ssize_t row, RecordView view, FeatureColumns which, int64_t at, uint64_t mask) noexcept:
        cdef Py_ssize_t c, cell
        cdef const tb_feature* feature
        cdef const uint8_t* block
        cdef uint32_t offset
        cdef uint8_t status
        cdef double value
        for c in range(which.columns__c.shape[0]):
            feature = &which.layout.features[which.indices__c[c]]
            offset = view.offsets__f[which.indices__c[c]]
            block = view.data + offset if offset else NULL
            cell = row * self.column_count + which.columns__c[c]
            value = NAN
            if which.is_number__c[c]:
                status = tb_read_double(feature, block, at, mask, &value)
                if status != TB_FRESH and status != TB_DEFAULTED:
                    value = NAN
            else:
                status = tb_block_status(feature, block, at, mask)
            self.values__pf[cell] = value
            self.statuses__pf[cell] = status
            self.ages__pf[cell] = (-1 if block == NULL or status == TB_MASKED
                                   else tb_age_ms(tb_block_time(feature, block), at))

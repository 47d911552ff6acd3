"""Features of many people as numbers: a row per person, a column per feature."""

cimport cython
from libc.math cimport NAN
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

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

    def __cinit__(self, RecordLayout layout not None, const int32_t[::1] indices not None,
                  const int32_t[::1] columns not None, const uint8_t[::1] is_number not None):
        cdef Py_ssize_t c
        if not indices.shape[0] == columns.shape[0] == is_number.shape[0]:
            raise ValueError(f"expected as many columns and kinds as the {indices.shape[0]} indices, got "
                             f"{columns.shape[0]} and {is_number.shape[0]}")
        for c in range(indices.shape[0]):
            if not 0 <= indices[c] < layout.feature_count:
                raise IndexError(f"expected features of 0 to {layout.feature_count - 1}, got {indices[c]}")
        self.layout = layout
        self.indices__c = indices
        self.columns__c = columns
        self.is_number__c = is_number

    def __len__(self):
        return self.indices__c.shape[0]


@cython.final
cdef class FeatureRows:
    """The arrays that are written, all [person, feature]: `values` (NaN where nothing speaks), `statuses`, `ages` in ms
    (-1 where unknown or masked)."""

    cdef double[:, ::1] values__pf
    cdef uint8_t[:, ::1] statuses__pf
    cdef int64_t[:, ::1] ages__pf

    def __cinit__(self, double[:, ::1] values not None, uint8_t[:, ::1] statuses not None,
                  int64_t[:, ::1] ages not None):
        if not (values.shape[0] == statuses.shape[0] == ages.shape[0]
                and values.shape[1] == statuses.shape[1] == ages.shape[1]):
            raise ValueError("expected values, statuses and ages of one shape")
        self.values__pf = values
        self.statuses__pf = statuses
        self.ages__pf = ages

    def read(self, Py_ssize_t row, RecordView view not None, FeatureColumns which not None, int64_t at,
             uint64_t mask):
        """Write the features of a loaded record, read at `at` under `mask`, into one row.

        Numbers are those of `RecordView.read_vector`, as float64. Raises IndexError, and ValueError where the record is
        of another layout.
        """
        cdef Py_ssize_t c, column
        cdef const tb_feature* feature
        cdef const uint8_t* block
        cdef uint32_t offset
        cdef uint8_t status
        cdef double value
        if view._layout is not which.layout:
            raise ValueError("expected a record of the layout that the columns were chosen from")
        if not 0 <= row < self.values__pf.shape[0]:
            raise IndexError(f"expected a row of 0 to {self.values__pf.shape[0] - 1}, got {row}")
        for c in range(which.columns__c.shape[0]):
            if not 0 <= which.columns__c[c] < self.values__pf.shape[1]:
                raise IndexError(f"expected columns of 0 to {self.values__pf.shape[1] - 1}, got {which.columns__c[c]}")
        for c in range(which.columns__c.shape[0]):
            feature = &which.layout.features[which.indices__c[c]]
            offset = view.offsets__f[which.indices__c[c]]
            block = view.data + offset if offset else NULL
            column = which.columns__c[c]
            value = NAN
            if which.is_number__c[c]:
                status = tb_read_double(feature, block, at, mask, &value)
                if status != TB_FRESH and status != TB_DEFAULTED:
                    value = NAN
            else:
                status = tb_block_status(feature, block, at, mask)
            self.values__pf[row, column] = value
            self.statuses__pf[row, column] = status
            self.ages__pf[row, column] = (-1 if block == NULL or status == TB_MASKED
                                          else tb_age_ms(tb_block_time(feature, block), at))

"""Regression trees, summed: from each root down, left where the input is at most the threshold."""

cimport cython
from libc.math cimport isnan
from libc.stdint cimport int32_t, uint8_t


@cython.final
cdef class Trees:
    """Trees over a row of inputs; made once per model.

    Of node n: `inputs[n]` is the column compared, `thresholds[n]` with what, `left[n]` and `right[n]` where to go: a node, or,
    below zero, ~leaf. NaN goes left where `missing_left[n]`. `roots` are nodes or ~leaves, `leaves` the values that are added.
    Children come after their parents. Raises ValueError for what is no such thing.
    """

    cdef const int32_t[::1] roots__t, inputs__n, left__n, right__n
    cdef const double[::1] thresholds__n, leaves__l
    cdef const uint8_t[::1] missing_left__n
    cdef readonly int input_count

    def __cinit__(self, int input_count, const int32_t[::1] roots not None, const int32_t[::1] inputs not None,
                  const double[::1] thresholds not None, const int32_t[::1] left not None,
                  const int32_t[::1] right not None, const uint8_t[::1] missing_left not None,
                  const double[::1] leaves not None):
        cdef Py_ssize_t n, count = inputs.shape[0]
        if not count == thresholds.shape[0] == left.shape[0] == right.shape[0] == missing_left.shape[0]:
            raise ValueError(f"expected {count} of everything a node has")
        for n in range(roots.shape[0]):
            if not -leaves.shape[0] <= roots[n] < count:
                raise ValueError(f"expected roots among {count} nodes and {leaves.shape[0]} leaves, got {roots[n]}")
        for n in range(count):
            if not 0 <= inputs[n] < input_count:
                raise ValueError(f"expected inputs of 0 to {input_count - 1}, got {inputs[n]} in node {n}")
            for child in (left[n], right[n]):
                if not (n < child < count or -leaves.shape[0] <= child < 0):
                    raise ValueError(f"expected a later node or one of {leaves.shape[0]} leaves behind node {n}, got {child}")
        self.input_count = input_count
        self.roots__t, self.inputs__n, self.thresholds__n = roots, inputs, thresholds
        self.left__n, self.right__n, self.missing_left__n, self.leaves__l = left, right, missing_left, leaves

    def total(self, const double[:, ::1] rows not None, double[::1] out not None):
        """Write the sum over all trees, in their order, of each row of inputs [row, input]."""
        cdef Py_ssize_t r, t
        cdef int32_t node
        cdef double value, total
        if rows.shape[1] != self.input_count or out.shape[0] != rows.shape[0]:
            raise ValueError(f"expected {self.input_count} inputs and a place for each row, got {rows.shape[1]} and "
                             f"{out.shape[0]} for {rows.shape[0]}")
        with nogil:
            for r in range(rows.shape[0]):
                total = 0.0
                for t in range(self.roots__t.shape[0]):
                    node = self.roots__t[t]
                    while node >= 0:
                        value = rows[r, self.inputs__n[node]]
                        if value <= self.thresholds__n[node] or (isnan(value) and self.missing_left__n[node]):
                            node = self.left__n[node]
                        else:
                            node = self.right__n[node]
                    total += self.leaves__l[-1 - node]
                out[r] = total

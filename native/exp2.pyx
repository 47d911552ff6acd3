"""The engine's own 2^x and log2 x over arrays: exp2.h has method and error. For tests and for matching exports."""

cdef extern from "exp2.h" nogil:
    double tb_exp2(double x) noexcept
    double tb_log2(double x) noexcept


def exp2(const double[::1] exponents not None, double[::1] out not None):
    """Write 2^x of each exponent to `out`; same length, else ValueError. May be done in place."""
    cdef Py_ssize_t i, count = exponents.shape[0]
    if out.shape[0] != count:
        raise ValueError(f"expected {count} places in out, got {out.shape[0]}")
    with nogil:
        for i in range(count):
            out[i] = tb_exp2(exponents[i])


def log2(const double[::1] numbers not None, double[::1] out not None):
    """Write log2 x of each number to `out`; same length, else ValueError. May be done in place."""
    cdef Py_ssize_t i, count = numbers.shape[0]
    if out.shape[0] != count:
        raise ValueError(f"expected {count} places in out, got {out.shape[0]}")
    with nogil:
        for i in range(count):
            out[i] = tb_log2(numbers[i])

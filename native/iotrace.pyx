"""The recorder of a process's file operations: preloaded, not called (iotrace.h says how); from Python only to set marks."""

cdef extern from "iotrace.h" nogil:
    int tb_is_active() noexcept
    void tb_mark(const char* data, Py_ssize_t length) noexcept


def active() -> bool:
    """Tell whether this process was started with the recorder preloaded. Always False outside Linux."""
    return tb_is_active() != 0


def mark(data: bytes) -> None:
    """Put `data` into the trace, in order with the operations recorded. Raises `RuntimeError` when none is being made."""
    if not tb_is_active():
        raise RuntimeError("expected a process started with this library in LD_PRELOAD; nothing is being recorded")
    tb_mark(data, len(data))

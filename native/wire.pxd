"""Item ids as they came over the wire, for the extensions that look them up."""

cdef class Ids:
    cdef bytes data           # owns the texts
    cdef const char** texts   # count pointers into data, valid UTF-8, then as many lengths
    cdef size_t* lengths
    cdef Py_ssize_t count
    cdef Py_ssize_t room

    cdef int _add(self, const char* text, size_t length) except -1

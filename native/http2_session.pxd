"""What both ends of a gRPC connection share: streams, messages in and out, libnghttp2's memory input and output."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcmp
from tailorbird.native.nghttp2 cimport *

cdef extern from "messages.h" nogil:
    ctypedef struct tb_cursor:
        const uint8_t* at
        const uint8_t* end

    ctypedef struct tb_message_reader:
        uint8_t compressed
        uint32_t have

    int TB_PREFIX_BYTES
    int TB_MESSAGE_MORE, TB_MESSAGE_WHOLE, TB_MESSAGE_TOO_LARGE, TB_MESSAGE_BAD_FLAG, TB_MESSAGE_NO_MEMORY
    void tb_message_free(tb_message_reader*) noexcept
    int tb_message_between(const tb_message_reader*) noexcept
    int tb_message_read(tb_message_reader*, tb_cursor*, uint32_t, const uint8_t**, uint32_t*) noexcept
    int64_t tb_timeout_ns(const uint8_t*, size_t) noexcept

cdef enum:
    EVENT_CALL, EVENT_MESSAGE, EVENT_END, EVENT_RESET, EVENT_FAULT, EVENT_DRAINED, EVENT_PONG
    EVENT_INITIAL, EVENT_DONE, EVENT_GOAWAY

cdef enum:
    FAULT_NONE, FAULT_METHOD, FAULT_CONTENT_TYPE, FAULT_PATH, FAULT_HEADERS, FAULT_TIMEOUT, FAULT_METADATA
    FAULT_ENCODING, FAULT_TOO_LARGE, FAULT_FRAMING, FAULT_COMPRESSION, FAULT_COUNT, FAULT_BUFFERS

cdef enum:
    ENCODING_IDENTITY, ENCODING_GZIP, ENCODING_DEFLATE, ENCODING_UNKNOWN

ctypedef struct Rate:
    double since_s
    int count
    int count_max


cdef inline bint is_(const uint8_t* bytes, size_t length, const char* text, size_t text_length) noexcept nogil:
    return length == text_length and memcmp(bytes, text, length) == 0


cdef inline bint exceeds(Rate* rate, double now_s) noexcept nogil:
    """Count one more; tell whether that is too many for the second that is running."""
    if now_s - rate.since_s >= 1.0:
        rate.since_s = now_s
        rate.count = 0
    rate.count += 1
    return rate.count > rate.count_max


cdef inline void put(nghttp2_nv* nv, const char* name, size_t name_length, const char* value, size_t length,
                     int flags) noexcept nogil:
    nv.name = <uint8_t*> name
    nv.namelen = name_length
    nv.value = <uint8_t*> value
    nv.valuelen = length
    nv.flags = <uint8_t> flags


cdef inline int check(int status) except -1:
    """Raise for what libnghttp2 refuses of us: out of memory, or a misuse that is our bug."""
    if status == NGHTTP2_ERR_NOMEM:
        raise MemoryError
    if status < 0:
        raise RuntimeError(f"libnghttp2 refused: {nghttp2_strerror(status).decode()}")
    return 0


cdef inline Stream stream_of(nghttp2_session* session, int32_t stream_id):
    cdef void* found = nghttp2_session_get_stream_user_data(session, stream_id)
    return None if found == NULL else <Stream> found


@cython.final
@cython.freelist(64)
cdef class Stream:
    cdef int32_t id
    cdef object method
    cdef list metadata
    cdef bytes message
    cdef tb_message_reader reader
    cdef int64_t timeout_ns
    cdef size_t header_bytes
    cdef size_t held_bytes         # received, and not yet given back to the peer's window
    cdef int untaken_count         # messages the handler has not taken
    cdef int encoding, fault
    cdef int http_status           # of an answer; 0 before it came
    cdef size_t dropped_bytes
    cdef bint waits                # its fault is told at the end of the request
    cdef bint single, is_post, is_grpc, called, ended, is_head, is_plain
    cdef bint deaf                 # what still arrives is dropped
    cdef list outgoing             # framed messages; the first is sent up to `out_offset`
    cdef Py_ssize_t out_offset, out_bytes
    cdef bytes status, status_message
    cdef list initial, trailers
    cdef bint begun, finished, deferred, wakes


cdef class Session:
    cdef nghttp2_session* session
    cdef dict streams
    cdef list events
    cdef object failure
    cdef uint32_t message_bytes_max
    cdef size_t buffered_bytes_max, buffered_bytes, frame_data_bytes
    cdef Py_ssize_t drain_bytes
    cdef double now_s
    cdef char* out
    cdef Py_ssize_t out_capacity

    cdef int fault(self, Stream stream, int fault, object detail) except -1
    cdef int read(self, Stream stream, const uint8_t* data, size_t length) except -1
    cdef void forget(self, Stream stream) noexcept
    cdef bytes plain(self, Stream stream, bytes message)
    cdef int queue(self, Stream stream, bytes message) except -1
    cdef int resume(self, Stream stream) except -1
    cdef Py_ssize_t fill(self, Stream stream, uint8_t* buffer, Py_ssize_t room) except -1


cdef nghttp2_session_callbacks* new_callbacks() except NULL
cdef int add_metadata(list pairs, const uint8_t* name, size_t name_length, const uint8_t* value,
                      size_t length) except -1
cdef size_t put_metadata(nghttp2_nv* headers, list pairs, list kept) except? 0

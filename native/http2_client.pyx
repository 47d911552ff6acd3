"""An HTTP/2 client session that speaks gRPC, on libnghttp2: calls in, bytes out; bytes in, events out.

`receive` takes what a socket gave and returns what it means, a list of tuples that begin with their kind:

    (INITIAL, stream_id, metadata)                        of a call with a stream of answers: its headers came
    (MESSAGE, stream_id, message)                         one answer of such a call
    (DONE, stream_id, http_status, code, details, initial, trailing, message, error_code)
                                                          the call ended: `code` is gRPC's, -1 where none came; `message`
                                                          is the answer of a call that has one; `error_code` is HTTP/2's
                                                          where the stream was reset, else 0
    (FAULT, stream_id, fault, detail)                     the answer breaks a rule, kinds as of `http2`; cancel the call
    (DRAINED, stream_id)                                  requests that wait are fewer than `drain_bytes` again
    (GOAWAY, last_stream_id, error_code)                  the peer takes no more calls
    (PONG, 0)                                             the peer has read all that was sent before `ping`

`pull` returns what is to be written, `more_events` what came of that. A call past the peer's limit of streams waits here
until there is room. The session does no I/O and keeps no clock; bounds are those of `http2`.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport ceil
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from tailorbird.native.http2_session cimport *
from tailorbird.native.nghttp2 cimport *

from urllib.parse import unquote_to_bytes

from tailorbird.native.http2_session import ProtocolError

MESSAGE, FAULT, DRAINED, PONG = EVENT_MESSAGE, EVENT_FAULT, EVENT_DRAINED, EVENT_PONG
INITIAL, DONE, GOAWAY = EVENT_INITIAL, EVENT_DONE, EVENT_GOAWAY

MESSAGE_TOO_LARGE, BUFFERS_FULL, HEADERS_TOO_LARGE = FAULT_TOO_LARGE, FAULT_BUFFERS, FAULT_HEADERS
REFUSED_STREAM, CANCEL = NGHTTP2_REFUSED_STREAM, NGHTTP2_CANCEL
# How many pairs of metadata a call may carry.
PAIRS_MAX = 16

cdef int NV_STATIC = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE
cdef int NV_NAMED = NGHTTP2_NV_FLAG_NO_COPY_NAME
cdef size_t HEADER_OVERHEAD_BYTES = 32


def timeout_text(double remaining_s):
    """Return a grpc-timeout: at most 8 digits, rounded up to milliseconds, never less than one.

    Calls that are given the same time then say so in the same bytes, which HTTP/2 sends as one reference.
    """
    cdef double milliseconds = max(1.0, ceil(remaining_s * 1e3))
    if milliseconds < 1e8:
        return b"%dm" % <int64_t> milliseconds
    return b"%dS" % <int64_t> min(milliseconds / 1e3, 99_999_999.0)


@cython.final
cdef class ClientSession(Session):
    """One connection to `authority`; `scheme` is b"http" or b"https"."""

    cdef bytes authority, scheme, agent
    cdef size_t header_bytes_max

    def __cinit__(self, *, bytes authority not None, bytes scheme not None, bytes agent not None,
                  uint32_t message_bytes_max, uint32_t header_bytes_max, int32_t window_bytes,
                  size_t buffered_bytes_max, Py_ssize_t drain_bytes):
        cdef nghttp2_session_callbacks* callbacks = new_callbacks()
        cdef nghttp2_option* option = NULL
        cdef nghttp2_settings_entry entries[3]
        cdef int status
        self.authority, self.scheme, self.agent = authority, scheme, agent
        self.message_bytes_max, self.header_bytes_max = message_bytes_max, header_bytes_max
        self.buffered_bytes_max, self.drain_bytes = buffered_bytes_max, drain_bytes
        if nghttp2_option_new(&option) != 0:
            nghttp2_session_callbacks_del(callbacks)
            raise MemoryError
        nghttp2_option_set_no_auto_window_update(option, 1)
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, _on_frame)
        nghttp2_session_callbacks_set_on_header_callback(callbacks, _on_header)
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, _on_close)
        nghttp2_session_callbacks_set_on_frame_not_send_callback(callbacks, _on_unsent)
        status = nghttp2_session_client_new2(&self.session, callbacks, <void*> self, option)
        nghttp2_option_del(option)
        nghttp2_session_callbacks_del(callbacks)
        if status != 0:
            raise MemoryError
        entries[0].settings_id, entries[0].value = NGHTTP2_SETTINGS_ENABLE_PUSH, 0
        entries[1].settings_id, entries[1].value = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window_bytes
        entries[2].settings_id, entries[2].value = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, header_bytes_max
        check(nghttp2_submit_settings(self.session, NGHTTP2_FLAG_NONE, entries, 3))
        check(nghttp2_session_set_local_window_size(self.session, NGHTTP2_FLAG_NONE, 0, max(window_bytes, 1 << 20)))

    # ---- calls -------------------------------------------------------------------------------------------------------

    @property
    def can_request(self):
        """Whether the peer takes more calls on this connection."""
        return nghttp2_session_check_request_allowed(self.session) != 0

    def request(self, bytes path not None, list metadata not None, bytes timeout, bytes message, *, bint single,
                bint last):
        """Begin a call and return its stream's id. `single`: it has exactly one answer; `last`: no message follows.

        `metadata` are (name, value) in bytes, -bin values as they are; `timeout` as a grpc-timeout has it, or None.
        Raises ValueError for more than PAIRS_MAX of metadata, RuntimeError where `can_request` is false.
        """
        cdef nghttp2_nv headers[25]
        cdef nghttp2_data_provider provider
        cdef list kept = []
        cdef size_t count = 8
        cdef int32_t stream_id
        cdef Stream stream
        if len(metadata) > PAIRS_MAX:
            raise ValueError(f"expected at most {PAIRS_MAX} pairs of metadata, got {len(metadata)}")
        stream = Stream.__new__(Stream)
        stream.single, stream.finished = single, last
        put(&headers[0], b":method", 7, b"POST", 4, NV_STATIC)
        put(&headers[1], b":scheme", 7, PyBytes_AS_STRING(self.scheme), PyBytes_GET_SIZE(self.scheme), NV_NAMED)
        put(&headers[2], b":path", 5, PyBytes_AS_STRING(path), PyBytes_GET_SIZE(path), NV_NAMED)
        put(&headers[3], b":authority", 10, PyBytes_AS_STRING(self.authority), PyBytes_GET_SIZE(self.authority), NV_NAMED)
        put(&headers[4], b"content-type", 12, b"application/grpc", 16, NV_STATIC)
        put(&headers[5], b"te", 2, b"trailers", 8, NV_STATIC)
        put(&headers[6], b"user-agent", 10, PyBytes_AS_STRING(self.agent), PyBytes_GET_SIZE(self.agent), NV_NAMED)
        put(&headers[7], b"grpc-accept-encoding", 20, b"identity,deflate,gzip", 21, NV_STATIC)
        if timeout is not None:
            put(&headers[8], b"grpc-timeout", 12, PyBytes_AS_STRING(timeout), PyBytes_GET_SIZE(timeout), NV_NAMED)
            count = 9
        if metadata:
            count += put_metadata(headers + count, metadata, kept)
        if message is not None:
            self.queue(stream, message)
        provider.source.ptr = <void*> stream
        provider.read_callback = _on_read
        stream_id = nghttp2_submit_request(self.session, NULL, headers, count, &provider, <void*> stream)
        check(stream_id)
        stream.id = stream_id
        self.streams[stream_id] = stream
        return stream_id

    def send(self, int32_t stream_id, bytes message not None):
        """Queue one request more; tell whether `drain_bytes` or more wait now, and hence a DRAINED follows."""
        cdef Stream stream = self.streams.get(stream_id)
        if stream is None or stream.finished:
            return False
        self.queue(stream, message)
        self.resume(stream)
        stream.wakes = stream.out_bytes >= self.drain_bytes
        return stream.wakes

    def end(self, int32_t stream_id):
        """Tell that no request follows."""
        cdef Stream stream = self.streams.get(stream_id)
        if stream is not None and not stream.finished:
            stream.finished = True
            self.resume(stream)

    def cancel(self, int32_t stream_id):
        """Give a call up; nothing more is told of it."""
        cdef Stream stream = self.streams.get(stream_id)
        if stream is not None and not stream.ended:
            stream.ended = stream.deaf = True
            self.forget(stream)
            check(nghttp2_submit_rst_stream(self.session, NGHTTP2_FLAG_NONE, stream_id, NGHTTP2_CANCEL))

    def leave(self):
        """Say goodbye and give all calls up."""
        check(nghttp2_session_terminate_session(self.session, NGHTTP2_NO_ERROR))

    # ---- what comes in -----------------------------------------------------------------------------------------------

    cdef int header(self, Stream stream, const uint8_t* name, size_t name_length, const uint8_t* value,
                    size_t length) except -1:
        stream.header_bytes += name_length + length + HEADER_OVERHEAD_BYTES
        if stream.header_bytes > self.header_bytes_max:
            return self.fault(stream, FAULT_HEADERS, stream.header_bytes)
        if is_(name, name_length, b":status", 7):
            stream.http_status = int(PyBytes_FromStringAndSize(<const char*> value, length))
            return 0
        if is_(name, name_length, b"content-type", 12):
            return 0
        if is_(name, name_length, b"grpc-status", 11):
            stream.status = PyBytes_FromStringAndSize(<const char*> value, length)
            return 0
        if is_(name, name_length, b"grpc-message", 12):
            stream.status_message = PyBytes_FromStringAndSize(<const char*> value, length)
            return 0
        if is_(name, name_length, b"grpc-encoding", 13):
            if is_(value, length, b"gzip", 4):
                stream.encoding = ENCODING_GZIP
            elif is_(value, length, b"deflate", 7):
                stream.encoding = ENCODING_DEFLATE
            return 0
        if is_(name, name_length, b"grpc-accept-encoding", 20):
            return 0
        if stream.metadata is None:
            stream.metadata = []
        try:
            add_metadata(stream.metadata, name, name_length, value, length)
        except ValueError:
            self.fault(stream, FAULT_METADATA, None)
        return 0

    cdef int headers_end(self, Stream stream, bint is_last) except -1:
        """A block of headers is whole."""
        if stream.called:
            stream.trailers, stream.metadata = stream.metadata, None
        elif 100 <= stream.http_status < 200:
            stream.metadata = None
        else:
            stream.called = True
            if is_last:  # no answers: what came are trailers
                stream.trailers, stream.metadata = stream.metadata, None
            else:
                stream.initial, stream.metadata = stream.metadata, None
                if not stream.single and not stream.deaf:
                    self.events.append((EVENT_INITIAL, stream.id, pairs_of(stream.initial)))
        return 0

    cdef int done(self, Stream stream, uint32_t error_code) except -1:
        """Tell how a call ended, once."""
        cdef int code = -1
        if stream.ended:
            return 0
        stream.ended = stream.deaf = True
        if stream.status is not None:
            try:
                code = int(stream.status)
            except ValueError:
                code = 2
        details = ""
        if stream.status_message is not None:
            details = unquote_to_bytes(stream.status_message).decode("utf-8", "replace")
        message, stream.message = stream.message, None
        if message is not None:
            self.buffered_bytes -= PyBytes_GET_SIZE(message)
        self.forget(stream)
        self.events.append((EVENT_DONE, stream.id, stream.http_status, code, details, pairs_of(stream.initial),
                            pairs_of(stream.trailers), message, error_code))
        return 0

    cdef ssize_t write(self, Stream stream, uint8_t* buffer, size_t length, uint32_t* flags) except? -1:
        cdef Py_ssize_t size = self.fill(stream, buffer, <Py_ssize_t> length)
        if stream.out_bytes == 0:
            if stream.finished:
                flags[0] |= NGHTTP2_DATA_FLAG_EOF
            elif size == 0:
                stream.deferred = True
                return NGHTTP2_ERR_DEFERRED
        return size


cdef tuple pairs_of(list metadata):
    return () if metadata is None else tuple(metadata)


# ---- libnghttp2's callbacks: none may raise, so what goes wrong is kept and raised where the session was entered -----


cdef int _on_header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t name_length,
                    const uint8_t* value, size_t length, uint8_t flags, void* data) noexcept:
    cdef ClientSession self = <ClientSession> data
    cdef Stream stream
    try:
        stream = stream_of(session, frame.hd.stream_id)
        if stream is not None and not stream.deaf:
            self.header(stream, name, name_length, value, length)
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int _on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* data) noexcept:
    cdef ClientSession self = <ClientSession> data
    cdef Stream stream
    cdef int kind = frame.hd.type
    cdef bint is_last = frame.hd.flags & NGHTTP2_FLAG_END_STREAM
    try:
        if kind == NGHTTP2_DATA or kind == NGHTTP2_HEADERS:
            stream = stream_of(session, frame.hd.stream_id)
            if stream is None:
                return 0
            if kind == NGHTTP2_HEADERS:
                self.headers_end(stream, is_last)
            if is_last:
                if not stream.deaf and not tb_message_between(&stream.reader):
                    self.fault(stream, FAULT_FRAMING, None)
                if not stream.deaf:
                    self.done(stream, 0)
                    if not stream.finished:
                        # Answered before our last request: the rest need not be sent.
                        check(nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, stream.id, NGHTTP2_CANCEL))
        elif kind == NGHTTP2_PING:
            if frame.hd.flags & NGHTTP2_FLAG_ACK:
                self.events.append((EVENT_PONG, 0))
        elif kind == NGHTTP2_GOAWAY:
            self.events.append((EVENT_GOAWAY, frame.goaway.last_stream_id, frame.goaway.error_code))
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int _on_close(nghttp2_session* session, int32_t stream_id, uint32_t error_code, void* data) noexcept:
    cdef ClientSession self = <ClientSession> data
    cdef Stream stream
    try:
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            self.done(stream, error_code)
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int _on_unsent(nghttp2_session* session, const nghttp2_frame* frame, int why, void* data) noexcept:
    """A call that was still waiting for room when it was given up, or when the peer stopped taking calls."""
    cdef ClientSession self = <ClientSession> data
    cdef Stream stream
    if frame.hd.type != NGHTTP2_HEADERS:
        return 0
    try:
        stream = self.streams.pop(frame.hd.stream_id, None)
        if stream is not None:
            self.done(stream, NGHTTP2_REFUSED_STREAM)
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef ssize_t _on_read(nghttp2_session* session, int32_t stream_id, uint8_t* buffer, size_t length, uint32_t* flags,
                      nghttp2_data_source* source, void* data) noexcept:
    cdef ClientSession self = <ClientSession> data
    try:
        return self.write(<Stream> source.ptr, buffer, length, flags)
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE

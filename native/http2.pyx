"""An HTTP/2 server session that speaks gRPC, on libnghttp2: bytes in, events out; answers in, bytes out.

`receive` takes what a socket gave and returns what it means, a list of tuples that begin with their kind:

    (CALL, stream_id, method, metadata, timeout_ns, message)  timeout_ns is -1 without one; a call of one request comes
                                                              whole, of others message is None and more events follow
    (MESSAGE, stream_id, message)   and (END, stream_id)      of a call with a stream of requests
    (RESET, stream_id, error_code)                            the peer gave up; nothing can be sent any more
    (FAULT, stream_id, fault, detail)                         the request breaks a rule; answer it with a status
    (DRAINED, stream_id)                                      answers that wait are fewer than `drain_bytes` again
    (PONG, 0)                                                 the peer has read all that was sent before `ping`

The events are the same however the bytes are cut. `pull` returns what is to be written, one piece for whatever is
ready; `more_events` what came of that. The session never calls into the server, and keeps no clock: `receive` is told the time.

Memory is bounded: a message by `message_bytes_max`, all unfinished ones of a connection by `buffered_bytes_max`, those
a handler has not taken by `window_bytes` a stream (the window opens again as they are taken), answers by whoever calls
`send` and looks at what it returns.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memset
from tailorbird.native.nghttp2 cimport *

import base64
import binascii
import zlib

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

CALL, MESSAGE, END, RESET, FAULT, DRAINED, PONG = range(7)
cdef int _CALL = 0, _MESSAGE = 1, _END = 2, _RESET = 3, _FAULT = 4, _DRAINED = 5, _PONG = 6

cdef enum:
    FAULT_NONE, FAULT_METHOD, FAULT_CONTENT_TYPE, FAULT_PATH, FAULT_HEADERS, FAULT_TIMEOUT, FAULT_METADATA
    FAULT_ENCODING, FAULT_TOO_LARGE, FAULT_FRAMING, FAULT_COMPRESSION, FAULT_COUNT, FAULT_BUFFERS

WRONG_METHOD, WRONG_CONTENT_TYPE, UNKNOWN_PATH = FAULT_METHOD, FAULT_CONTENT_TYPE, FAULT_PATH
HEADERS_TOO_LARGE, BAD_TIMEOUT, BAD_METADATA = FAULT_HEADERS, FAULT_TIMEOUT, FAULT_METADATA
UNKNOWN_ENCODING, MESSAGE_TOO_LARGE, BAD_FRAMING = FAULT_ENCODING, FAULT_TOO_LARGE, FAULT_FRAMING
BAD_COMPRESSION, WRONG_COUNT, BUFFERS_FULL = FAULT_COMPRESSION, FAULT_COUNT, FAULT_BUFFERS

cdef enum:
    ENCODING_IDENTITY, ENCODING_GZIP, ENCODING_DEFLATE, ENCODING_UNKNOWN

# A window of zlib's largest size, in gzip's and in zlib's own wrapping.
cdef int GZIP_WBITS = 31, DEFLATE_WBITS = 15
cdef Py_ssize_t OUT_BYTES_MIN = 32 * 1024
cdef Py_ssize_t TRAILERS_MAX = 16
cdef int NV_STATIC = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE
# RFC 9113, 4.1: what each header weighs beside its bytes.
cdef size_t HEADER_OVERHEAD_BYTES = 32

ctypedef struct Rate:
    double since_s
    int count
    int count_max


class ProtocolError(Exception):
    """The peer does not speak HTTP/2; `is_magic` tells that it never began to."""

    def __init__(self, message, is_magic):
        super().__init__(message)
        self.is_magic = is_magic


cdef bint _is(const uint8_t* bytes, size_t length, const char* text, size_t text_length) noexcept nogil:
    return length == text_length and memcmp(bytes, text, length) == 0


cdef bint _is_grpc(const uint8_t* value, size_t length) noexcept nogil:
    if length < 16 or memcmp(value, b"application/grpc", 16) != 0:
        return False
    return length == 16 or value[16] == c'+' or value[16] == c';'


cdef bint _exceeds(Rate* rate, double now_s) noexcept nogil:
    """Count one more; tell whether that is too many for the second that is running."""
    if now_s - rate.since_s >= 1.0:
        rate.since_s = now_s
        rate.count = 0
    rate.count += 1
    return rate.count > rate.count_max


cdef void _put(nghttp2_nv* nv, const char* name, size_t name_length, const char* value, size_t length,
               int flags) noexcept nogil:
    nv.name = <uint8_t*> name
    nv.namelen = name_length
    nv.value = <uint8_t*> value
    nv.valuelen = length
    nv.flags = <uint8_t> flags


cdef bytes _framed(bytes message):
    """Return a message behind its prefix, not compressed."""
    cdef Py_ssize_t length = PyBytes_GET_SIZE(message)
    if length > 0xFFFFFFFF:
        raise ValueError(f"expected an answer under 4 GiB, got {length} bytes; send several smaller ones")
    cdef bytes framed = PyBytes_FromStringAndSize(NULL, length + TB_PREFIX_BYTES)
    cdef uint8_t* out = <uint8_t*> PyBytes_AS_STRING(framed)
    out[0] = 0
    out[1] = <uint8_t> (length >> 24)
    out[2] = <uint8_t> (length >> 16)
    out[3] = <uint8_t> (length >> 8)
    out[4] = <uint8_t> length
    memcpy(out + TB_PREFIX_BYTES, PyBytes_AS_STRING(message), length)
    return framed


@cython.final
@cython.freelist(64)
cdef class _Stream:
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
    cdef bint single, is_post, is_grpc, called, faulted, ended
    cdef list outgoing             # framed messages; the first is sent up to `out_offset`
    cdef Py_ssize_t out_offset, out_bytes
    cdef bytes status, status_message
    cdef list trailers
    cdef bint begun, finished, deferred, wakes

    def __cinit__(self):
        memset(&self.reader, 0, sizeof(tb_message_reader))
        self.timeout_ns = -1

    def __dealloc__(self):
        tb_message_free(&self.reader)


@cython.final
cdef class ServerSession:
    """One connection. `methods` maps a path to (whether a call has exactly one request, what CALL events carry).

    Rates are counts a second, past which the peer is told ENHANCE_YOUR_CALM and the connection ends: resets of streams
    by either side, settings, pings, and frames that do nothing (empty data, priorities).
    """

    cdef nghttp2_session* session
    cdef dict methods, streams
    cdef list events
    cdef object failure
    cdef uint32_t message_bytes_max
    cdef size_t header_bytes_max, buffered_bytes_max, buffered_bytes, frame_data_bytes
    cdef Py_ssize_t drain_bytes
    cdef double now_s
    cdef Rate resets, settings, pings, idle_frames
    cdef char* out
    cdef Py_ssize_t out_capacity
    cdef bint calmed
    cdef bytes agent
    cdef tuple agent_pair

    def __cinit__(self, dict methods not None, *, uint32_t message_bytes_max, uint32_t streams_max,
                  uint32_t header_bytes_max, int32_t window_bytes, size_t buffered_bytes_max, Py_ssize_t drain_bytes,
                  int continuations_max, int resets_per_s_max, int settings_per_s_max, int pings_per_s_max,
                  int idle_frames_per_s_max):
        cdef nghttp2_session_callbacks* callbacks = NULL
        cdef nghttp2_option* option = NULL
        cdef nghttp2_settings_entry entries[3]
        cdef int status
        self.methods, self.streams, self.events = methods, {}, []
        self.message_bytes_max, self.header_bytes_max = message_bytes_max, header_bytes_max
        self.buffered_bytes_max, self.drain_bytes = buffered_bytes_max, drain_bytes
        self.resets.count_max, self.settings.count_max = resets_per_s_max, settings_per_s_max
        self.pings.count_max, self.idle_frames.count_max = pings_per_s_max, idle_frames_per_s_max
        if nghttp2_session_callbacks_new(&callbacks) != 0:
            raise MemoryError
        if nghttp2_option_new(&option) != 0:
            nghttp2_session_callbacks_del(callbacks)
            raise MemoryError
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, _on_frame)
        nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, _on_sent)
        nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, _on_begin_frame)
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, _on_begin_headers)
        nghttp2_session_callbacks_set_on_header_callback(callbacks, _on_header)
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, _on_data)
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, _on_close)
        nghttp2_option_set_no_auto_window_update(option, 1)
        nghttp2_option_set_no_closed_streams(option, 1)
        nghttp2_option_set_max_continuations(option, continuations_max)
        nghttp2_option_set_stream_reset_rate_limit(option, resets_per_s_max, resets_per_s_max)
        status = nghttp2_session_server_new2(&self.session, callbacks, <void*> self, option)
        nghttp2_option_del(option)
        nghttp2_session_callbacks_del(callbacks)
        if status != 0:
            raise MemoryError
        entries[0].settings_id, entries[0].value = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, streams_max
        entries[1].settings_id, entries[1].value = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window_bytes
        entries[2].settings_id, entries[2].value = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, header_bytes_max
        _check(nghttp2_submit_settings(self.session, NGHTTP2_FLAG_NONE, entries, 3))
        # The connection's window is given back at once and is no bound; that of each stream is.
        _check(nghttp2_session_set_local_window_size(self.session, NGHTTP2_FLAG_NONE, 0, max(window_bytes, 1 << 20)))

    def __dealloc__(self):
        nghttp2_session_del(self.session)
        free(self.out)

    # ---- what comes in -----------------------------------------------------------------------------------------------

    def receive(self, const uint8_t[::1] data not None, double now_s):
        """Return the events in `data`, which came at `now_s` of any steady clock. Raises ProtocolError."""
        cdef ssize_t status
        self.now_s = now_s
        if data.shape[0] == 0:
            return []
        status = nghttp2_session_mem_recv(self.session, &data[0], data.shape[0])
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if status < 0:
            raise ProtocolError(nghttp2_strerror(<int> status).decode(), status == NGHTTP2_ERR_BAD_CLIENT_MAGIC)
        events, self.events = self.events, []
        return events

    def take(self, int32_t stream_id):
        """Tell that a handler took a message of the stream: what came behind it is given back to the peer's window."""
        cdef _Stream stream = self.streams.get(stream_id)
        if stream is None or stream.untaken_count == 0:
            return
        stream.untaken_count -= 1
        if stream.untaken_count == 0 and stream.held_bytes != 0:
            _check(nghttp2_session_consume_stream(self.session, stream_id, stream.held_bytes))
            stream.held_bytes = 0

    cdef int begin(self, _Stream stream) except -1:
        """A request's headers are whole: find its method, or the rule it breaks."""
        if not stream.is_post:
            return self.fault(stream, FAULT_METHOD, None)
        if not stream.is_grpc:
            return self.fault(stream, FAULT_CONTENT_TYPE, None)
        if stream.header_bytes > self.header_bytes_max:
            return self.fault(stream, FAULT_HEADERS, stream.header_bytes)
        if stream.method is None:
            return self.fault(stream, FAULT_PATH, None)
        if stream.fault != FAULT_NONE:
            return self.fault(stream, stream.fault, None)
        if stream.encoding == ENCODING_UNKNOWN:
            return self.fault(stream, FAULT_ENCODING, None)
        if not stream.single:
            self.call(stream, None)
        return 0

    cdef int call(self, _Stream stream, bytes message) except -1:
        cdef tuple metadata = () if stream.metadata is None else tuple(stream.metadata)
        stream.called = True
        self.events.append((_CALL, stream.id, stream.method, metadata, stream.timeout_ns, message))
        return 0

    cdef int fault(self, _Stream stream, int fault, object detail) except -1:
        if not stream.faulted and not stream.finished:
            stream.faulted = True
            self.forget(stream)
            self.events.append((_FAULT, stream.id, fault, detail))
        return 0

    cdef int read(self, _Stream stream, const uint8_t* data, size_t length) except -1:
        """Find the messages in a piece of a stream's data."""
        cdef tb_cursor cursor
        cdef const uint8_t* found = NULL
        cdef uint32_t found_bytes = 0, before
        cdef int status
        cdef bytes message
        cursor.at, cursor.end = data, data + length
        while not stream.faulted:
            before = stream.reader.have
            status = tb_message_read(&stream.reader, &cursor, self.message_bytes_max, &found, &found_bytes)
            if status == TB_MESSAGE_MORE:
                # Of a message that has just begun `have` is 0 only while its prefix is on the way.
                self.buffered_bytes += stream.reader.have - before
                if self.buffered_bytes > self.buffered_bytes_max:
                    self.fault(stream, FAULT_BUFFERS, self.buffered_bytes)
                return 0
            if status == TB_MESSAGE_TOO_LARGE:
                return self.fault(stream, FAULT_TOO_LARGE, found_bytes)
            if status == TB_MESSAGE_BAD_FLAG:
                return self.fault(stream, FAULT_FRAMING, None)
            if status == TB_MESSAGE_NO_MEMORY:
                raise MemoryError
            message = PyBytes_FromStringAndSize(<const char*> found, found_bytes)
            self.buffered_bytes -= before
            compressed = stream.reader.compressed
            tb_message_free(&stream.reader)
            if compressed:
                message = self.plain(stream, message)
                if message is None:
                    return 0
            if not stream.single:
                stream.untaken_count += 1
                self.events.append((_MESSAGE, stream.id, message))
            elif stream.message is not None:
                return self.fault(stream, FAULT_COUNT, None)
            else:
                stream.message = message
                self.buffered_bytes += PyBytes_GET_SIZE(message)
        return 0

    cdef void forget(self, _Stream stream) noexcept:
        """Drop what has arrived of a request."""
        self.buffered_bytes -= stream.reader.have
        tb_message_free(&stream.reader)
        if stream.message is not None:
            self.buffered_bytes -= PyBytes_GET_SIZE(stream.message)
            stream.message = None

    cdef bytes plain(self, _Stream stream, bytes message):
        """Return a message decompressed, never past the limit, or None after the stream's fault."""
        if stream.encoding == ENCODING_IDENTITY:
            self.fault(stream, FAULT_COMPRESSION, None)
            return None
        unpacker = zlib.decompressobj(GZIP_WBITS if stream.encoding == ENCODING_GZIP else DEFLATE_WBITS)
        try:
            unpacked = unpacker.decompress(message, <Py_ssize_t> self.message_bytes_max + 1)
        except zlib.error:
            self.fault(stream, FAULT_COMPRESSION, None)
            return None
        if len(unpacked) > self.message_bytes_max:
            self.fault(stream, FAULT_TOO_LARGE, None)
            return None
        if not unpacker.eof or unpacker.unused_data:
            self.fault(stream, FAULT_COMPRESSION, None)
            return None
        return unpacked

    cdef int end(self, _Stream stream) except -1:
        """The peer sends no more on this stream."""
        stream.ended = True
        if stream.faulted:
            return 0
        if not tb_message_between(&stream.reader):
            return self.fault(stream, FAULT_FRAMING, None)
        if not stream.single:
            self.events.append((_END, stream.id))
        elif stream.message is None:
            return self.fault(stream, FAULT_COUNT, None)
        else:
            self.call(stream, stream.message)
            self.forget(stream)
        return 0

    cdef int header(self, _Stream stream, const uint8_t* name, size_t name_length, const uint8_t* value,
                    size_t length) except -1:
        stream.header_bytes += name_length + length + HEADER_OVERHEAD_BYTES
        if stream.header_bytes > self.header_bytes_max or name_length == 0:
            return 0
        if name[0] == c':':
            if _is(name, name_length, b":path", 5):
                found = self.methods.get(PyBytes_FromStringAndSize(<const char*> value, length))
                if found is not None:
                    stream.single, stream.method = found
            elif _is(name, name_length, b":method", 7):
                stream.is_post = _is(value, length, b"POST", 4)
            return 0
        if _is(name, name_length, b"content-type", 12):
            stream.is_grpc = _is_grpc(value, length)
            return 0
        if _is(name, name_length, b"te", 2):
            return 0
        if name_length > 5 and memcmp(name, b"grpc-", 5) == 0:
            if _is(name, name_length, b"grpc-timeout", 12):
                stream.timeout_ns = tb_timeout_ns(value, length)
                if stream.timeout_ns < 0:
                    stream.fault = FAULT_TIMEOUT
                return 0
            if _is(name, name_length, b"grpc-encoding", 13):
                if _is(value, length, b"gzip", 4):
                    stream.encoding = ENCODING_GZIP
                elif _is(value, length, b"deflate", 7):
                    stream.encoding = ENCODING_DEFLATE
                elif not _is(value, length, b"identity", 8):
                    stream.encoding = ENCODING_UNKNOWN
                return 0
            if _is(name, name_length, b"grpc-accept-encoding", 20):
                return 0
        if stream.metadata is None:
            stream.metadata = []
        if _is(name, name_length, b"user-agent", 10):
            # The same in every call of a connection.
            if self.agent is None or not _is(value, length, PyBytes_AS_STRING(self.agent),
                                             PyBytes_GET_SIZE(self.agent)):
                self.agent = PyBytes_FromStringAndSize(<const char*> value, length)
                self.agent_pair = ("user-agent", self.agent.decode("latin-1"))
            stream.metadata.append(self.agent_pair)
            return 0
        key = PyBytes_FromStringAndSize(<const char*> name, name_length).decode("latin-1")
        text = PyBytes_FromStringAndSize(<const char*> value, length)
        if not key.endswith("-bin"):
            stream.metadata.append((key, text.decode("latin-1")))
            return 0
        for part in text.split(b","):
            part = part.strip().rstrip(b"=")
            try:
                stream.metadata.append((key, binascii.a2b_base64(part + b"=" * (3 & -len(part)), strict_mode=True)))
            except ValueError:
                stream.fault = FAULT_METADATA
        return 0

    cdef int calm(self) except -1:
        """End a connection that asks for work at no cost to itself."""
        if not self.calmed:
            self.calmed = True
            _check(nghttp2_session_terminate_session(self.session, NGHTTP2_ENHANCE_YOUR_CALM))
        return 0

    # ---- what goes out -----------------------------------------------------------------------------------------------

    def answer(self, int32_t stream_id, bytes message not None):
        """Send the only answer of a call and status OK. Like all below: nothing happens on a stream that is gone."""
        cdef _Stream stream = self.streams.get(stream_id)
        if stream is not None and not stream.finished:
            self.queue(stream, message)
            self.conclude(stream, b"0", None, None)

    def send(self, int32_t stream_id, bytes message not None):
        """Queue one answer of several; tell whether `drain_bytes` or more wait now, and hence a DRAINED follows."""
        cdef _Stream stream = self.streams.get(stream_id)
        if stream is None or stream.finished:
            return False
        self.queue(stream, message)
        self.start(stream)
        stream.wakes = stream.out_bytes >= self.drain_bytes
        return stream.wakes

    def must_wait(self, int32_t stream_id):
        """Tell whether a DRAINED is still to come."""
        cdef _Stream stream = self.streams.get(stream_id)
        return stream is not None and stream.wakes

    def finish(self, int32_t stream_id, int code, bytes message=None, list trailers=None):
        """End a call with a status; `message` is UTF-8, `trailers` are (name, value) in bytes, -bin values as they are."""
        cdef _Stream stream = self.streams.get(stream_id)
        if stream is not None and not stream.finished:
            self.conclude(stream, b"%d" % code, message, trailers)

    def refuse(self, int32_t stream_id, int http_status, int code, bytes message not None):
        """Answer what is no gRPC call in HTTP's own terms, with the gRPC status beside it. Nothing may have been sent."""
        cdef _Stream stream = self.streams.get(stream_id)
        if stream is None or stream.begun or stream.finished:
            return
        cdef bytes http = b"%d" % http_status
        stream.status, stream.status_message, stream.finished = b"%d" % code, message, True
        self.whole(stream, http)

    def more_events(self):
        """Return the events that came of `pull`."""
        if not self.events:
            return ()
        events, self.events = self.events, []
        return events

    def pull(self, Py_ssize_t bytes_max):
        """Return bytes to write, about `bytes_max` at most (never more than a frame past it), b"" if nothing waits."""
        cdef const uint8_t* piece = NULL
        cdef Py_ssize_t size = 0, capacity
        cdef ssize_t length
        cdef char* grown
        while size < bytes_max:
            length = nghttp2_session_mem_send(self.session, &piece)
            if self.failure is not None:
                failure, self.failure = self.failure, None
                raise failure
            if length < 0:
                raise ProtocolError(nghttp2_strerror(<int> length).decode(), False)
            if length == 0:
                break
            if size + length > self.out_capacity:
                capacity = max(2 * self.out_capacity, size + length, OUT_BYTES_MIN)
                grown = <char*> realloc(self.out, capacity)
                if grown == NULL:
                    raise MemoryError
                self.out, self.out_capacity = grown, capacity
            memcpy(self.out + size, piece, length)
            size += length
        return PyBytes_FromStringAndSize(self.out, size)

    cdef int queue(self, _Stream stream, bytes message) except -1:
        cdef bytes framed = _framed(message)
        if stream.outgoing is None:
            stream.outgoing = [framed]
        else:
            stream.outgoing.append(framed)
        stream.out_bytes += PyBytes_GET_SIZE(framed)
        return 0

    cdef int start(self, _Stream stream) except -1:
        """Send the headers before the first message, or wake a stream that had nothing to send."""
        cdef nghttp2_nv headers[3]
        cdef nghttp2_data_provider provider
        if stream.begun:
            if stream.deferred:
                stream.deferred = False
                _check(nghttp2_session_resume_data(self.session, stream.id))
            return 0
        stream.begun = True
        _put(&headers[0], b":status", 7, b"200", 3, NV_STATIC)
        _put(&headers[1], b"content-type", 12, b"application/grpc", 16, NV_STATIC)
        _put(&headers[2], b"grpc-accept-encoding", 20, b"identity,deflate,gzip", 21, NV_STATIC)
        provider.source.ptr = <void*> stream
        provider.read_callback = _on_read
        _check(nghttp2_submit_response(self.session, stream.id, headers, 3, &provider))
        return 0

    cdef int conclude(self, _Stream stream, bytes status, bytes message, list trailers) except -1:
        stream.status, stream.status_message, stream.trailers, stream.finished = status, message, trailers, True
        if not stream.begun and stream.out_bytes == 0:
            return self.whole(stream, b"200")
        return self.start(stream)

    cdef int whole(self, _Stream stream, bytes http_status) except -1:
        """Answer with headers alone."""
        cdef nghttp2_nv headers[20]
        cdef list kept = []
        cdef size_t count
        stream.begun = True
        _put(&headers[0], b":status", 7, PyBytes_AS_STRING(http_status), PyBytes_GET_SIZE(http_status),
             NGHTTP2_NV_FLAG_NO_COPY_NAME)
        _put(&headers[1], b"content-type", 12, b"application/grpc", 16, NV_STATIC)
        count = 2 + self.closing(stream, headers + 2, kept)
        _check(nghttp2_submit_response(self.session, stream.id, headers, count, NULL))
        return 0

    cdef size_t closing(self, _Stream stream, nghttp2_nv* headers, list kept) except 0:
        """Write a stream's status and trailers, at most 2 + TRAILERS_MAX; `kept` keeps their bytes alive. Return their
        count."""
        cdef size_t count = 1
        cdef bytes name, value
        _put(&headers[0], b"grpc-status", 11, PyBytes_AS_STRING(stream.status), PyBytes_GET_SIZE(stream.status),
             NGHTTP2_NV_FLAG_NO_COPY_NAME)
        if stream.status_message:
            value = percent_encoded(stream.status_message)
            kept.append(value)
            _put(&headers[count], b"grpc-message", 12, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value),
                 NGHTTP2_NV_FLAG_NO_COPY_NAME)
            count += 1
        if stream.trailers is None:
            return count
        for name, value in stream.trailers[:TRAILERS_MAX]:
            if name.endswith(b"-bin"):
                value = base64.b64encode(value).rstrip(b"=")
            kept.append((name, value))
            _put(&headers[count], PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), PyBytes_AS_STRING(value),
                 PyBytes_GET_SIZE(value), NGHTTP2_NV_FLAG_NONE)
            count += 1
        return count

    cdef ssize_t write(self, _Stream stream, uint8_t* buffer, size_t length, uint32_t* flags) except? -1:
        """Fill one DATA frame from a stream's queue; behind its last byte come the trailers."""
        cdef nghttp2_nv headers[18]
        cdef list kept = []
        cdef Py_ssize_t size = 0, room = <Py_ssize_t> length, taken, index = 0
        cdef bytes framed
        while size < room and index < len(stream.outgoing):
            framed = stream.outgoing[index]
            taken = min(room - size, PyBytes_GET_SIZE(framed) - stream.out_offset)
            memcpy(buffer + size, PyBytes_AS_STRING(framed) + stream.out_offset, taken)
            size += taken
            stream.out_offset += taken
            if stream.out_offset == PyBytes_GET_SIZE(framed):
                stream.out_offset = 0
                index += 1
        if index:
            del stream.outgoing[:index]
        stream.out_bytes -= size
        if stream.wakes and stream.out_bytes < self.drain_bytes:
            stream.wakes = False
            self.events.append((_DRAINED, stream.id))
        if stream.out_bytes == 0:
            if stream.finished:
                flags[0] |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
                _check(nghttp2_submit_trailer(self.session, stream.id, headers, self.closing(stream, headers, kept)))
            elif size == 0:
                stream.deferred = True
                return NGHTTP2_ERR_DEFERRED
        return size

    # ---- the connection ----------------------------------------------------------------------------------------------

    @property
    def stream_count(self):
        """How many streams are open."""
        return len(self.streams)

    @property
    def is_over(self):
        """Whether nothing more is to be read or written."""
        return not (nghttp2_session_want_read(self.session) or nghttp2_session_want_write(self.session))

    @property
    def is_calmed(self):
        """Whether the peer went over a rate."""
        return self.calmed

    def ping(self):
        """Ask for a sign of life, and for a PONG behind all that was sent before."""
        _check(nghttp2_submit_ping(self.session, NGHTTP2_FLAG_NONE, NULL))

    def announce_end(self):
        """Ask the peer to open no more streams; those on their way are still served."""
        _check(nghttp2_submit_shutdown_notice(self.session))

    def refuse_new(self):
        """Take no more streams; the peer learns which was the last, and may safely send the later ones elsewhere."""
        _check(nghttp2_submit_goaway(self.session, NGHTTP2_FLAG_NONE,
                                     nghttp2_session_get_last_proc_stream_id(self.session), NGHTTP2_NO_ERROR, NULL, 0))

    def terminate(self, bint is_peers_fault):
        """Say why and end at once: all streams are given up."""
        _check(nghttp2_session_terminate_session(
            self.session, NGHTTP2_PROTOCOL_ERROR if is_peers_fault else NGHTTP2_INTERNAL_ERROR))


# ---- libnghttp2's callbacks: none may raise, so what goes wrong is kept and raised where the session was entered -----


cdef _Stream _stream_of(nghttp2_session* session, int32_t stream_id):
    cdef void* found = nghttp2_session_get_stream_user_data(session, stream_id)
    return None if found == NULL else <_Stream> found


cdef int _on_begin_frame(nghttp2_session* session, const nghttp2_frame_hd* head, void* data) noexcept:
    cdef ServerSession self = <ServerSession> data
    self.frame_data_bytes = 0
    return 0


cdef int _on_begin_headers(nghttp2_session* session, const nghttp2_frame* frame, void* data) noexcept:
    cdef ServerSession self = <ServerSession> data
    cdef _Stream stream
    if frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    try:
        stream = _Stream.__new__(_Stream)
        stream.id = frame.hd.stream_id
        self.streams[stream.id] = stream
        nghttp2_session_set_stream_user_data(session, stream.id, <void*> stream)
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int _on_header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t name_length,
                    const uint8_t* value, size_t length, uint8_t flags, void* data) noexcept:
    cdef ServerSession self = <ServerSession> data
    cdef _Stream stream
    if frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0  # Trailers of a request say nothing in gRPC.
    try:
        stream = _stream_of(session, frame.hd.stream_id)
        if stream is not None:
            self.header(stream, name, name_length, value, length)
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int _on_data(nghttp2_session* session, uint8_t flags, int32_t stream_id, const uint8_t* bytes, size_t length,
                  void* data) noexcept:
    cdef ServerSession self = <ServerSession> data
    cdef _Stream stream
    self.frame_data_bytes += length
    try:
        stream = _stream_of(session, stream_id)
        if stream is not None and not (stream.faulted or stream.finished):
            self.read(stream, bytes, length)
        _check(nghttp2_session_consume_connection(session, length))
        if stream is not None and stream.untaken_count != 0:
            stream.held_bytes += length
        else:
            _check(nghttp2_session_consume_stream(session, stream_id, length))
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int _on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* data) noexcept:
    cdef ServerSession self = <ServerSession> data
    cdef _Stream stream
    cdef int kind = frame.hd.type
    cdef bint is_last = frame.hd.flags & NGHTTP2_FLAG_END_STREAM, too_many = False
    try:
        if kind == NGHTTP2_DATA or kind == NGHTTP2_HEADERS:
            stream = _stream_of(session, frame.hd.stream_id)
            if kind == NGHTTP2_DATA and self.frame_data_bytes == 0 and not is_last:
                too_many = _exceeds(&self.idle_frames, self.now_s)
            elif stream is not None:
                if kind == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
                    self.begin(stream)
                if is_last:
                    self.end(stream)
        elif kind == NGHTTP2_RST_STREAM:
            too_many = _exceeds(&self.resets, self.now_s)
        elif kind == NGHTTP2_SETTINGS:
            if not frame.hd.flags & NGHTTP2_FLAG_ACK:
                too_many = _exceeds(&self.settings, self.now_s)
        elif kind == NGHTTP2_PING:
            if frame.hd.flags & NGHTTP2_FLAG_ACK:
                self.events.append((_PONG, 0))
            else:
                too_many = _exceeds(&self.pings, self.now_s)
        elif kind == NGHTTP2_PRIORITY or kind == NGHTTP2_GOAWAY:
            too_many = _exceeds(&self.idle_frames, self.now_s)
        if too_many:
            self.calm()
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int _on_sent(nghttp2_session* session, const nghttp2_frame* frame, void* data) noexcept:
    cdef ServerSession self = <ServerSession> data
    try:
        if frame.hd.type == NGHTTP2_RST_STREAM:
            # Ours count as well: a peer can make us reset streams by breaking rules on them (CVE-2025-8671).
            if frame.rst_stream.error_code != NGHTTP2_NO_ERROR and _exceeds(&self.resets, self.now_s):
                self.calm()
        elif frame.hd.type == NGHTTP2_HEADERS and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            if nghttp2_session_get_stream_remote_close(session, frame.hd.stream_id) == 0:
                # Answered before the request's end: the rest of it need not be sent.
                _check(nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_NO_ERROR))
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int _on_close(nghttp2_session* session, int32_t stream_id, uint32_t error_code, void* data) noexcept:
    cdef ServerSession self = <ServerSession> data
    cdef _Stream stream
    try:
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            self.forget(stream)
            if stream.called and not stream.finished:
                stream.finished = True
                self.events.append((_RESET, stream_id, error_code))
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef ssize_t _on_read(nghttp2_session* session, int32_t stream_id, uint8_t* buffer, size_t length, uint32_t* flags,
                      nghttp2_data_source* source, void* data) noexcept:
    cdef ServerSession self = <ServerSession> data
    try:
        return self.write(<_Stream> source.ptr, buffer, length, flags)
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE


cdef int _check(int status) except -1:
    """Raise for what libnghttp2 refuses of us: out of memory, or a misuse that is our bug."""
    if status == NGHTTP2_ERR_NOMEM:
        raise MemoryError
    if status < 0:
        raise RuntimeError(f"libnghttp2 refused: {nghttp2_strerror(status).decode()}")
    return 0


def percent_encoded(bytes message not None):
    """Return `message` as a grpc-message: printable ASCII but % as it is, every other byte as %XX."""
    cdef const uint8_t* at = <const uint8_t*> PyBytes_AS_STRING(message)
    cdef Py_ssize_t i, length = PyBytes_GET_SIZE(message)
    for i in range(length):
        if not 0x20 <= at[i] <= 0x7E or at[i] == c'%':
            return b"".join([b"%c" % c if 0x20 <= c <= 0x7E and c != 0x25 else b"%%%02X" % c for c in message])
    return message

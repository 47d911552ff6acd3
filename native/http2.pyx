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
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcmp
from tailorbird.native.http2_session cimport *
from tailorbird.native.nghttp2 cimport *

from tailorbird.native.http2_session import ProtocolError, percent_encoded

CALL, MESSAGE, END, RESET, FAULT, DRAINED, PONG = range(7)

WRONG_METHOD, WRONG_CONTENT_TYPE, UNKNOWN_PATH = FAULT_METHOD, FAULT_CONTENT_TYPE, FAULT_PATH
HEADERS_TOO_LARGE, BAD_TIMEOUT, BAD_METADATA = FAULT_HEADERS, FAULT_TIMEOUT, FAULT_METADATA
UNKNOWN_ENCODING, MESSAGE_TOO_LARGE, BAD_FRAMING = FAULT_ENCODING, FAULT_TOO_LARGE, FAULT_FRAMING
BAD_COMPRESSION, WRONG_COUNT, BUFFERS_FULL = FAULT_COMPRESSION, FAULT_COUNT, FAULT_BUFFERS

cdef int NV_STATIC = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE
# RFC 9113, 4.1: what each header weighs beside its bytes.
cdef size_t HEADER_OVERHEAD_BYTES = 32
# CONTINUATION, the last kind of frame that HTTP/2 itself defines.
cdef int LAST_KIND = 9
# What is let pass of a request that is not gRPC before it is refused without its end.
cdef size_t DROPPED_BYTES_MAX = 64 * 1024


cdef bint _is_grpc(const uint8_t* value, size_t length) noexcept nogil:
    if length < 16 or memcmp(value, b"application/grpc", 16) != 0:
        return False
    return length == 16 or value[16] == c'+' or value[16] == c';'


@cython.final
cdef class Intake:
    """What the sessions of a server share: the calls of one request that were read and have not begun.

    A call is refused with `status` (code, message, trailers as of `finish`) right where it was read, and none of its events
    follow, when `calls_max` wait or, of any but the first, `bytes_max` with it; and when its deadline is nearer than the
    calls before it take, `call_ns` each. Whoever begins or drops a call takes it off by `leave`.
    """

    cdef readonly int calls, calls_max
    cdef readonly size_t size_bytes, bytes_max
    cdef readonly Py_ssize_t refused_count
    cdef public int64_t call_ns
    cdef bytes code, message
    cdef list trailers

    def __cinit__(self, int calls_max, size_t bytes_max, tuple status not None):
        self.calls_max, self.bytes_max = calls_max, bytes_max
        code, self.message, self.trailers = status
        self.code = b"%d" % code

    cdef inline bint takes(self, int64_t timeout_ns, size_t size_bytes) noexcept:
        if self.calls >= self.calls_max or self.calls and self.size_bytes + size_bytes > self.bytes_max or (
                timeout_ns >= 0 and self.calls * self.call_ns > timeout_ns):
            self.refused_count += 1
            return False
        self.calls += 1
        self.size_bytes += size_bytes
        return True

    def leave(self, Py_ssize_t size_bytes):
        """A call has begun, or never will."""
        self.calls -= 1
        self.size_bytes -= size_bytes


@cython.final
cdef class ServerSession(Session):
    """One connection. `methods` maps a path to (whether a call has exactly one request, what CALL events carry). `intake`
    bounds the calls of all connections that wait, or nothing does.

    Rates are counts a second, past which the peer is told ENHANCE_YOUR_CALM and the connection ends: resets of streams
    by either side, settings, pings, window updates, and frames that do nothing (empty data, priorities, unknown kinds).
    """

    cdef dict methods
    cdef Intake intake
    cdef size_t header_bytes_max
    cdef Rate resets, settings, pings, idle_frames, window_updates
    cdef bint calmed
    cdef bytes agent
    cdef tuple agent_pair

    def __cinit__(self, dict methods not None, Intake intake=None, *, uint32_t message_bytes_max, uint32_t streams_max,
                  uint32_t header_bytes_max, int32_t window_bytes, size_t buffered_bytes_max, Py_ssize_t drain_bytes,
                  int continuations_max, int resets_per_s_max, int settings_per_s_max, int pings_per_s_max,
                  int idle_frames_per_s_max, int window_updates_per_s_max):
        cdef nghttp2_session_callbacks* callbacks = new_callbacks()
        cdef nghttp2_option* option = NULL
        cdef nghttp2_settings_entry entries[3]
        cdef int status, kind
        self.methods, self.intake = methods, intake
        self.message_bytes_max, self.header_bytes_max = message_bytes_max, header_bytes_max
        self.buffered_bytes_max, self.drain_bytes = buffered_bytes_max, drain_bytes
        self.resets.count_max, self.settings.count_max = resets_per_s_max, settings_per_s_max
        self.pings.count_max, self.idle_frames.count_max = pings_per_s_max, idle_frames_per_s_max
        self.window_updates.count_max = window_updates_per_s_max
        if nghttp2_option_new(&option) != 0:
            nghttp2_session_callbacks_del(callbacks)
            raise MemoryError
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, _on_frame)
        nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, _on_sent)
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, _on_begin_headers)
        nghttp2_session_callbacks_set_on_header_callback(callbacks, _on_header)
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, _on_close)
        nghttp2_session_callbacks_set_unpack_extension_callback(callbacks, _on_unknown)
        # Every kind that HTTP/2 does not define, so that those are counted as well.
        for kind in range(LAST_KIND + 1, 256):
            nghttp2_option_set_user_recv_extension_type(option, <uint8_t> kind)
        nghttp2_option_set_no_auto_window_update(option, 1)
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
        check(nghttp2_submit_settings(self.session, NGHTTP2_FLAG_NONE, entries, 3))
        # The connection's window is given back at once and is no bound; that of each stream is.
        check(nghttp2_session_set_local_window_size(self.session, NGHTTP2_FLAG_NONE, 0, max(window_bytes, 1 << 20)))

    # ---- what comes in -----------------------------------------------------------------------------------------------

    cdef int begin(self, Stream stream) except -1:
        """A request's headers are whole: find its method, or the rule it breaks."""
        if not (stream.is_post and stream.is_grpc):
            # HTTP's own errors: told once the request has ended, for not every HTTP client reads while it still sends.
            stream.fault = FAULT_METHOD if not stream.is_post else FAULT_CONTENT_TYPE
            stream.deaf = stream.waits = True
            return 0
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

    cdef int call(self, Stream stream, bytes message) except -1:
        cdef tuple metadata = () if stream.metadata is None else tuple(stream.metadata)
        stream.called = True
        self.events.append((EVENT_CALL, stream.id, stream.method, metadata, stream.timeout_ns, message))
        return 0

    cdef int fault_at_last(self, Stream stream) except -1:
        stream.deaf = stream.waits = False
        return self.fault(stream, stream.fault, None)

    cdef int end(self, Stream stream) except -1:
        """The peer sends no more on this stream."""
        stream.ended = True
        if stream.waits:
            return self.fault_at_last(stream)
        if stream.deaf:
            return 0
        if not tb_message_between(&stream.reader):
            return self.fault(stream, FAULT_FRAMING, None)
        if not stream.single:
            self.events.append((EVENT_END, stream.id))
        elif stream.message is None:
            return self.fault(stream, FAULT_COUNT, None)
        else:
            if self.intake is None or self.intake.takes(stream.timeout_ns, PyBytes_GET_SIZE(stream.message)):
                self.call(stream, stream.message)
            else:
                self.conclude(stream, self.intake.code, self.intake.message, self.intake.trailers)
            self.forget(stream)
        return 0

    cdef int header(self, Stream stream, const uint8_t* name, size_t name_length, const uint8_t* value,
                    size_t length) except -1:
        stream.header_bytes += name_length + length + HEADER_OVERHEAD_BYTES
        if stream.header_bytes > self.header_bytes_max or name_length == 0:
            return 0
        if name[0] == c':':
            if is_(name, name_length, b":path", 5):
                found = self.methods.get(PyBytes_FromStringAndSize(<const char*> value, length))
                if found is not None:
                    stream.single, stream.method = found
            elif is_(name, name_length, b":method", 7):
                stream.is_post = is_(value, length, b"POST", 4)
                stream.is_head = is_(value, length, b"HEAD", 4)
            return 0
        if is_(name, name_length, b"content-type", 12):
            stream.is_grpc = _is_grpc(value, length)
            return 0
        if is_(name, name_length, b"te", 2):
            return 0
        if name_length > 5 and memcmp(name, b"grpc-", 5) == 0:
            if is_(name, name_length, b"grpc-timeout", 12):
                stream.timeout_ns = tb_timeout_ns(value, length)
                if stream.timeout_ns < 0:
                    stream.fault = FAULT_TIMEOUT
                return 0
            if is_(name, name_length, b"grpc-encoding", 13):
                if is_(value, length, b"gzip", 4):
                    stream.encoding = ENCODING_GZIP
                elif is_(value, length, b"deflate", 7):
                    stream.encoding = ENCODING_DEFLATE
                elif not is_(value, length, b"identity", 8):
                    stream.encoding = ENCODING_UNKNOWN
                return 0
            if is_(name, name_length, b"grpc-accept-encoding", 20):
                return 0
        if stream.metadata is None:
            stream.metadata = []
        if is_(name, name_length, b"user-agent", 10):
            # The same in every call of a connection.
            if self.agent is None or not is_(value, length, PyBytes_AS_STRING(self.agent),
                                             PyBytes_GET_SIZE(self.agent)):
                self.agent = PyBytes_FromStringAndSize(<const char*> value, length)
                self.agent_pair = ("user-agent", self.agent.decode("latin-1"))
            stream.metadata.append(self.agent_pair)
            return 0
        try:
            add_metadata(stream.metadata, name, name_length, value, length)
        except ValueError:
            stream.fault = FAULT_METADATA
        return 0

    cdef int calm(self) except -1:
        """End a connection that asks for work at no cost to itself."""
        if not self.calmed:
            self.calmed = True
            check(nghttp2_session_terminate_session(self.session, NGHTTP2_ENHANCE_YOUR_CALM))
        return 0

    # ---- what goes out -----------------------------------------------------------------------------------------------

    def answer(self, int32_t stream_id, bytes message not None):
        """Send the only answer of a call and status OK. Like all below: nothing happens on a stream that is gone."""
        cdef Stream stream = self.streams.get(stream_id)
        if stream is not None and not stream.finished:
            self.queue(stream, message)
            self.conclude(stream, b"0", None, None)

    def announce(self, int32_t stream_id, list initial not None):
        """Send `initial`, metadata as of `finish`, ahead of the first answer, which is still to come."""
        cdef Stream stream = self.streams.get(stream_id)
        if stream is not None and not stream.begun:
            stream.initial = initial

    def send(self, int32_t stream_id, bytes message not None):
        """Queue one answer of several; tell whether `drain_bytes` or more wait now, and hence a DRAINED follows."""
        cdef Stream stream = self.streams.get(stream_id)
        if stream is None or stream.finished:
            return False
        self.queue(stream, message)
        self.start(stream)
        stream.wakes = stream.out_bytes >= self.drain_bytes
        return stream.wakes

    def finish(self, int32_t stream_id, int code, bytes message=None, list trailers=None):
        """End a call with a status; `message` is UTF-8, `trailers` are (name, value) in bytes, -bin values as they are."""
        cdef Stream stream = self.streams.get(stream_id)
        if stream is not None and not stream.finished:
            self.conclude(stream, b"%d" % code, message, trailers)

    def refuse(self, int32_t stream_id, int http_status, int code, bytes message not None):
        """Answer what is no gRPC call in HTTP's own terms: `message` is its text, the gRPC status is in the headers.
        Nothing may have been sent."""
        cdef nghttp2_nv headers[4]
        cdef nghttp2_data_provider provider
        cdef list kept = []
        cdef Stream stream = self.streams.get(stream_id)
        if stream is None or stream.begun or stream.finished:
            return
        cdef bytes http = b"%d" % http_status
        stream.status, stream.status_message = b"%d" % code, message
        stream.begun = stream.finished = stream.deaf = stream.is_plain = True
        stream.outgoing = [message + b"\n"]
        stream.out_bytes = len(message) + 1
        put(&headers[0], b":status", 7, PyBytes_AS_STRING(http), PyBytes_GET_SIZE(http), NGHTTP2_NV_FLAG_NO_COPY_NAME)
        put(&headers[1], b"content-type", 12, b"text/plain", 10, NV_STATIC)
        self.closing(stream, headers + 2, kept)
        provider.source.ptr = <void*> stream
        provider.read_callback = _on_read
        check(nghttp2_submit_response(self.session, stream_id, headers, 4 if message else 3,
                                      NULL if stream.is_head else &provider))

    cdef int start(self, Stream stream) except -1:
        """Send the headers before the first message, or wake a stream that had nothing to send."""
        cdef nghttp2_nv headers[19]
        cdef nghttp2_data_provider provider
        cdef list kept
        cdef size_t count = 3
        if stream.begun:
            return self.resume(stream)
        stream.begun = True
        put(&headers[0], b":status", 7, b"200", 3, NV_STATIC)
        put(&headers[1], b"content-type", 12, b"application/grpc", 16, NV_STATIC)
        put(&headers[2], b"grpc-accept-encoding", 20, b"identity,deflate,gzip", 21, NV_STATIC)
        if stream.initial is not None:
            kept = []
            count += put_metadata(headers + 3, stream.initial, kept)
        provider.source.ptr = <void*> stream
        provider.read_callback = _on_read
        check(nghttp2_submit_response(self.session, stream.id, headers, count, &provider))
        return 0

    cdef int conclude(self, Stream stream, bytes status, bytes message, list trailers) except -1:
        stream.status, stream.status_message, stream.trailers = status, message, trailers
        stream.finished = stream.deaf = True
        if not stream.begun and stream.out_bytes == 0 and stream.initial is None:
            return self.whole(stream)
        return self.start(stream)

    cdef int whole(self, Stream stream) except -1:
        """Answer with headers alone."""
        cdef nghttp2_nv headers[20]
        cdef list kept = []
        cdef size_t count
        stream.begun = True
        put(&headers[0], b":status", 7, b"200", 3, NV_STATIC)
        put(&headers[1], b"content-type", 12, b"application/grpc", 16, NV_STATIC)
        count = 2 + self.closing(stream, headers + 2, kept)
        check(nghttp2_submit_response(self.session, stream.id, headers, count, NULL))
        return 0

    cdef size_t closing(self, Stream stream, nghttp2_nv* headers, list kept) except 0:
        """Write a stream's status and trailers, at most 2 + METADATA_MAX; `kept` keeps their bytes alive. Return their
        count."""
        cdef size_t count = 1
        cdef bytes value
        put(&headers[0], b"grpc-status", 11, PyBytes_AS_STRING(stream.status), PyBytes_GET_SIZE(stream.status),
             NGHTTP2_NV_FLAG_NO_COPY_NAME)
        if stream.status_message:
            value = percent_encoded(stream.status_message)
            kept.append(value)
            put(&headers[count], b"grpc-message", 12, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value),
                 NGHTTP2_NV_FLAG_NO_COPY_NAME)
            count += 1
        if stream.trailers is not None:
            count += put_metadata(headers + count, stream.trailers, kept)
        return count

    cdef ssize_t write(self, Stream stream, uint8_t* buffer, size_t length, uint32_t* flags) except? -1:
        """Fill one DATA frame from a stream's queue; behind its last byte come the trailers."""
        cdef nghttp2_nv headers[18]
        cdef list kept = []
        cdef Py_ssize_t size = self.fill(stream, buffer, <Py_ssize_t> length)
        if stream.out_bytes == 0:
            if stream.is_plain:
                flags[0] |= NGHTTP2_DATA_FLAG_EOF
            elif stream.finished:
                flags[0] |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
                check(nghttp2_submit_trailer(self.session, stream.id, headers, self.closing(stream, headers, kept)))
            elif size == 0:
                stream.deferred = True
                return NGHTTP2_ERR_DEFERRED
        return size

    # ---- the connection ----------------------------------------------------------------------------------------------

    @property
    def is_calmed(self):
        """Whether the peer went over a rate."""
        return self.calmed

    def has(self, int32_t stream_id):
        """Tell whether a stream is there and not answered: the peer may have given it up."""
        cdef Stream stream = self.streams.get(stream_id)
        return stream is not None and not stream.finished

    def announce_end(self):
        """Ask the peer to open no more streams; those on their way are still served."""
        check(nghttp2_submit_shutdown_notice(self.session))

    def refuse_new(self):
        """Take no more streams; the peer learns which was the last, and may safely send the later ones elsewhere."""
        check(nghttp2_submit_goaway(self.session, NGHTTP2_FLAG_NONE,
                                     nghttp2_session_get_last_proc_stream_id(self.session), NGHTTP2_NO_ERROR, NULL, 0))

# ---- libnghttp2's callbacks: none may raise, so what goes wrong is kept and raised where the session was entered -----


cdef int _on_begin_headers(nghttp2_session* session, const nghttp2_frame* frame, void* data) noexcept:
    cdef ServerSession self = <ServerSession> data
    cdef Stream stream
    if frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    try:
        stream = Stream.__new__(Stream)
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
    cdef Stream stream
    if frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0  # Trailers of a request say nothing in gRPC.
    try:
        stream = stream_of(session, frame.hd.stream_id)
        if stream is not None:
            self.header(stream, name, name_length, value, length)
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int _on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* data) noexcept:
    cdef ServerSession self = <ServerSession> data
    cdef Stream stream
    cdef int kind = frame.hd.type
    cdef bint is_last = frame.hd.flags & NGHTTP2_FLAG_END_STREAM, too_many = False
    try:
        if kind == NGHTTP2_DATA or kind == NGHTTP2_HEADERS:
            stream = stream_of(session, frame.hd.stream_id)
            if kind == NGHTTP2_DATA and self.frame_data_bytes == 0 and not is_last:
                too_many = exceeds(&self.idle_frames, self.now_s)
            elif stream is not None:
                if kind == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
                    self.begin(stream)
                if is_last:
                    self.end(stream)
                elif stream.waits:
                    stream.dropped_bytes += self.frame_data_bytes
                    if stream.dropped_bytes > DROPPED_BYTES_MAX:
                        self.fault_at_last(stream)
        elif kind == NGHTTP2_RST_STREAM:
            too_many = exceeds(&self.resets, self.now_s)
        elif kind == NGHTTP2_SETTINGS:
            if not frame.hd.flags & NGHTTP2_FLAG_ACK:
                too_many = exceeds(&self.settings, self.now_s)
        elif kind == NGHTTP2_PING:
            if frame.hd.flags & NGHTTP2_FLAG_ACK:
                self.events.append((EVENT_PONG, 0))
            else:
                too_many = exceeds(&self.pings, self.now_s)
        elif kind == NGHTTP2_WINDOW_UPDATE:
            too_many = exceeds(&self.window_updates, self.now_s)
        elif kind == NGHTTP2_PRIORITY or kind == NGHTTP2_GOAWAY:
            too_many = exceeds(&self.idle_frames, self.now_s)
        if too_many:
            self.calm()
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int _on_unknown(nghttp2_session* session, void** payload, const nghttp2_frame_hd* head, void* data) noexcept:
    cdef ServerSession self = <ServerSession> data
    try:
        if exceeds(&self.idle_frames, self.now_s):
            self.calm()
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return NGHTTP2_ERR_CANCEL  # ignored, as RFC 9113, 5.5 asks


cdef int _on_sent(nghttp2_session* session, const nghttp2_frame* frame, void* data) noexcept:
    cdef ServerSession self = <ServerSession> data
    try:
        if frame.hd.type == NGHTTP2_RST_STREAM:
            # Ours count as well: a peer can make us reset streams by breaking rules on them (CVE-2025-8671).
            if frame.rst_stream.error_code != NGHTTP2_NO_ERROR and exceeds(&self.resets, self.now_s):
                self.calm()
        elif frame.hd.type <= NGHTTP2_HEADERS and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:  # or DATA
            if nghttp2_session_get_stream_remote_close(session, frame.hd.stream_id) == 0:
                # Answered before the request's end: the rest of it need not be sent.
                check(nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_NO_ERROR))
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int _on_close(nghttp2_session* session, int32_t stream_id, uint32_t error_code, void* data) noexcept:
    cdef ServerSession self = <ServerSession> data
    cdef Stream stream
    try:
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            self.forget(stream)
            if stream.called and not stream.finished:
                stream.finished = stream.deaf = True
                self.events.append((EVENT_RESET, stream_id, error_code))
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef ssize_t _on_read(nghttp2_session* session, int32_t stream_id, uint8_t* buffer, size_t length, uint32_t* flags,
                      nghttp2_data_source* source, void* data) noexcept:
    cdef ServerSession self = <ServerSession> data
    try:
        return self.write(<Stream> source.ptr, buffer, length, flags)
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE

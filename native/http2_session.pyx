"""The part of an HTTP/2 session that both ends of a gRPC connection have in common, on libnghttp2.

Messages out of DATA frames and into them, the windows, compression, metadata and libnghttp2's memory input and output.
`http2` makes a server of it, `http2_client` a client. Declared in `http2_session.pxd`, for Cython only.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset
from tailorbird.native.nghttp2 cimport *

import base64
import binascii
import zlib

# A window of zlib's largest size, in gzip's and in zlib's own wrapping.
cdef int GZIP_WBITS = 31, DEFLATE_WBITS = 15
cdef Py_ssize_t OUT_BYTES_MIN = 32 * 1024
cdef Py_ssize_t METADATA_MAX = 16


class ProtocolError(Exception):
    """The peer does not speak HTTP/2; `is_magic` tells that it never began to."""

    def __init__(self, message, is_magic):
        super().__init__(message)
        self.is_magic = is_magic


cdef bytes framed_message(bytes message):
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


cdef int add_metadata(list pairs, const uint8_t* name, size_t name_length, const uint8_t* value,
                      size_t length) except -1:
    """Add a header to `pairs`, each value of a -bin one decoded. Raises ValueError where one is no base64."""
    key = PyBytes_FromStringAndSize(<const char*> name, name_length).decode("latin-1")
    text = PyBytes_FromStringAndSize(<const char*> value, length)
    if not key.endswith("-bin"):
        pairs.append((key, text.decode("latin-1")))
        return 0
    for part in text.split(b","):
        part = part.strip().rstrip(b"=")
        pairs.append((key, binascii.a2b_base64(part + b"=" * (3 & -len(part)), strict_mode=True)))
    return 0


cdef size_t put_metadata(nghttp2_nv* headers, list pairs, list kept) except? 0:
    """Write up to METADATA_MAX pairs, -bin values encoded; `kept` keeps their bytes alive. Return their count."""
    cdef size_t count = 0
    cdef bytes name, value
    for name, value in pairs[:METADATA_MAX]:
        if name.endswith(b"-bin"):
            value = base64.b64encode(value).rstrip(b"=")
        kept.append((name, value))
        put(&headers[count], PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), PyBytes_AS_STRING(value),
            PyBytes_GET_SIZE(value), NGHTTP2_NV_FLAG_NONE)
        count += 1
    return count


cdef nghttp2_session_callbacks* new_callbacks() except NULL:
    """Return callbacks with those set that are the same at both ends; they are the caller's to delete."""
    cdef nghttp2_session_callbacks* callbacks = NULL
    if nghttp2_session_callbacks_new(&callbacks) != 0:
        raise MemoryError
    nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, _on_begin_frame)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, _on_data)
    return callbacks


@cython.final
@cython.freelist(64)
cdef class Stream:
    """One call's state, at either end."""

    def __cinit__(self):
        memset(&self.reader, 0, sizeof(tb_message_reader))
        self.timeout_ns = -1

    def __dealloc__(self):
        tb_message_free(&self.reader)


cdef class Session:
    """Either end of a connection. What differs between them is in the callbacks that each adds to `new_callbacks`."""

    def __cinit__(self):
        self.streams, self.events = {}, []

    def __dealloc__(self):
        nghttp2_session_del(self.session)
        free(self.out)

    # ---- what comes in -----------------------------------------------------------------------------------------------

    def receive(self, data not None, double now_s):
        """Return the events in `data`, which came at `now_s` of any steady clock. Raises ProtocolError."""
        cdef Py_buffer piece
        cdef ssize_t status
        self.now_s = now_s
        PyObject_GetBuffer(data, &piece, PyBUF_SIMPLE)
        status = nghttp2_session_mem_recv(self.session, <const uint8_t*> piece.buf, piece.len)
        PyBuffer_Release(&piece)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if status < 0:
            raise ProtocolError(nghttp2_strerror(<int> status).decode(), status == NGHTTP2_ERR_BAD_CLIENT_MAGIC)
        events, self.events = self.events, []
        return events

    def take(self, int32_t stream_id):
        """Tell that a handler took a message of the stream: what came behind it is given back to the peer's window."""
        cdef Stream stream = self.streams.get(stream_id)
        if stream is None or stream.untaken_count == 0:
            return
        stream.untaken_count -= 1
        if stream.untaken_count == 0 and stream.held_bytes != 0:
            check(nghttp2_session_consume_stream(self.session, stream_id, stream.held_bytes))
            stream.held_bytes = 0

    cdef int fault(self, Stream stream, int fault, object detail) except -1:
        if not stream.deaf:
            stream.deaf = True
            self.forget(stream)
            self.events.append((EVENT_FAULT, stream.id, fault, detail))
        return 0

    cdef int read(self, Stream stream, const uint8_t* data, size_t length) except -1:
        """Find the messages in a piece of a stream's data."""
        cdef tb_cursor cursor
        cdef const uint8_t* found = NULL
        cdef uint32_t found_bytes = 0, before
        cdef int status
        cdef bytes message
        cursor.at, cursor.end = data, data + length
        while not stream.deaf:
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
                self.events.append((EVENT_MESSAGE, stream.id, message))
            elif stream.message is not None:
                return self.fault(stream, FAULT_COUNT, None)
            else:
                stream.message = message
                self.buffered_bytes += PyBytes_GET_SIZE(message)
        return 0

    cdef void forget(self, Stream stream) noexcept:
        """Drop what has arrived of a request."""
        self.buffered_bytes -= stream.reader.have
        tb_message_free(&stream.reader)
        if stream.message is not None:
            self.buffered_bytes -= PyBytes_GET_SIZE(stream.message)
            stream.message = None

    cdef bytes plain(self, Stream stream, bytes message):
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

    # ---- what goes out -----------------------------------------------------------------------------------------------

    def must_wait(self, int32_t stream_id):
        """Tell whether a DRAINED is still to come."""
        cdef Stream stream = self.streams.get(stream_id)
        return stream is not None and stream.wakes

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

    cdef int queue(self, Stream stream, bytes message) except -1:
        cdef bytes framed = framed_message(message)
        if stream.outgoing is None:
            stream.outgoing = [framed]
        else:
            stream.outgoing.append(framed)
        stream.out_bytes += PyBytes_GET_SIZE(framed)
        return 0

    cdef int resume(self, Stream stream) except -1:
        """Wake a stream that had nothing to send."""
        if stream.deferred:
            stream.deferred = False
            check(nghttp2_session_resume_data(self.session, stream.id))
        return 0

    cdef Py_ssize_t fill(self, Stream stream, uint8_t* buffer, Py_ssize_t room) except -1:
        """Fill one DATA frame from a stream's queue; return how many bytes."""
        cdef Py_ssize_t size = 0, taken, index = 0
        cdef bytes framed
        if stream.outgoing is None:
            return 0
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
            self.events.append((EVENT_DRAINED, stream.id))
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

    def ping(self):
        """Ask for a sign of life, and for a PONG behind all that was sent before."""
        check(nghttp2_submit_ping(self.session, NGHTTP2_FLAG_NONE, NULL))

    def terminate(self, bint is_peers_fault):
        """Say why and end at once: all streams are given up."""
        check(nghttp2_session_terminate_session(
            self.session, NGHTTP2_PROTOCOL_ERROR if is_peers_fault else NGHTTP2_INTERNAL_ERROR))


# ---- libnghttp2's callbacks: none may raise, so what goes wrong is kept and raised where the session was entered -----


cdef int _on_begin_frame(nghttp2_session* session, const nghttp2_frame_hd* head, void* data) noexcept:
    cdef Session self = <Session> data
    self.frame_data_bytes = 0
    return 0


cdef int _on_data(nghttp2_session* session, uint8_t flags, int32_t stream_id, const uint8_t* bytes, size_t length,
                  void* data) noexcept:
    cdef Session self = <Session> data
    cdef Stream stream
    self.frame_data_bytes += length
    try:
        stream = stream_of(session, stream_id)
        if stream is not None and not stream.deaf:
            self.read(stream, bytes, length)
        check(nghttp2_session_consume_connection(session, length))
        if stream is not None and stream.untaken_count != 0:
            stream.held_bytes += length
        else:
            check(nghttp2_session_consume_stream(session, stream_id, length))
    except BaseException as error:
        self.failure = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


def percent_encoded(bytes message not None):
    """Return `message` as a grpc-message: printable ASCII but % as it is, every other byte as %XX."""
    cdef const uint8_t* at = <const uint8_t*> PyBytes_AS_STRING(message)
    cdef Py_ssize_t i, length = PyBytes_GET_SIZE(message)
    for i in range(length):
        if not 0x20 <= at[i] <= 0x7E or at[i] == c'%':
            return b"".join([b"%c" % c if 0x20 <= c <= 0x7E and c != 0x25 else b"%%%02X" % c for c in message])
    return message

"""The load generator: many gRPC calls over many connections, closed or open loop, in one thread without the GIL.

See load.h for how it runs and load_calls.h for what it keeps. `tailorbird.bench.load` runs it in a process of its own.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memset

import os

import numpy as np

cdef extern from "load.h" nogil:
    int TB_STATUS_COUNT

    ctypedef struct tb_load_request:
        const uint8_t* path
        const uint8_t* body
        size_t path_length, body_length

    ctypedef struct tb_load_plan:
        char host[64]
        int port
        char authority[80]
        const tb_load_request* requests
        int64_t request_count
        int connection_count, streams_max
        const int64_t* due_ns
        int64_t due_count, calls_max, run_ns, drain_ns, timeout_ns, late_ns, window_ns
        int window_count
        int64_t life_calls
        int in_flight_max

    ctypedef struct tb_load_counters:
        int64_t started, late, held, dropped, expired, resets, lost, unfinished, malformed
        int64_t connections, failures, goaways, sent_bytes, received_bytes, elapsed_ns, reset_code, failure_errno

    ctypedef struct tb_load:
        tb_load_plan plan
        tb_load_counters counters
        int epoll
        bint has_started, out_of_memory
        uint32_t* latency__wb
        uint32_t* statuses__ws
        uint32_t* good__w
        uint32_t* done__w
        uint32_t* service__b

    int tb_load_begin(tb_load*) noexcept
    bint tb_load_run(tb_load*, int64_t) noexcept
    void tb_load_end(tb_load*) noexcept
    void tb_load_free(tb_load*) noexcept

cdef extern from "histogram.h" nogil:
    int TB_HISTOGRAM_BUCKETS

# Between two looks at whether the process was interrupted.
cdef int64_t SLICE_NS = 100_000_000
cdef Py_ssize_t PREFIX_BYTES = 5

STATUS_COUNT = TB_STATUS_COUNT
CONNECTIONS_MAX, WINDOWS_MAX, IN_FLIGHT_MAX = 10_000, 10_000, 1_000_000


cdef bytes _copied(bytes text, char* into, Py_ssize_t room, str name):
    if len(text) >= room:
        raise ValueError(f"expected a {name} under {room} bytes, got {len(text)}")
    memset(into, 0, room)
    for i in range(len(text)):
        into[i] = text[i]
    return text


def _between(str name, value, least, most):
    if not least <= value <= most:
        raise ValueError(f"expected {name} from {least} to {most}, got {value}")


def run(str host not None, int port, list requests not None, *, int connections, int streams, const int64_t[::1] due_ns not None,
        int64_t calls_max, int64_t run_ns, int64_t drain_ns, int64_t timeout_ns, int64_t late_ns, int64_t window_ns,
        int window_count, int64_t life_calls, int in_flight_max):
    """Load the server at an IPv4 `host` and return (counters by name, latency__wb, service__b, statuses__ws, good__w, done__w).

    `requests` are (path, message) in bytes, sent in turn. With a `due_ns` (offsets from the start, ascending) the loop is
    open, else closed; load_calls.h says what each of the others is. Arrays are uint32: histograms of answered calls from
    when they were due, by window, and from when they were sent; calls by window and status (the last: broken, lost or
    unfinished); answered calls within their deadline, by window of being due; answered calls, by window of their end.
    Raises ValueError for what is out of bounds, ConnectionError where nothing could be connected, MemoryError.
    """
    cdef tb_load load
    cdef bint is_over = False
    cdef int error
    cdef Py_ssize_t i
    cdef const uint8_t[::1] kept_view
    memset(&load, 0, sizeof(load))
    load.epoll = -1
    if not requests:
        raise ValueError("expected at least one request, got none")
    _between("port", port, 1, 65_535)
    _between("connections", connections, 1, CONNECTIONS_MAX)
    _between("streams", streams, 1, IN_FLIGHT_MAX)
    _between("window_count", window_count, 1, WINDOWS_MAX)
    _between("in_flight_max", in_flight_max, 1, IN_FLIGHT_MAX)
    for name, value in {"calls_max": calls_max, "run_ns": run_ns, "drain_ns": drain_ns, "timeout_ns": timeout_ns,
                        "late_ns": late_ns, "life_calls": life_calls}.items():
        _between(name, value, 0, 1 << 60)
    _between("window_ns", window_ns, 1, 1 << 60)
    if due_ns.shape[0] and not (np.asarray(due_ns)[0] >= 0 and (np.diff(due_ns) >= 0).all()):
        raise ValueError("expected due_ns from 0 on, ascending; sort it")

    _copied(host.encode(), load.plan.host, sizeof(load.plan.host), "host")
    _copied(f"{host}:{port}".encode(), load.plan.authority, sizeof(load.plan.authority), "authority")
    # Each distinct one once, all kept alive by this list.
    framed = {message: b"\0" + len(message).to_bytes(4, "big") + message for _, message in requests}
    entries = np.zeros(len(requests), np.dtype(
        [("path", np.uintp), ("body", np.uintp), ("path_length", np.uintp), ("body_length", np.uintp)]))
    assert entries.itemsize == sizeof(tb_load_request)
    for i, (path, message) in enumerate(requests):
        kept_view = path
        entries[i]["path"], entries[i]["path_length"] = <size_t> &kept_view[0], len(path)
        kept_view = framed[message]
        entries[i]["body"], entries[i]["body_length"] = <size_t> &kept_view[0], kept_view.shape[0]
    cdef const uint8_t[::1] raw = entries.view(np.uint8)
    load.plan.requests = <const tb_load_request*> &raw[0]
    load.plan.port, load.plan.request_count = port, len(requests)
    load.plan.connection_count, load.plan.streams_max = connections, streams
    load.plan.due_ns, load.plan.due_count = (&due_ns[0] if due_ns.shape[0] else NULL), due_ns.shape[0]
    load.plan.calls_max, load.plan.run_ns, load.plan.drain_ns = calls_max, run_ns, drain_ns
    load.plan.timeout_ns, load.plan.late_ns = timeout_ns, late_ns
    load.plan.window_ns, load.plan.window_count = window_ns, window_count
    load.plan.life_calls, load.plan.in_flight_max = life_calls, in_flight_max

    latency__wb = np.zeros((window_count, TB_HISTOGRAM_BUCKETS), np.uint32)
    service__b = np.zeros(TB_HISTOGRAM_BUCKETS, np.uint32)
    statuses__ws = np.zeros((window_count, TB_STATUS_COUNT), np.uint32)
    good__w, done__w = np.zeros(window_count, np.uint32), np.zeros(window_count, np.uint32)
    cdef uint32_t[:, ::1] latency_view = latency__wb
    cdef uint32_t[:, ::1] statuses_view = statuses__ws
    cdef uint32_t[::1] service_view = service__b
    cdef uint32_t[::1] good_view = good__w
    cdef uint32_t[::1] done_view = done__w
    load.latency__wb, load.statuses__ws = &latency_view[0, 0], &statuses_view[0, 0]
    load.service__b, load.good__w, load.done__w = &service_view[0], &good_view[0], &done_view[0]
    try:
        error = tb_load_begin(&load)
        if error != 0:
            raise OSError(error, os.strerror(error))
        while not is_over:
            with nogil:
                is_over = tb_load_run(&load, SLICE_NS)
            PyErr_CheckSignals()
            if is_over and load.out_of_memory:
                raise MemoryError
        if not load.has_started:
            reason = os.strerror(load.counters.failure_errno) if load.counters.failure_errno else "no settings came"
            raise ConnectionError(f"expected a gRPC server at {host}:{port}, got none: {reason}")
        tb_load_end(&load)
        counters = load.counters
    finally:
        tb_load_free(&load)
    return counters, latency__wb, service__b, statuses__ws, good__w, done__w

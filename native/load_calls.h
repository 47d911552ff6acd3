/* What the load generator keeps: its plan, its calls, what came of them. load_connections.h sends them, load.h says when.
 *
 * A call's latency runs from when it was due, not from when it was sent (Tene: coordinated omission). Every list is bounded
 * by the calls of `calls`, allocated once. */
#ifndef TAILORBIRD_LOAD_CALLS_H
#define TAILORBIRD_LOAD_CALLS_H

#include <nghttp2/nghttp2.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "histogram.h"

enum { TB_STATUS_OK = 0, TB_STATUS_DEADLINE = 4, TB_STATUS_UNAVAILABLE = 14, TB_STATUS_BROKEN = 17, TB_STATUS_COUNT = 18 };

/* One kind of request; they are sent in turn. `body` starts with gRPC's prefix of a message. */
typedef struct {
    const uint8_t *path, *body;
    size_t path_length, body_length;
} tb_load_request;

typedef struct {
    char host[64];            /* an IPv4 address */
    int port;
    char authority[80];
    const tb_load_request *requests;
    int64_t request_count;
    int connection_count;
    int streams_max;          /* calls in flight on each connection, at most; fewer where the peer allows fewer */
    const int64_t *due_ns;    /* open loop: when each call is due, from the start, ascending */
    int64_t due_count;        /* 0: closed loop */
    int64_t calls_max;        /* of a closed loop */
    int64_t run_ns, drain_ns; /* no call begins after the one; those in flight are given the other */
    int64_t timeout_ns;       /* a call's deadline, from when it was due; 0 for none */
    int64_t late_ns;          /* a call sent so long after it was due is counted as late */
    int64_t window_ns;        /* results are kept apart by such stretches of time */
    int window_count;
    int64_t life_calls;       /* a connection ends after so many calls and another is opened; 0: never */
    int in_flight_max;        /* running and waiting for a connection; what would be more is counted as dropped */
} tb_load_plan;

struct tb_load_connection;

typedef struct tb_load_call {
    struct tb_load_call *older, *newer; /* among all that are not over, by deadline */
    struct tb_load_call *next;          /* among those that wait for a connection, or that are free */
    struct tb_load_connection *connection;
    int64_t due_ns, sent_ns;
    const tb_load_request *request;
    size_t body_offset, answer_bytes;
    int32_t stream_id;
    int http_status, grpc_status; /* -1 until told */
} tb_load_call;

typedef struct {
    int64_t started, late, held, dropped, expired, resets, lost, unfinished, malformed;
    int64_t connections, failures, goaways, sent_bytes, received_bytes, elapsed_ns, reset_code, failure_errno;
} tb_load_counters;

typedef struct tb_load {
    tb_load_plan plan;
    tb_load_counters counters;
    nghttp2_session_callbacks *callbacks;
    struct tb_load_connection *connections;
    tb_load_call *calls, *free;
    tb_load_call *oldest, *newest, *waiting, *waiting_last;
    int epoll, in_flight, turn, ready_count;
    int64_t next_due, next_request, start_ns, now_ns;
    bool has_started, is_stopping, out_of_memory;
    /* By window of when a call was due, but `done` by that of its end. */
    uint32_t *latency__wb, *statuses__ws, *good__w, *done__w;
    /* All answered calls, from when they were sent. */
    uint32_t *service__b;
} tb_load;

static inline int64_t tb_load_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static inline int tb_load_window(const tb_load *load, int64_t at_ns) {
    int64_t window = (at_ns - load->start_ns) / load->plan.window_ns;
    if (window < 0)
        return 0;
    return window < load->plan.window_count ? (int)window : load->plan.window_count - 1;
}

/* Take a call for what is due, at the end of the list by deadline; NULL where in_flight_max are not over. */
static inline tb_load_call *tb_load_take(tb_load *load, int64_t due_ns) {
    tb_load_call *call = load->free;
    if (call == NULL) {
        load->counters.dropped++;
        return NULL;
    }
    load->free = call->next;
    memset(call, 0, sizeof *call);
    call->due_ns = due_ns;
    call->http_status = call->grpc_status = -1;
    call->request = &load->plan.requests[load->next_request];
    load->next_request = (load->next_request + 1) % load->plan.request_count;
    call->older = load->newest;
    if (load->newest != NULL)
        load->newest->newer = call;
    else
        load->oldest = call;
    load->newest = call;
    load->in_flight++;
    load->counters.started++;
    return call;
}

static inline void tb_load_wait(tb_load *load, tb_load_call *call) {
    call->next = NULL;
    if (load->waiting == NULL)
        load->waiting = call;
    else
        load->waiting_last->next = call;
    load->waiting_last = call;
}

static inline tb_load_call *tb_load_next_waiting(tb_load *load) {
    tb_load_call *call = load->waiting;
    if (call != NULL)
        load->waiting = call->next;
    return call;
}

/* A call is over, with one of gRPC's statuses or TB_STATUS_BROKEN; it must not be waiting any more. */
static inline void tb_load_conclude(tb_load *load, tb_load_call *call, int status) {
    const tb_load_plan *plan = &load->plan;
    int window = tb_load_window(load, call->due_ns);
    int64_t spent_ns = load->now_ns - call->due_ns;
    load->statuses__ws[(size_t)window * TB_STATUS_COUNT + (size_t)status]++;
    if (status == TB_STATUS_OK) {
        tb_histogram_add(load->latency__wb + (size_t)window * TB_HISTOGRAM_BUCKETS, spent_ns);
        tb_histogram_add(load->service__b, load->now_ns - call->sent_ns);
        load->done__w[tb_load_window(load, load->now_ns)]++;
        load->good__w[window] += plan->timeout_ns == 0 || spent_ns <= plan->timeout_ns;
    }
    if (call->older != NULL)
        call->older->newer = call->newer;
    else
        load->oldest = call->newer;
    if (call->newer != NULL)
        call->newer->older = call->older;
    else
        load->newest = call->older;
    call->next = load->free;
    load->free = call;
    load->in_flight--;
}

/* Return the status of a call whose stream has closed. */
static inline int tb_load_status(tb_load *load, const tb_load_call *call, uint32_t error_code) {
    if (call->grpc_status >= 0) {
        bool is_whole = call->grpc_status != TB_STATUS_OK || call->answer_bytes >= 5;
        if (call->http_status == 200 && call->grpc_status < TB_STATUS_BROKEN && is_whole)
            return call->grpc_status;
        load->counters.malformed++;
        return TB_STATUS_BROKEN;
    }
    if (error_code == NGHTTP2_NO_ERROR) {
        load->counters.malformed++;
        return TB_STATUS_BROKEN;
    }
    load->counters.resets++;
    load->counters.reset_code = error_code;
    return error_code == NGHTTP2_REFUSED_STREAM ? TB_STATUS_UNAVAILABLE : TB_STATUS_BROKEN;
}

#endif

/* The load generator's connections: sockets that never block, each with a client session of libnghttp2. */
#ifndef TAILORBIRD_LOAD_CONNECTIONS_H
#define TAILORBIRD_LOAD_CONNECTIONS_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load_calls.h"

enum { TB_LOAD_OUT_BYTES = 64 * 1024, TB_LOAD_IN_BYTES = 64 * 1024, TB_LOAD_WINDOW_BYTES = 16 * 1024 * 1024 };
/* How long to wait before a connection that failed is opened again; twice as long each time, up to a second. */
#define TB_LOAD_BACKOFF_NS 10000000ll
#define TB_LOAD_BACKOFF_NS_MAX 1000000000ll

typedef struct tb_load_connection {
    tb_load *load;
    nghttp2_session *session;
    int socket; /* -1 while there is none */
    int in_flight;
    int64_t begun, life_calls;
    int64_t again_ns, backoff_ns;
    bool is_ready; /* the peer's settings are here */
    bool is_retiring, wants_out, is_dirty;
    size_t out_length, out_offset;
    uint8_t out[TB_LOAD_OUT_BYTES];
} tb_load_connection;

static inline int tb_load_number(const uint8_t *text, size_t length) {
    int value = 0;
    if (length == 0 || length > 4)
        return 9999;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9')
            return 9999;
        value = 10 * value + text[i] - '0';
    }
    return value;
}

static int tb_load_on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
                             const uint8_t *value, size_t length, uint8_t flags, void *data) {
    tb_load_call *call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    (void)flags, (void)data;
    if (call == NULL)
        return 0;
    if (name_length == 7 && memcmp(name, ":status", 7) == 0)
        call->http_status = tb_load_number(value, length);
    else if (name_length == 11 && memcmp(name, "grpc-status", 11) == 0)
        call->grpc_status = tb_load_number(value, length);
    return 0;
}

static int tb_load_on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *bytes, size_t length,
                           void *data) {
    tb_load_call *call = nghttp2_session_get_stream_user_data(session, stream_id);
    (void)flags, (void)bytes, (void)data;
    if (call != NULL)
        call->answer_bytes += length;
    return 0;
}

static int tb_load_on_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code, void *data) {
    tb_load_connection *connection = data;
    tb_load_call *call = nghttp2_session_get_stream_user_data(session, stream_id);
    if (call == NULL)
        return 0; /* given up before */
    connection->in_flight--;
    tb_load_conclude(connection->load, call, tb_load_status(connection->load, call, error_code));
    return 0;
}

static int tb_load_on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *data) {
    tb_load_connection *connection = data;
    (void)session;
    if (frame->hd.type == NGHTTP2_GOAWAY) {
        connection->load->counters.goaways += !connection->is_retiring;
        connection->is_retiring = true;
    } else if (frame->hd.type == NGHTTP2_SETTINGS && !(frame->hd.flags & NGHTTP2_FLAG_ACK) && !connection->is_ready) {
        connection->is_ready = true;
        connection->backoff_ns = TB_LOAD_BACKOFF_NS;
        connection->load->ready_count++;
    }
    return 0;
}

static ssize_t tb_load_on_read(nghttp2_session *session, int32_t stream_id, uint8_t *buffer, size_t length, uint32_t *flags,
                               nghttp2_data_source *source, void *data) {
    /* The stream's own pointer: NULL once the call was given up, when the source's would point to another. */
    tb_load_call *call = nghttp2_session_get_stream_user_data(session, stream_id);
    (void)source, (void)data;
    if (call == NULL)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    size_t left = call->request->body_length - call->body_offset, count = left < length ? left : length;
    memcpy(buffer, call->request->body + call->body_offset, count);
    call->body_offset += count;
    if (count == left)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)count;
}

static inline nghttp2_session_callbacks *tb_load_callbacks(void) {
    nghttp2_session_callbacks *callbacks = NULL;
    if (nghttp2_session_callbacks_new(&callbacks) != 0)
        return NULL;
    nghttp2_session_callbacks_set_on_header_callback(callbacks, tb_load_on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, tb_load_on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, tb_load_on_close);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, tb_load_on_frame);
    return callbacks;
}

static inline void tb_load_watch(tb_load_connection *connection, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = connection};
    epoll_ctl(connection->load->epoll, operation, connection->socket, &event);
}

/* Close the socket; the calls on it are lost. `error` is an errno, or 0 where the end was wanted. */
static inline void tb_load_drop(tb_load_connection *connection, int error) {
    tb_load *load = connection->load;
    if (connection->session != NULL)
        nghttp2_session_del(connection->session);
    if (connection->socket >= 0)
        close(connection->socket);
    connection->session = NULL;
    connection->socket = -1;
    load->ready_count -= connection->is_ready;
    connection->is_ready = connection->wants_out = false;
    connection->out_length = connection->out_offset = 0;
    connection->again_ns = load->now_ns;
    if (error != 0) {
        load->counters.failures++;
        load->counters.failure_errno = error;
        connection->again_ns += connection->backoff_ns;
        connection->backoff_ns *= 2;
        if (connection->backoff_ns > TB_LOAD_BACKOFF_NS_MAX)
            connection->backoff_ns = TB_LOAD_BACKOFF_NS_MAX;
    }
    for (tb_load_call *call = load->oldest, *newer; connection->in_flight > 0 && call != NULL; call = newer) {
        newer = call->newer;
        if (call->connection == connection) {
            connection->in_flight--;
            load->counters.lost++;
            tb_load_conclude(load, call, TB_STATUS_UNAVAILABLE);
        }
    }
}

static inline void tb_load_open(tb_load_connection *connection) {
    tb_load *load = connection->load;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)load->plan.port)};
    nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, TB_LOAD_WINDOW_BYTES}, {NGHTTP2_SETTINGS_ENABLE_PUSH, 0}};
    int one = 1;
    inet_pton(AF_INET, load->plan.host, &address.sin_addr);
    load->counters.connections++;
    connection->begun = 0;
    connection->is_retiring = false;
    connection->socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connection->socket < 0) {
        tb_load_drop(connection, errno);
        return;
    }
    setsockopt(connection->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(connection->socket, (struct sockaddr *)&address, sizeof address) != 0 && errno != EINPROGRESS) {
        tb_load_drop(connection, errno);
        return;
    }
    if (nghttp2_session_client_new(&connection->session, load->callbacks, connection) != 0) {
        connection->session = NULL;
        load->out_of_memory = true;
        return;
    }
    nghttp2_submit_settings(connection->session, NGHTTP2_FLAG_NONE, settings, 2);
    nghttp2_session_set_local_window_size(connection->session, NGHTTP2_FLAG_NONE, 0, TB_LOAD_WINDOW_BYTES);
    connection->wants_out = true;
    tb_load_watch(connection, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

static inline int tb_load_room(const tb_load_connection *connection) {
    if (!connection->is_ready || connection->is_retiring)
        return 0;
    uint32_t allowed = nghttp2_session_get_remote_settings(connection->session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
    int most = connection->load->plan.streams_max;
    if (allowed < (uint32_t)most)
        most = (int)allowed;
    return most - connection->in_flight;
}

#define TB_LOAD_HEADER(name, value, length, flags) \
    {(uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, (length), \
     NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE | (flags)}

/* Begin a call on a connection that has room. */
static inline void tb_load_send(tb_load_connection *connection, tb_load_call *call) {
    tb_load *load = connection->load;
    const tb_load_plan *plan = &load->plan;
    const tb_load_request *request = call->request;
    char timeout[24] = "1n";
    nghttp2_data_provider provider = {.source.ptr = NULL, .read_callback = tb_load_on_read};
    call->sent_ns = load->now_ns;
    load->counters.late += call->sent_ns - call->due_ns > plan->late_ns;
    if (plan->timeout_ns > 0) {
        int64_t left_ns = call->due_ns + plan->timeout_ns - load->now_ns;
        if (left_ns >= 100000000000ll)
            snprintf(timeout, sizeof timeout, "%lldm", (long long)(left_ns / 1000000));
        else if (left_ns >= 1000)
            snprintf(timeout, sizeof timeout, "%lldu", (long long)(left_ns / 1000));
    }
    nghttp2_nv headers[] = {
        TB_LOAD_HEADER(":method", "POST", 4, 0),
        TB_LOAD_HEADER(":scheme", "http", 4, 0),
        TB_LOAD_HEADER(":path", request->path, request->path_length, 0),
        TB_LOAD_HEADER(":authority", plan->authority, strlen(plan->authority), 0),
        TB_LOAD_HEADER("te", "trailers", 8, 0),
        TB_LOAD_HEADER("content-type", "application/grpc", 16, 0),
        TB_LOAD_HEADER("user-agent", "tailorbird-load", 15, 0),
        /* Another value in each call: not worth a place in the peer's table. */
        {(uint8_t *)"grpc-timeout", (uint8_t *)timeout, 12, strlen(timeout), NGHTTP2_NV_FLAG_NO_INDEX},
    };
    size_t count = sizeof headers / sizeof *headers - (plan->timeout_ns > 0 ? 0 : 1);
    call->connection = connection;
    connection->in_flight++;
    connection->is_dirty = true;
    connection->begun++;
    if (connection->life_calls > 0 && connection->begun >= connection->life_calls)
        connection->is_retiring = true;
    call->stream_id = nghttp2_submit_request(connection->session, NULL, headers, count, &provider, call);
    if (call->stream_id < 0) {
        connection->in_flight--;
        load->counters.lost++;
        load->out_of_memory |= call->stream_id == NGHTTP2_ERR_NOMEM;
        connection->is_retiring = true; /* its stream ids are used up */
        tb_load_conclude(load, call, TB_STATUS_UNAVAILABLE);
    }
}

/* Write what the session has to say, as far as the socket takes it. */
static inline void tb_load_flush(tb_load_connection *connection) {
    tb_load *load = connection->load;
    connection->is_dirty = false;
    if (connection->session == NULL)
        return;
    for (;;) {
        while (connection->out_length < TB_LOAD_OUT_BYTES / 2) {
            const uint8_t *piece;
            ssize_t length = nghttp2_session_mem_send(connection->session, &piece);
            if (length > (ssize_t)(TB_LOAD_OUT_BYTES - connection->out_length))
                length = NGHTTP2_ERR_NOMEM; /* a frame is at most half of it */
            if (length < 0) {
                tb_load_drop(connection, EPROTO);
                return;
            }
            if (length == 0)
                break;
            memcpy(connection->out + connection->out_length, piece, (size_t)length);
            connection->out_length += (size_t)length;
        }
        if (connection->out_length == connection->out_offset)
            break;
        ssize_t sent = send(connection->socket, connection->out + connection->out_offset,
                            connection->out_length - connection->out_offset, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOTCONN)) {
            if (!connection->wants_out)
                tb_load_watch(connection, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            connection->wants_out = true;
            return;
        }
        if (sent < 0) {
            tb_load_drop(connection, errno);
            return;
        }
        load->counters.sent_bytes += sent;
        connection->out_offset += (size_t)sent;
        if (connection->out_offset == connection->out_length)
            connection->out_offset = connection->out_length = 0;
    }
    if (connection->wants_out) {
        connection->wants_out = false;
        tb_load_watch(connection, EPOLL_CTL_MOD, EPOLLIN);
    }
}

/* Read what the socket has; the calls it answers are concluded. */
static inline void tb_load_read(tb_load_connection *connection) {
    tb_load *load = connection->load;
    uint8_t bytes[TB_LOAD_IN_BYTES];
    ssize_t length = recv(connection->socket, bytes, sizeof bytes, 0);
    load->now_ns = tb_load_clock_ns();
    if (length < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (length <= 0) {
        bool is_wanted = length == 0 && connection->is_retiring && connection->in_flight == 0;
        tb_load_drop(connection, is_wanted ? 0 : length < 0 ? errno : ECONNRESET);
        return;
    }
    load->counters.received_bytes += length;
    if (nghttp2_session_mem_recv(connection->session, bytes, (size_t)length) < 0) {
        tb_load_drop(connection, EPROTO);
        return;
    }
    connection->is_dirty = true;
}

/* Say goodbye and close, once a connection that retires has no calls left. */
static inline void tb_load_retire(tb_load_connection *connection) {
    if (connection->session == NULL || !connection->is_retiring || connection->in_flight > 0)
        return;
    nghttp2_session_terminate_session(connection->session, NGHTTP2_NO_ERROR);
    tb_load_flush(connection);
    tb_load_drop(connection, 0);
    if (connection->begun == 0)
        connection->again_ns += TB_LOAD_BACKOFF_NS; /* asked to go before it could do anything */
}

#endif

/* The load generator: one thread, one epoll, nothing allocated once it runs.
 *
 * Closed loop: each connection keeps `streams_max` calls in flight. Open loop: each call is begun when it is due, on the next
 * connection that has room; where none has, it waits, and its time runs. A call past its deadline is given up as a client
 * would: it is forgotten where it waits, its stream reset where it runs. */
#ifndef TAILORBIRD_LOAD_H
#define TAILORBIRD_LOAD_H

#include "load_connections.h"

enum { TB_LOAD_EVENTS = 64 };
/* Nearer than this a due call is waited for by looking at the clock: epoll sleeps whole milliseconds. */
#define TB_LOAD_SPIN_NS 1200000ll
#define TB_LOAD_CONNECT_NS_MAX 5000000000ll

static inline bool tb_load_is_open(const tb_load *load) { return load->plan.due_count > 0; }

static inline void tb_load_free(tb_load *load) {
    for (int i = 0; load->connections != NULL && i < load->plan.connection_count; i++) {
        if (load->connections[i].session != NULL)
            nghttp2_session_del(load->connections[i].session);
        if (load->connections[i].socket >= 0)
            close(load->connections[i].socket);
    }
    if (load->callbacks != NULL)
        nghttp2_session_callbacks_del(load->callbacks);
    if (load->epoll >= 0)
        close(load->epoll);
    free(load->connections);
    free(load->calls);
    memset(load, 0, sizeof *load);
    load->epoll = -1;
}

/* Make everything and begin to connect. Return 0, or an errno. The result arrays must have been set. */
static inline int tb_load_begin(tb_load *load) {
    const tb_load_plan *plan = &load->plan;
    load->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (load->epoll < 0)
        return errno;
    load->callbacks = tb_load_callbacks();
    load->connections = calloc((size_t)plan->connection_count, sizeof *load->connections);
    load->calls = calloc((size_t)plan->in_flight_max, sizeof *load->calls);
    if (load->callbacks == NULL || load->connections == NULL || load->calls == NULL)
        return ENOMEM;
    for (int i = plan->in_flight_max - 1; i >= 0; i--) {
        load->calls[i].next = load->free;
        load->free = &load->calls[i];
    }
    load->now_ns = load->start_ns = tb_load_clock_ns();
    for (int i = 0; i < plan->connection_count; i++)
        load->connections[i].socket = -1;
    for (int i = 0; i < plan->connection_count; i++) {
        tb_load_connection *connection = &load->connections[i];
        connection->load = load;
        connection->backoff_ns = TB_LOAD_BACKOFF_NS;
        /* The first lives are of all lengths, so that connections do not end together. */
        connection->life_calls = plan->life_calls * (i + 1) / plan->connection_count;
        tb_load_open(connection);
    }
    return 0;
}

/* The connection whose turn it is among those with room, or NULL. */
static inline tb_load_connection *tb_load_choose(tb_load *load) {
    int count = load->plan.connection_count;
    for (int i = 0; i < count; i++) {
        tb_load_connection *connection = &load->connections[load->turn];
        load->turn = load->turn + 1 < count ? load->turn + 1 : 0;
        if (tb_load_room(connection) > 0)
            return connection;
    }
    return NULL;
}

/* Begin what the schedule has due. */
static inline void tb_load_begin_due(tb_load *load) {
    const tb_load_plan *plan = &load->plan;
    while (load->next_due < plan->due_count && load->start_ns + plan->due_ns[load->next_due] <= load->now_ns) {
        tb_load_call *call = tb_load_take(load, load->start_ns + plan->due_ns[load->next_due++]);
        if (call == NULL)
            continue;
        tb_load_connection *connection = load->waiting == NULL ? tb_load_choose(load) : NULL;
        if (connection != NULL) {
            tb_load_send(connection, call);
        } else {
            load->counters.held++;
            tb_load_wait(load, call);
        }
    }
}

/* Use the room a connection has. */
static inline void tb_load_fill(tb_load *load, tb_load_connection *connection) {
    tb_load_call *call;
    while (tb_load_room(connection) > 0) {
        if (tb_load_is_open(load)) {
            if ((call = tb_load_next_waiting(load)) == NULL)
                return;
        } else {
            if (load->is_stopping || !load->has_started || load->counters.started >= load->plan.calls_max ||
                (call = tb_load_take(load, load->now_ns)) == NULL)
                return;
        }
        tb_load_send(connection, call);
    }
}

/* Give up what is past its deadline. The oldest of all is also the oldest of those that wait. */
static inline void tb_load_expire(tb_load *load) {
    tb_load_call *call;
    if (load->plan.timeout_ns == 0)
        return;
    while ((call = load->oldest) != NULL && call->due_ns + load->plan.timeout_ns <= load->now_ns) {
        tb_load_connection *connection = call->connection;
        if (connection == NULL) {
            tb_load_next_waiting(load);
        } else {
            nghttp2_session_set_stream_user_data(connection->session, call->stream_id, NULL);
            nghttp2_submit_rst_stream(connection->session, NGHTTP2_FLAG_NONE, call->stream_id, NGHTTP2_CANCEL);
            connection->in_flight--;
            connection->is_dirty = true;
        }
        load->counters.expired++;
        tb_load_conclude(load, call, TB_STATUS_DEADLINE);
    }
}

/* What epoll may sleep, in milliseconds. */
static inline int tb_load_sleep_ms(const tb_load *load, int64_t until_ns) {
    int64_t sleep_ns = until_ns - load->now_ns;
    if (load->has_started && load->next_due < load->plan.due_count && !load->is_stopping) {
        int64_t due_ns = load->start_ns + load->plan.due_ns[load->next_due] - load->now_ns;
        if (due_ns < TB_LOAD_SPIN_NS)
            return 0;
        if (due_ns - TB_LOAD_SPIN_NS / 2 < sleep_ns)
            sleep_ns = due_ns - TB_LOAD_SPIN_NS / 2;
    }
    if (load->plan.timeout_ns > 0 && load->oldest != NULL) {
        int64_t left_ns = load->oldest->due_ns + load->plan.timeout_ns - load->now_ns + 999999;
        if (left_ns < sleep_ns)
            sleep_ns = left_ns;
    }
    return sleep_ns <= 0 ? 0 : (int)(sleep_ns / 1000000);
}

/* Begin the clock once all are connected, end it when its time or its calls are over; true once nothing is left to do. */
static inline bool tb_load_is_over(tb_load *load) {
    const tb_load_plan *plan = &load->plan;
    if (!load->has_started) {
        bool is_late = load->now_ns - load->start_ns > TB_LOAD_CONNECT_NS_MAX;
        if (load->ready_count < plan->connection_count && !is_late)
            return false;
        if (load->ready_count == 0)
            return true;
        load->has_started = true;
        load->start_ns = load->now_ns;
    }
    load->counters.elapsed_ns = load->now_ns - load->start_ns;
    if (!load->is_stopping) {
        /* What was due in time begins, however late it is. */
        if (tb_load_is_open(load))
            load->is_stopping = load->next_due == plan->due_count || load->counters.elapsed_ns >= plan->run_ns + plan->drain_ns;
        else
            load->is_stopping = load->counters.started >= plan->calls_max || load->counters.elapsed_ns >= plan->run_ns;
    }
    if (!load->is_stopping)
        return false;
    return load->in_flight == 0 || load->counters.elapsed_ns >= plan->run_ns + plan->drain_ns;
}

/* Run for `budget_ns`; true once it is over. */
static inline bool tb_load_run(tb_load *load, int64_t budget_ns) {
    struct epoll_event events[TB_LOAD_EVENTS];
    int64_t until_ns = tb_load_clock_ns() + budget_ns;
    while (!load->out_of_memory) {
        load->now_ns = tb_load_clock_ns();
        if (tb_load_is_over(load))
            return true;
        if (load->now_ns >= until_ns)
            return false;
        tb_load_expire(load);
        if (load->has_started && !load->is_stopping)
            tb_load_begin_due(load);
        for (int i = 0; i < load->plan.connection_count; i++) {
            tb_load_connection *connection = &load->connections[i];
            if (connection->session == NULL) {
                if (load->now_ns >= connection->again_ns) {
                    if (load->has_started)
                        connection->life_calls = load->plan.life_calls;
                    tb_load_open(connection);
                }
                continue;
            }
            if (load->has_started)
                tb_load_fill(load, connection);
            if (connection->is_dirty)
                tb_load_flush(connection);
            tb_load_retire(connection);
        }
        int count = epoll_wait(load->epoll, events, TB_LOAD_EVENTS, tb_load_sleep_ms(load, until_ns));
        for (int i = 0; i < count; i++) {
            tb_load_connection *connection = events[i].data.ptr;
            if (connection->session != NULL && events[i].events & EPOLLOUT)
                connection->is_dirty = true;
            if (connection->session != NULL && events[i].events & ~(uint32_t)EPOLLOUT)
                tb_load_read(connection);
        }
    }
    return true;
}

/* Count what is still not answered. */
static inline void tb_load_end(tb_load *load) {
    load->now_ns = tb_load_clock_ns();
    while (load->oldest != NULL) {
        load->counters.unfinished++;
        tb_load_conclude(load, load->oldest, TB_STATUS_BROKEN);
    }
}

#endif

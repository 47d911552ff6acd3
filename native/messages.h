/* gRPC's length-prefixed messages, read from DATA in whatever pieces it arrives, and the `grpc-timeout` header.

   A message is a flag byte (1 = compressed), its length as big-endian u32, and its bytes. Bytes are read through a
   cursor that knows its end. A whole message inside one piece is handed out in place; one that is split is collected
   in memory that grows with what has arrived, never with what the prefix claims. */

#ifndef TAILORBIRD_MESSAGES_H
#define TAILORBIRD_MESSAGES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TB_PREFIX_BYTES 5

typedef struct {
    const uint8_t* at;
    const uint8_t* end;
} tb_cursor;

typedef struct {
    uint8_t prefix[TB_PREFIX_BYTES];
    uint8_t prefix_bytes; /* of the prefix that have arrived */
    uint8_t compressed;
    uint32_t length; /* of the message, once the prefix is whole */
    uint32_t have;
    uint32_t capacity;
    uint8_t* body;
} tb_message_reader;

enum { TB_MESSAGE_MORE, TB_MESSAGE_WHOLE, TB_MESSAGE_TOO_LARGE, TB_MESSAGE_BAD_FLAG, TB_MESSAGE_NO_MEMORY };

static inline size_t tb_cursor_left(const tb_cursor* cursor) { return (size_t)(cursor->end - cursor->at); }

/* Take up to `wanted` bytes; return how many, and where they stand. */
static inline size_t tb_cursor_take(tb_cursor* cursor, size_t wanted, const uint8_t** bytes) {
    size_t left = tb_cursor_left(cursor), taken = wanted < left ? wanted : left;
    *bytes = cursor->at;
    cursor->at += taken;
    return taken;
}

static inline void tb_message_free(tb_message_reader* reader) {
    free(reader->body);
    memset(reader, 0, sizeof *reader);
}

/* Tell whether the stream may end here: not inside a prefix or a message. */
static inline int tb_message_between(const tb_message_reader* reader) { return reader->prefix_bytes == 0; }

static inline int tb_message_grow(tb_message_reader* reader, uint32_t wanted) {
    uint32_t capacity = reader->capacity;
    uint8_t* body;
    if (wanted <= capacity) return 1;
    capacity = capacity > reader->length / 2 ? reader->length : 2 * capacity;
    if (capacity < wanted) capacity = wanted;
    body = (uint8_t*)realloc(reader->body, capacity);
    if (body == NULL) return 0;
    reader->body = body;
    reader->capacity = capacity;
    return 1;
}

/* Read towards the next message. On WHOLE, *message has *length bytes that are valid until the next call; call again
   until MORE, which means that the cursor is empty. On TOO_LARGE, *length is the length the prefix claims. */
static inline int tb_message_read(tb_message_reader* reader, tb_cursor* cursor, uint32_t bytes_max,
                                  const uint8_t** message, uint32_t* length) {
    const uint8_t* bytes;
    size_t taken;
    if (reader->prefix_bytes < TB_PREFIX_BYTES) {
        taken = tb_cursor_take(cursor, (size_t)(TB_PREFIX_BYTES - reader->prefix_bytes), &bytes);
        if (taken != 0) memcpy(reader->prefix + reader->prefix_bytes, bytes, taken);
        reader->prefix_bytes = (uint8_t)(reader->prefix_bytes + taken);
        if (reader->prefix_bytes < TB_PREFIX_BYTES) return TB_MESSAGE_MORE;
        if (reader->prefix[0] > 1) return TB_MESSAGE_BAD_FLAG;
        reader->compressed = reader->prefix[0];
        reader->length = (uint32_t)reader->prefix[1] << 24 | (uint32_t)reader->prefix[2] << 16 |
                         (uint32_t)reader->prefix[3] << 8 | (uint32_t)reader->prefix[4];
        reader->have = 0;
        *length = reader->length;
        if (reader->length > bytes_max) return TB_MESSAGE_TOO_LARGE;
    }
    taken = tb_cursor_take(cursor, reader->length - reader->have, &bytes);
    if (taken == reader->length) { /* nothing came before, or the message is empty */
        *message = bytes;
    } else {
        if (taken != 0) {
            if (!tb_message_grow(reader, reader->have + (uint32_t)taken)) return TB_MESSAGE_NO_MEMORY;
            memcpy(reader->body + reader->have, bytes, taken);
            reader->have += (uint32_t)taken;
        }
        if (reader->have < reader->length) return TB_MESSAGE_MORE;
        *message = reader->body;
    }
    *length = reader->length;
    reader->prefix_bytes = 0;
    return TB_MESSAGE_WHOLE;
}

/* Return the nanoseconds of a `grpc-timeout` (1 to 8 digits and one of H M S m u n), INT64_MAX where they are more, -1
   where the text is no timeout. */
static inline int64_t tb_timeout_ns(const uint8_t* text, size_t length) {
    int64_t value = 0, unit;
    size_t i;
    if (length < 2 || length > 9) return -1;
    for (i = 0; i + 1 < length; i++) {
        if (text[i] < '0' || text[i] > '9') return -1;
        value = 10 * value + (text[i] - '0');
    }
    switch (text[length - 1]) {
        case 'H': unit = INT64_C(3600000000000); break;
        case 'M': unit = INT64_C(60000000000); break;
        case 'S': unit = INT64_C(1000000000); break;
        case 'm': unit = INT64_C(1000000); break;
        case 'u': unit = INT64_C(1000); break;
        case 'n': unit = 1; break;
        default: return -1;
    }
    return value > INT64_MAX / unit ? INT64_MAX : value * unit;
}

#endif

/* The wire format of Protocol Buffers, as far as our own codec needs it: varints, lengths, and what they cost. */
#ifndef TAILORBIRD_WIRE_H
#define TAILORBIRD_WIRE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Reads a varint of at most 10 bytes at *at, below end, and moves *at behind it. Returns 0 when there is none. */
static inline int tb_varint_read(const uint8_t **at, const uint8_t *end, uint64_t *value) {
    uint64_t found = 0;
    for (unsigned shift = 0; shift < 70 && *at < end; shift += 7) {
        uint8_t byte = *(*at)++;
        if (shift == 63 && byte > 1) return 0; /* more than 64 bits: protobuf's readers differ on what that means */
        found |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) {
            *value = found;
            return 1;
        }
    }
    return 0;
}

/* Reads a length and moves *at to the bytes it announces. Returns 0 when they are not all there. */
static inline int tb_length_read(const uint8_t **at, const uint8_t *end, size_t *length) {
    uint64_t found;
    if (!tb_varint_read(at, end, &found) || found > (uint64_t)(end - *at)) return 0;
    *length = (size_t)found;
    return 1;
}

static inline size_t tb_varint_bytes(uint64_t value) {
    size_t bytes = 1;
    while (value >= 0x80) {
        value >>= 7;
        bytes++;
    }
    return bytes;
}

static inline uint8_t *tb_varint_write(uint8_t *at, uint64_t value) {
    while (value >= 0x80) {
        *at++ = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    *at++ = (uint8_t)value;
    return at;
}

static inline int tb_is_ascii(const char *text, size_t length) {
    uint64_t seen = 0, word;
    if (length < 8)
        for (size_t i = 0; i < length; i++) seen |= (uint8_t)text[i];
    else {
        for (size_t i = 0; i + 8 < length; i += 8) {
            memcpy(&word, text + i, 8);
            seen |= word;
        }
        memcpy(&word, text + length - 8, 8); /* overlaps the one before where it must */
        seen |= word;
    }
    return (seen & UINT64_C(0x8080808080808080)) == 0;
}

/* Reads fields `key` of ASCII texts shorter than 128 bytes, one behind the other, up to `room`, and moves *at behind them. Returns
 * how many there were; what stops it is read in a general way. */
static inline size_t tb_short_texts_read(const uint8_t **at, const uint8_t *end, uint8_t key, const char **texts, size_t *lengths,
                                         size_t room) {
    const uint8_t *next = *at;
    size_t count = 0;
    while (count < room && end - next >= 2 && next[0] == key) {
        const char *text = (const char *)next + 2;
        size_t length = next[1];
        if (length >= 128 || length > (size_t)(end - next) - 2 || !tb_is_ascii(text, length)) break;
        texts[count] = text;
        lengths[count++] = length;
        next += 2 + length;
    }
    *at = next;
    return count;
}

#endif

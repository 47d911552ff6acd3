/* The record as stored: header, presence bitmap, blocks. See record.pyx for every byte. Reads of foreign bytes happen
   only in tb_record_check, before which nothing is trusted. */
#ifndef TAILORBIRD_RECORD_H
#define TAILORBIRD_RECORD_H

#include "aggregates.h"
#include "xxh64.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "records are stored little endian and read in place"
#endif

enum { TB_RECORD_FORMAT = 1, TB_FLAG_SATURATED = 1, TB_FEATURES_MAX = 1024 };

typedef struct {
    uint8_t format;
    uint8_t flags;
    uint8_t algorithm;
    uint8_t partition;
    uint16_t layout_version;
    uint16_t member_count;
    uint32_t key_id;
    uint32_t checksum;
    uint8_t fragment_id[16];
    uint64_t granted;
    uint64_t denied;
    uint64_t restricted;
    uint64_t explicit_choice;
    int64_t first_seen;
    int64_t last_seen;
    int64_t consent_time;
} tb_header;

_Static_assert(sizeof(tb_header) == 88, "the header is stored as it stands");

typedef enum {
    TB_RECORD_OK = 0,
    TB_RECORD_SHORT,     /* ends inside the part at `where` */
    TB_RECORD_LONG,      /* bytes left over from `where` */
    TB_RECORD_FORMAT_UNKNOWN,
    TB_RECORD_ALGORITHM,
    TB_RECORD_LAYOUT,
    TB_RECORD_CHECKSUM,
    TB_RECORD_BITMAP,    /* a feature past the last is marked present */
    TB_RECORD_BLOCK,     /* the block at `where` is none we write */
} tb_record_fault;

static inline uint64_t tb_load64(const uint8_t *at) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static inline double tb_load_double(const uint8_t *at) {
    double number;
    memcpy(&number, at, sizeof number);
    return number;
}

/* Covers every byte but its own four: the 12 before it seed the hash of those behind it, so nothing is copied. */
static inline uint32_t tb_record_checksum(const uint8_t *data, size_t length) {
    return (uint32_t)tb_xxh64(data + 16, length - 16, tb_xxh64(data, 12, 0));
}

/* Whether the entries of a block, which fit into their room, stand as we write them. */
static inline int tb_entries_check(const tb_feature *feature, const uint8_t *entries, uint64_t n) {
    size_t size = feature->entry_bytes;
    int64_t first = 0, before = 0;
    for (uint64_t i = 0; i < n; i++) {
        const uint8_t *entry = entries + i * size;
        uint64_t word = tb_load64(entry);
        int64_t number = (int32_t)word; /* the key of a bin, the number of a tile */
        switch (feature->op) {
        case TB_TOP_K:
            if (!isfinite(tb_load_double(entry + 8)) || (i > 0 && tb_load64(entry - size) >= word))
                return 0;
            continue;
        case TB_LAST_K: {
            tb_occurrence newer, older;
            memcpy(&older, entry, sizeof older);
            memcpy(&newer, i > 0 ? entry - size : entry, sizeof newer);
            if (i > 0 && !tb_newer(&newer, &older))
                return 0;
            continue;
        }
        case TB_QUANTILE:
            if (word >> 32 == 0)
                return 0;
            break;
        case TB_WINDOW_MIN:
        case TB_WINDOW_MAX:
            if (!isfinite(tb_load_double(entry + 8)))
                return 0;
            break;
        }
        first = i == 0 ? number : first;
        if (i > 0 && (number <= before || (feature->op != TB_QUANTILE && number - first >= feature->hops.tiles)))
            return 0;
        before = number;
    }
    return 1;
}

/* Size of the stored block at `at`, with `room` bytes left in the record; 0 when it does not fit or is not ours. */
static inline size_t tb_block_check(const tb_feature *feature, const uint8_t *at, size_t room) {
    size_t head = feature->head_bytes, size = feature->fixed_bytes;
    if (size != 0) {
        if (size > room)
            return 0;
        if (feature->op == TB_DECAYED || feature->op == TB_MIN || feature->op == TB_MAX)
            return isfinite(tb_load_double(at)) ? size : 0;
        return feature->op == TB_MEAN && (int64_t)tb_load64(at + 8) < 1 ? 0 : size;
    }
    if (head > room)
        return 0;
    uint64_t n = tb_load64(at); /* with the four zero bytes behind it */
    if (n == 0 || n > feature->entries_max || head + n * feature->entry_bytes > room ||
        !tb_entries_check(feature, at + head, n))
        return 0;
    return head + n * feature->entry_bytes;
}

/* Check `data` wholly and write the offset of each feature's block, 0 where absent. `data` needs no alignment. */
static inline tb_record_fault tb_record_check(const tb_feature *features, size_t feature_count, uint16_t layout_version,
                                              const uint8_t *data, size_t length, uint32_t *offsets__f, size_t *where) {
    size_t words = (feature_count + 63) / 64, cursor = sizeof(tb_header) + words * 8;
    tb_header header;
    *where = 0;
    if (length < sizeof header)
        return TB_RECORD_SHORT;
    memcpy(&header, data, sizeof header);
    if (header.format != TB_RECORD_FORMAT)
        return TB_RECORD_FORMAT_UNKNOWN;
    *where = 2;
    if (header.algorithm != 0)
        return TB_RECORD_ALGORITHM;
    *where = 4;
    if (header.layout_version != layout_version)
        return TB_RECORD_LAYOUT;
    *where = sizeof header;
    if (length < cursor)
        return TB_RECORD_SHORT;
    *where = 12;
    if (header.checksum != tb_record_checksum(data, length))
        return TB_RECORD_CHECKSUM;
    *where = sizeof header;
    if (feature_count % 64 != 0 && tb_load64(data + cursor - 8) >> (feature_count % 64) != 0)
        return TB_RECORD_BITMAP;
    memset(offsets__f, 0, feature_count * sizeof *offsets__f);
    for (size_t word = 0; word < words; word++) {
        uint64_t left = tb_load64(data + sizeof header + word * 8);
        for (; left != 0; left &= left - 1) {
            size_t f = word * 64 + (size_t)__builtin_ctzll(left);
            *where = cursor;
            size_t size = tb_block_check(&features[f], data + cursor, length - cursor);
            if (size == 0)
                return TB_RECORD_BLOCK;
            offsets__f[f] = (uint32_t)cursor;
            cursor += size;
        }
    }
    *where = cursor;
    return cursor == length ? TB_RECORD_OK : TB_RECORD_LONG;
}

static inline size_t tb_block_bytes(const tb_feature *feature, const uint8_t *block) {
    if (feature->fixed_bytes != 0)
        return feature->fixed_bytes;
    return feature->head_bytes + *(const uint32_t *)(const void *)block * feature->entry_bytes;
}

/* Write the dense record to `out` as stored, and return its size; `out` NULL only measures. */
static inline size_t tb_record_pack(const tb_feature *features, size_t feature_count, const uint8_t *dense,
                                    uint8_t *out) {
    size_t words = (feature_count + 63) / 64, cursor = sizeof(tb_header) + words * 8;
    const uint64_t *presence = (const uint64_t *)(const void *)(dense + sizeof(tb_header));
    if (out != NULL)
        memcpy(out, dense, cursor);
    for (size_t word = 0; word < words; word++)
        for (uint64_t left = presence[word]; left != 0; left &= left - 1) {
            size_t f = word * 64 + (size_t)__builtin_ctzll(left);
            const uint8_t *block = dense + features[f].dense_offset;
            size_t size = tb_block_bytes(&features[f], block);
            if (out != NULL)
                memcpy(out + cursor, block, size);
            cursor += size;
        }
    if (out != NULL) {
        uint32_t checksum = tb_record_checksum(out, cursor);
        memcpy(out + 12, &checksum, sizeof checksum);
    }
    return cursor;
}

/* Spread checked bytes over a dense record. */
static inline void tb_record_spread(const tb_feature *features, size_t feature_count, const uint8_t *data,
                                    const uint32_t *offsets__f, uint8_t *dense) {
    memcpy(dense, data, sizeof(tb_header) + (feature_count + 63) / 64 * 8);
    for (size_t f = 0; f < feature_count; f++)
        if (offsets__f[f] != 0) {
            const uint8_t *block = data + offsets__f[f];
            size_t size = features[f].fixed_bytes;
            if (size == 0) /* n fits: the check has seen it */
                size = features[f].head_bytes + tb_load64(block) * features[f].entry_bytes;
            memcpy(dense + features[f].dense_offset, block, size);
        }
}

#endif

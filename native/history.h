/* What a person had to do with: list chunks read within a window, and the distinct newest items with their recency. */
#ifndef TAILORBIRD_HISTORY_H
#define TAILORBIRD_HISTORY_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "exp2.h"

/* As stored in a chunk. */
typedef struct {
    uint32_t item;
    uint32_t time_s; /* seconds since 1970 */
} tb_entry;

#define TB_CHUNK_HEADER 8

/* How many entries a chunk of so many bytes has, -1 when it is none. */
static inline int64_t tb_chunk_entries(size_t bytes) {
    return bytes < TB_CHUNK_HEADER || (bytes - TB_CHUNK_HEADER) % sizeof(tb_entry) ? -1 : (int64_t)((bytes - TB_CHUNK_HEADER) / sizeof(tb_entry));
}

static inline tb_entry tb_chunk_entry(const char *chunk, int64_t i) {
    tb_entry entry;
    memcpy(&entry, chunk + TB_CHUNK_HEADER + (size_t)i * sizeof entry, sizeof entry);
    return entry;
}

typedef struct {
    int64_t time; /* ms since 1970 */
    uint32_t item;
} tb_mention;

/* Newest first, ties by item. */
static int tb_newest_first(const void *left, const void *right) {
    const tb_mention *a = (const tb_mention *)left, *b = (const tb_mention *)right;
    if (a->time != b->time) return a->time > b->time ? -1 : 1;
    return a->item < b->item ? -1 : a->item > b->item;
}

static int tb_by_item(const void *left, const void *right) {
    const tb_mention *a = (const tb_mention *)left, *b = (const tb_mention *)right;
    if (a->item != b->item) return a->item < b->item ? -1 : 1;
    return a->time > b->time ? -1 : a->time < b->time;
}

/* Keeps each item once, with its newest mention, newest first; returns how many are left of at most limit. */
static inline size_t tb_distinct_newest(tb_mention *mentions, size_t count, size_t limit) {
    size_t kept = 0;
    qsort(mentions, count, sizeof *mentions, tb_by_item);
    for (size_t i = 0; i < count; i++)
        if (kept == 0 || mentions[i].item != mentions[kept - 1].item) mentions[kept++] = mentions[i];
    qsort(mentions, kept, sizeof *mentions, tb_newest_first);
    return kept < limit ? kept : limit;
}

/* 2^-(newest - time) / half_life of each mention; all 1 where the half life is 0. */
static inline void tb_recency_weights(const tb_mention *mentions, size_t count, double half_life_ms, float *weights) {
    for (size_t i = 0; i < count; i++)
        weights[i] = half_life_ms > 0.0 ? (float)tb_exp2((double)(mentions[i].time - mentions[0].time) / half_life_ms) : 1.0f;
}

#endif

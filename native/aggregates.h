/* The aggregates of a record: blocks and their kernels. Knows no Python, no policy, no configuration.

   A feature is one descriptor (tb_feature) and one block of 8-aligned bytes. A block starts as its identity
   (tb_block_clear); a kernel folds one value, or another block of the same descriptor, into it. Events may come in
   any order.

   Exact (COUNT, SUM, LAST, TIME_SINCE, LAST_K): any order of events and any tree of merges gives the same bytes. A
   COUNT or SUM that leaves int64 stays at the limit, INT64_MAX before INT64_MIN when it met both: such a value means
   "saturated", and it alone depends on the order.

   Bounded (DECAYED, TOP_K): the same sequence gives the same bytes. After n events of one sign, each part of a
   decayed value that has decayed over h half-lives is off by at most (n + 1 + h / 8) * 2^-50 of itself. A TOP_K
   weight never exceeds the true decayed weight of its key by more than that; it can lack what the key earned before
   an eviction, so with at most k distinct keys it is as good as DECAYED.

   Times are milliseconds since 1970. Values arrive finite: the caller drops NaN and infinity. */
#ifndef TAILORBIRD_AGGREGATES_H
#define TAILORBIRD_AGGREGATES_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "exp2.h"

enum { TB_COUNT = 1, TB_SUM = 2, TB_LAST = 3, TB_TIME_SINCE = 4, TB_DECAYED = 5, TB_TOP_K = 6, TB_LAST_K = 7 };
enum { TB_FRESH = 0, TB_STALE = 1, TB_MISSING = 2, TB_WARMING = 3, TB_DEFAULTED = 4, TB_MASKED = 5 };
enum { TB_TOP_K_MAX = 64, TB_LAST_K_MAX = 100 };

#define TB_NEVER INT64_MIN           /* the time of a block that has seen nothing */
#define TB_SUM_UNITS_PER_ONE 10000.0 /* SUM counts ten-thousandths */

typedef struct {
    uint8_t op;
    uint32_t k;            /* TOP_K, LAST_K: entries at most */
    double half_life_ms;   /* DECAYED, TOP_K; 0 = no decay */
    uint64_t required;     /* bits the mask must have to read */
    uint64_t admit;        /* bits the mask must have to update or merge */
    int64_t max_age_ms;    /* 0 = never stale */
    uint32_t dense_offset; /* of the block in the dense form */
    uint32_t dense_bytes;  /* of the block at its largest */
    uint32_t fixed_bytes;  /* of the block as stored; 0 = varies with its entries */
} tb_feature;

typedef struct { int64_t value; int64_t last_time; } tb_count;                    /* COUNT */
typedef struct { int64_t units; int64_t last_time; } tb_sum;                      /* SUM */
typedef struct { uint64_t bits; int64_t event_time; uint64_t digest; } tb_last;   /* LAST */
typedef struct { int64_t event_time; } tb_time_since;                             /* TIME_SINCE */
typedef struct { double value; int64_t ref_time; } tb_decayed;                    /* DECAYED */
typedef struct { uint64_t key; double weight; } tb_weighted;
typedef struct { uint32_t n; uint32_t zero; int64_t ref_time; tb_weighted entries[]; } tb_top_k; /* ascending keys */
typedef struct { uint32_t item; uint32_t digest; int64_t time; } tb_occurrence;
typedef struct { uint32_t n; uint32_t zero; tb_occurrence entries[]; } tb_last_k; /* newest first, an item once */

/* Bytes of a block at its largest, 0 for an operation or a k that does not exist. */
static inline uint32_t tb_dense_bytes(uint8_t op, uint32_t k) {
    switch (op) {
    case TB_COUNT: return sizeof(tb_count);
    case TB_SUM: return sizeof(tb_sum);
    case TB_LAST: return sizeof(tb_last);
    case TB_TIME_SINCE: return sizeof(tb_time_since);
    case TB_DECAYED: return sizeof(tb_decayed);
    case TB_TOP_K: return k >= 1 && k <= TB_TOP_K_MAX ? sizeof(tb_top_k) + k * sizeof(tb_weighted) : 0;
    case TB_LAST_K: return k >= 1 && k <= TB_LAST_K_MAX ? sizeof(tb_last_k) + k * sizeof(tb_occurrence) : 0;
    default: return 0;
    }
}

/* Make the block what merging leaves unchanged. */
static inline void tb_block_clear(const tb_feature *feature, void *block) {
    switch (feature->op) {
    case TB_COUNT: *(tb_count *)block = (tb_count){0, TB_NEVER}; break;
    case TB_SUM: *(tb_sum *)block = (tb_sum){0, TB_NEVER}; break;
    case TB_LAST: *(tb_last *)block = (tb_last){0, TB_NEVER, 0}; break;
    case TB_TIME_SINCE: *(tb_time_since *)block = (tb_time_since){TB_NEVER}; break;
    case TB_DECAYED: *(tb_decayed *)block = (tb_decayed){0.0, TB_NEVER}; break;
    case TB_TOP_K: *(tb_top_k *)block = (tb_top_k){0, 0, TB_NEVER}; break;
    case TB_LAST_K: *(tb_last_k *)block = (tb_last_k){0, 0}; break;
    }
}

/* What is left of 1 after the time from `since` to `until`; 1 when `until` is not later, or nothing decays. */
static inline double tb_decay(double half_life_ms, int64_t since, int64_t until) {
    if (until <= since || !(half_life_ms > 0.0))
        return 1.0;
    /* Unsigned, because the difference of two int64 may not fit one. */
    return tb_exp2(-((double)((uint64_t)until - (uint64_t)since)) / half_life_ms);
}

static inline double tb_clamp_finite(double x) {
    return x > DBL_MAX ? DBL_MAX : x < -DBL_MAX ? -DBL_MAX : x;
}

static inline int tb_saturated(int64_t x) { return x == INT64_MAX || x == INT64_MIN; }

static inline int64_t tb_saturating_add(int64_t a, int64_t b) {
    if (a == INT64_MAX || b == INT64_MAX) /* a limit once reached is kept, the upper before the lower */
        return INT64_MAX;
    if (a == INT64_MIN || b == INT64_MIN)
        return INT64_MIN;
    if (b > 0 && a > INT64_MAX - b)
        return INT64_MAX;
    if (b < 0 && a < INT64_MIN - b)
        return INT64_MIN;
    return a + b;
}

/* Ten-thousandths, rounded half to even; past int64 the limit. */
static inline int64_t tb_sum_units(double value) {
    double units = rint(value * TB_SUM_UNITS_PER_ONE);
    if (units >= 0x1p63)
        return INT64_MAX;
    if (units < -0x1p63)
        return INT64_MIN;
    return (int64_t)units;
}

/* ---- one value into a block -------------------------------------------------------------------------------------- */

static inline void tb_count_add(tb_count *block, int64_t amount, int64_t time) {
    block->value = tb_saturating_add(block->value, amount);
    if (time > block->last_time)
        block->last_time = time;
}

static inline void tb_sum_add(tb_sum *block, int64_t units, int64_t time) {
    block->units = tb_saturating_add(block->units, units);
    if (time > block->last_time)
        block->last_time = time;
}

/* The newest by (time, digest); two values of one event: the larger bits. */
static inline void tb_last_offer(tb_last *block, uint64_t bits, int64_t time, uint64_t digest) {
    int newer = time != block->event_time ? time > block->event_time
              : digest != block->digest   ? digest > block->digest
                                          : bits > block->bits;
    if (newer)
        *block = (tb_last){bits, time, digest};
}

static inline void tb_time_since_offer(tb_time_since *block, int64_t time) {
    if (time > block->event_time)
        block->event_time = time;
}

static inline void tb_decayed_add(double half_life_ms, tb_decayed *block, double amount, int64_t time) {
    double value;
    if (time > block->ref_time) {
        value = block->value * tb_decay(half_life_ms, block->ref_time, time) + amount;
        block->ref_time = time;
    } else { /* late: it comes in as what would be left of it now */
        value = block->value + amount * tb_decay(half_life_ms, time, block->ref_time);
    }
    block->value = tb_clamp_finite(value);
}

/* Bring all weights to a later reference time. */
static inline void tb_top_k_advance(double half_life_ms, tb_top_k *block, int64_t time) {
    if (time <= block->ref_time)
        return;
    if (block->n != 0) {
        double left = tb_decay(half_life_ms, block->ref_time, time);
        for (uint32_t i = 0; i < block->n; i++)
            block->entries[i].weight *= left;
    }
    block->ref_time = time;
}

/* The entry to give up: the smallest weight, of equal weights the largest key. Entries ascend by key; n >= 1. */
static inline uint32_t tb_top_k_weakest(const tb_weighted *entries, uint32_t n) {
    uint32_t weakest = 0;
    for (uint32_t i = 1; i < n; i++)
        if (entries[i].weight <= entries[weakest].weight)
            weakest = i;
    return weakest;
}

/* Add a weight that already stands at the block's reference time. */
static inline void tb_top_k_put(uint32_t k, tb_top_k *block, uint64_t key, double weight) {
    tb_weighted *entries = block->entries;
    uint32_t place = 0, end = block->n;
    while (place < end) {
        uint32_t middle = (place + end) / 2;
        if (entries[middle].key < key)
            place = middle + 1;
        else
            end = middle;
    }
    if (place < block->n && entries[place].key == key) {
        entries[place].weight = tb_clamp_finite(entries[place].weight + weight);
        return;
    }
    if (block->n == k) {
        uint32_t weakest = tb_top_k_weakest(entries, k);
        if (weight < entries[weakest].weight || (weight == entries[weakest].weight && key > entries[weakest].key))
            return; /* the new one is the weakest */
        memmove(entries + weakest, entries + weakest + 1, (k - 1 - weakest) * sizeof *entries);
        block->n = k - 1;
        if (weakest < place)
            place--;
    }
    memmove(entries + place + 1, entries + place, (block->n - place) * sizeof *entries);
    entries[place] = (tb_weighted){key, weight};
    block->n++;
}

static inline void tb_top_k_add(double half_life_ms, uint32_t k, tb_top_k *block, uint64_t key, double weight,
                                int64_t time) {
    tb_top_k_advance(half_life_ms, block, time);
    tb_top_k_put(k, block, key, tb_clamp_finite(weight * tb_decay(half_life_ms, time, block->ref_time)));
}

static inline int tb_newer(const tb_occurrence *a, const tb_occurrence *b) {
    if (a->time != b->time)
        return a->time > b->time;
    if (a->digest != b->digest)
        return a->digest > b->digest;
    return a->item > b->item;
}

/* Keeps the k newest distinct items. An item that was pushed out by k newer ones can only come back as a newer
   occurrence, which is why the order of arrival does not matter. */
static inline void tb_last_k_offer(uint32_t k, tb_last_k *block, tb_occurrence fresh) {
    tb_occurrence *entries = block->entries;
    uint32_t n = block->n, gap = n; /* gap: the place that will be free, the end or where the item stood */
    if (n == k && !tb_newer(&fresh, &entries[n - 1]))
        return; /* older than all k; if it is among them, they hold its newer occurrence */
    for (uint32_t i = 0; i < n; i++)
        if (entries[i].item == fresh.item) {
            gap = i;
            break;
        }
    if (gap < n) {
        if (!tb_newer(&fresh, &entries[gap]))
            return;
    } else if (n < k) {
        block->n = n + 1;
    } else {
        gap = n - 1;
    }
    for (; gap > 0 && tb_newer(&fresh, &entries[gap - 1]); gap--)
        entries[gap] = entries[gap - 1];
    entries[gap] = fresh;
}

/* ---- one block into another -------------------------------------------------------------------------------------- */

static inline void tb_top_k_merge(double half_life_ms, uint32_t k, tb_top_k *into, const tb_top_k *from) {
    tb_weighted all[2 * TB_TOP_K_MAX];
    uint32_t count = 0, i = 0, j = 0;
    tb_top_k_advance(half_life_ms, into, from->ref_time);
    double left = tb_decay(half_life_ms, from->ref_time, into->ref_time);
    while (i < into->n || j < from->n) { /* both ascend by key */
        if (j == from->n || (i < into->n && into->entries[i].key < from->entries[j].key)) {
            all[count++] = into->entries[i++];
        } else {
            tb_weighted entry = {from->entries[j].key, from->entries[j].weight * left};
            j++;
            if (i < into->n && into->entries[i].key == entry.key)
                entry.weight = tb_clamp_finite(entry.weight + into->entries[i++].weight);
            all[count++] = entry;
        }
    }
    for (; count > k; count--) {
        uint32_t weakest = tb_top_k_weakest(all, count);
        memmove(all + weakest, all + weakest + 1, (count - 1 - weakest) * sizeof *all);
    }
    memcpy(into->entries, all, count * sizeof *all);
    into->n = count;
}

static inline void tb_block_merge(const tb_feature *feature, void *into, const void *from) {
    switch (feature->op) {
    case TB_COUNT: {
        const tb_count *other = from;
        tb_count_add(into, other->value, other->last_time);
        break;
    }
    case TB_SUM: {
        const tb_sum *other = from;
        tb_sum_add(into, other->units, other->last_time);
        break;
    }
    case TB_LAST: {
        const tb_last *other = from;
        tb_last_offer(into, other->bits, other->event_time, other->digest);
        break;
    }
    case TB_TIME_SINCE: {
        tb_time_since_offer(into, ((const tb_time_since *)from)->event_time);
        break;
    }
    case TB_DECAYED: {
        const tb_decayed *other = from;
        tb_decayed_add(feature->half_life_ms, into, other->value, other->ref_time);
        break;
    }
    case TB_TOP_K: {
        tb_top_k_merge(feature->half_life_ms, feature->k, into, from);
        break;
    }
    case TB_LAST_K: {
        const tb_last_k *other = from;
        for (uint32_t i = 0; i < other->n; i++)
            tb_last_k_offer(feature->k, into, other->entries[i]);
        break;
    }
    }
}

/* Copy a block into one whose descriptor differs in k at most: the weakest or oldest entries are dropped. */
static inline void tb_block_copy(const tb_feature *feature, void *into, const void *from) {
    tb_block_clear(feature, into);
    if (feature->op == TB_TOP_K) {
        const tb_top_k *other = from;
        tb_top_k *block = into;
        block->ref_time = other->ref_time;
        for (uint32_t i = 0; i < other->n; i++)
            tb_top_k_put(feature->k, block, other->entries[i].key, other->entries[i].weight);
    } else {
        tb_block_merge(feature, into, from);
    }
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* When the feature last heard of an event. */
static inline int64_t tb_block_time(const tb_feature *feature, const void *block) {
    switch (feature->op) {
    case TB_COUNT: return ((const tb_count *)block)->last_time;
    case TB_SUM: return ((const tb_sum *)block)->last_time;
    case TB_LAST: return ((const tb_last *)block)->event_time;
    case TB_TIME_SINCE: return ((const tb_time_since *)block)->event_time;
    case TB_DECAYED: return ((const tb_decayed *)block)->ref_time;
    case TB_TOP_K: return ((const tb_top_k *)block)->ref_time;
    case TB_LAST_K: return ((const tb_last_k *)block)->n ? ((const tb_last_k *)block)->entries[0].time : TB_NEVER;
    default: return TB_NEVER;
    }
}

/* Milliseconds from `time` to `at`, 0 when `time` is not past, INT64_MAX when they do not fit. */
static inline int64_t tb_age_ms(int64_t time, int64_t at) {
    if (time >= at)
        return 0;
    uint64_t age = (uint64_t)at - (uint64_t)time;
    return age > (uint64_t)INT64_MAX ? INT64_MAX : (int64_t)age;
}

static inline int tb_too_old(const tb_feature *feature, int64_t time, int64_t at) {
    return feature->max_age_ms > 0 && tb_age_ms(time, at) > feature->max_age_ms;
}

/* Whether the feature may speak: MASKED before MISSING, so that a masked feature does not tell whether it is there.
   `block` is NULL when the feature is absent. */
static inline uint8_t tb_block_status(const tb_feature *feature, const void *block, int64_t at, uint64_t mask) {
    if ((mask & feature->required) != feature->required)
        return TB_MASKED;
    if (block == NULL)
        return TB_MISSING;
    return tb_too_old(feature, tb_block_time(feature, block), at) ? TB_STALE : TB_FRESH;
}

static inline float tb_float(double x) {
    return x > (double)FLT_MAX ? FLT_MAX : x < -(double)FLT_MAX ? -FLT_MAX : (float)x;
}

/* The feature as one number (see RecordView.read_vector); 0 unless the status is FRESH. TOP_K, LAST_K and a LAST that
   holds no finite number have none: MISSING. */
static inline uint8_t tb_read_number(const tb_feature *feature, const void *block, int64_t at, uint64_t mask,
                                     float *out) {
    uint8_t status = tb_block_status(feature, block, at, mask);
    double value = 0.0;
    *out = 0.0f;
    if (status != TB_FRESH)
        return status;
    switch (feature->op) {
    case TB_COUNT: value = (double)((const tb_count *)block)->value; break;
    case TB_SUM: value = (double)((const tb_sum *)block)->units / TB_SUM_UNITS_PER_ONE; break;
    case TB_LAST:
        memcpy(&value, &((const tb_last *)block)->bits, sizeof value);
        if (!isfinite(value))
            return TB_MISSING;
        break;
    case TB_TIME_SINCE: value = (double)tb_age_ms(((const tb_time_since *)block)->event_time, at) / 1000.0; break;
    case TB_DECAYED: {
        const tb_decayed *decayed = block;
        value = decayed->value * tb_decay(feature->half_life_ms, decayed->ref_time, at);
        break;
    }
    default: return TB_MISSING;
    }
    *out = tb_float(value);
    return TB_FRESH;
}

/* Up to `room` items, newest first; an entry past the maximum age ends the list. Returns how many. */
static inline int64_t tb_read_recent(const tb_feature *feature, const tb_last_k *block, int64_t at,
                                     int64_t room, uint32_t *items, int64_t *times) {
    int64_t count = 0;
    for (; count < (int64_t)block->n && count < room; count++) {
        if (tb_too_old(feature, block->entries[count].time, at))
            break;
        items[count] = block->entries[count].item;
        times[count] = block->entries[count].time;
    }
    return count;
}

/* Up to `room` keys, heaviest first, equal weights by smaller key, weights decayed to `at`. Returns how many. */
static inline int64_t tb_read_top(const tb_feature *feature, const tb_top_k *block, int64_t at,
                                  int64_t room, uint64_t *keys, float *weights) {
    tb_weighted best[TB_TOP_K_MAX];
    int64_t count = 0;
    double left = tb_decay(feature->half_life_ms, block->ref_time, at);
    for (uint32_t i = 0; i < block->n && room > 0; i++) {
        tb_weighted entry = block->entries[i]; /* ascending keys: on equal weights the earlier entry stays ahead */
        if (count == room && !(entry.weight > best[count - 1].weight))
            continue;
        int64_t place = count == room ? count - 1 : count++;
        for (; place > 0 && entry.weight > best[place - 1].weight; place--)
            best[place] = best[place - 1];
        best[place] = entry;
    }
    for (int64_t i = 0; i < count; i++) {
        keys[i] = best[i].key;
        weights[i] = tb_float(best[i].weight * left);
    }
    return count;
}

#endif

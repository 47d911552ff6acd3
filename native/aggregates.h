/* The aggregates of a record: blocks and their kernels. Knows no Python, no policy, no configuration.

   A feature is one descriptor (tb_feature) and one block of 8-aligned bytes. A block starts as its identity
   (tb_block_clear); a kernel folds one value, or another block of the same descriptor, into it. Events may come in
   any order.

   Exact (all but DECAYED and TOP_K): any order of events and any tree of merges gives the same bytes. A COUNT, SUM or
   MEAN that leaves int64 stays at the limit, INT64_MAX before INT64_MIN when it met both: such a value means
   "saturated", and it alone depends on the order. What DISTINCT and QUANTILE say of their exact bytes is an estimate:
   hyperloglog.h and quantiles.h state its error. windows.h tells what a window covers.

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
#include "hyperloglog.h"
#include "quantiles.h"
#include "saturating.h"
#include "windows.h"

enum {
    TB_COUNT = 1, TB_SUM, TB_LAST, TB_TIME_SINCE, TB_DECAYED, TB_TOP_K, TB_LAST_K,
    TB_MEAN, TB_MIN, TB_MAX, TB_FIRST, TB_DISTINCT, TB_QUANTILE,
    TB_WINDOW_COUNT, TB_WINDOW_SUM, TB_WINDOW_MEAN, TB_WINDOW_MIN, TB_WINDOW_MAX, TB_WINDOW_DISTINCT
};
enum { TB_FRESH = 0, TB_STALE = 1, TB_MISSING = 2, TB_WARMING = 3, TB_DEFAULTED = 4, TB_MASKED = 5 };
enum { TB_TOP_K_MAX = 64, TB_LAST_K_MAX = 100 };

typedef struct {
    uint8_t op;
    uint32_t k;            /* TOP_K, LAST_K, QUANTILE: entries at most; DISTINCT: precision */
    double half_life_ms;   /* DECAYED, TOP_K; 0 = no decay */
    uint64_t required;     /* bits the mask must have to read */
    uint64_t admit;        /* bits the mask must have to update or merge */
    int64_t max_age_ms;    /* 0 = never stale */
    uint32_t dense_offset; /* of the block in the dense form */
    uint32_t dense_bytes;  /* of the block at its largest */
    uint32_t fixed_bytes;  /* of the block as stored; 0 = varies with its entries */
    uint32_t head_bytes;   /* where it varies: what stands before the entries, their size, and how many at most */
    uint32_t entry_bytes;
    uint32_t entries_max;
    uint8_t warming;       /* not yet backfilled: it must not speak */
    uint8_t has_default;
    double default_value;  /* what speaks where the feature cannot, unless it is masked */
    double quantile;       /* QUANTILE: which, in [0, 1] */
    tb_hops hops;          /* of windows */
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
typedef struct { int64_t units; int64_t count; int64_t last_time; } tb_mean;      /* MEAN */
typedef struct { double value; int64_t last_time; } tb_extreme;                   /* MIN, MAX */
typedef struct { uint64_t bits; int64_t event_time; uint64_t digest; } tb_first;  /* FIRST */
typedef struct { int64_t last_time; uint8_t registers[]; } tb_distinct;           /* DISTINCT */

static inline int tb_is_window(uint8_t op) { return op >= TB_WINDOW_COUNT && op <= TB_WINDOW_DISTINCT; }

static inline uint8_t tb_tile_kind(uint8_t op) {
    switch (op) {
    case TB_WINDOW_COUNT: return TB_TILE_COUNT;
    case TB_WINDOW_MIN: return TB_TILE_MIN;
    case TB_WINDOW_MAX: return TB_TILE_MAX;
    case TB_WINDOW_DISTINCT: return TB_TILE_DISTINCT;
    default: return TB_TILE_SUM;
    }
}

/* Fill in what follows from op, k, and the window and hop of `hops`: the sizes. 0 when there is no such feature. */
static inline int tb_feature_complete(tb_feature *feature) {
    uint32_t k = feature->k, fixed = 0, head = 0, entry = 0, most = 0;
    tb_hops *hops = &feature->hops;
    int precise = k >= TB_PRECISION_MIN && k <= TB_PRECISION_MAX;
    switch (feature->op) {
    case TB_COUNT: fixed = sizeof(tb_count); break;
    case TB_SUM: fixed = sizeof(tb_sum); break;
    case TB_LAST: fixed = sizeof(tb_last); break;
    case TB_TIME_SINCE: fixed = sizeof(tb_time_since); break;
    case TB_DECAYED: fixed = sizeof(tb_decayed); break;
    case TB_MEAN: fixed = sizeof(tb_mean); break;
    case TB_MIN:
    case TB_MAX: fixed = sizeof(tb_extreme); break;
    case TB_FIRST: fixed = sizeof(tb_first); break;
    case TB_DISTINCT: fixed = precise ? (uint32_t)sizeof(tb_distinct) + tb_register_bytes(k) : 0; break;
    case TB_TOP_K: head = sizeof(tb_top_k), entry = sizeof(tb_weighted), most = k <= TB_TOP_K_MAX ? k : 0; break;
    case TB_LAST_K: head = sizeof(tb_last_k), entry = sizeof(tb_occurrence), most = k <= TB_LAST_K_MAX ? k : 0; break;
    case TB_QUANTILE: head = sizeof(tb_quantiles), entry = sizeof(tb_bin), most = k <= TB_QUANTILE_BINS_MAX ? k : 0; break;
    default:
        if (!tb_is_window(feature->op) || hops->hop_ms < 1 || hops->window_ms < hops->hop_ms ||
            hops->window_ms / hops->hop_ms >= TB_TILES_MAX || (feature->op == TB_WINDOW_DISTINCT && !precise))
            return 0;
        hops->kind = tb_tile_kind(feature->op);
        hops->precision = k;
        hops->tiles = (uint32_t)((hops->window_ms - 1) / hops->hop_ms) + 2; /* one begun at each end */
        hops->entry_bytes = tb_tile_bytes(hops->kind, k);
        head = sizeof(tb_window), entry = hops->entry_bytes, most = hops->tiles <= TB_TILES_MAX ? hops->tiles : 0;
    }
    feature->fixed_bytes = fixed;
    feature->head_bytes = head, feature->entry_bytes = entry, feature->entries_max = most;
    feature->dense_bytes = fixed != 0 ? fixed : head + most * entry;
    return fixed != 0 || most != 0;
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
    case TB_MEAN: *(tb_mean *)block = (tb_mean){0, 0, TB_NEVER}; break;
    case TB_MIN: *(tb_extreme *)block = (tb_extreme){DBL_MAX, TB_NEVER}; break;
    case TB_MAX: *(tb_extreme *)block = (tb_extreme){-DBL_MAX, TB_NEVER}; break;
    case TB_FIRST: *(tb_first *)block = (tb_first){UINT64_MAX, INT64_MAX, UINT64_MAX}; break;
    case TB_DISTINCT:
        ((tb_distinct *)block)->last_time = TB_NEVER;
        memset(((tb_distinct *)block)->registers, 0, tb_register_bytes(feature->k));
        break;
    case TB_QUANTILE: *(tb_quantiles *)block = (tb_quantiles){0, 0, TB_NEVER}; break;
    default: *(tb_window *)block = (tb_window){0, 0, TB_NEVER}; break;
    }
}

/* What is left of 1 after the time from `since` to `until`; 1 when `until` is not later, or nothing decays. */
static inline double tb_decay(double half_life_ms, int64_t since, int64_t until) {
    if (until <= since || !(half_life_ms > 0.0))
        return 1.0;
    /* Unsigned, because the difference of two int64 may not fit one. */
    return tb_exp2(-((double)((uint64_t)until - (uint64_t)since)) / half_life_ms);
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

/* The oldest by (time, digest); two values of one event: the smaller bits. */
static inline void tb_first_offer(tb_first *block, uint64_t bits, int64_t time, uint64_t digest) {
    int older = time != block->event_time ? time < block->event_time
              : digest != block->digest   ? digest < block->digest
                                          : bits < block->bits;
    if (older)
        *block = (tb_first){bits, time, digest};
}

static inline void tb_mean_add(tb_mean *block, int64_t units, int64_t count, int64_t time) {
    block->units = tb_saturating_add(block->units, units);
    block->count = tb_saturating_add(block->count, count);
    if (time > block->last_time)
        block->last_time = time;
}

/* `value` finite, and no negative zero. */
static inline void tb_extreme_offer(uint8_t op, tb_extreme *block, double value, int64_t time) {
    if (op == TB_MIN ? value < block->value : value > block->value)
        block->value = value;
    if (time > block->last_time)
        block->last_time = time;
}

static inline void tb_distinct_add(uint32_t precision, tb_distinct *block, uint64_t key, int64_t time) {
    tb_registers_add(precision, block->registers, key);
    if (time > block->last_time)
        block->last_time = time;
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
    case TB_MEAN: {
        const tb_mean *other = from;
        tb_mean_add(into, other->units, other->count, other->last_time);
        break;
    }
    case TB_MIN:
    case TB_MAX: {
        const tb_extreme *other = from;
        tb_extreme_offer(feature->op, into, other->value, other->last_time);
        break;
    }
    case TB_FIRST: {
        const tb_first *other = from;
        tb_first_offer(into, other->bits, other->event_time, other->digest);
        break;
    }
    case TB_DISTINCT: {
        const tb_distinct *other = from;
        tb_distinct *block = into;
        tb_registers_merge(feature->k, block->registers, other->registers);
        if (other->last_time > block->last_time)
            block->last_time = other->last_time;
        break;
    }
    case TB_QUANTILE: {
        const tb_quantiles *other = from;
        for (uint32_t i = 0; i < other->n; i++)
            tb_quantiles_add(feature->k, into, other->entries[i].key, other->entries[i].count, other->last_time);
        break;
    }
    default: tb_window_merge(&feature->hops, into, from); break;
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
    case TB_MEAN: return ((const tb_mean *)block)->last_time;
    case TB_MIN:
    case TB_MAX: return ((const tb_extreme *)block)->last_time;
    case TB_FIRST: return ((const tb_first *)block)->event_time;
    case TB_DISTINCT: return ((const tb_distinct *)block)->last_time;
    case TB_QUANTILE: return ((const tb_quantiles *)block)->last_time;
    default: return ((const tb_window *)block)->last_time;
    }
}

/* Whether a total has left int64. A window's leaves nothing behind when its time is over. */
static inline int tb_block_saturated(const tb_feature *feature, const void *block) {
    switch (feature->op) {
    case TB_COUNT: return tb_saturated(((const tb_count *)block)->value);
    case TB_SUM: return tb_saturated(((const tb_sum *)block)->units);
    case TB_MEAN: return tb_saturated(((const tb_mean *)block)->units);
    default: return 0;
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
   `block` is NULL when the feature is absent, or warming. */
static inline uint8_t tb_block_status(const tb_feature *feature, const void *block, int64_t at, uint64_t mask) {
    if ((mask & feature->required) != feature->required)
        return TB_MASKED;
    if (block == NULL)
        return feature->warming ? TB_WARMING : TB_MISSING;
    return tb_too_old(feature, tb_block_time(feature, block), at) ? TB_STALE : TB_FRESH;
}

static inline float tb_float(double x) {
    return x > (double)FLT_MAX ? FLT_MAX : x < -(double)FLT_MAX ? -FLT_MAX : (float)x;
}

static inline uint8_t tb_default(const tb_feature *feature, uint8_t status, double *out) {
    *out = 0.0;
    if (!feature->has_default || status == TB_MASKED)
        return status;
    *out = feature->default_value;
    return TB_DEFAULTED;
}

/* What a window says at `at`; MISSING where nothing is in it, unless nothing is a number too. */
static inline uint8_t tb_read_window(const tb_feature *feature, const tb_window *block, int64_t at, double *out) {
    _Alignas(8) uint8_t room[sizeof(tb_tile) + TB_REGISTER_BYTES_MAX] = {0};
    tb_tile *total = (tb_tile *)(void *)room;
    tb_tile_clear(&feature->hops, total);
    tb_window_total(&feature->hops, block, at, total);
    double units = (double)((tb_sum_tile *)(void *)total)->units / TB_SUM_UNITS_PER_ONE;
    switch (feature->op) {
    case TB_WINDOW_COUNT: *out = (double)total->count; return TB_FRESH;
    case TB_WINDOW_SUM: *out = units; return TB_FRESH;
    case TB_WINDOW_DISTINCT:
        *out = tb_registers_estimate(feature->k, ((tb_distinct_tile *)(void *)total)->registers);
        return TB_FRESH;
    default:
        if (total->count == 0)
            return TB_MISSING;
        *out = feature->op == TB_WINDOW_MEAN ? units / (double)total->count : ((tb_extreme_tile *)(void *)total)->value;
        return TB_FRESH;
    }
}

/* The feature as one number (see RecordView.read_vector); unless the status is FRESH its default, or 0. TOP_K, LAST_K
   and a LAST or FIRST that holds no finite number have none: MISSING. */
static inline uint8_t tb_read_double(const tb_feature *feature, const void *block, int64_t at, uint64_t mask,
                                     double *out) {
    uint8_t status = tb_block_status(feature, block, at, mask);
    double value = 0.0;
    if (status != TB_FRESH)
        return tb_default(feature, status, out);
    switch (feature->op) {
    case TB_COUNT: value = (double)((const tb_count *)block)->value; break;
    case TB_SUM: value = (double)((const tb_sum *)block)->units / TB_SUM_UNITS_PER_ONE; break;
    case TB_LAST:
    case TB_FIRST:
        memcpy(&value, &((const tb_last *)block)->bits, sizeof value);
        if (!isfinite(value))
            return tb_default(feature, TB_MISSING, out);
        break;
    case TB_TIME_SINCE: value = (double)tb_age_ms(((const tb_time_since *)block)->event_time, at) / 1000.0; break;
    case TB_DECAYED: {
        const tb_decayed *decayed = block;
        value = decayed->value * tb_decay(feature->half_life_ms, decayed->ref_time, at);
        break;
    }
    case TB_TOP_K:
    case TB_LAST_K: return tb_default(feature, TB_MISSING, out);
    case TB_MEAN: {
        const tb_mean *mean = block;
        value = (double)mean->units / TB_SUM_UNITS_PER_ONE / (double)mean->count;
        break;
    }
    case TB_MIN:
    case TB_MAX: value = ((const tb_extreme *)block)->value; break;
    case TB_DISTINCT: value = tb_registers_estimate(feature->k, ((const tb_distinct *)block)->registers); break;
    case TB_QUANTILE: value = tb_quantiles_at(block, feature->quantile); break;
    default:
        status = tb_read_window(feature, block, at, &value);
        if (status != TB_FRESH)
            return tb_default(feature, status, out);
    }
    *out = value;
    return TB_FRESH;
}

static inline uint8_t tb_read_number(const tb_feature *feature, const void *block, int64_t at, uint64_t mask,
                                     float *out) {
    double value;
    uint8_t status = tb_read_double(feature, block, at, mask, &value);
    *out = tb_float(value);
    return status;
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

/* Kernels of a decision: item rows, the id table, context cells, the score of a candidate, and the bounded top-k heap.
 *
 * The score is one rule (docs/ARCHITECTURE.md, "Scoring"): an estimate of P(item | evidence) that starts uniform over the
 * catalogue and is refined level by level, estimate = (n_item + s * parent) / (n + s), then multiplied by lifts.
 * Nothing here allocates, raises, or depends on the machine: sums are made in a fixed order and ties fall by item id.
 */
#ifndef TAILORBIRD_SCORING_H
#define TAILORBIRD_SCORING_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "exp2.h"
#include "xxh64.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#define TB_HUGE_PAGE ((size_t)2 << 20)

/* Asks for huge pages where the block is worth it: random rows of a large catalogue cost a TLB miss each without. */
static inline void tb_advise_huge(void *block, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= TB_HUGE_PAGE) madvise(block, bytes, MADV_HUGEPAGE);
#else
    (void)block;
    (void)bytes;
#endif
}

static inline void tb_prefetch(const void *place) { __builtin_prefetch(place); }

#define TB_UNKNOWN 0xFFFFFFFFu
#define TB_LIVE 1u
#define TB_LOG2_E 1.4426950408889634
#define TB_LANES 16
#define TB_CACHE_LINE 64
#define TB_LOOKUP_BATCH 64

/* Half a cache line: everything that admits or refuses one item, and its popularity over all contexts. */
typedef struct {
    double count;      /* landmark-scaled decayed count, all contexts */
    uint16_t flags;    /* TB_LIVE */
    int16_t exponent;  /* the item's embedding is its stored whole numbers times 2^exponent */
    int32_t stock;     /* -1: not counted */
    uint32_t start_s;  /* seconds since 1970; 0: open */
    uint32_t end_s;
    uint32_t seen;     /* generation that met it as a candidate */
    uint32_t excluded; /* generation that excluded it */
} tb_item_row;

/* Asks for what a ranking reads of an item, of its embedding the first width numbers. */
static inline void tb_item_prefetch(const tb_item_row *rows, const int16_t *embeddings, size_t width, uint32_t item) {
    __builtin_prefetch(&rows[item], 1);
    for (size_t f = 0; f < width; f += TB_CACHE_LINE / sizeof *embeddings)
        __builtin_prefetch(embeddings + (size_t)item * width + f);
}

/* ---- id table: item id -> dense item number, open addressing, load <= 1/2 ----
 *
 * Half a cache line a slot: short ids are compared without leaving it. */

#define TB_ID_INLINE 16

typedef struct {
    uint64_t hash;
    uint32_t number; /* TB_UNKNOWN: empty */
    uint32_t length;
    union {
        char bytes[TB_ID_INLINE]; /* of ids up to that length, zeros behind */
        uint64_t offset;          /* of longer ids: where their bytes are in the arena */
    } id;
} tb_id_slot;

static inline tb_id_slot tb_id_slot_of(uint64_t hash, uint32_t number, const char *id, uint32_t length, uint64_t offset) {
    tb_id_slot slot;
    memset(&slot, 0, sizeof slot);
    slot.hash = hash;
    slot.number = number;
    slot.length = length;
    if (length <= TB_ID_INLINE) memcpy(slot.id.bytes, id, length);
    else slot.id.offset = offset;
    return slot;
}

static inline uint32_t tb_id_find(const tb_id_slot *slots, uint64_t slot_mask, const char *arena, uint64_t hash,
                                  const char *id, size_t length) {
    uint64_t at = hash & slot_mask;
    while (slots[at].number != TB_UNKNOWN) {
        if (slots[at].hash == hash && slots[at].length == length) {
            const char *known = length <= TB_ID_INLINE ? slots[at].id.bytes : arena + slots[at].id.offset;
            if (memcmp(known, id, length) == 0) return slots[at].number;
        }
        at = (at + 1) & slot_mask;
    }
    return TB_UNKNOWN;
}

static inline void tb_id_insert(tb_id_slot *slots, uint64_t slot_mask, tb_id_slot fresh) {
    uint64_t at = fresh.hash & slot_mask;
    while (slots[at].number != TB_UNKNOWN) at = (at + 1) & slot_mask;
    slots[at] = fresh;
}

/* Looks up to TB_LOOKUP_BATCH ids up: two passes, so that the cache misses of all overlap. Returns how many are unknown. */
static inline size_t tb_id_find_batch(const tb_id_slot *slots, uint64_t slot_mask, const char *arena, const char *const *ids,
                                      const size_t *lengths, size_t count, uint32_t *numbers) {
    uint64_t hashes[TB_LOOKUP_BATCH];
    size_t unknown = 0;
    for (size_t i = 0; i < count; i++) {
        hashes[i] = tb_xxh64(ids[i], lengths[i], 0);
        __builtin_prefetch(&slots[hashes[i] & slot_mask]);
    }
    for (size_t i = 0; i < count; i++) {
        numbers[i] = tb_id_find(slots, slot_mask, arena, hashes[i], ids[i], lengths[i]);
        unknown += numbers[i] == TB_UNKNOWN;
    }
    return unknown;
}

/* ---- context cells: item number -> landmark-scaled count ----
 *
 * Open addressing at a load <= 1/2 while the cell knows few of the items, one double per item once it knows many. */

typedef struct {
    double count;
    uint32_t item; /* TB_UNKNOWN: empty */
    uint32_t reserved;
} tb_cell_slot;

static inline uint64_t tb_cell_start(uint32_t item, uint64_t slot_mask) {
    return ((uint64_t)item * 0x9E3779B97F4A7C15ull >> 24) & slot_mask;
}

static inline double tb_cell_get(const tb_cell_slot *slots, uint64_t slot_mask, uint32_t item) {
    uint64_t at = tb_cell_start(item, slot_mask);
    while (slots[at].item != TB_UNKNOWN) {
        if (slots[at].item == item) return slots[at].count;
        at = (at + 1) & slot_mask;
    }
    return 0.0;
}

/* Sets one count. Returns 1 when the item was not there before. The table must have an empty slot. */
static inline int tb_cell_set(tb_cell_slot *slots, uint64_t slot_mask, uint32_t item, double count) {
    uint64_t at = tb_cell_start(item, slot_mask);
    while (slots[at].item != TB_UNKNOWN) {
        if (slots[at].item == item) {
            slots[at].count = count;
            return 0;
        }
        at = (at + 1) & slot_mask;
    }
    slots[at].item = item;
    slots[at].count = count;
    return 1;
}

/* ---- the score ---- */

#define TB_LEVELS_MAX 8
#define TB_AFFINITIES_MAX 8

typedef struct {
    const tb_cell_slot *slots; /* NULL where the cell is dense */
    uint64_t slot_mask;
    const double *dense;       /* per item below dense_count */
    uint32_t dense_count;
    double total;    /* evidence of the cell, scaled to the time of the decision */
    double strength; /* how much evidence the parent is worth */
    double share;    /* 1 / (total + strength) */
} tb_level;

static inline double tb_level_count(const tb_level *level, uint32_t item) {
    if (level->dense != NULL) return item < level->dense_count ? level->dense[item] : 0.0;
    return tb_cell_get(level->slots, level->slot_mask, item);
}

static inline void tb_level_prefetch(const tb_level *level, uint32_t item) {
    if (level->dense == NULL) __builtin_prefetch(&level->slots[tb_cell_start(item, level->slot_mask)]);
    else if (item < level->dense_count) __builtin_prefetch(&level->dense[item]);
}

typedef struct {
    const uint64_t *symbols; /* one symbol per item; 0: no value */
    const uint64_t *keys;    /* the person's values */
    const double *lifts;     /* P(value | person) / P(value), per key */
    size_t key_count;
    double other_lift;       /* of every other value */
} tb_affinity;

typedef struct {
    double scale;             /* turns landmark-scaled counts into counts at the time of the decision */
    double total;             /* evidence over all contexts, scaled */
    double uniform_strength;  /* how much evidence the uniform prior is worth */
    double uniform;           /* 1 / number of live items */
    double share;             /* 1 / (total + uniform_strength) */
    size_t level_count;
    tb_level levels[TB_LEVELS_MAX];
    const float *together;    /* co-occurrence scores per item, or NULL */
    double together_scale;    /* 1 / their sum */
    double together_support;  /* S of (S q + s parent) / (S + s) */
    double together_strength; /* s */
    double together_exponent; /* weighs q by (estimate / uniform)^exponent; 0 leaves q alone */
    size_t affinity_count;
    tb_affinity affinities[TB_AFFINITIES_MAX];
    const float *vector;      /* the person's vector, or NULL */
    const int16_t *embeddings; /* item-major, rows of width numbers; see tb_quantise */
    size_t width;             /* a multiple of TB_LANES */
} tb_evidence;

/* What a score was made of; the parts of the reasons. */
typedef struct {
    double base;           /* estimate over all contexts */
    double in_context;     /* estimate after the context cells */
    double together_share; /* share of the blended estimate that co-occurrence brought */
    double blended;        /* estimate before the lifts */
    double affinity_lift;  /* the largest single lift */
    int32_t affinity_index;
    double vector_lift;
    double score;
} tb_score_parts;

/* Largest stored number of an embedding. */
#define TB_MANTISSA_MAX 32767.0

/* Writes finite values as whole numbers times 2^exponent, to 2^-15 of the largest, and returns the exponent.
 *
 * Half the memory of floats is half the cache misses of random rows, which is what ranking a large catalogue costs. A
 * power of two as the scale keeps the arithmetic exact. */
static inline int16_t tb_quantise(const float *values, size_t count, int16_t *mantissas) {
    float largest = 0.0f;
    int exponent;
    for (size_t f = 0; f < count; f++) largest = fabsf(values[f]) > largest ? fabsf(values[f]) : largest;
    frexp((double)largest, &exponent);
    exponent -= 15;
    double per_unit = tb_power_of_two(-exponent);
    for (size_t f = 0; f < count; f++) {
        double whole = rint((double)values[f] * per_unit);
        mantissas[f] = (int16_t)(whole > TB_MANTISSA_MAX ? TB_MANTISSA_MAX : whole < -TB_MANTISSA_MAX ? -TB_MANTISSA_MAX : whole);
    }
    return (int16_t)exponent;
}

/* Dot product over 16 lanes, added as a fixed tree: the same bits at any vector width. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static float tb_dot(const float *vector, const int16_t *mantissas, size_t width) {
    float lanes[TB_LANES] = {0};
    for (size_t f = 0; f < width; f += TB_LANES)
        for (size_t lane = 0; lane < TB_LANES; lane++) lanes[lane] += vector[f + lane] * (float)mantissas[f + lane];
    for (size_t half = TB_LANES / 2; half > 0; half /= 2)
        for (size_t lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

/* sign(x) ln(1 + |x|) */
static inline double tb_signed_log1p(double x) {
    double log = tb_log2(1.0 + (x < 0.0 ? -x : x)) / TB_LOG2_E;
    return x < 0.0 ? -log : log;
}

static inline double tb_clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

/* The estimate after the context cells; writes the one over all contexts to base. */
static inline double tb_in_context(const tb_evidence *evidence, const tb_item_row *rows, uint32_t item, double *base) {
    double estimate = (rows[item].count * evidence->scale + evidence->uniform_strength * evidence->uniform) * evidence->share;
    *base = estimate;
    for (size_t i = 0; i < evidence->level_count; i++) {
        const tb_level *level = &evidence->levels[i];
        double count = tb_level_count(level, item) * evidence->scale;
        estimate = (count + level->strength * estimate) * level->share;
    }
    return estimate;
}

/* Co-occurrence score of an item, following what is popular in the context: score * (estimate / uniform)^exponent. */
static inline double tb_together(const tb_evidence *evidence, uint32_t item, double in_context) {
    double score = (double)evidence->together[item];
    if (score > 0.0 && evidence->together_exponent != 0.0)
        score *= tb_exp2(evidence->together_exponent * tb_log2(in_context / evidence->uniform));
    return score;
}

/* 1 / the sum of the co-occurrence scores of the touched items, 0 when there are none. */
static inline double tb_together_scale(const tb_evidence *evidence, const tb_item_row *rows, uint32_t item_count,
                                       const uint32_t *touched, size_t touched_count) {
    double sum = 0.0, base;
    for (size_t i = 0; i < touched_count; i++)
        if (touched[i] < item_count)
            sum += tb_together(evidence, touched[i], tb_in_context(evidence, rows, touched[i], &base));
    return sum > 0.0 ? 1.0 / sum : 0.0;
}

static inline tb_score_parts tb_score(const tb_evidence *evidence, const tb_item_row *rows, uint32_t item) {
    tb_score_parts parts;
    double estimate = tb_in_context(evidence, rows, item, &parts.base);
    parts.in_context = estimate;
    parts.together_share = 0.0;
    if (evidence->together != NULL) {
        double q = tb_together(evidence, item, estimate) * evidence->together_scale;
        double brought = evidence->together_support * q;
        double whole = brought + evidence->together_strength * estimate;
        parts.together_share = whole > 0.0 ? brought / whole : 0.0;
        estimate = whole / (evidence->together_support + evidence->together_strength);
    }
    parts.blended = estimate;
    parts.affinity_lift = 1.0;
    parts.affinity_index = -1;
    for (size_t i = 0; i < evidence->affinity_count; i++) {
        const tb_affinity *affinity = &evidence->affinities[i];
        uint64_t symbol = affinity->symbols[item];
        double lift = affinity->other_lift;
        if (symbol == 0) lift = 1.0;
        else
            for (size_t key = 0; key < affinity->key_count; key++)
                if (affinity->keys[key] == symbol) {
                    lift = affinity->lifts[key];
                    break;
                }
        if (lift > parts.affinity_lift) {
            parts.affinity_lift = lift;
            parts.affinity_index = (int32_t)i;
        }
        estimate *= lift;
    }
    parts.vector_lift = 1.0;
    if (evidence->vector != NULL) {
        const int16_t *mantissas = evidence->embeddings + (size_t)item * evidence->width;
        double exponent = (double)tb_dot(evidence->vector, mantissas, evidence->width) * tb_power_of_two(rows[item].exponent);
        /* A sum that overflowed both ways says nothing. */
        if (exponent == exponent) parts.vector_lift = tb_exp2(tb_clamp(exponent * TB_LOG2_E, -30.0, 30.0));
        estimate *= parts.vector_lift;
    }
    /* Lifts may overflow; what is no number is worth nothing, or it would break the order of the heap. */
    parts.score = estimate > 0.0 ? tb_clamp(estimate, 0.0, FLT_MAX) : 0.0;
    return parts;
}

/* ---- reasons ---- */

/* What can speak for an item, as digits of a reason code. */
#define TB_REASON_CONTEXT 1
#define TB_REASON_VECTOR 2
#define TB_REASON_AFFINITY 3
#define TB_REASON_TOGETHER 4
#define TB_REASON_BASE 5 /* of the digits; also the code of an item that is merely popular */

/* The reasons that multiplied the score by more than notable, strongest first, as digits: 0 none, not even popularity. */
static inline uint32_t tb_reason_code(const tb_score_parts *parts, double uniform, double notable) {
    double strengths[4] = {parts->in_context / parts->base, parts->vector_lift, parts->affinity_lift,
                           1.0 / (1.0 - tb_clamp(parts->together_share, 0.0, 0.999999))};
    uint32_t code = 0;
    for (;;) {
        int best = -1;
        for (int i = 0; i < 4; i++)
            if (strengths[i] > notable && (best < 0 || strengths[i] > strengths[best])) best = i;
        if (best < 0) break;
        code = code * (TB_REASON_BASE + 1) + (uint32_t)best + 1;
        strengths[best] = 0.0;
    }
    return code != 0 ? code : parts->base > uniform ? TB_REASON_BASE : 0;
}

/* ---- eligibility ---- */

typedef struct {
    uint32_t now_s;
    uint32_t generation;
    int require_stock;
    const uint8_t *allowed; /* per item, or NULL */
} tb_rules;

static inline int tb_admissible(const tb_rules *rules, const tb_item_row *row, uint32_t item) {
    if (!(row->flags & TB_LIVE)) return 0;
    if (rules->require_stock && row->stock == 0) return 0;
    if (row->start_s > rules->now_s || (row->end_s != 0 && row->end_s <= rules->now_s)) return 0;
    return rules->allowed == NULL || rules->allowed[item];
}

/* ---- top-k: a bounded heap with the worst kept candidate on top ---- */

typedef struct {
    float score;
    uint32_t item;
} tb_ranked;

/* Where an item's id stands in the arena. */
typedef struct {
    uint64_t offset;
    uint64_t length;
} tb_id_span;

typedef struct {
    const char *arena;
    const tb_id_span *spans;
} tb_ids;

/* Whether a comes before b: higher score, then smaller id by bytes. */
static inline int tb_before(const tb_ids *ids, tb_ranked a, tb_ranked b) {
    if (a.score != b.score) return a.score > b.score;
    if (a.item == b.item) return 0;
    tb_id_span first = ids->spans[a.item], second = ids->spans[b.item];
    uint64_t common = first.length < second.length ? first.length : second.length;
    int order = memcmp(ids->arena + first.offset, ids->arena + second.offset, common);
    return order != 0 ? order < 0 : first.length < second.length;
}

static inline void tb_sift_down(const tb_ids *ids, tb_ranked *heap, size_t count, size_t at) {
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count) return;
        if (child + 1 < count && tb_before(ids, heap[child], heap[child + 1])) child++;
        if (!tb_before(ids, heap[at], heap[child])) return;
        tb_ranked swap = heap[at];
        heap[at] = heap[child];
        heap[child] = swap;
        at = child;
    }
}

static inline void tb_heap_offer(const tb_ids *ids, tb_ranked *heap, size_t *count, size_t k, tb_ranked fresh) {
    if (*count < k) {
        size_t at = (*count)++;
        heap[at] = fresh;
        while (at > 0 && tb_before(ids, heap[(at - 1) / 2], heap[at])) {
            tb_ranked swap = heap[at];
            heap[at] = heap[(at - 1) / 2];
            heap[(at - 1) / 2] = swap;
            at = (at - 1) / 2;
        }
    } else if (k > 0 && tb_before(ids, fresh, heap[0])) {
        heap[0] = fresh;
        tb_sift_down(ids, heap, *count, 0);
    }
}

/* Turns the heap into a list, best first. */
static inline void tb_heap_sort(const tb_ids *ids, tb_ranked *heap, size_t count) {
    for (size_t end = count; end > 1; end--) {
        tb_ranked swap = heap[0];
        heap[0] = heap[end - 1];
        heap[end - 1] = swap;
        tb_sift_down(ids, heap, end - 1, 0);
    }
}

typedef struct {
    size_t candidate_count; /* distinct and known */
    size_t excluded_count;
    size_t eligible_count;
    double score_sum;       /* of the eligible, lifts included */
    double estimate_sum;    /* of the eligible, before lifts */
} tb_ranking;

/* Scores distinct admissible candidates (the numbers first .. first + count - 1 when candidates is NULL); keeps the k best. */
static inline tb_ranking tb_rank(const tb_evidence *evidence, const tb_rules *rules, const tb_ids *ids, tb_item_row *rows,
                                 uint32_t item_count, const uint32_t *candidates, size_t count, size_t k,
                                 tb_ranked *heap, size_t *kept) {
    tb_ranking ranking = {0, 0, 0, 0.0, 0.0};
    *kept = 0;
    for (size_t i = 0; i < count; i++) {
        if (candidates != NULL) {
            if (i + 16 < count && candidates[i + 16] < item_count) {
                tb_item_prefetch(rows, evidence->embeddings, evidence->vector != NULL ? evidence->width : 0, candidates[i + 16]);
                for (size_t l = 0; l < evidence->level_count; l++) tb_level_prefetch(&evidence->levels[l], candidates[i + 16]);
            }
        }
        uint32_t item = candidates != NULL ? candidates[i] : (uint32_t)i;
        if (item >= item_count) continue;
        tb_item_row *row = &rows[item];
        if (row->seen == rules->generation) continue;
        row->seen = rules->generation;
        if (!(row->flags & TB_LIVE)) continue;
        ranking.candidate_count++;
        if (row->excluded == rules->generation) {
            ranking.excluded_count++;
            continue;
        }
        if (!tb_admissible(rules, row, item)) continue;
        ranking.eligible_count++;
        tb_score_parts parts = tb_score(evidence, rows, item);
        ranking.score_sum += parts.score;
        ranking.estimate_sum += parts.blended;
        tb_ranked fresh = {(float)parts.score, item};
        tb_heap_offer(ids, heap, kept, k, fresh);
    }
    tb_heap_sort(ids, heap, *kept);
    return ranking;
}

#endif

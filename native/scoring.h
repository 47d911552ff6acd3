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

/* Asks for a cache line, into the second level: into the first too few can be on their way at once, and the rest is dropped. */
static inline void tb_prefetch(const void *place) { __builtin_prefetch(place, 0, 2); }

#define TB_UNKNOWN 0xFFFFFFFFu
#define TB_LIVE 1u
#define TB_LOG2_E 1.4426950408889634
#define TB_LIFT_MAX 30.0 /* a vector lifts by 2^30 at most, and lowers by as much */
#define TB_LANES 16
#define TB_CACHE_LINE 64
#define TB_BATCH 64          /* candidates scored in one go */
_Static_assert(TB_BATCH <= TB_EXP2_MANY, "lifts of a batch are computed in one go");
#define TB_LOOKUP_BATCH 1024 /* ids looked up in one go */
#define TB_AHEAD 16           /* candidates fetched before their turn */
#define TB_FETCHED_BYTES 384 /* of an item, ahead of its turn */

#define TB_ID_INLINE 16

/* Everything a decision reads of one item stands side by side: what admits or refuses it, its popularity over all contexts,
 * its id, and behind these the stored numbers of its embedding. Random items of a large catalogue cost a TLB miss for every
 * separate place they are read at. */
typedef struct {
    double count;      /* landmark-scaled decayed count, all contexts */
    uint16_t flags;    /* TB_LIVE */
    int16_t exponent;  /* the embedding is its stored whole numbers times 2^exponent */
    int32_t stock;     /* -1: not counted */
    uint32_t start_s;  /* seconds since 1970; 0: open */
    uint32_t end_s;
    uint64_t reserved[2];
    uint64_t id_length;
    union {
        char bytes[TB_ID_INLINE]; /* of ids up to that length, zeros behind */
        uint64_t offset;          /* of longer ids: where their bytes are in the arena */
    } id;
} tb_item;

_Static_assert(sizeof(tb_item) == TB_CACHE_LINE, "an item begins on a cache line and its embedding on the next");

/* Items by number. */
typedef struct {
    unsigned char *block; /* aligned to cache lines */
    size_t stride;        /* bytes from one to the next, whole cache lines */
    size_t width;         /* numbers of an embedding, a multiple of TB_LANES */
    uint32_t count;
    const char *arena;    /* bytes of the long ids */
} tb_items;

static inline tb_item *tb_item_at(const tb_items *items, uint32_t number) {
    return (tb_item *)(void *)(items->block + (size_t)number * items->stride);
}

static inline int16_t *tb_item_embedding(tb_item *item) { return (int16_t *)(void *)(item + 1); }

static inline const char *tb_item_id(const tb_items *items, const tb_item *item) {
    return item->id_length <= TB_ID_INLINE ? item->id.bytes : items->arena + item->id.offset;
}

/* Asks for an item and the beginning of its embedding; of a long one the hardware fetches the rest. */
static inline void tb_item_prefetch(const tb_items *items, uint32_t number) {
    const unsigned char *at = items->block + (size_t)number * items->stride;
    tb_prefetch(at);
    for (size_t line = TB_CACHE_LINE; line < items->stride && line < TB_FETCHED_BYTES; line += TB_CACHE_LINE)
        tb_prefetch(at + line);
}

/* ---- id table: item id -> item number, open addressing, load <= 1/2 ----
 *
 * A slot tells most ids apart by a tag; the item itself has the id. */

typedef struct {
    uint32_t tag;
    uint32_t number; /* TB_UNKNOWN: empty */
} tb_id_slot;

/* Hash of an id, for this table alone. Short ids, nearly all there are, take one multiplication: their first and last 8 bytes,
 * overlapping where they must, folded to 64 bits; longer ones are left to XXH64. */
static inline uint64_t tb_id_hash(const char *id, size_t length) {
    uint64_t first = 0, last = 0;
    if (length > TB_ID_INLINE) return tb_xxh64(id, length, 0);
    if (length >= 8) {
        memcpy(&first, id, 8);
        memcpy(&last, id + length - 8, 8);
    } else if (length >= 4) {
        memcpy(&first, id, 4);
        memcpy(&last, id + length - 4, 4);
    } else
        for (size_t i = 0; i < length; i++) first |= (uint64_t)(uint8_t)id[i] << (8 * i);
    __uint128_t product = (__uint128_t)(first ^ TB_XXH64_PRIME_1) * (last ^ TB_XXH64_PRIME_2 ^ (length << 56));
    uint64_t folded = (uint64_t)product ^ (uint64_t)(product >> 64);
    return (folded ^ folded >> 29) * TB_XXH64_PRIME_3;
}

static inline uint32_t tb_id_tag(uint64_t hash) { return (uint32_t)(hash >> 32); }

/* Moves `at` on to the first slot with a tag; returns its number, TB_UNKNOWN when an empty slot comes first. */
static inline uint32_t tb_id_probe(const tb_id_slot *slots, uint64_t slot_mask, uint32_t tag, uint64_t *at) {
    while (slots[*at].number != TB_UNKNOWN && slots[*at].tag != tag) *at = (*at + 1) & slot_mask;
    return slots[*at].number;
}

/* memcmp for texts so short that calling it would be most of the work. */
static inline int tb_same_bytes(const char *a, const char *b, size_t length) {
    if (length < 8 || length > TB_ID_INLINE) return memcmp(a, b, length) == 0;
    uint64_t words[4];
    memcpy(&words[0], a, 8);
    memcpy(&words[1], b, 8);
    memcpy(&words[2], a + length - 8, 8); /* overlaps the first where it must */
    memcpy(&words[3], b + length - 8, 8);
    return words[0] == words[1] && words[2] == words[3];
}

static inline int tb_id_is(const tb_items *items, uint32_t number, const char *id, size_t length) {
    const tb_item *item = tb_item_at(items, number);
    return item->id_length == length && tb_same_bytes(tb_item_id(items, item), id, length);
}

static inline void tb_id_insert(tb_id_slot *slots, uint64_t slot_mask, uint64_t hash, uint32_t number) {
    uint64_t at = hash & slot_mask;
    while (slots[at].number != TB_UNKNOWN) at = (at + 1) & slot_mask;
    slots[at].tag = tb_id_tag(hash);
    slots[at].number = number;
}

/* Looks up to TB_LOOKUP_BATCH ids up. While one id is compared, the items of the next and the slots of those behind are on
 * their way, so that the cache misses of all overlap. Returns how many are unknown. */
static inline size_t tb_id_find_batch(const tb_id_slot *slots, uint64_t slot_mask, const tb_items *items, const char *const *ids,
                                      const size_t *lengths, size_t count, uint32_t *numbers) {
    uint64_t hashes[TB_LOOKUP_BATCH], places[TB_LOOKUP_BATCH];
    size_t unknown = 0;
    for (size_t step = 0; step < count + 2 * TB_AHEAD; step++) {
        if (step < count) {
            hashes[step] = tb_id_hash(ids[step], lengths[step]);
            places[step] = hashes[step] & slot_mask;
            tb_prefetch(&slots[places[step]]);
        }
        if (step >= TB_AHEAD && step - TB_AHEAD < count) {
            size_t i = step - TB_AHEAD;
            numbers[i] = tb_id_probe(slots, slot_mask, tb_id_tag(hashes[i]), &places[i]);
            if (numbers[i] != TB_UNKNOWN) tb_prefetch(tb_item_at(items, numbers[i]));
        }
        if (step >= 2 * TB_AHEAD) {
            size_t i = step - 2 * TB_AHEAD;
            while (numbers[i] != TB_UNKNOWN && !tb_id_is(items, numbers[i], ids[i], lengths[i])) {
                places[i] = (places[i] + 1) & slot_mask;
                numbers[i] = tb_id_probe(slots, slot_mask, tb_id_tag(hashes[i]), &places[i]);
            }
            unknown += numbers[i] == TB_UNKNOWN;
        }
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
    if (level->dense == NULL) tb_prefetch(&level->slots[tb_cell_start(item, level->slot_mask)]);
    else if (item < level->dense_count) tb_prefetch(&level->dense[item]);
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
    const float *vector;      /* the person's vector, as wide as the embeddings, or NULL */
} tb_evidence;

/* What the scores of up to TB_BATCH items are made of; the parts of the reasons. */
typedef struct {
    double base[TB_BATCH];           /* estimate over all contexts */
    double in_context[TB_BATCH];     /* estimate after the context cells */
    double together_share[TB_BATCH]; /* share of the blended estimate that co-occurrence brought */
    double blended[TB_BATCH];        /* estimate before the lifts */
    double affinity_lift[TB_BATCH];  /* the largest single lift */
    double vector_lift[TB_BATCH];
    double score[TB_BATCH];
    int32_t affinity_index[TB_BATCH]; /* of the largest lift, -1: none above 1 */
} tb_scores;

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

/* Loops worth compiling for the widest registers there are; the arithmetic is the same in each. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define TB_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define TB_WIDE
#endif
#define TB_UNUSED __attribute__((unused)) /* in some of the extensions that include this */
#define TB_INLINE static inline __attribute__((always_inline)) /* what such a loop calls, or it would be narrow */

typedef float tb_floats_8 __attribute__((vector_size(32)));
typedef float tb_floats_4 __attribute__((vector_size(16)));

/* Dot product over 16 lanes, added as a fixed tree: the same bits at any vector width. Left to itself, the compiler adds the lanes one
 * by one, for a third of what a candidate costs. */
TB_INLINE float tb_dot(const float *vector, const int16_t *mantissas, size_t width) {
    float lanes[TB_LANES] = {0};
    for (size_t f = 0; f < width; f += TB_LANES)
        for (size_t lane = 0; lane < TB_LANES; lane++) lanes[lane] += vector[f + lane] * (float)mantissas[f + lane];
    tb_floats_8 halves[2];
    tb_floats_4 quarters[2];
    memcpy(halves, lanes, sizeof halves);
    halves[0] += halves[1];
    memcpy(quarters, halves, sizeof quarters);
    quarters[0] += quarters[1];
    return (quarters[0][0] + quarters[0][2]) + (quarters[0][1] + quarters[0][3]);
}

/* sign(x) ln(1 + |x|) of finite numbers, in place. */
TB_WIDE TB_UNUSED static void tb_signed_log1p_many(float *values, size_t count) {
    for (size_t i = 0; i < count; i++) {
        double x = (double)values[i];
        double log = tb_log2_within(1.0 + (x < 0.0 ? -x : x)) / TB_LOG2_E;
        values[i] = (float)(x < 0.0 ? -log : log);
    }
}

static inline double tb_clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

/* The estimate after the context cells; writes the one over all contexts to base. */
TB_INLINE double tb_in_context(const tb_evidence *evidence, const tb_items *items, uint32_t number, double *base) {
    double count = tb_item_at(items, number)->count;
    double estimate = (count * evidence->scale + evidence->uniform_strength * evidence->uniform) * evidence->share;
    *base = estimate;
    for (size_t i = 0; i < evidence->level_count; i++) {
        const tb_level *level = &evidence->levels[i];
        estimate = (tb_level_count(level, number) * evidence->scale + level->strength * estimate) * level->share;
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
static inline double tb_together_scale(const tb_evidence *evidence, const tb_items *items, const uint32_t *touched,
                                       size_t touched_count) {
    double sum = 0.0, base;
    for (size_t i = 0; i < touched_count; i++)
        if (touched[i] < items->count)
            sum += tb_together(evidence, touched[i], tb_in_context(evidence, items, touched[i], &base));
    return sum > 0.0 ? 1.0 / sum : 0.0;
}

/* Blends the estimates with what co-occurrence says. */
static inline void tb_blend(const tb_evidence *evidence, const uint32_t *numbers, size_t count, tb_scores *scores) {
    for (size_t i = 0; i < count; i++) {
        double estimate = scores->in_context[i];
        double q = tb_together(evidence, numbers[i], estimate) * evidence->together_scale;
        double brought = evidence->together_support * q;
        double whole = brought + evidence->together_strength * estimate;
        scores->together_share[i] = whole > 0.0 ? brought / whole : 0.0;
        scores->blended[i] = whole / (evidence->together_support + evidence->together_strength);
    }
}

static inline double tb_lift_of(const tb_affinity *affinity, uint64_t symbol) {
    if (symbol == 0) return 1.0;
    for (size_t key = 0; key < affinity->key_count; key++)
        if (affinity->keys[key] == symbol) return affinity->lifts[key];
    return affinity->other_lift;
}

/* Reads what is in memory about one item: its estimates and, as its vector_lift for now, its log-odds by the person's vector. */
TB_INLINE void tb_read_item(const tb_evidence *evidence, const tb_items *items, uint32_t number, size_t i, tb_scores *scores) {
    scores->in_context[i] = tb_in_context(evidence, items, number, &scores->base[i]);
    if (evidence->vector != NULL) {
        tb_item *item = tb_item_at(items, number);
        float product = tb_dot(evidence->vector, tb_item_embedding(item), items->width);
        scores->vector_lift[i] = (double)product * tb_power_of_two(item->exponent);
    }
}

/* Multiplies the affinities' lifts in. */
static inline void tb_lift(const tb_evidence *evidence, const uint32_t *numbers, size_t count, tb_scores *scores) {
    for (size_t i = 0; i < count; i++) {
        scores->affinity_lift[i] = 1.0;
        scores->affinity_index[i] = -1;
    }
    for (size_t a = 0; a < evidence->affinity_count; a++)
        for (size_t i = 0; i < count; i++) {
            double lift = tb_lift_of(&evidence->affinities[a], evidence->affinities[a].symbols[numbers[i]]);
            if (lift > scores->affinity_lift[i]) {
                scores->affinity_lift[i] = lift;
                scores->affinity_index[i] = (int32_t)a;
            }
            scores->score[i] *= lift;
        }
}

/* Makes scores of what was read; where nobody asks for the parts of the reasons, those that are not needed are left out. */
TB_INLINE void tb_score_read(const tb_evidence *evidence, const uint32_t *numbers, size_t count, int with_parts,
                             tb_scores *scores) {
    if (evidence->together != NULL) tb_blend(evidence, numbers, count, scores);
    else {
        memcpy(scores->blended, scores->in_context, count * sizeof *scores->blended);
        if (with_parts) memset(scores->together_share, 0, count * sizeof *scores->together_share);
    }
    memcpy(scores->score, scores->blended, count * sizeof *scores->score);
    if (with_parts || evidence->affinity_count != 0) tb_lift(evidence, numbers, count, scores);
    double *lift = scores->vector_lift;
    if (evidence->vector != NULL) {
        for (size_t i = 0; i < count; i++) {
            double exponent = lift[i] * TB_LOG2_E;
            exponent = exponent == exponent ? exponent : 0.0; /* a sum that overflowed both ways says nothing */
            exponent = exponent < -TB_LIFT_MAX ? -TB_LIFT_MAX : exponent;
            lift[i] = exponent > TB_LIFT_MAX ? TB_LIFT_MAX : exponent;
        }
        tb_exp2_many(lift, count);
    } else
        for (size_t i = 0; i < count; i++) lift[i] = 1.0;
    for (size_t i = 0; i < count; i++) {
        /* Lifts may overflow; what is no number is worth nothing, or it would break the order of the heap. */
        double score = scores->score[i] * lift[i];
        score = score > 0.0 ? score : 0.0;
        scores->score[i] = score > FLT_MAX ? FLT_MAX : score;
    }
}

/* Scores up to TB_BATCH items. */
TB_WIDE TB_UNUSED static void tb_score(const tb_evidence *evidence, const tb_items *items, const uint32_t *numbers, size_t count,
                             tb_scores *scores) {
    for (size_t i = 0; i < count; i++) tb_read_item(evidence, items, numbers[i], i, scores);
    tb_score_read(evidence, numbers, count, 1, scores);
}

/* ---- reasons ---- */

/* What can speak for an item, as digits of a reason code. */
#define TB_REASON_CONTEXT 1
#define TB_REASON_VECTOR 2
#define TB_REASON_AFFINITY 3
#define TB_REASON_TOGETHER 4
#define TB_REASON_BASE 5 /* of the digits; also the code of an item that is merely popular */

/* The reasons that multiplied the score by more than notable, strongest first, as digits: 0 none, not even popularity. */
static inline uint32_t tb_reason_code(const tb_scores *scores, size_t i, double uniform, double notable) {
    double strengths[4] = {scores->in_context[i] / scores->base[i], scores->vector_lift[i], scores->affinity_lift[i],
                           1.0 / (1.0 - tb_clamp(scores->together_share[i], 0.0, 0.999999))};
    uint32_t code = 0;
    for (;;) {
        int best = -1;
        for (int i = 0; i < 4; i++)
            if (strengths[i] > notable && (best < 0 || strengths[i] > strengths[best])) best = i;
        if (best < 0) break;
        code = code * (TB_REASON_BASE + 1) + (uint32_t)best + 1;
        strengths[best] = 0.0;
    }
    return code != 0 ? code : scores->base[i] > uniform ? TB_REASON_BASE : 0;
}

/* ---- marks: which items are excluded, which were met as candidates ----
 *
 * A bit an item, outside the items: so many fit the nearest cache, and no item is written to. What was marked is noted down, so
 * that taking the marks off costs as much as setting them. */

typedef struct {
    uint64_t *excluded; /* a bit per item */
    uint64_t *met;
    size_t word_count;  /* of each */
    uint32_t *noted;    /* the words marked; room for word_count */
    size_t noted_count;
} tb_marks;

/* Sets a bit; returns whether it was set before. */
static inline int tb_mark(tb_marks *marks, uint64_t *bits, uint32_t number) {
    uint32_t word = number / 64;
    uint64_t bit = UINT64_C(1) << (number % 64);
    int before = (bits[word] & bit) != 0;
    if (marks->excluded[word] == 0 && marks->met[word] == 0) marks->noted[marks->noted_count++] = word;
    bits[word] |= bit;
    return before;
}

static inline void tb_marks_clear(tb_marks *marks) {
    for (size_t i = 0; i < marks->noted_count; i++) marks->excluded[marks->noted[i]] = marks->met[marks->noted[i]] = 0;
    marks->noted_count = 0;
}

/* ---- eligibility ---- */

typedef struct {
    uint32_t now_s;
    int require_stock;
    const uint8_t *allowed; /* per item, or NULL */
} tb_rules;

static inline int tb_admissible(const tb_rules *rules, const tb_item *row, uint32_t item) {
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

/* Whether a comes before b: higher score, then smaller id by bytes. */
static inline int tb_before(const tb_items *items, tb_ranked a, tb_ranked b) {
    if (a.score != b.score) return a.score > b.score;
    if (a.item == b.item) return 0;
    const tb_item *first = tb_item_at(items, a.item), *second = tb_item_at(items, b.item);
    uint64_t common = first->id_length < second->id_length ? first->id_length : second->id_length;
    int order = memcmp(tb_item_id(items, first), tb_item_id(items, second), common);
    return order != 0 ? order < 0 : first->id_length < second->id_length;
}

static inline void tb_sift_down(const tb_items *items, tb_ranked *heap, size_t count, size_t at) {
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count) return;
        if (child + 1 < count && tb_before(items, heap[child], heap[child + 1])) child++;
        if (!tb_before(items, heap[at], heap[child])) return;
        tb_ranked swap = heap[at];
        heap[at] = heap[child];
        heap[child] = swap;
        at = child;
    }
}

static inline void tb_heap_offer(const tb_items *items, tb_ranked *heap, size_t *count, size_t k, tb_ranked fresh) {
    if (*count < k) {
        size_t at = (*count)++;
        heap[at] = fresh;
        while (at > 0 && tb_before(items, heap[(at - 1) / 2], heap[at])) {
            tb_ranked swap = heap[at];
            heap[at] = heap[(at - 1) / 2];
            heap[(at - 1) / 2] = swap;
            at = (at - 1) / 2;
        }
    } else if (k > 0 && tb_before(items, fresh, heap[0])) {
        heap[0] = fresh;
        tb_sift_down(items, heap, *count, 0);
    }
}

/* Turns the heap into a list, best first. */
static inline void tb_heap_sort(const tb_items *items, tb_ranked *heap, size_t count) {
    for (size_t end = count; end > 1; end--) {
        tb_ranked swap = heap[0];
        heap[0] = heap[end - 1];
        heap[end - 1] = swap;
        tb_sift_down(items, heap, end - 1, 0);
    }
}

/* What a ranking has come to so far; starts as zeros. */
typedef struct {
    size_t kept;            /* entries of the heap */
    size_t candidate_count; /* distinct and known */
    size_t excluded_count;
    size_t eligible_count;
    double score_sum;       /* of the eligible, lifts included */
    double estimate_sum;    /* of the eligible, before lifts */
} tb_ranking;

/* What scores are multiplied with, so that with lifts they sum to what they sum to without. */
static inline double tb_normaliser(const tb_ranking *ranking) {
    return ranking->score_sum > 0.0 ? ranking->estimate_sum / ranking->score_sum : 1.0;
}

/* Whether a candidate is to be scored: met for the first time, known, not excluded, admissible. */
static inline int tb_admit(const tb_rules *rules, const tb_items *items, tb_marks *marks, uint32_t number, tb_ranking *ranking) {
    if (number >= items->count || tb_mark(marks, marks->met, number)) return 0;
    const tb_item *item = tb_item_at(items, number);
    if (!(item->flags & TB_LIVE)) return 0;
    ranking->candidate_count++;
    if (marks->excluded[number / 64] >> (number % 64) & 1) {
        ranking->excluded_count++;
        return 0;
    }
    return tb_admissible(rules, item, number);
}

/* Scores the items read and keeps those among the k best. */
TB_INLINE void tb_rank_read(const tb_evidence *evidence, const tb_items *items, const uint32_t *numbers, size_t count, size_t k,
                            tb_scores *scores, tb_ranked *heap, tb_ranking *ranking) {
    tb_score_read(evidence, numbers, count, 0, scores);
    ranking->eligible_count += count;
    for (size_t i = 0; i < count; i++) {
        ranking->score_sum += scores->score[i];
        ranking->estimate_sum += scores->blended[i];
    }
    for (size_t i = 0; i < count; i++) {
        tb_ranked fresh = {(float)scores->score[i], numbers[i]};
        if (ranking->kept < k || fresh.score >= heap[0].score) tb_heap_offer(items, heap, &ranking->kept, k, fresh);
    }
}

/* Ranks candidates in their order; candidates NULL are all items, which lie in the order of their numbers.
 *
 * What is read of a candidate is asked for a few turns ahead, and no faster than it is worked off: where too many lines are on
 * their way, the processor drops what else it is asked for. */
TB_WIDE TB_UNUSED static void tb_rank(const tb_evidence *evidence, const tb_rules *rules, const tb_items *items, tb_marks *marks,
                            const uint32_t *candidates, size_t count, size_t k, tb_ranked *heap, tb_ranking *ranking) {
    uint32_t numbers[TB_BATCH];
    tb_scores scores;
    size_t read = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t number = candidates != NULL ? candidates[i] : (uint32_t)i;
        uint32_t coming = candidates != NULL && i + TB_AHEAD < count ? candidates[i + TB_AHEAD] : TB_UNKNOWN;
        if (coming < items->count) {
            tb_item_prefetch(items, coming);
            for (size_t l = 0; l < evidence->level_count; l++) tb_level_prefetch(&evidence->levels[l], coming);
        }
        if (!tb_admit(rules, items, marks, number, ranking)) continue;
        numbers[read] = number;
        tb_read_item(evidence, items, number, read++, &scores);
        if (read == TB_BATCH) {
            tb_rank_read(evidence, items, numbers, read, k, &scores, heap, ranking);
            read = 0;
        }
    }
    tb_rank_read(evidence, items, numbers, read, k, &scores, heap, ranking);
    tb_heap_sort(items, heap, ranking->kept);
}

#endif

/* Quantiles from counts in bins that grow by 2^(1/32) (DDSketch; Masson, Rim and Lee, VLDB 2019).

   A bin stands for a value within 1.1 % of every value in it. At most k bins are kept, those of the largest values; what
   is smaller is counted in the smallest of them. Which bins those are does not depend on the order of arrival, so any
   order of values and merges gives the same bytes. Values nearer to zero than 2^-32 count as zero, and from 2^63 on as
   one bin; negative values have bins of their own. */
#ifndef TAILORBIRD_QUANTILES_H
#define TAILORBIRD_QUANTILES_H

#include <string.h>

#include "exp2.h"
#include "saturating.h"

enum { TB_QUANTILE_BINS_MAX = 128, TB_BINS_PER_DOUBLING = 32, TB_BIN_LOWEST = -32 * 32, TB_BIN_HIGHEST = 63 * 32 };

typedef struct { int32_t key; uint32_t count; } tb_bin;
typedef struct { uint32_t n; uint32_t zero; int64_t last_time; tb_bin entries[]; } tb_quantiles; /* ascending keys */

/* 0 for zero, above for positive values, below for negative ones. */
static inline int32_t tb_bin_key(double value) {
    double size = fabs(value);
    if (!(size > 0x1p-32))
        return 0;
    double bin = ceil(tb_log2(size) * TB_BINS_PER_DOUBLING);
    if (bin > TB_BIN_HIGHEST)
        bin = TB_BIN_HIGHEST;
    int32_t key = (int32_t)bin - TB_BIN_LOWEST + 1;
    return value < 0.0 ? -key : key;
}

/* The value whose distance to both ends of the bin is the same share of them. */
static inline double tb_bin_value(int32_t key) {
    if (key == 0)
        return 0.0;
    int32_t bin = (key < 0 ? -key : key) + TB_BIN_LOWEST - 1;
    double value = tb_exp2((double)bin / TB_BINS_PER_DOUBLING) * (2.0 / (1.0 + 0x1.059b0d3158574p+0)); /* 2^(1/32) */
    return key < 0 ? -value : value;
}

static inline void tb_quantiles_add(uint32_t k, tb_quantiles *block, int32_t key, uint32_t count, int64_t time) {
    tb_bin *entries = block->entries;
    uint32_t place = 0, end = block->n;
    if (time > block->last_time)
        block->last_time = time;
    while (place < end) {
        uint32_t middle = (place + end) / 2;
        if (entries[middle].key < key)
            place = middle + 1;
        else
            end = middle;
    }
    if (place < block->n && entries[place].key == key) {
        entries[place].count = tb_saturating_add_u32(entries[place].count, count);
    } else if (block->n < k) {
        memmove(entries + place + 1, entries + place, (block->n - place) * sizeof *entries);
        entries[place] = (tb_bin){key, count};
        block->n++;
    } else if (place == 0) { /* below all that are kept */
        entries[0].count = tb_saturating_add_u32(entries[0].count, count);
    } else { /* the smallest gives up its bin to the next, which may be the new one */
        uint32_t smallest = entries[0].count;
        memmove(entries, entries + 1, (place - 1) * sizeof *entries);
        entries[place - 1] = (tb_bin){key, count};
        entries[0].count = tb_saturating_add_u32(entries[0].count, smallest);
    }
}

/* The value of which a share `q` of all others is smaller; n >= 1. */
static inline double tb_quantiles_at(const tb_quantiles *block, double q) {
    uint64_t total = 0, below = 0;
    for (uint32_t i = 0; i < block->n; i++)
        total += block->entries[i].count;
    double rank = q * (double)(total - 1);
    for (uint32_t i = 0; i + 1 < block->n; i++) {
        below += block->entries[i].count;
        if ((double)below > rank)
            return tb_bin_value(block->entries[i].key);
    }
    return tb_bin_value(block->entries[block->n - 1].key);
}

#endif

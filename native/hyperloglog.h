/* How many different keys were seen, in 2^p registers of 4 bits (Flajolet et al., HyperLogLog, AofA 2007).

   A register holds the longest run of leading zeros it met plus one, at most 15, so that any order of keys and merges
   gives the same bytes. The estimate is Ertl's (New cardinality estimation algorithms for HyperLogLog sketches, 2017):
   without tuned constants from nothing up to 2^(p + 13) keys, its standard error 1.04 / sqrt(2^p), its bias under 2 %. */
#ifndef TAILORBIRD_HYPERLOGLOG_H
#define TAILORBIRD_HYPERLOGLOG_H

#include <math.h>
#include <stdint.h>

enum { TB_PRECISION_MIN = 6, TB_PRECISION_MAX = 8, TB_RANK_MAX = 15 };
enum { TB_REGISTER_BYTES_MAX = (1 << TB_PRECISION_MAX) / 2 };

static inline uint32_t tb_register_bytes(uint32_t precision) { return (1u << precision) / 2; }

/* Keys may be dense numbers: every bit of the key moves every bit of the hash (the finaliser of splitmix64). */
static inline uint64_t tb_scramble(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static inline void tb_registers_add(uint32_t precision, uint8_t *registers, uint64_t key) {
    uint64_t hash = tb_scramble(key);
    uint32_t index = (uint32_t)(hash >> (64 - precision)), shift = index % 2 * 4;
    /* The bit behind the last ends the run where all others are zero. */
    uint32_t rank = (uint32_t)__builtin_clzll((hash << precision) | (uint64_t)1 << (precision - 1)) + 1;
    if (rank > TB_RANK_MAX)
        rank = TB_RANK_MAX;
    uint8_t *pair = &registers[index / 2];
    if (rank > (uint32_t)(*pair >> shift & 15))
        *pair = (uint8_t)((*pair & (0xF0u >> shift)) | rank << shift);
}

static inline void tb_registers_merge(uint32_t precision, uint8_t *into, const uint8_t *from) {
    for (uint32_t i = 0; i < tb_register_bytes(precision); i++) {
        uint8_t low = into[i] & 15, high = into[i] & 0xF0, other_low = from[i] & 15, other_high = from[i] & 0xF0;
        into[i] = (uint8_t)((low > other_low ? low : other_low) | (high > other_high ? high : other_high));
    }
}

/* Ertl's sigma and tau, summed until nothing is added any more. */
static inline double tb_sigma(double x) {
    double power = 1.0, sum = x, before;
    do {
        x *= x;
        before = sum;
        sum += x * power;
        power += power;
    } while (sum != before);
    return sum;
}

static inline double tb_tau(double x) {
    double power = 1.0, sum = 1.0 - x, before;
    if (x == 0.0 || x == 1.0)
        return 0.0;
    do {
        x = sqrt(x);
        before = sum;
        power *= 0.5;
        sum -= (1.0 - x) * (1.0 - x) * power;
    } while (sum != before);
    return sum / 3.0;
}

/* The estimate as a whole number. */
static inline double tb_registers_estimate(uint32_t precision, const uint8_t *registers) {
    double count__r[TB_RANK_MAX + 1] = {0.0}, m = (double)(1u << precision), sum;
    for (uint32_t i = 0; i < tb_register_bytes(precision); i++) {
        count__r[registers[i] & 15] += 1.0;
        count__r[registers[i] >> 4] += 1.0;
    }
    if (count__r[0] == m)
        return 0.0;
    sum = m * tb_tau(1.0 - count__r[TB_RANK_MAX] / m);
    for (int rank = TB_RANK_MAX - 1; rank >= 1; rank--)
        sum = 0.5 * (sum + count__r[rank]);
    sum += m * tb_sigma(count__r[0] / m);
    return rint(0.7213475204444817 * m * m / sum); /* 1 / (2 ln 2) */
}

#endif

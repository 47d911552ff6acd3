#ifndef TAILORBIRD_XXH64_H
#define TAILORBIRD_XXH64_H

/*
 * XXH64, written from the published xxHash algorithm description: a 64-bit
 * non-cryptographic hash over a byte span, read as little-endian words.
 *
 * tb_xxh64(data, length, seed): `data` may be NULL when `length` is 0. Never
 * reads outside data[0 .. length). Unaligned data is allowed. Touches no
 * state, so it is safe with the GIL released.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TB_XXH64_PRIME_1 UINT64_C(0x9E3779B185EBCA87)
#define TB_XXH64_PRIME_2 UINT64_C(0xC2B2AE3D27D4EB4F)
#define TB_XXH64_PRIME_3 UINT64_C(0x165667B19E3779F9)
#define TB_XXH64_PRIME_4 UINT64_C(0x85EBCA77C2B2AE63)
#define TB_XXH64_PRIME_5 UINT64_C(0x27D4EB2F165667C5)

#define TB_XXH64_STRIPE 32u

static inline uint64_t tb_xxh64_rotl(uint64_t value, unsigned bits)
{
    return (value << bits) | (value >> (64u - bits));
}

/* memcpy is how C reads an unaligned word; every compiler turns it into one load. */
static inline uint64_t tb_xxh64_read64(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

static inline uint32_t tb_xxh64_read32(const uint8_t *at)
{
    uint32_t word;
    memcpy(&word, at, sizeof word);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap32(word);
#endif
    return word;
}

static inline uint64_t tb_xxh64_round(uint64_t lane, uint64_t word)
{
    lane += word * TB_XXH64_PRIME_2;
    return tb_xxh64_rotl(lane, 31u) * TB_XXH64_PRIME_1;
}

static inline uint64_t tb_xxh64_merge(uint64_t hash, uint64_t lane)
{
    hash ^= tb_xxh64_round(0, lane);
    return hash * TB_XXH64_PRIME_1 + TB_XXH64_PRIME_4;
}

static inline uint64_t tb_xxh64(const void *data, size_t length, uint64_t seed)
{
    const uint8_t *at = (const uint8_t *)data;
    size_t left = length;
    uint64_t hash;

    if (left >= TB_XXH64_STRIPE) {
        uint64_t lane1 = seed + TB_XXH64_PRIME_1 + TB_XXH64_PRIME_2;
        uint64_t lane2 = seed + TB_XXH64_PRIME_2;
        uint64_t lane3 = seed;
        uint64_t lane4 = seed - TB_XXH64_PRIME_1;
        do {
            lane1 = tb_xxh64_round(lane1, tb_xxh64_read64(at));
            lane2 = tb_xxh64_round(lane2, tb_xxh64_read64(at + 8));
            lane3 = tb_xxh64_round(lane3, tb_xxh64_read64(at + 16));
            lane4 = tb_xxh64_round(lane4, tb_xxh64_read64(at + 24));
            at += TB_XXH64_STRIPE;
            left -= TB_XXH64_STRIPE;
        } while (left >= TB_XXH64_STRIPE);
        hash = tb_xxh64_rotl(lane1, 1u) + tb_xxh64_rotl(lane2, 7u)
             + tb_xxh64_rotl(lane3, 12u) + tb_xxh64_rotl(lane4, 18u);
        hash = tb_xxh64_merge(hash, lane1);
        hash = tb_xxh64_merge(hash, lane2);
        hash = tb_xxh64_merge(hash, lane3);
        hash = tb_xxh64_merge(hash, lane4);
    } else {
        hash = seed + TB_XXH64_PRIME_5;
    }

    hash += (uint64_t)length;

    while (left >= 8u) {
        hash ^= tb_xxh64_round(0, tb_xxh64_read64(at));
        hash = tb_xxh64_rotl(hash, 27u) * TB_XXH64_PRIME_1 + TB_XXH64_PRIME_4;
        at += 8;
        left -= 8u;
    }
    if (left >= 4u) {
        hash ^= (uint64_t)tb_xxh64_read32(at) * TB_XXH64_PRIME_1;
        hash = tb_xxh64_rotl(hash, 23u) * TB_XXH64_PRIME_2 + TB_XXH64_PRIME_3;
        at += 4;
        left -= 4u;
    }
    while (left > 0u) {
        hash ^= (uint64_t)*at * TB_XXH64_PRIME_5;
        hash = tb_xxh64_rotl(hash, 11u) * TB_XXH64_PRIME_1;
        at += 1;
        left -= 1u;
    }

    hash ^= hash >> 33;
    hash *= TB_XXH64_PRIME_2;
    hash ^= hash >> 29;
    hash *= TB_XXH64_PRIME_3;
    hash ^= hash >> 32;
    return hash;
}

#endif

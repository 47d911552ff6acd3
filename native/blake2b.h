/* Keyed BLAKE2b with a digest of at most 16 bytes (RFC 7693), as Python's hashlib.blake2b(digest_size=, key=, person=) gives it. */
#ifndef TAILORBIRD_BLAKE2B_H
#define TAILORBIRD_BLAKE2B_H

#include <stdint.h>
#include <string.h>

enum { TB_BLAKE2B_BLOCK = 128, TB_BLAKE2B_DIGEST = 16 };

typedef struct { uint64_t h[8]; uint64_t count; } tb_blake2b; /* what whole blocks came to, and how many bytes they were */

static const uint64_t TB_BLAKE2B_IV[8] = {
    0x6a09e667f3bcc908u, 0xbb67ae8584caa73bu, 0x3c6ef372fe94f82bu, 0xa54ff53a5f1d36f1u,
    0x510e527fade682d1u, 0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu, 0x5be0cd19137e2179u,
};
static const uint8_t TB_BLAKE2B_SIGMA[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

static inline uint64_t tb_rotate_right(uint64_t x, int n) { return x >> n | x << (64 - n); }

#define TB_BLAKE2B_MIX(a, b, c, d, x, y)                  \
    do {                                                  \
        v[a] += v[b] + (x);                               \
        v[d] = tb_rotate_right(v[d] ^ v[a], 32);          \
        v[c] += v[d];                                     \
        v[b] = tb_rotate_right(v[b] ^ v[c], 24);          \
        v[a] += v[b] + (y);                               \
        v[d] = tb_rotate_right(v[d] ^ v[a], 16);          \
        v[c] += v[d];                                     \
        v[b] = tb_rotate_right(v[b] ^ v[c], 63);          \
    } while (0)

/* Take in one block of 128 bytes, of which `length` are of the message. */
static inline void tb_blake2b_block(tb_blake2b *state, const uint8_t *block, uint64_t length, int last) {
    uint64_t v[16], m[16];
    memcpy(m, block, sizeof m); /* little endian, as the format has it */
    state->count += length;
    for (int i = 0; i < 8; i++) {
        v[i] = state->h[i];
        v[i + 8] = TB_BLAKE2B_IV[i];
    }
    v[12] ^= state->count;
    if (last)
        v[14] = ~v[14];
    for (int round = 0; round < 12; round++) {
        const uint8_t *s = TB_BLAKE2B_SIGMA[round % 10];
        TB_BLAKE2B_MIX(0, 4, 8, 12, m[s[0]], m[s[1]]);
        TB_BLAKE2B_MIX(1, 5, 9, 13, m[s[2]], m[s[3]]);
        TB_BLAKE2B_MIX(2, 6, 10, 14, m[s[4]], m[s[5]]);
        TB_BLAKE2B_MIX(3, 7, 11, 15, m[s[6]], m[s[7]]);
        TB_BLAKE2B_MIX(0, 5, 10, 15, m[s[8]], m[s[9]]);
        TB_BLAKE2B_MIX(1, 6, 11, 12, m[s[10]], m[s[11]]);
        TB_BLAKE2B_MIX(2, 7, 8, 13, m[s[12]], m[s[13]]);
        TB_BLAKE2B_MIX(3, 4, 9, 14, m[s[14]], m[s[15]]);
    }
    for (int i = 0; i < 8; i++)
        state->h[i] ^= v[i] ^ v[i + 8];
}

/* The state behind the block of a key of 1 to 64 bytes; `person` is 16 bytes. The length of the digest is hashed too. */
static inline void tb_blake2b_begin(tb_blake2b *state, size_t digest_bytes, const uint8_t *key, size_t key_bytes,
                                    const uint8_t *person) {
    uint8_t block[TB_BLAKE2B_BLOCK] = {0};
    uint64_t half[2];
    memcpy(state->h, TB_BLAKE2B_IV, sizeof state->h);
    state->count = 0;
    state->h[0] ^= 0x01010000u ^ (uint64_t)key_bytes << 8 ^ (uint64_t)digest_bytes;
    memcpy(half, person, sizeof half);
    state->h[6] ^= half[0];
    state->h[7] ^= half[1];
    memcpy(block, key, key_bytes);
    tb_blake2b_block(state, block, TB_BLAKE2B_BLOCK, 0);
}

/* The digest of a message of at least one byte behind the key; of a shorter digest than 16 bytes the rest is noise. */
static inline void tb_blake2b_digest(const tb_blake2b *begun, const uint8_t *message, size_t length, uint8_t *digest) {
    tb_blake2b state = *begun;
    uint8_t block[TB_BLAKE2B_BLOCK];
    for (; length > TB_BLAKE2B_BLOCK; message += TB_BLAKE2B_BLOCK, length -= TB_BLAKE2B_BLOCK)
        tb_blake2b_block(&state, message, TB_BLAKE2B_BLOCK, 0);
    memset(block, 0, sizeof block);
    memcpy(block, message, length);
    tb_blake2b_block(&state, block, length, 1);
    memcpy(digest, state.h, TB_BLAKE2B_DIGEST);
}

#endif

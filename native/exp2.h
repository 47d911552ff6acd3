/* 2^x and log2 x for doubles, the same bits on every machine.

   libm's versions differ between C libraries in the last place, and a logged decision must replay bit for bit. These
   use only IEEE additions, multiplications and divisions in a fixed order (build with -ffp-contract=off), so the
   result is a function of the argument alone. Relative error under 1e-15 over the whole range of normal results
   (tests/native/test_exp2.py); subnormal results of tb_exp2 are within one unit of the last place.

   Method. 2^x = 2^n * 2^(j/64) * 2^r with |r| <= 1/128: the table gives the middle factor correctly rounded, the
   Taylor series of degree 5 the last (first dropped term 4e-17). log2 x = e + log2 m with m in [sqrt(1/2), sqrt(2)):
   with s = (m-1)/(m+1), log2 m = (2 / ln 2) * (s + s^3/3 + s^5/5 + ...), |s| <= 0.172, 11 terms (first dropped term
   6e-19 of the first). */
#ifndef TAILORBIRD_EXP2_H
#define TAILORBIRD_EXP2_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static const double tb_exp2_table[64] = {
    1.0, 0x1.02c9a3e778061p+0, 0x1.059b0d3158574p+0, 0x1.0874518759bc8p+0,
    0x1.0b5586cf9890fp+0, 0x1.0e3ec32d3d1a2p+0, 0x1.11301d0125b51p+0, 0x1.1429aaea92de0p+0,
    0x1.172b83c7d517bp+0, 0x1.1a35beb6fcb75p+0, 0x1.1d4873168b9aap+0, 0x1.2063b88628cd6p+0,
    0x1.2387a6e756238p+0, 0x1.26b4565e27cddp+0, 0x1.29e9df51fdee1p+0, 0x1.2d285a6e4030bp+0,
    0x1.306fe0a31b715p+0, 0x1.33c08b26416ffp+0, 0x1.371a7373aa9cbp+0, 0x1.3a7db34e59ff7p+0,
    0x1.3dea64c123422p+0, 0x1.4160a21f72e2ap+0, 0x1.44e086061892dp+0, 0x1.486a2b5c13cd0p+0,
    0x1.4bfdad5362a27p+0, 0x1.4f9b2769d2ca7p+0, 0x1.5342b569d4f82p+0, 0x1.56f4736b527dap+0,
    0x1.5ab07dd485429p+0, 0x1.5e76f15ad2148p+0, 0x1.6247eb03a5585p+0, 0x1.6623882552225p+0,
    0x1.6a09e667f3bcdp+0, 0x1.6dfb23c651a2fp+0, 0x1.71f75e8ec5f74p+0, 0x1.75feb564267c9p+0,
    0x1.7a11473eb0187p+0, 0x1.7e2f336cf4e62p+0, 0x1.82589994cce13p+0, 0x1.868d99b4492edp+0,
    0x1.8ace5422aa0dbp+0, 0x1.8f1ae99157736p+0, 0x1.93737b0cdc5e5p+0, 0x1.97d829fde4e50p+0,
    0x1.9c49182a3f090p+0, 0x1.a0c667b5de565p+0, 0x1.a5503b23e255dp+0, 0x1.a9e6b5579fdbfp+0,
    0x1.ae89f995ad3adp+0, 0x1.b33a2b84f15fbp+0, 0x1.b7f76f2fb5e47p+0, 0x1.bcc1e904bc1d2p+0,
    0x1.c199bdd85529cp+0, 0x1.c67f12e57d14bp+0, 0x1.cb720dcef9069p+0, 0x1.d072d4a07897cp+0,
    0x1.d5818dcfba487p+0, 0x1.da9e603db3285p+0, 0x1.dfc97337b9b5fp+0, 0x1.e502ee78b3ff6p+0,
    0x1.ea4afa2a490dap+0, 0x1.efa1bee615a27p+0, 0x1.f50765b6e4540p+0, 0x1.fa7c1819e90d8p+0};

static inline double tb_power_of_two(int64_t exponent) { /* exponent in [-1022, 1023] */
    uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

/* 2^x for x in [-1020, 1023]: no branches, so that a loop over many is done several at a time. */
static inline double tb_exp2_within(double x) {
    /* Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits of the mantissa. */
    const double magic = 0x1.8p52;
    double shifted = x * 64.0 + magic;
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    uint64_t whole = bits - UINT64_C(0x4338000000000000); /* x * 64, two's complement */
    double r = x - (shifted - magic) * 0.015625;
    double p = r * (0x1.62e42fefa39efp-1 + r * (0x1.ebfbdff82c58fp-3 + r * (0x1.c6b08d704a0c0p-5
             + r * (0x1.3b2ab6fba4e77p-7 + r * 0x1.5d87fe78a6731p-10))));
    double base = tb_exp2_table[whole & 63];
    double y = base + base * p; /* in [0.99, 2) */
    /* The octave, whole without its last 6 bits, goes where the exponent is: 2^52 / 64 = 2^46. */
    uint64_t power_bits = ((whole & ~UINT64_C(63)) << 46) + (UINT64_C(1023) << 52);
    double power;
    memcpy(&power, &power_bits, sizeof power);
    return y * power;
}

#define TB_EXP2_MANY 64

/* tb_exp2_within of up to TB_EXP2_MANY numbers, in place, bit for bit. Only the look-up in the table is done one by one. */
static inline __attribute__((always_inline)) void tb_exp2_many(double *x, size_t count) {
    const double magic = 0x1.8p52;
    double p[TB_EXP2_MANY], base[TB_EXP2_MANY];
    uint64_t whole[TB_EXP2_MANY];
    for (size_t i = 0; i < count; i++) {
        double shifted = x[i] * 64.0 + magic;
        uint64_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        whole[i] = bits - UINT64_C(0x4338000000000000);
        double r = x[i] - (shifted - magic) * 0.015625;
        p[i] = r * (0x1.62e42fefa39efp-1 + r * (0x1.ebfbdff82c58fp-3 + r * (0x1.c6b08d704a0c0p-5
             + r * (0x1.3b2ab6fba4e77p-7 + r * 0x1.5d87fe78a6731p-10))));
    }
    for (size_t i = 0; i < count; i++) base[i] = tb_exp2_table[whole[i] & 63];
    for (size_t i = 0; i < count; i++) {
        double y = base[i] + base[i] * p[i];
        uint64_t power_bits = ((whole[i] & ~UINT64_C(63)) << 46) + (UINT64_C(1023) << 52);
        double power;
        memcpy(&power, &power_bits, sizeof power);
        x[i] = y * power;
    }
}

/* 2^x. NaN gives NaN; below -1080 (and -infinity) 0; from 1024 up infinity. */
static inline double tb_exp2(double x) {
    if (x >= -1020.0 && x <= 1023.0)
        return tb_exp2_within(x);
    if (!(x > -1080.0))
        return x != x ? x : 0.0;
    if (x >= 1024.0)
        return HUGE_VAL;
    /* Two factors: the result may be subnormal, and is rounded once, or its octave 1024. */
    double shift = x < 0.0 ? 600.0 : -600.0;
    return tb_exp2_within(x + shift) * tb_power_of_two((int64_t)-shift);
}

/* e + log2 m for m in [sqrt(1/2), sqrt(2)). */
static inline __attribute__((always_inline)) double tb_log2_of(double e, double m) {
    double s = (m - 1.0) / (m + 1.0);
    double q = s * s;
    double tail = 0x1.1964ec6fc9491p-3;
    tail = tail * q + 0x1.3703c1f4d0ffep-3;
    tail = tail * q + 0x1.5b9ac9b743f0dp-3;
    tail = tail * q + 0x1.89f3b1694cffep-3;
    tail = tail * q + 0x1.c68f568d31760p-3;
    tail = tail * q + 0x1.0c9a84994022dp-2;
    tail = tail * q + 0x1.484b13d7c02a9p-2;
    tail = tail * q + 0x1.a61762a7aded9p-2;
    tail = tail * q + 0x1.2776c50ef9bfep-1;
    tail = tail * q + 0x1.ec709dc3a03fdp-1;
    /* s * 2/ln2 is split off so that the result near x = 1 keeps full relative precision. */
    return e + (s * 0x1.71547652b82fep+1 + s * q * tail);
}

#define TB_ROOT_HALF_BITS UINT64_C(0x3fe6a09e667f3bcd) /* of sqrt(1/2): past them the exponent field counts whole octaves */

/* tb_log2 of a normal x >= sqrt(1/2), bit for bit: no branches, so that a loop over many is done several at a time. */
static inline __attribute__((always_inline)) double tb_log2_within(double x) {
    const double magic = 0x1.8p52; /* its low bits take a whole number, and give it back as a double */
    uint64_t bits, whole_bits;
    double m, whole;
    memcpy(&bits, &x, sizeof bits);
    uint64_t octave = (bits - TB_ROOT_HALF_BITS) >> 52;
    bits -= octave << 52;
    whole_bits = octave + UINT64_C(0x4338000000000000);
    memcpy(&m, &bits, sizeof m);
    memcpy(&whole, &whole_bits, sizeof whole);
    return tb_log2_of(whole - magic, m);
}

/* log2 x. NaN and x < 0 give NaN; 0 gives -infinity; infinity gives infinity. */
static inline double tb_log2(double x) {
    if (!(x > 0.0))
        return x == 0.0 ? -HUGE_VAL : (double)NAN;
    if (x > 0x1.fffffffffffffp1023)
        return x;
    int64_t e = 0;
    if (x < 0x1p-1022) {
        x *= 0x1p54;
        e = -54;
    }
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint64_t above = bits - TB_ROOT_HALF_BITS;
    int64_t octave = (int64_t)(above >> 52);
    if (octave >= 2048) /* below sqrt(1/2): the subtraction borrowed */
        octave -= 4096;
    bits -= (uint64_t)octave << 52;
    double m;
    memcpy(&m, &bits, sizeof m);
    e += octave;
    return tb_log2_of((double)e, m);
}

#endif

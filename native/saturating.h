/* Numbers that stay where they end: int64 additions that keep a limit once reached, doubles that stay finite. */
#ifndef TAILORBIRD_SATURATING_H
#define TAILORBIRD_SATURATING_H

#include <float.h>
#include <math.h>
#include <stdint.h>

#define TB_NEVER INT64_MIN           /* the time of a block that has seen nothing */
#define TB_SUM_UNITS_PER_ONE 10000.0 /* sums count ten-thousandths */

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

static inline uint32_t tb_saturating_add_u32(uint32_t a, uint32_t b) { return a > UINT32_MAX - b ? UINT32_MAX : a + b; }

/* Ten-thousandths, rounded half to even; past int64 the limit. */
static inline int64_t tb_sum_units(double value) {
    double units = rint(value * TB_SUM_UNITS_PER_ONE);
    if (units >= 0x1p63)
        return INT64_MAX;
    if (units < -0x1p63)
        return INT64_MIN;
    return (int64_t)units;
}

#endif

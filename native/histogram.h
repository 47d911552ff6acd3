/* Counts of durations in buckets that grow with them, as HdrHistogram has it (Tene): a power of two is cut into
 * 2^TB_HISTOGRAM_BITS buckets of equal width, and below that each nanosecond has its own. The middle of a bucket is within
 * 1/256 of any duration in it. Histograms of one shape are merged by adding their counts. */

#ifndef TB_HISTOGRAM_H
#define TB_HISTOGRAM_H

#include <stdint.h>

#define TB_HISTOGRAM_BITS 7
#define TB_HISTOGRAM_ACROSS (1 << TB_HISTOGRAM_BITS)
/* Durations from here on (2^40 ns, 18 minutes) are counted in the last bucket. */
#define TB_HISTOGRAM_LIMIT (1ll << 40)
#define TB_HISTOGRAM_BUCKETS ((40 - TB_HISTOGRAM_BITS + 1) * TB_HISTOGRAM_ACROSS)

static inline int tb_histogram_bucket(int64_t duration_ns) {
    if (duration_ns < TB_HISTOGRAM_ACROSS) return duration_ns < 0 ? 0 : (int)duration_ns;
    if (duration_ns >= TB_HISTOGRAM_LIMIT) return TB_HISTOGRAM_BUCKETS - 1;
    int power = 63 - __builtin_clzll((unsigned long long)duration_ns);
    int shift = power - TB_HISTOGRAM_BITS;
    return (shift << TB_HISTOGRAM_BITS) + (int)(duration_ns >> shift);
}

/* The middle of a bucket, in nanoseconds. */
static inline double tb_histogram_middle(int bucket) {
    if (bucket < 2 * TB_HISTOGRAM_ACROSS) return bucket;
    int shift = (bucket >> TB_HISTOGRAM_BITS) - 1;
    int64_t first = ((int64_t)(bucket & (TB_HISTOGRAM_ACROSS - 1)) + TB_HISTOGRAM_ACROSS) << shift;
    return (double)first + ((double)(1ll << shift) - 1.0) / 2.0;
}

static inline void tb_histogram_add(uint32_t* counts, int64_t duration_ns) {
    counts[tb_histogram_bucket(duration_ns)]++;
}

#endif

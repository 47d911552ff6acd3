/* Sums over sparse rows of item neighbours: what goes together with the items a person had to do with.
 *
 * Row i of a CSR matrix holds the neighbours of item i, ascending by item number, and their positive weights. Bytes come from
 * a file: a row end or a neighbour out of range is skipped, never followed. Sums are made in the order of the rows given,
 * then of the neighbours, in float32: the same bits everywhere.
 */
#ifndef TAILORBIRD_NEIGHBOURS_H
#define TAILORBIRD_NEIGHBOURS_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint32_t *indptr; /* row_count + 1 */
    const uint32_t *items;  /* entry_count */
    const float *weights;   /* entry_count */
    size_t row_count;
    size_t entry_count;
} tb_neighbours;

/* Sets the bounds of one row; returns 0 for a row that is not there or whose bounds are damaged. */
static inline int tb_row_bounds(const tb_neighbours *rows, uint32_t row, size_t *start, size_t *end) {
    if (row >= rows->row_count) return 0;
    *start = rows->indptr[row];
    *end = rows->indptr[row + 1];
    return *start <= *end && *end <= rows->entry_count;
}

/* Adds item_weights[m] * row(items[m]) to scratch, which is zero wherever `touched` does not say otherwise.
 *
 * A contribution that is not above zero (or is NaN) is left out: so an item is touched once, when it leaves zero, and
 * `touched` needs no more places than there are items. Returns the new touched_count. */
static inline size_t tb_accumulate(const tb_neighbours *rows, const uint32_t *items, const float *item_weights, size_t count,
                                   float *scratch, size_t item_count, uint32_t *touched, size_t touched_count) {
    for (size_t m = 0; m < count; m++) {
        size_t start, end;
        if (!tb_row_bounds(rows, items[m], &start, &end)) continue;
        for (size_t entry = start; entry < end; entry++) {
            uint32_t item = rows->items[entry];
            float share = item_weights[m] * rows->weights[entry];
            if (item >= item_count || !(share > 0.0f)) continue;
            if (scratch[item] == 0.0f) touched[touched_count++] = item;
            scratch[item] += share;
        }
    }
    return touched_count;
}

/* Whether item a with its score comes before item b: higher score, then smaller number. */
static inline int tb_neighbour_before(const float *scratch, uint32_t a, uint32_t b) {
    return scratch[a] != scratch[b] ? scratch[a] > scratch[b] : a < b;
}

/* Moves the entry at `at` down until no child is worse; the worst kept item is on top. */
static inline void tb_neighbour_sift(const float *scratch, uint32_t *heap, size_t count, size_t at) {
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count) return;
        if (child + 1 < count && tb_neighbour_before(scratch, heap[child], heap[child + 1])) child++;
        if (!tb_neighbour_before(scratch, heap[at], heap[child])) return;
        uint32_t swap = heap[at];
        heap[at] = heap[child];
        heap[child] = swap;
        at = child;
    }
}

/* Writes the `limit` best touched items to `best`, best first; returns how many there are. */
static inline size_t tb_neighbour_top(const float *scratch, const uint32_t *touched, size_t touched_count, size_t limit,
                                      uint32_t *best) {
    size_t kept = touched_count < limit ? touched_count : limit;
    for (size_t i = 0; i < kept; i++) best[i] = touched[i];
    for (size_t at = kept / 2; at > 0; at--) tb_neighbour_sift(scratch, best, kept, at - 1);
    if (kept > 0)
        for (size_t i = kept; i < touched_count; i++)
            if (tb_neighbour_before(scratch, touched[i], best[0])) {
                best[0] = touched[i];
                tb_neighbour_sift(scratch, best, kept, 0);
            }
    for (size_t end = kept; end > 1; end--) {
        uint32_t swap = best[0];
        best[0] = best[end - 1];
        best[end - 1] = swap;
        tb_neighbour_sift(scratch, best, end - 1, 0);
    }
    return kept;
}

/* Returns the weight of `target` in a row, 0 when it is none of the row's neighbours. */
static inline float tb_neighbour_weight(const tb_neighbours *rows, uint32_t row, uint32_t target) {
    size_t low, high;
    if (!tb_row_bounds(rows, row, &low, &high)) return 0.0f;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (rows->items[middle] == target) return rows->weights[middle];
        if (rows->items[middle] < target) low = middle + 1;
        else high = middle;
    }
    return 0.0f;
}

#endif

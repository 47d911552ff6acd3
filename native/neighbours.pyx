"""Item neighbours summed for a person: accumulate, take the best, say why, clear.

`indptr`, `neighbours` and `weights` are the CSR rows of a co-occurrence model. `scratch` and `touched` belong to the caller,
are as long as the catalogue, and are used again by the next call: scratch is zero except at the items touched since `clear`.
"""

from libc.stdint cimport uint32_t


cdef extern from "neighbours.h" nogil:
    ctypedef struct tb_neighbours:
        const uint32_t* indptr
        const uint32_t* items
        const float* weights
        size_t row_count
        size_t entry_count

    size_t tb_accumulate(const tb_neighbours* rows, const uint32_t* items, const float* item_weights, size_t count,
                         float* scratch, size_t item_count, uint32_t* touched, size_t touched_count) noexcept
    size_t tb_neighbour_top(const float* scratch, const uint32_t* touched, size_t touched_count, size_t limit,
                            uint32_t* best) noexcept
    float tb_neighbour_weight(const tb_neighbours* rows, uint32_t row, uint32_t target) noexcept


cdef tb_neighbours _rows(const uint32_t[::1] indptr, const uint32_t[::1] neighbours, const float[::1] weights) except *:
    cdef tb_neighbours rows
    if indptr.shape[0] < 1:
        raise ValueError("expected indptr of item_count + 1 places, got none")
    if neighbours.shape[0] != weights.shape[0]:
        raise ValueError(f"expected as many weights as neighbours, got {weights.shape[0]} and {neighbours.shape[0]}")
    rows.indptr = &indptr[0]
    rows.items = &neighbours[0] if neighbours.shape[0] else NULL
    rows.weights = &weights[0] if weights.shape[0] else NULL
    rows.row_count = indptr.shape[0] - 1
    rows.entry_count = neighbours.shape[0]
    return rows


cdef int _check_touched(const float[::1] scratch, const uint32_t[::1] touched, Py_ssize_t touched_count) except -1:
    cdef Py_ssize_t at
    if touched.shape[0] < scratch.shape[0]:
        raise ValueError(f"expected {scratch.shape[0]} places in touched, one per place of scratch, got {touched.shape[0]}")
    if not 0 <= touched_count <= touched.shape[0]:
        raise ValueError(f"expected touched_count from 0 to {touched.shape[0]}, got {touched_count}")
    for at in range(touched_count):
        if touched[at] >= scratch.shape[0]:
            raise ValueError(f"expected touched items below {scratch.shape[0]}, got {touched[at]} at {at}")
    return 0


def accumulate(const uint32_t[::1] indptr not None, const uint32_t[::1] neighbours not None,
               const float[::1] weights not None, const uint32_t[::1] items not None,
               const float[::1] item_weights not None, float[::1] scratch not None, uint32_t[::1] touched not None,
               Py_ssize_t touched_count=0):
    """Add `item_weights[m]` times the row of `items[m]` to `scratch`; return how many items are touched by now.

    `touched` must have a place for every place of `scratch`, `touched_count` be what the last call returned (0 after `clear`).
    Items without a row, and contributions that are not above zero, add nothing. Raises ValueError for lengths that disagree.
    """
    cdef tb_neighbours rows = _rows(indptr, neighbours, weights)
    cdef size_t count = items.shape[0], item_count = scratch.shape[0], touched_now = touched_count
    if items.shape[0] != item_weights.shape[0]:
        raise ValueError(f"expected as many item weights as items, got {item_weights.shape[0]} and {items.shape[0]}")
    _check_touched(scratch, touched, touched_count)
    if count == 0 or item_count == 0:
        return touched_now
    with nogil:
        touched_now = tb_accumulate(&rows, &items[0], &item_weights[0], count, &scratch[0], item_count, &touched[0],
                                    touched_now)
    return touched_now


def total(const float[::1] scratch not None, const uint32_t[::1] touched not None, Py_ssize_t touched_count):
    """Return the sum of the touched scores, added as double in the order they were touched."""
    cdef double total_score = 0.0
    cdef Py_ssize_t at
    _check_touched(scratch, touched, touched_count)
    with nogil:
        for at in range(touched_count):
            total_score += scratch[touched[at]]
    return total_score


def clear(float[::1] scratch not None, const uint32_t[::1] touched not None, Py_ssize_t touched_count):
    """Set the touched places of `scratch` back to zero."""
    cdef Py_ssize_t at
    _check_touched(scratch, touched, touched_count)
    with nogil:
        for at in range(touched_count):
            scratch[touched[at]] = 0.0


def top(const float[::1] scratch not None, const uint32_t[::1] touched not None, Py_ssize_t touched_count, Py_ssize_t limit,
        uint32_t[::1] out_items not None, float[::1] out_scores not None):
    """Write the `limit` best touched items and their scores, best first and ties by smaller item number; return how many."""
    cdef size_t kept, at
    _check_touched(scratch, touched, touched_count)
    if limit < 0 or out_items.shape[0] < limit or out_scores.shape[0] < limit:
        raise ValueError(f"expected {limit} (>= 0) places in the outputs, got {out_items.shape[0]} and {out_scores.shape[0]}")
    if limit == 0 or touched_count == 0:
        return 0
    with nogil:
        kept = tb_neighbour_top(&scratch[0], &touched[0], touched_count, limit, &out_items[0])
        for at in range(kept):
            out_scores[at] = scratch[out_items[at]]
    return kept


def explain(const uint32_t[::1] indptr not None, const uint32_t[::1] neighbours not None, const float[::1] weights not None,
            const uint32_t[::1] items not None, const float[::1] item_weights not None, uint32_t target):
    """Return the index in `items` of the item that contributed most to `target` (the first of equals), -1 when none did."""
    cdef tb_neighbours rows = _rows(indptr, neighbours, weights)
    cdef Py_ssize_t best = -1, at
    cdef float share, best_share = 0.0
    if items.shape[0] != item_weights.shape[0]:
        raise ValueError(f"expected as many item weights as items, got {item_weights.shape[0]} and {items.shape[0]}")
    with nogil:
        for at in range(items.shape[0]):
            share = item_weights[at] * tb_neighbour_weight(&rows, items[at], target)
            if share > best_share:
                best_share = share
                best = at
    return best

"""The kernels of scoring.h, and the tables a ranking reads, for the extension that decides."""

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from tailorbird.native.servings cimport tb_served_log

cdef extern from "scoring.h" nogil:
    enum: TB_LIVE
    enum: TB_LANES
    enum: TB_BATCH
    enum: TB_AHEAD
    enum: TB_LOOKUP_BATCH
    enum: TB_ID_INLINE
    enum: TB_CACHE_LINE
    enum: TB_LEVELS_MAX
    enum: TB_AFFINITIES_MAX
    const uint32_t TB_UNKNOWN
    ctypedef union tb_item_id_bytes:
        char* bytes "bytes"
        uint64_t offset
    ctypedef struct tb_item:
        double count
        uint16_t flags
        int16_t exponent
        int32_t stock
        uint32_t start_s
        uint32_t end_s
        uint64_t id_length
        tb_item_id_bytes id "id"
    ctypedef struct tb_items:
        unsigned char* block
        size_t stride
        size_t width
        uint32_t count
        const char* arena
    const size_t TB_HUGE_PAGE
    ctypedef struct tb_id_slot:
        uint32_t number
    ctypedef struct tb_cell_slot:
        double count
        uint32_t item
    ctypedef struct tb_level:
        const tb_cell_slot* slots
        uint64_t slot_mask
        const double* dense
        uint32_t dense_count
        double total
        double strength
        double share
    ctypedef struct tb_affinity:
        const uint64_t* symbols
        const uint64_t* keys
        const double* lifts
        size_t key_count
        double other_lift
    ctypedef struct tb_evidence:
        double scale
        double total
        double uniform_strength
        double uniform
        double share
        size_t level_count
        tb_level levels[8]
        const float* together
        double together_scale
        double together_support
        double together_strength
        double together_exponent
        size_t affinity_count
        tb_affinity affinities[8]
        const float* vector
    ctypedef struct tb_scores:
        double* base
        double* in_context
        double* together_share
        double* affinity_lift
        double* vector_lift
        double* score
        int32_t* affinity_index
    ctypedef struct tb_marks:
        uint64_t* excluded
        uint64_t* met
        size_t word_count
        uint32_t* noted
        size_t noted_count
    int tb_mark(tb_marks* marks, uint64_t* bits, uint32_t number)
    void tb_marks_clear(tb_marks* marks)
    ctypedef struct tb_rules:
        uint32_t now_s
        int require_stock
        const uint8_t* allowed
    ctypedef struct tb_ranked:
        float score
        uint32_t item
    ctypedef struct tb_ranking:
        size_t kept
        size_t candidate_count
        size_t excluded_count
        size_t eligible_count
        double score_sum
        double estimate_sum
    void tb_advise_huge(void* block, size_t bytes_)
    void tb_prefetch(const void* place)
    tb_item* tb_item_at(const tb_items* items, uint32_t number)
    int16_t* tb_item_embedding(tb_item* item)
    const char* tb_item_id(const tb_items* items, const tb_item* item)
    uint64_t tb_id_hash(const char* id_, size_t length)
    void tb_id_insert(tb_id_slot* slots, uint64_t slot_mask, uint64_t hash_, uint32_t number)
    size_t tb_id_find_batch(const tb_id_slot* slots, uint64_t slot_mask, const tb_items* items, const char** ids,
                            const size_t* lengths, size_t count, uint32_t* numbers)
    double tb_level_count(const tb_level* level, uint32_t item)
    int tb_cell_set(tb_cell_slot* slots, uint64_t slot_mask, uint32_t item, double count)
    double tb_normaliser(const tb_ranking* ranking)
    uint32_t tb_reason_code(const tb_scores* scores, size_t i, double uniform, double notable)
    void tb_signed_log1p_many(float* values, size_t count)
    int16_t tb_quantise(const float* values, size_t count, int16_t* mantissas)
    void tb_score(const tb_evidence* evidence, const tb_items* items, const uint32_t* numbers, size_t count, tb_scores* scores)
    double tb_together_scale(const tb_evidence* evidence, const tb_items* items, const uint32_t* touched, size_t touched_count)
    void tb_rank(const tb_evidence* evidence, const tb_rules* rules, const tb_items* items, tb_marks* marks,
                 const uint32_t* candidates, size_t count, size_t k, tb_ranked* heap, tb_ranking* ranking)


cdef class Prior:
    cdef tb_evidence evidence
    cdef tuple levels


cdef class ItemTable:
    cdef readonly Py_ssize_t attribute_count
    cdef readonly Py_ssize_t dimension
    cdef readonly uint32_t live_count
    cdef tb_items items
    cdef uint32_t capacity
    cdef tb_marks marks
    cdef tb_id_slot* slots
    cdef uint64_t slot_mask
    cdef char* arena
    cdef size_t arena_used
    cdef size_t arena_bytes
    cdef uint64_t* symbols
    cdef float* vector  # of the ranking under way, padded

    cdef int _reserve(self, uint32_t capacity) except -1
    cdef int _rehash(self, size_t slot_count) except -1
    cdef int _name(self, uint32_t number, str item_id) except -1
    cdef str _id(self, uint32_t number)
    cdef int _check(self, uint32_t number) except -1
    cdef Py_ssize_t _find(self, ids, uint32_t* numbers) except -1
    cdef int _exclude_listed(self, const char* chunk, size_t length, int64_t since_s) except -1
    cdef void _exclude_served(self, const tb_served_log* log, const uint8_t* fragment, int64_t since_s) noexcept
    cdef void _set_uniform(self, tb_evidence* evidence) noexcept
    cdef void _rank(self, const tb_evidence* evidence, const tb_rules* rules, const uint32_t* numbers, size_t count, size_t k,
                    tb_ranked* heap, tb_ranking* ranking) noexcept
    cdef Py_ssize_t _rank_ids(self, const tb_evidence* evidence, const tb_rules* rules, ids, size_t k, tb_ranked* heap,
                              tb_ranking* ranking) except -1
    cdef void _score(self, const tb_evidence* evidence, const tb_ranked* ranked, size_t count, tb_scores* scores) noexcept
    cdef list _winners(self, const tb_evidence* evidence, const tb_ranked* heap, const tb_ranking* ranking, double notable,
                       double[:, ::1] parts)
    cdef int _add_together(self, tb_evidence* evidence, const float[::1] scores, const uint32_t[::1] touched, double support,
                           double strength, double exponent) except -1
    cdef object _add_affinity(self, tb_evidence* evidence, Py_ssize_t attribute, const uint64_t[::1] keys, const double[::1] lifts,
                              double other_lift)
    cdef int _set_vector(self, tb_evidence* evidence, const float* vector, Py_ssize_t count, bint logarithmic) except -1

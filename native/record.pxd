"""The kernels of record.h and aggregates.h, and what the records are made of, for other extensions."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "record.h" nogil:
    enum:
        TB_COUNT, TB_SUM, TB_LAST, TB_TIME_SINCE, TB_DECAYED, TB_TOP_K, TB_LAST_K
        TB_MEAN, TB_MIN, TB_MAX, TB_FIRST, TB_DISTINCT, TB_QUANTILE
        TB_WINDOW_COUNT, TB_WINDOW_SUM, TB_WINDOW_MEAN, TB_WINDOW_MIN, TB_WINDOW_MAX, TB_WINDOW_DISTINCT
        TB_FRESH, TB_STALE, TB_MISSING, TB_WARMING, TB_DEFAULTED, TB_MASKED
        TB_TOP_K_MAX, TB_LAST_K_MAX, TB_QUANTILE_BINS_MAX, TB_PRECISION_MIN, TB_PRECISION_MAX, TB_TILES_MAX
        TB_FEATURES_MAX, TB_RECORD_FORMAT, TB_FLAG_SATURATED

    ctypedef struct tb_hops:
        int64_t hop_ms
        int64_t window_ms
        uint32_t tiles
        uint32_t entry_bytes
        uint32_t precision
        uint8_t kind

    ctypedef struct tb_feature:
        uint8_t op
        uint32_t k
        double half_life_ms
        uint64_t required
        uint64_t admit
        int64_t max_age_ms
        uint32_t dense_offset
        uint32_t dense_bytes
        uint32_t fixed_bytes
        uint8_t warming
        uint8_t has_default
        double default_value
        double quantile
        tb_hops hops

    ctypedef struct tb_count:
        int64_t value
        int64_t last_time
    ctypedef struct tb_sum:
        int64_t units
        int64_t last_time
    ctypedef struct tb_last:
        uint64_t bits
        int64_t event_time
        uint64_t digest
    ctypedef struct tb_time_since:
        int64_t event_time
    ctypedef struct tb_decayed:
        double value
        int64_t ref_time
    ctypedef struct tb_weighted:
        uint64_t key
        double weight
    ctypedef struct tb_top_k:
        uint32_t n
        tb_weighted* entries
    ctypedef struct tb_occurrence:
        uint32_t item
        uint32_t digest
        int64_t time
    ctypedef struct tb_last_k:
        uint32_t n
        tb_occurrence* entries

    ctypedef struct tb_mean:
        int64_t units
        int64_t count
        int64_t last_time
    ctypedef struct tb_extreme:
        double value
        int64_t last_time
    ctypedef struct tb_first:
        uint64_t bits
        int64_t event_time
        uint64_t digest
    ctypedef struct tb_distinct:
        int64_t last_time
        uint8_t* registers
    ctypedef struct tb_bin:
        int32_t key
        uint32_t count
    ctypedef struct tb_quantiles:
        uint32_t n
        int64_t last_time
        tb_bin* entries
    ctypedef struct tb_window:
        uint32_t n
        int64_t last_time
    ctypedef struct tb_tile:
        int32_t tile
        uint32_t count
    ctypedef struct tb_sum_tile:
        int64_t units
    ctypedef struct tb_extreme_tile:
        double value
    ctypedef struct tb_distinct_tile:
        uint8_t* registers

    ctypedef struct tb_header:
        uint8_t format
        uint8_t flags
        uint8_t algorithm
        uint8_t partition
        uint16_t layout_version
        uint16_t member_count
        uint32_t key_id
        uint32_t checksum
        uint8_t fragment_id[16]
        uint64_t granted
        uint64_t denied
        uint64_t restricted
        uint64_t explicit_choice
        int64_t first_seen
        int64_t last_seen
        int64_t consent_time

    ctypedef enum tb_record_fault:
        TB_RECORD_OK
        TB_RECORD_LONG

    bint tb_feature_complete(tb_feature* feature) noexcept
    bint tb_is_window(uint8_t op) noexcept
    bint tb_block_saturated(const tb_feature* feature, const void* block) noexcept
    int64_t tb_sum_units(double value) noexcept
    void tb_block_clear(const tb_feature* feature, void* block) noexcept
    void tb_count_add(tb_count* block, int64_t amount, int64_t time) noexcept
    void tb_sum_add(tb_sum* block, int64_t units, int64_t time) noexcept
    void tb_last_offer(tb_last* block, uint64_t bits, int64_t time, uint64_t digest) noexcept
    void tb_first_offer(tb_first* block, uint64_t bits, int64_t time, uint64_t digest) noexcept
    void tb_mean_add(tb_mean* block, int64_t units, int64_t count, int64_t time) noexcept
    void tb_extreme_offer(uint8_t op, tb_extreme* block, double value, int64_t time) noexcept
    void tb_distinct_add(uint32_t precision, tb_distinct* block, uint64_t key, int64_t time) noexcept
    int32_t tb_bin_key(double value) noexcept
    double tb_bin_value(int32_t key) noexcept
    void tb_quantiles_add(uint32_t k, tb_quantiles* block, int32_t key, uint32_t count, int64_t time) noexcept
    void tb_window_count(const tb_hops* hops, tb_window* block, uint32_t amount, int64_t time) noexcept
    void tb_window_value(const tb_hops* hops, tb_window* block, double value, int64_t time) noexcept
    void tb_window_key(const tb_hops* hops, tb_window* block, uint64_t key, int64_t time) noexcept
    tb_tile* tb_window_tile(const tb_hops* hops, const tb_window* block, uint32_t i) noexcept
    uint32_t tb_register_bytes(uint32_t precision) noexcept
    void tb_time_since_offer(tb_time_since* block, int64_t time) noexcept
    void tb_decayed_add(double half_life_ms, tb_decayed* block, double amount, int64_t time) noexcept
    void tb_top_k_add(double half_life_ms, uint32_t k, tb_top_k* block, uint64_t key, double weight,
                      int64_t time) noexcept
    void tb_last_k_offer(uint32_t k, tb_last_k* block, tb_occurrence fresh) noexcept
    void tb_block_merge(const tb_feature* feature, void* into, const void* source) noexcept
    void tb_block_copy(const tb_feature* feature, void* into, const void* source) noexcept
    int64_t tb_block_time(const tb_feature* feature, const void* block) noexcept
    int64_t tb_age_ms(int64_t time, int64_t at) noexcept
    uint8_t tb_block_status(const tb_feature* feature, const void* block, int64_t at, uint64_t mask) noexcept
    uint8_t tb_read_double(const tb_feature* feature, const void* block, int64_t at, uint64_t mask,
                           double* out) noexcept
    uint8_t tb_read_number(const tb_feature* feature, const void* block, int64_t at, uint64_t mask, float* out) noexcept
    int64_t tb_read_recent(const tb_feature* feature, const tb_last_k* block, int64_t at, int64_t room,
                           uint32_t* items, int64_t* times) noexcept
    int64_t tb_read_top(const tb_feature* feature, const tb_top_k* block, int64_t at, int64_t room,
                        uint64_t* keys, float* weights) noexcept
    size_t tb_block_bytes(const tb_feature* feature, const uint8_t* block) noexcept
    size_t tb_record_pack(const tb_feature* features, size_t feature_count, const uint8_t* dense, uint8_t* out) noexcept
    tb_record_fault tb_record_check(const tb_feature* features, size_t feature_count, uint16_t layout_version,
                                    const uint8_t* data, size_t length, uint32_t* offsets__f, size_t* where) noexcept
    void tb_record_spread(const tb_feature* features, size_t feature_count, const uint8_t* data,
                          const uint32_t* offsets__f, uint8_t* dense) noexcept

cdef extern from "xxh64.h" nogil:
    uint64_t tb_xxh64(const void* data, size_t length, uint64_t seed) noexcept


cdef struct Entry:
    int32_t feature
    int32_t slot
    double weight


cdef class RecordLayout:
    cdef readonly int version
    cdef readonly int feature_count
    cdef readonly int dense_bytes
    cdef readonly int packed_bytes_max
    cdef readonly object fingerprint  # u64 of what decides the stored bytes: version, ops, k, half lives, hops
    cdef bint has_warming
    cdef tb_feature* features
    cdef Entry* entries
    cdef list starts  # program p updates entries[starts[p]:starts[p + 1]]
    cdef Py_ssize_t entry_count


cdef class RecordHeader:
    cdef tb_header* header
    cdef tb_header empty  # what it points to before there is a record
    cdef bint writable

    cdef int _check_writable(self) except -1


cdef class Record(RecordHeader):
    cdef RecordLayout _layout
    cdef uint8_t* dense
    cdef uint64_t* presence__w

    cdef int _spread(self, const uint8_t* data, Py_ssize_t length) except -1
    cdef const uint8_t* _block(self, Py_ssize_t index) except? NULL


cdef class RecordView(RecordHeader):
    cdef RecordLayout _layout
    cdef uint8_t* data
    cdef uint32_t* offsets__f

    cdef int _take(self, RecordLayout layout, const uint8_t* data, Py_ssize_t length) except -1
    cdef const uint8_t* _block(self, Py_ssize_t index) except? NULL
    cdef const uint8_t* _typed(self, Py_ssize_t index, uint8_t op, int64_t at, uint64_t mask) except? NULL

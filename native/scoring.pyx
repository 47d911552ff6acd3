"""Item columns, context cells, and the ranking of candidates. The kernels are in scoring.h."""

from libc.math cimport isfinite
from libc.stdint cimport int16_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeUTF8

cdef extern from "Python.h":
    object PySequence_Fast(object sequence, const char* message)
    PyObject** PySequence_Fast_ITEMS(object fast)
    Py_ssize_t PySequence_Fast_GET_SIZE(object fast)

import numpy as np

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void** pointer, size_t alignment, size_t size)

cdef extern from "xxh64.h" nogil:
    uint64_t tb_xxh64(const void* data, size_t length, uint64_t seed)

cdef extern from "scoring.h" nogil:
    enum: TB_LIVE
    enum: TB_LANES
    enum: TB_LOOKUP_BATCH
    enum: TB_LEVELS_MAX
    enum: TB_AFFINITIES_MAX
    const uint32_t TB_UNKNOWN
    ctypedef struct tb_item_row:
        double count
        uint16_t flags
        int16_t exponent
        int32_t stock
        uint32_t start_s
        uint32_t end_s
        uint32_t seen
        uint32_t excluded
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
        tb_level* levels
        const float* together
        double together_scale
        double together_support
        double together_strength
        double together_exponent
        size_t affinity_count
        tb_affinity* affinities
        const float* vector
        const int16_t* embeddings
        size_t width
    ctypedef struct tb_score_parts:
        double base
        double in_context
        double together_share
        double blended
        double affinity_lift
        int32_t affinity_index
        double vector_lift
        double score
    ctypedef struct tb_rules:
        uint32_t now_s
        uint32_t generation
        int require_stock
        const uint8_t* allowed
    ctypedef struct tb_ranked:
        float score
        uint32_t item
    ctypedef struct tb_id_span:
        uint64_t offset
        uint64_t length
    ctypedef struct tb_ids:
        const char* arena
        const tb_id_span* spans
    ctypedef struct tb_ranking:
        size_t candidate_count
        size_t excluded_count
        size_t eligible_count
        double score_sum
        double estimate_sum
    void tb_advise_huge(void* block, size_t bytes_)
    void tb_prefetch(const void* place)
    tb_id_slot tb_id_slot_of(uint64_t hash_, uint32_t number, const char* id_, uint32_t length, uint64_t offset)
    void tb_id_insert(tb_id_slot* slots, uint64_t slot_mask, tb_id_slot fresh)
    size_t tb_id_find_batch(const tb_id_slot* slots, uint64_t slot_mask, const char* arena, const char** ids,
                            const size_t* lengths, size_t count, uint32_t* numbers)
    double tb_level_count(const tb_level* level, uint32_t item)
    int tb_cell_set(tb_cell_slot* slots, uint64_t slot_mask, uint32_t item, double count)
    uint32_t tb_reason_code(const tb_score_parts* parts, double uniform, double notable)
    double tb_signed_log1p(double x)
    int16_t tb_quantise(const float* values, size_t count, int16_t* mantissas)
    tb_score_parts tb_score(const tb_evidence* evidence, const tb_item_row* rows, uint32_t item)
    double tb_together_scale(const tb_evidence* evidence, const tb_item_row* rows, uint32_t item_count,
                             const uint32_t* touched, size_t touched_count)
    tb_ranking tb_rank(const tb_evidence* evidence, const tb_rules* rules, const tb_ids* ids, tb_item_row* rows,
                       uint32_t item_count, const uint32_t* candidates, size_t count, size_t k, tb_ranked* heap, size_t* kept)

UNKNOWN_ITEM = 0xFFFFFFFF
cdef uint32_t ITEM_NUMBERS_MAX = 0xFFFFFFFE
cdef size_t DENSE_FROM = 1024
cdef Py_ssize_t AHEAD = 16  # ids whose objects are fetched while earlier ones are read
cdef const char* NOT_TEXT = b"\xff"  # stands for an id that is no text, which no item has


cdef void* _grown(void* old, size_t old_bytes, size_t new_bytes) except NULL:
    """Return cache-line aligned memory with the old bytes in front and zeros behind; the old is freed."""
    cdef void* fresh = NULL
    if posix_memalign(&fresh, TB_HUGE_PAGE if new_bytes >= TB_HUGE_PAGE else 64, new_bytes) != 0:
        raise MemoryError()
    tb_advise_huge(fresh, new_bytes)
    if old_bytes:
        memcpy(fresh, old, old_bytes)
    memset(<char*>fresh + old_bytes, 0, new_bytes - old_bytes)
    free(old)
    return fresh


cdef double _checked(double value, str what) except? -1.0:
    """Return a number that is finite and not negative: of others a score could become NaN."""
    if not isfinite(value) or value < 0.0:
        raise ValueError(f"expected {what} finite and not negative, got {value}")
    return value


cdef double _above_zero(double value, str what) except? -1.0:
    if value == 0.0:
        raise ValueError(f"expected {what} above 0, got 0.0")
    return _checked(value, what)


cdef class CellTable:
    """Landmark-scaled counts of one context cell by item number; dense once it knows a quarter of the items."""

    cdef tb_cell_slot* slots
    cdef uint64_t slot_mask
    cdef double* dense
    cdef uint32_t dense_count
    cdef uint32_t end  # one more than the largest item number
    cdef size_t used

    def __cinit__(self):
        self._allocate(16)

    def __dealloc__(self):
        free(self.slots)
        free(self.dense)

    cdef int _allocate(self, size_t slot_count) except -1:
        cdef size_t i
        self.slots = <tb_cell_slot*>_grown(NULL, 0, slot_count * sizeof(tb_cell_slot))
        self.slot_mask = slot_count - 1
        for i in range(slot_count):
            self.slots[i].item = TB_UNKNOWN
        return 0

    cdef int _double(self) except -1:
        cdef tb_cell_slot* old = self.slots
        cdef size_t old_count = self.slot_mask + 1, i
        if self.used >= DENSE_FROM and self.used >= self.end // 4:
            self._grow_dense(self.end)
            for i in range(old_count):
                if old[i].item != TB_UNKNOWN:
                    self.dense[old[i].item] = old[i].count
            self.slots = NULL
        else:
            self._allocate(2 * old_count)
            for i in range(old_count):
                if old[i].item != TB_UNKNOWN:
                    tb_cell_set(self.slots, self.slot_mask, old[i].item, old[i].count)
        free(old)
        return 0

    cdef int _grow_dense(self, uint32_t end) except -1:
        cdef size_t count = max(<size_t>end, 2 * <size_t>self.dense_count)
        self.dense = <double*>_grown(self.dense, self.dense_count * sizeof(double), count * sizeof(double))
        self.dense_count = count
        return 0

    def __len__(self):
        return len(self.entries()[0])

    def set_counts(self, const uint32_t[::1] items not None, const double[::1] counts not None):
        """Set the counts of items; both arrays have one entry per item."""
        cdef Py_ssize_t i
        if items.shape[0] != counts.shape[0]:
            raise ValueError(f"expected as many counts as items = {items.shape[0]}, got {counts.shape[0]}")
        for i in range(items.shape[0]):
            if items[i] >= ITEM_NUMBERS_MAX:
                raise ValueError(f"expected item numbers below {ITEM_NUMBERS_MAX}, got {items[i]} at {i}")
            _checked(counts[i], "counts")
        for i in range(items.shape[0]):
            self.end = max(self.end, items[i] + 1)
            if self.dense == NULL and 2 * (self.used + 1) > self.slot_mask + 1:
                self._double()
            if self.dense == NULL:
                self.used += tb_cell_set(self.slots, self.slot_mask, items[i], counts[i])
            else:
                if items[i] >= self.dense_count:
                    self._grow_dense(items[i] + 1)
                self.dense[items[i]] = counts[i]

    cdef tb_level level(self, double total, double strength):
        cdef tb_level level
        level.slots, level.slot_mask = self.slots, self.slot_mask
        level.dense, level.dense_count = self.dense, self.dense_count
        level.total, level.strength, level.share = total, strength, 1.0 / (total + strength)
        return level

    def counts(self, const uint32_t[::1] items not None):
        """Return the counts of items as float64, 0 where there is none."""
        out = np.empty(items.shape[0], np.float64)
        cdef double[::1] counts = out
        cdef tb_level level = self.level(0.0, 1.0)
        cdef Py_ssize_t i
        for i in range(items.shape[0]):
            counts[i] = tb_level_count(&level, items[i])
        return out

    def entries(self):
        """Return (items uint32, counts float64) of what is not zero, sorted by item number."""
        cdef size_t i, n = 0
        if self.dense != NULL:
            dense = np.asarray(<double[:self.dense_count]>self.dense)
            found = np.flatnonzero(dense)
            return found.astype(np.uint32), dense[found]
        items_out, counts_out = np.empty(self.used, np.uint32), np.empty(self.used, np.float64)
        cdef uint32_t[::1] items = items_out
        cdef double[::1] counts = counts_out
        for i in range(self.slot_mask + 1):
            if self.slots[i].item != TB_UNKNOWN and self.slots[i].count != 0.0:
                items[n] = self.slots[i].item
                counts[n] = self.slots[i].count
                n += 1
        order = np.argsort(items_out[:n])
        return items_out[order], counts_out[order]


cdef class ItemTable:
    """Everything a decision reads of the catalogue, by dense item number.

    `attribute_count` symbol columns and an embedding of `dimension` 16-bit numbers per item, rows padded to 16 lanes. Each ranking
    marks its candidates with the next `generation`, which comes round after 2^32 - 1 of them.
    """

    cdef readonly uint32_t count
    cdef readonly Py_ssize_t attribute_count
    cdef readonly Py_ssize_t dimension
    cdef uint32_t capacity
    cdef uint32_t generation
    cdef size_t width
    cdef tb_item_row* rows
    cdef tb_id_slot* slots
    cdef uint64_t slot_mask
    cdef char* arena
    cdef size_t arena_used
    cdef size_t arena_bytes
    cdef tb_id_span* spans
    cdef uint64_t* symbols
    cdef int16_t* embeddings
    cdef float* vector  # of the ranking under way, padded
    cdef readonly uint32_t live_count

    def __cinit__(self, Py_ssize_t attribute_count, Py_ssize_t dimension, *, uint32_t generation=0):
        if attribute_count < 0 or attribute_count > 64 or dimension < 0 or dimension > 4096:
            raise ValueError(f"expected 0..64 attributes and 0..4096 dimensions, got {attribute_count} and {dimension}")
        self.attribute_count, self.dimension, self.generation = attribute_count, dimension, generation
        self.width = (dimension + TB_LANES - 1) // TB_LANES * TB_LANES
        self.vector = <float*>_grown(NULL, 0, max(<size_t>1, self.width) * sizeof(float))
        self._reserve(1024)
        self._rehash(4096)
        self.arena_bytes = 65536
        self.arena = <char*>_grown(NULL, 0, self.arena_bytes)

    def __dealloc__(self):
        free(self.rows)
        free(self.slots)
        free(self.arena)
        free(self.spans)
        free(self.symbols)
        free(self.embeddings)
        free(self.vector)

    cdef int _reserve(self, uint32_t capacity) except -1:
        cdef size_t old = self.capacity, new = capacity
        cdef Py_ssize_t a
        cdef uint64_t* columns
        self.rows = <tb_item_row*>_grown(self.rows, old * sizeof(tb_item_row), new * sizeof(tb_item_row))
        self.spans = <tb_id_span*>_grown(self.spans, old * sizeof(tb_id_span), new * sizeof(tb_id_span))
        if self.width:
            self.embeddings = <int16_t*>_grown(self.embeddings, old * self.width * 2, new * self.width * 2)
        if self.attribute_count:
            columns = <uint64_t*>_grown(NULL, 0, new * 8 * self.attribute_count)
            for a in range(self.attribute_count):
                if old:
                    memcpy(columns + a * new, self.symbols + a * old, old * 8)
            free(self.symbols)
            self.symbols = columns
        self.capacity = capacity
        return 0

    cdef int _rehash(self, size_t slot_count) except -1:
        cdef tb_id_slot* old = self.slots
        cdef size_t old_count = self.slot_mask + 1 if old != NULL else 0, i
        self.slots = <tb_id_slot*>_grown(NULL, 0, slot_count * sizeof(tb_id_slot))
        self.slot_mask = slot_count - 1
        for i in range(slot_count):
            self.slots[i].number = TB_UNKNOWN
        for i in range(old_count):
            if old[i].number != TB_UNKNOWN:
                tb_id_insert(self.slots, self.slot_mask, old[i])
        free(old)
        return 0

    cdef int _name(self, uint32_t number, str item_id) except -1:
        cdef Py_ssize_t length
        cdef const char* text = PyUnicode_AsUTF8AndSize(item_id, &length)
        if number > self.count:
            raise ValueError(f"expected items in the order of their numbers, next {self.count}, got {number}")
        if number < self.count:
            if self.id(number) != item_id:
                raise ValueError(f"expected id {self.id(number)!r} at number {number}, got {item_id!r}; numbers are never reused")
            return 0
        if number == self.capacity:
            self._reserve(2 * self.capacity)
        if 2 * <size_t>(number + 1) > self.slot_mask + 1:
            self._rehash(2 * (self.slot_mask + 1))
        if self.arena_used + length > self.arena_bytes:
            self.arena = <char*>_grown(self.arena, self.arena_used, 2 * self.arena_bytes + length)
            self.arena_bytes = 2 * self.arena_bytes + length
        memcpy(self.arena + self.arena_used, text, length)
        tb_id_insert(self.slots, self.slot_mask,
                     tb_id_slot_of(tb_xxh64(text, length, 0), number, text, length, self.arena_used))
        self.spans[number].offset, self.spans[number].length = self.arena_used, length
        self.arena_used += length
        self.count = number + 1
        return 0

    def put(self, uint32_t number, str item_id not None, bint live, int32_t stock, uint32_t start_s, uint32_t end_s,
            tuple symbols not None, const float[::1] embedding):
        """Set an item whole. Numbers are dense: an unknown one must be the next. `embedding` None is all zeros.

        Embedding values are kept to 2^-15 of the item's largest.
        """
        cdef Py_ssize_t a, f
        cdef tb_item_row* row
        if len(symbols) != self.attribute_count:
            raise ValueError(f"expected {self.attribute_count} symbols, got {len(symbols)}, for item {item_id!r}")
        if embedding is not None and embedding.shape[0] != self.dimension:
            raise ValueError(f"expected {self.dimension} embedding values, got {embedding.shape[0]}, for item {item_id!r}")
        if embedding is not None:
            for f in range(self.dimension):
                if not isfinite(embedding[f]):
                    raise ValueError(f"expected finite embedding values, got {embedding[f]} at {f}, for item {item_id!r}")
        self._name(number, item_id)
        row = &self.rows[number]
        self.live_count += <int>live - <int>(row.flags & TB_LIVE)
        row.flags = TB_LIVE if live else 0
        row.stock, row.start_s, row.end_s = stock, start_s, end_s
        for a in range(self.attribute_count):
            self.symbols[a * <size_t>self.capacity + number] = symbols[a]
        if self.dimension == 0:
            return
        if embedding is not None:
            row.exponent = tb_quantise(&embedding[0], self.dimension, self.embeddings + number * self.width)
        else:
            memset(self.embeddings + number * self.width, 0, self.width * sizeof(int16_t))

    def id(self, uint32_t number):
        """Return an item's id."""
        if number >= self.count:
            raise IndexError(f"expected an item number below {self.count}, got {number}")
        return self._id(number)

    cdef str _id(self, uint32_t number):
        cdef tb_id_span* span = &self.spans[number]
        return PyUnicode_DecodeUTF8(self.arena + span.offset, span.length, NULL)

    def lookup(self, ids not None):
        """Return (numbers uint32 in the order of `ids`, how many are unknown); unknown ids are `UNKNOWN_ITEM`."""
        texts = PySequence_Fast(ids, "expected a sequence of ids")
        cdef PyObject** objects = PySequence_Fast_ITEMS(texts)
        cdef Py_ssize_t total = PySequence_Fast_GET_SIZE(texts), first, i, batch
        out = np.empty(total, np.uint32)
        cdef uint32_t[::1] numbers = out
        cdef const char* pointers[TB_LOOKUP_BATCH]
        cdef size_t lengths[TB_LOOKUP_BATCH]
        cdef Py_ssize_t length
        cdef size_t unknown = 0
        for first in range(0, total, TB_LOOKUP_BATCH):
            batch = min(total - first, <Py_ssize_t>TB_LOOKUP_BATCH)
            for i in range(batch):
                if first + i + AHEAD < total:
                    tb_prefetch(objects[first + i + AHEAD])
                try:
                    pointers[i] = PyUnicode_AsUTF8AndSize(<str?><object>objects[first + i], &length)
                except UnicodeEncodeError:  # a lone surrogate
                    pointers[i], length = NOT_TEXT, 1
                lengths[i] = length
            unknown += tb_id_find_batch(self.slots, self.slot_mask, self.arena, pointers, lengths, batch, &numbers[first])
        return out, unknown

    def set_counts(self, const uint32_t[::1] items not None, const double[::1] counts not None):
        """Set the landmark-scaled counts over all contexts."""
        cdef Py_ssize_t i
        if items.shape[0] != counts.shape[0]:
            raise ValueError(f"expected as many counts as items = {items.shape[0]}, got {counts.shape[0]}")
        for i in range(items.shape[0]):
            if items[i] >= self.count:
                raise IndexError(f"expected item numbers below {self.count}, got {items[i]} at {i}")
            self.rows[items[i]].count = _checked(counts[i], "counts")

    def counts(self):
        """Return the landmark-scaled counts over all contexts, float64[count]."""
        out = np.empty(self.count, np.float64)
        cdef double[::1] counts = out
        cdef uint32_t i
        for i in range(self.count):
            counts[i] = self.rows[i].count
        return out

    def live(self):
        """Return which items are in the catalogue, uint8[count]."""
        out = np.empty(self.count, np.uint8)
        cdef uint8_t[::1] flags = out
        cdef uint32_t i
        for i in range(self.count):
            flags[i] = self.rows[i].flags & TB_LIVE
        return out

    def attribute(self, Py_ssize_t index):
        """Return a copy of one symbol column, uint64[count]."""
        if not 0 <= index < self.attribute_count:
            raise IndexError(f"expected an attribute index below {self.attribute_count}, got {index}")
        out = np.zeros(self.count, np.uint64)
        cdef uint64_t[::1] column = out
        if self.count:
            memcpy(&column[0], self.symbols + index * <size_t>self.capacity, self.count * 8)
        return out

    def symbol(self, Py_ssize_t attribute, uint32_t number):
        """Return the symbol of one item in one attribute column, 0 for none."""
        if not 0 <= attribute < self.attribute_count or number >= self.count:
            raise IndexError(f"expected an attribute below {self.attribute_count} and an item below {self.count}, "
                             f"got {attribute} and {number}")
        return self.symbols[attribute * <size_t>self.capacity + number]

    def rank(self, const uint32_t[::1] candidates, Py_ssize_t k, uint32_t now_s, *, bint require_stock=True,
             const uint8_t[::1] allowed=None, const uint32_t[::1] excluded=None, double scale=1.0, double total=0.0,
             double uniform_strength=1.0, tuple levels=(), const float[::1] together=None, const uint32_t[::1] touched=None,
             double together_support=0.0, double together_strength=1.0, double together_exponent=0.0,
             tuple affinities=(), const float[::1] vector=None, bint vector_log=False,
             double notable=1.1, double[:, ::1] parts=None):
        """Return (winners, candidate_count, excluded_count, eligible_count), winners best first.

        `candidates` are item numbers, unknown ones passed over, repeats counted once; None stands for every item. `levels`
        are (CellTable, total, strength) coarse to fine; `affinities` (attribute index, keys uint64, lifts float64, other
        lift). `together` are co-occurrence scores per item, zero but for the `touched` items; where these sum to zero they say
        nothing and are passed over. Values of `vector` that are not finite count as 0; with `vector_log` they enter as
        sign(x) ln(1 + |x|). A winner is (item, id, score, reason code of what multiplied the score by more than `notable`,
        index of the affinity with the largest lift above 1 or -1). `parts`, float64[k, 5], takes what each winner's score was
        made of: estimate over all contexts, after the cells, share brought by co-occurrence, largest affinity lift, vector
        lift. Raises ValueError for lengths that do
        not fit, and for counts, totals, strengths and lifts that are negative or not finite.
        """
        cdef tb_evidence evidence
        cdef tb_level level_array[TB_LEVELS_MAX]
        cdef tb_affinity affinity_array[TB_AFFINITIES_MAX]
        cdef tb_rules rules
        cdef tb_ids ids
        cdef tb_ranking ranking
        cdef tb_score_parts made_of
        cdef size_t i, j, kept = 0, count
        cdef CellTable cell
        cdef const uint64_t[::1] keys
        cdef const double[::1] lifts
        cdef const uint32_t* candidate_pointer = NULL
        cdef tb_ranked* heap
        cdef double normaliser
        if parts is not None and (parts.shape[0] < k or parts.shape[1] != 5):
            raise ValueError(f"expected `parts` of {k} rows of 5, got {parts.shape[0]} of {parts.shape[1]}")
        if k < 1 or k > 65536:
            raise ValueError(f"expected k from 1 to 65536, got {k}")
        if len(levels) > TB_LEVELS_MAX or len(affinities) > TB_AFFINITIES_MAX:
            raise ValueError(f"expected at most {TB_LEVELS_MAX} levels and {TB_AFFINITIES_MAX} affinities, "
                             f"got {len(levels)} and {len(affinities)}")
        if allowed is not None and allowed.shape[0] < self.count:
            raise ValueError(f"expected `allowed` for {self.count} items, got {allowed.shape[0]}")
        if together is not None and together.shape[0] < self.count:
            raise ValueError(f"expected co-occurrence scores for {self.count} items, got {together.shape[0]}")
        if vector is not None and (vector.shape[0] != self.dimension or self.dimension == 0):
            raise ValueError(f"expected a vector of {self.dimension} values, got {vector.shape[0]}")
        evidence.scale, evidence.total = _checked(scale, "scale"), _checked(total, "total")
        evidence.uniform_strength = _above_zero(uniform_strength, "uniform_strength")
        evidence.uniform = 1.0 / max(<uint32_t>1, self.live_count)
        evidence.share = 1.0 / (evidence.total + evidence.uniform_strength)
        for i in range(<size_t>len(levels)):
            cell, cell_total, cell_strength = levels[i]
            if cell is None:
                raise TypeError(f"expected a CellTable in levels[{i}], got None")
            level_array[i] = cell.level(_checked(cell_total, "totals of levels"), _above_zero(cell_strength, "strengths of levels"))
        views = []
        for i in range(<size_t>len(affinities)):
            attribute, keys, lifts, other_lift = affinities[i]
            if keys is None or lifts is None:
                raise TypeError(f"expected keys and lifts in affinities[{i}], got None")
            if keys.shape[0] != lifts.shape[0] or not 0 <= attribute < self.attribute_count:
                raise ValueError(f"expected one lift per key and an attribute index below {self.attribute_count}, "
                                 f"got {keys.shape[0]} keys, {lifts.shape[0]} lifts, attribute {attribute}")
            for j in range(<size_t>lifts.shape[0]):
                _checked(lifts[j], "lifts")
            affinity_array[i].other_lift = _checked(other_lift, "lifts")
            affinity_array[i].symbols = self.symbols + <size_t>attribute * self.capacity
            affinity_array[i].key_count = keys.shape[0]
            affinity_array[i].keys = &keys[0] if keys.shape[0] else NULL
            affinity_array[i].lifts = &lifts[0] if keys.shape[0] else NULL
            views.append((keys, lifts))
        evidence.level_count, evidence.affinity_count = len(levels), len(affinities)
        memcpy(<void*>evidence.levels, level_array, sizeof(level_array))
        memcpy(<void*>evidence.affinities, affinity_array, sizeof(affinity_array))
        evidence.together = &together[0] if together is not None and together.shape[0] else NULL
        evidence.together_scale, evidence.together_support = 0.0, _checked(together_support, "together_support")
        evidence.together_strength = _above_zero(together_strength, "together_strength")
        evidence.together_exponent = _checked(together_exponent, "together_exponent")
        evidence.vector, evidence.embeddings, evidence.width = NULL, self.embeddings, self.width
        if vector is not None:
            for i in range(<size_t>self.dimension):
                if not isfinite(vector[i]):
                    self.vector[i] = 0.0
                else:
                    self.vector[i] = <float>tb_signed_log1p(vector[i]) if vector_log else vector[i]
            evidence.vector = self.vector
        self.generation += 1
        if self.generation == 0:  # the counter came round: forget the old marks
            for i in range(self.count):
                self.rows[i].seen = 0
                self.rows[i].excluded = 0
            self.generation = 1
        if excluded is not None:
            for i in range(<size_t>excluded.shape[0]):
                if excluded[i] < self.count:
                    self.rows[excluded[i]].excluded = self.generation
        rules.now_s, rules.generation, rules.require_stock = now_s, self.generation, require_stock
        rules.allowed = &allowed[0] if allowed is not None and allowed.shape[0] else NULL
        ids.arena, ids.spans = self.arena, self.spans
        count = self.count
        cdef uint32_t none = 0
        if candidates is not None:
            count = candidates.shape[0]
            candidate_pointer = &candidates[0] if count else &none
        cdef size_t touched_count = touched.shape[0] if touched is not None else 0
        cdef const uint32_t* touched_pointer = &touched[0] if touched_count else NULL
        heap = <tb_ranked*>_grown(NULL, 0, k * sizeof(tb_ranked))
        try:
            with nogil:
                if evidence.together != NULL:
                    evidence.together_scale = tb_together_scale(&evidence, self.rows, self.count, touched_pointer, touched_count)
                    if evidence.together_scale == 0.0:
                        evidence.together = NULL
                ranking = tb_rank(&evidence, &rules, &ids, self.rows, self.count, candidate_pointer, count, k, heap, &kept)
            normaliser = ranking.estimate_sum / ranking.score_sum if ranking.score_sum > 0.0 else 1.0
            for i in range(kept):
                tb_prefetch(&self.spans[heap[i].item])
            for i in range(kept):
                tb_prefetch(self.arena + self.spans[heap[i].item].offset)
            winners = []
            for i in range(kept):
                made_of = tb_score(&evidence, self.rows, heap[i].item)
                winners.append((heap[i].item, self._id(heap[i].item), <float>(made_of.score * normaliser),
                                tb_reason_code(&made_of, evidence.uniform, notable), made_of.affinity_index))
                if parts is not None:
                    parts[i, 0], parts[i, 1] = made_of.base, made_of.in_context
                    parts[i, 2], parts[i, 3] = made_of.together_share, made_of.affinity_lift
                    parts[i, 4] = made_of.vector_lift
        finally:
            free(heap)
        return winners, ranking.candidate_count, ranking.excluded_count, ranking.eligible_count

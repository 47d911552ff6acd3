"""Item columns, context cells, and the ranking of candidates. The kernels are in scoring.h."""

from libc.math cimport isfinite
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeUTF8

cdef extern from "Python.h":
    object PySequence_Fast(object sequence, const char* message)
    PyObject** PySequence_Fast_ITEMS(object fast)
    Py_ssize_t PySequence_Fast_GET_SIZE(object fast)
    bint PyUnicode_CheckExact(PyObject* text)
    bint PyUnicode_IS_COMPACT_ASCII(PyObject* text)
    void* PyUnicode_DATA(PyObject* text)
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject* text)

from tailorbird.native.servings cimport (
    TB_FRAGMENT_BYTES, TB_NOWHERE, ServedLog, tb_served, tb_served_at, tb_served_before, tb_served_items, tb_served_log,
    tb_served_newest,
)
from tailorbird.native.wire cimport Ids

import numpy as np

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void** pointer, size_t alignment, size_t size)

cdef extern from "history.h" nogil:
    ctypedef struct tb_entry:
        uint32_t item
        uint32_t time_s
    int64_t tb_chunk_entries(size_t bytes_)
    tb_entry tb_chunk_entry(const char* chunk, int64_t i)

UNKNOWN_ITEM = 0xFFFFFFFF
cdef uint32_t ITEM_NUMBERS_MAX = 0xFFFFFFFE
cdef size_t DENSE_FROM = 1024
cdef size_t RELEASED_FROM = 4096  # candidates from which other threads may run meanwhile
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


cdef object _fast(ids):
    """Return a sequence of ids as one that is read without calls."""
    return ids if type(ids) is Ids else PySequence_Fast(ids, "expected a sequence of ids")


cdef int _read_texts(ids, Py_ssize_t first, Py_ssize_t count, const char** texts, size_t* lengths) except -1:
    """Write where the texts of a list or tuple are, while the objects of those behind are on their way."""
    cdef PyObject** objects = PySequence_Fast_ITEMS(ids)
    cdef Py_ssize_t end = PySequence_Fast_GET_SIZE(ids), i
    for i in range(count):
        if first + i + TB_AHEAD < end:
            tb_prefetch(objects[first + i + TB_AHEAD])
        texts[i] = _utf8(objects[first + i], &lengths[i])
    return 0


cdef inline const char* _utf8(PyObject* text, size_t* length) except NULL:
    """Return the bytes of a text and their number; they live as long as the text."""
    if PyUnicode_CheckExact(text) and PyUnicode_IS_COMPACT_ASCII(text):
        length[0] = PyUnicode_GET_LENGTH(text)
        return <const char*>PyUnicode_DATA(text)
    return _utf8_of_any(<object>text, length)


cdef const char* _utf8_of_any(str text, size_t* length) except NULL:
    cdef Py_ssize_t size = 0
    try:
        found = PyUnicode_AsUTF8AndSize(text, &size)
    except UnicodeEncodeError:  # a lone surrogate
        length[0] = 1
        return NOT_TEXT
    length[0] = size
    return found


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


cdef class Prior:
    """What popularity says of every item before anything is known of the person: the evidence of one moment and one context.

    `scale` turns landmark-scaled counts into counts at that moment, `total` is their sum over all contexts at it,
    `uniform_strength` how much evidence the uniform prior is worth; `levels` are (CellTable, total, strength), coarse to fine.
    Made afresh whenever a cell changes. Raises ValueError for what is negative or not finite, or a strength of 0.
    """

    def __cinit__(self, double scale=1.0, double total=0.0, double uniform_strength=1.0, tuple levels=()):
        cdef CellTable cell
        if len(levels) > TB_LEVELS_MAX:
            raise ValueError(f"expected at most {TB_LEVELS_MAX} levels, got {len(levels)}")
        self.levels = levels
        memset(&self.evidence, 0, sizeof(self.evidence))
        self.evidence.scale, self.evidence.total = _checked(scale, "scale"), _checked(total, "total")
        self.evidence.uniform_strength = _above_zero(uniform_strength, "uniform_strength")
        self.evidence.share = 1.0 / (total + uniform_strength)
        self.evidence.level_count = len(levels)
        for i, (table, cell_total, cell_strength) in enumerate(levels):
            if table is None:
                raise TypeError(f"expected a CellTable in levels[{i}], got None")
            cell = table
            self.evidence.levels[i] = cell.level(
                _checked(cell_total, "totals of levels"), _above_zero(cell_strength, "strengths of levels")
            )


cdef class ItemTable:
    """Everything a decision reads of the catalogue, by dense item number, and the ranking over it.

    `attribute_count` symbol columns, and an embedding of `dimension` 16-bit numbers behind each item, padded to 16 lanes.
    Marks tell what a ranking excludes and has met; `begin` takes all of them off.
    """

    def __cinit__(self, Py_ssize_t attribute_count, Py_ssize_t dimension):
        cdef size_t line = TB_CACHE_LINE
        if attribute_count < 0 or attribute_count > 64 or dimension < 0 or dimension > 4096:
            raise ValueError(f"expected 0..64 attributes and 0..4096 dimensions, got {attribute_count} and {dimension}")
        self.attribute_count, self.dimension = attribute_count, dimension
        self.items.width = (dimension + TB_LANES - 1) // TB_LANES * TB_LANES
        self.items.stride = sizeof(tb_item) + (self.items.width * sizeof(int16_t) + line - 1) // line * line
        self.vector = <float*>_grown(NULL, 0, max(<size_t>1, self.items.width) * sizeof(float))
        self._reserve(1024)
        self._rehash(4096)
        self.arena_bytes = 4096
        self.items.arena = self.arena = <char*>_grown(NULL, 0, self.arena_bytes)

    def __dealloc__(self):
        free(self.items.block)
        free(self.marks.excluded)
        free(self.marks.met)
        free(self.marks.noted)
        free(self.slots)
        free(self.arena)
        free(self.symbols)
        free(self.vector)

    @property
    def count(self):
        """How many items have a number."""
        return self.items.count

    cdef int _reserve(self, uint32_t capacity) except -1:
        cdef size_t old = self.capacity, new = capacity
        cdef Py_ssize_t a
        cdef uint64_t* columns
        cdef size_t old_words = self.marks.word_count, words = (new + 63) // 64
        self.marks.excluded = <uint64_t*>_grown(self.marks.excluded, old_words * 8, words * 8)
        self.marks.met = <uint64_t*>_grown(self.marks.met, old_words * 8, words * 8)
        self.marks.noted = <uint32_t*>_grown(self.marks.noted, old_words * 4, words * 4)
        self.marks.word_count = words
        self.items.block = <unsigned char*>_grown(self.items.block, old * self.items.stride, new * self.items.stride)
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
        cdef tb_id_slot* slots
        cdef size_t i
        cdef uint32_t number
        cdef tb_item* item
        slots = <tb_id_slot*>_grown(NULL, 0, slot_count * sizeof(tb_id_slot))
        free(self.slots)
        self.slots, self.slot_mask = slots, slot_count - 1
        for i in range(slot_count):
            self.slots[i].number = TB_UNKNOWN
        for number in range(self.items.count):
            item = tb_item_at(&self.items, number)
            tb_id_insert(self.slots, self.slot_mask, tb_id_hash(tb_item_id(&self.items, item), item.id_length), number)
        return 0

    cdef int _name(self, uint32_t number, str item_id) except -1:
        """Give an item its id, or check that it is the one it has."""
        cdef Py_ssize_t length
        cdef const char* text = PyUnicode_AsUTF8AndSize(item_id, &length)
        cdef uint32_t count = self.items.count
        cdef tb_item* item
        if number > count:
            raise ValueError(f"expected items in the order of their numbers, next {count}, got {number}")
        if number < count:
            if self._id(number) != item_id:
                raise ValueError(f"expected id {self._id(number)!r} at number {number}, got {item_id!r}; numbers are never reused")
            return 0
        if number == self.capacity:
            self._reserve(2 * self.capacity)
        if 2 * <size_t>(number + 1) > self.slot_mask + 1:
            self._rehash(2 * (self.slot_mask + 1))
        item = tb_item_at(&self.items, number)
        item.id_length = length
        if length <= TB_ID_INLINE:
            memcpy(item.id.bytes, text, length)
        else:
            if self.arena_used + length > self.arena_bytes:
                self.arena = <char*>_grown(self.arena, self.arena_used, 2 * self.arena_bytes + length)
                self.items.arena, self.arena_bytes = self.arena, 2 * self.arena_bytes + length
            memcpy(self.arena + self.arena_used, text, length)
            item.id.offset = self.arena_used
            self.arena_used += length
        tb_id_insert(self.slots, self.slot_mask, tb_id_hash(text, length), number)
        self.items.count = number + 1
        return 0

    def put(self, uint32_t number, str item_id not None, bint live, int32_t stock, uint32_t start_s, uint32_t end_s,
            tuple symbols not None, const float[::1] embedding):
        """Set an item whole. Numbers are dense: an unknown one must be the next. `embedding` None is all zeros.

        Embedding values are kept to 2^-15 of the item's largest.
        """
        cdef Py_ssize_t a, f
        cdef tb_item* row
        if len(symbols) != self.attribute_count:
            raise ValueError(f"expected {self.attribute_count} symbols, got {len(symbols)}, for item {item_id!r}")
        if embedding is not None and embedding.shape[0] != self.dimension:
            raise ValueError(f"expected {self.dimension} embedding values, got {embedding.shape[0]}, for item {item_id!r}")
        if embedding is not None:
            for f in range(self.dimension):
                if not isfinite(embedding[f]):
                    raise ValueError(f"expected finite embedding values, got {embedding[f]} at {f}, for item {item_id!r}")
        self._name(number, item_id)
        row = tb_item_at(&self.items, number)
        self.live_count += <int>live - <int>(row.flags & TB_LIVE)
        row.flags = TB_LIVE if live else 0
        row.stock, row.start_s, row.end_s = stock, start_s, end_s
        for a in range(self.attribute_count):
            self.symbols[a * <size_t>self.capacity + number] = symbols[a]
        if self.dimension == 0:
            return
        if embedding is not None:
            row.exponent = tb_quantise(&embedding[0], self.dimension, tb_item_embedding(row))
        else:
            memset(tb_item_embedding(row), 0, self.items.width * sizeof(int16_t))

    def id(self, uint32_t number):
        """Return an item's id."""
        self._check(number)
        return self._id(number)

    cdef str _id(self, uint32_t number):
        cdef tb_item* item = tb_item_at(&self.items, number)
        return PyUnicode_DecodeUTF8(tb_item_id(&self.items, item), item.id_length, NULL)

    cdef int _check(self, uint32_t number) except -1:
        if number >= self.items.count:
            raise IndexError(f"expected an item number below {self.items.count}, got {number}")
        return 0

    def lookup(self, ids not None):
        """Return (numbers uint32 in the order of `ids`, how many are unknown); unknown ids are `UNKNOWN_ITEM`."""
        ids = _fast(ids)
        out = np.empty(len(ids), np.uint32)
        cdef uint32_t[::1] numbers = out
        return out, self._find(ids, &numbers[0]) if out.size else 0

    cdef Py_ssize_t _find(self, ids, uint32_t* numbers) except -1:
        """Look ids up as `_fast` gives them; return how many are unknown."""
        cdef const char* texts[TB_LOOKUP_BATCH]
        cdef size_t lengths[TB_LOOKUP_BATCH]
        cdef Py_ssize_t total = len(ids), unknown = 0, first = 0, count
        cdef Ids given = ids if type(ids) is Ids else None
        while first < total:
            count = min(total - first, <Py_ssize_t>TB_LOOKUP_BATCH)
            if given is None:
                _read_texts(ids, first, count, texts, lengths)
                unknown += tb_id_find_batch(self.slots, self.slot_mask, &self.items, texts, lengths, count, numbers + first)
            else:
                unknown += tb_id_find_batch(self.slots, self.slot_mask, &self.items, given.texts + first, given.lengths + first,
                                            count, numbers + first)
            first += count
        return unknown

    def set_counts(self, const uint32_t[::1] items not None, const double[::1] counts not None):
        """Set the landmark-scaled counts over all contexts."""
        cdef Py_ssize_t i
        if items.shape[0] != counts.shape[0]:
            raise ValueError(f"expected as many counts as items = {items.shape[0]}, got {counts.shape[0]}")
        for i in range(items.shape[0]):
            if items[i] >= self.items.count:
                raise IndexError(f"expected item numbers below {self.items.count}, got {items[i]} at {i}")
            tb_item_at(&self.items, items[i]).count = _checked(counts[i], "counts")

    def counts(self):
        """Return the landmark-scaled counts over all contexts, float64[count]."""
        out = np.empty(self.items.count, np.float64)
        cdef double[::1] counts = out
        cdef uint32_t i
        for i in range(self.items.count):
            counts[i] = tb_item_at(&self.items, i).count
        return out

    def live(self):
        """Return which items are in the catalogue, uint8[count]."""
        out = np.empty(self.items.count, np.uint8)
        cdef uint8_t[::1] flags = out
        cdef uint32_t i
        for i in range(self.items.count):
            flags[i] = tb_item_at(&self.items, i).flags & TB_LIVE
        return out

    def attribute(self, Py_ssize_t index):
        """Return a copy of one symbol column, uint64[count]."""
        if not 0 <= index < self.attribute_count:
            raise IndexError(f"expected an attribute index below {self.attribute_count}, got {index}")
        out = np.zeros(self.items.count, np.uint64)
        cdef uint64_t[::1] column = out
        if self.items.count:
            memcpy(&column[0], self.symbols + index * <size_t>self.capacity, self.items.count * 8)
        return out

    def symbol(self, Py_ssize_t attribute, uint32_t number):
        """Return the symbol of one item in one attribute column, 0 for none."""
        if not 0 <= attribute < self.attribute_count or number >= self.items.count:
            raise IndexError(f"expected an attribute below {self.attribute_count} and an item below {self.items.count}, "
                             f"got {attribute} and {number}")
        return self.symbols[attribute * <size_t>self.capacity + number]

    # ---- ranking -----------------------------------------------------------------------------------------------------

    def begin(self):
        """Forget what earlier rankings excluded and met."""
        tb_marks_clear(&self.marks)

    def exclude(self, numbers not None):
        """Keep items out of the rankings until the next `begin`; unknown numbers are passed over."""
        cdef uint32_t number
        for number in numbers:
            if number < self.items.count:
                tb_mark(&self.marks, self.marks.excluded, number)

    def exclude_listed(self, bytes chunk not None, int64_t since_s):
        """Exclude the items of a list chunk that are no older than `since_s`, seconds since 1970, before which is all."""
        self._exclude_listed(PyBytes_AS_STRING(chunk), PyBytes_GET_SIZE(chunk), since_s)

    cdef int _exclude_listed(self, const char* chunk, size_t length, int64_t since_s) except -1:
        cdef int64_t count = tb_chunk_entries(length), i
        cdef tb_entry entry
        if count < 0:
            raise ValueError(f"expected chunks of 8 bytes and 8 an entry, got {length} bytes")
        for i in range(count):
            entry = tb_chunk_entry(chunk, i)
            if entry.time_s >= since_s and entry.item < self.items.count:
                tb_mark(&self.marks, self.marks.excluded, entry.item)
        return 0

    def exclude_served(self, ServedLog log not None, bytes fragment not None, int64_t since_s):
        """Exclude what a fragment was served no longer ago than `since_s`, seconds since 1970."""
        if PyBytes_GET_SIZE(fragment) != TB_FRAGMENT_BYTES:
            raise ValueError(f"expected a fragment of {TB_FRAGMENT_BYTES} bytes, got {len(fragment)}")
        self._exclude_served(&log.log, <const uint8_t*>PyBytes_AS_STRING(fragment), since_s)

    cdef void _exclude_served(self, const tb_served_log* log, const uint8_t* fragment, int64_t since_s) noexcept:
        cdef uint64_t place = tb_served_newest(log, fragment)
        cdef uint64_t before
        cdef const tb_served* served
        cdef const uint32_t* items
        cdef uint32_t i
        while place != TB_NOWHERE:
            served, before = tb_served_at(log, place), tb_served_before(log, place)
            items = tb_served_items(served)
            if served.serving.at // 1000 >= since_s:
                for i in range(served.serving.item_count):
                    if items[i] < self.items.count:
                        tb_mark(&self.marks, self.marks.excluded, items[i])
            place = before

    def rank(self, candidates, Py_ssize_t k, uint32_t now_s, Prior prior not None, *, bint require_stock=True,
             const uint8_t[::1] allowed=None, tuple together=None, tuple affinities=(), const float[::1] vector=None,
             bint vector_log=False, double notable=1.1, double[:, ::1] parts=None):
        """Return (winners, their numbers, candidate_count, excluded_count, eligible_count, unknown_count), winners best first.

        `candidates` are item ids (a sequence of str), or item numbers (uint32), unknown ones passed over, or None for every
        item; one that was met since `begin` is not met again. `affinities` are (attribute index, keys uint64, lifts float64,
        other lift). `together` is (co-occurrence scores float32 per item, the items uint32 where they are not zero, support,
        strength of the parent, popularity exponent); where the scores sum to zero they say nothing and are passed over. Values
        of `vector` that are not finite count as 0; with `vector_log` they enter as sign(x) ln(1 + |x|).

        A winner is (item, id, score, reason code of what multiplied the score by more than `notable`, index of the affinity
        with the largest lift above 1 or -1). `parts`, float64[k, 5], takes what each winner's score was made of: estimate over
        all contexts, after the cells, share brought by co-occurrence, largest affinity lift, vector lift. Raises ValueError
        for lengths that do not fit, and for strengths and lifts that are negative or not finite.
        """
        cdef tb_evidence evidence = prior.evidence
        cdef tb_rules rules
        cdef tb_ranking ranking
        cdef tb_ranked few[TB_BATCH]
        cdef tb_ranked* heap = few
        cdef const uint32_t[::1] numbers
        cdef size_t unknown = 0, i
        if parts is not None and (parts.shape[0] < k or parts.shape[1] != 5):
            raise ValueError(f"expected `parts` of {k} rows of 5, got {parts.shape[0]} of {parts.shape[1]}")
        if k < 1 or k > 65536:
            raise ValueError(f"expected k from 1 to 65536, got {k}")
        if allowed is not None and allowed.shape[0] < self.items.count:
            raise ValueError(f"expected `allowed` for {self.items.count} items, got {allowed.shape[0]}")
        self._set_uniform(&evidence)
        if together is not None:
            scores, touched, support, strength, exponent = together
            self._add_together(&evidence, scores, touched, support, strength, exponent)
        held = []  # what must live as long as the ranking
        for attribute, keys, lifts, other_lift in affinities:
            held.append(self._add_affinity(&evidence, attribute, keys, lifts, other_lift))
        if vector is not None:
            self._set_vector(&evidence, &vector[0] if vector.shape[0] else NULL, vector.shape[0], vector_log)
        rules.now_s, rules.require_stock = now_s, require_stock
        rules.allowed = &allowed[0] if allowed is not None and allowed.shape[0] else NULL
        memset(&ranking, 0, sizeof(ranking))
        if k > TB_BATCH:
            heap = <tb_ranked*>_grown(NULL, 0, k * sizeof(tb_ranked))
        try:
            if candidates is None:
                self._rank(&evidence, &rules, NULL, self.items.count, k, heap, &ranking)
            elif isinstance(candidates, np.ndarray):
                numbers = candidates
                if numbers.shape[0]:
                    self._rank(&evidence, &rules, &numbers[0], numbers.shape[0], k, heap, &ranking)
            else:
                unknown = self._rank_ids(&evidence, &rules, candidates, k, heap, &ranking)
            winners = self._winners(&evidence, heap, &ranking, notable, parts)
            ranked = tuple([heap[i].item for i in range(ranking.kept)])
        finally:
            if heap != few:
                free(heap)
        return winners, ranked, ranking.candidate_count, ranking.excluded_count, ranking.eligible_count, unknown

    cdef void _set_uniform(self, tb_evidence* evidence) noexcept:
        evidence.uniform = 1.0 / max(<uint32_t>1, self.live_count)

    cdef void _rank(self, const tb_evidence* evidence, const tb_rules* rules, const uint32_t* numbers, size_t count, size_t k,
                    tb_ranked* heap, tb_ranking* ranking) noexcept:
        if count > RELEASED_FROM:
            with nogil:
                tb_rank(evidence, rules, &self.items, &self.marks, numbers, count, k, heap, ranking)
        else:
            tb_rank(evidence, rules, &self.items, &self.marks, numbers, count, k, heap, ranking)

    cdef Py_ssize_t _rank_ids(self, const tb_evidence* evidence, const tb_rules* rules, ids, size_t k, tb_ranked* heap,
                              tb_ranking* ranking) except -1:
        """Rank the items with these ids; return how many are unknown."""
        cdef uint32_t few[TB_LOOKUP_BATCH]
        cdef uint32_t* numbers = few
        ids = _fast(ids)
        cdef Py_ssize_t total = len(ids), unknown
        if total > TB_LOOKUP_BATCH:
            numbers = <uint32_t*>_grown(NULL, 0, total * sizeof(uint32_t))
        try:
            unknown = self._find(ids, numbers)
            self._rank(evidence, rules, numbers, total, k, heap, ranking)
        finally:
            if numbers != few:
                free(numbers)
        return unknown

    cdef void _score(self, const tb_evidence* evidence, const tb_ranked* ranked, size_t count, tb_scores* scores) noexcept:
        """Score up to TB_BATCH items that were ranked, with the parts of their reasons."""
        cdef uint32_t numbers[TB_BATCH]
        cdef size_t i
        for i in range(count):
            numbers[i] = ranked[i].item
        tb_score(evidence, &self.items, numbers, count, scores)

    cdef list _winners(self, const tb_evidence* evidence, const tb_ranked* heap, const tb_ranking* ranking, double notable,
                       double[:, ::1] parts):
        cdef double normaliser = tb_normaliser(ranking)
        cdef tb_scores scores
        cdef uint32_t number
        cdef size_t first, batch, i
        winners = []
        for first in range(0, ranking.kept, TB_BATCH):
            batch = min(ranking.kept - first, <size_t>TB_BATCH)
            self._score(evidence, heap + first, batch, &scores)
            for i in range(batch):
                number = heap[first + i].item
                winners.append((number, self._id(number), <float>(scores.score[i] * normaliser),
                                tb_reason_code(&scores, i, evidence.uniform, notable), scores.affinity_index[i]))
                if parts is not None:
                    parts[first + i, 0], parts[first + i, 1] = scores.base[i], scores.in_context[i]
                    parts[first + i, 2], parts[first + i, 3] = scores.together_share[i], scores.affinity_lift[i]
                    parts[first + i, 4] = scores.vector_lift[i]
        return winners

    cdef int _add_together(self, tb_evidence* evidence, const float[::1] scores, const uint32_t[::1] touched, double support,
                           double strength, double exponent) except -1:
        cdef double scale
        if scores.shape[0] < self.items.count:
            raise ValueError(f"expected co-occurrence scores for {self.items.count} items, got {scores.shape[0]}")
        evidence.together_support = _checked(support, "support")
        evidence.together_strength = _above_zero(strength, "strength of the parent")
        evidence.together_exponent = _checked(exponent, "popularity exponent")
        if not touched.shape[0] or not scores.shape[0]:
            return 0
        evidence.together = &scores[0]
        scale = tb_together_scale(evidence, &self.items, &touched[0], touched.shape[0])
        evidence.together_scale = scale
        if scale == 0.0:
            evidence.together = NULL
        return 0

    cdef object _add_affinity(self, tb_evidence* evidence, Py_ssize_t attribute, const uint64_t[::1] keys, const double[::1] lifts,
                              double other_lift):
        """Return the arrays the evidence points into."""
        cdef tb_affinity* affinity
        cdef Py_ssize_t i
        if evidence.affinity_count == TB_AFFINITIES_MAX:
            raise ValueError(f"expected at most {TB_AFFINITIES_MAX} affinities, got more")
        if keys is None or lifts is None:
            raise TypeError(f"expected keys and lifts in affinities[{evidence.affinity_count}], got None")
        if keys.shape[0] != lifts.shape[0] or not 0 <= attribute < self.attribute_count:
            raise ValueError(f"expected one lift per key and an attribute index below {self.attribute_count}, "
                             f"got {keys.shape[0]} keys, {lifts.shape[0]} lifts, attribute {attribute}")
        for i in range(lifts.shape[0]):
            _checked(lifts[i], "lifts")
        affinity = &evidence.affinities[evidence.affinity_count]
        affinity.other_lift = _checked(other_lift, "lifts")
        affinity.symbols = self.symbols + <size_t>attribute * self.capacity
        affinity.key_count = keys.shape[0]
        affinity.keys = &keys[0] if keys.shape[0] else NULL
        affinity.lifts = &lifts[0] if keys.shape[0] else NULL
        evidence.affinity_count += 1
        return keys, lifts

    cdef int _set_vector(self, tb_evidence* evidence, const float* vector, Py_ssize_t count, bint logarithmic) except -1:
        cdef Py_ssize_t i
        if count != self.dimension or self.dimension == 0:
            raise ValueError(f"expected a vector of {self.dimension} values, got {count}")
        for i in range(self.dimension):
            self.vector[i] = vector[i] if isfinite(vector[i]) else 0.0
        if logarithmic:
            tb_signed_log1p_many(self.vector, count)
        evidence.vector = self.vector
        return 0

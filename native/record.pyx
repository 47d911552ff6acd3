"""Feature records: the layout compiled from descriptors, the dense working copy, and the reader of stored bytes.

A record as stored, little endian, every part 8-aligned, under 1,900 bytes for a head:

    0   u8      format, 1
    1   u8      flags: 1 = a COUNT or SUM has left int64 and stays at its limit
    2   u8      algorithm of the payload, 0 = plain
    3   u8      partition
    4   u16     layout version
    6   u16     member count
    8   u32     key id
    12  u32     checksum: low half of XXH64(bytes 16.., seed = XXH64(bytes 0..11, seed 0))
    16  16 B    fragment id (of a head: its first member)
    32  u64     granted, 40 denied, 48 restricted, 56 explicit: consent bits
    64  i64     first seen, 72 last seen, 80 consent time: ms since 1970, 0 = never
    88  u64[w]  presence, w = ceil(features / 64): bit f % 64 of word f / 64
    then the block of each present feature, in order:

    COUNT       i64 value, i64 last time
    SUM         i64 ten-thousandths, i64 last time
    LAST        u64 bits (of a float64, or a symbol), i64 event time, u64 digest
    TIME_SINCE  i64 event time
    DECAYED     f64 value at the reference time, i64 reference time
    TOP_K       u32 n, u32 0, i64 reference time, n x (u64 key, f64 weight), keys ascending
    LAST_K      u32 n, u32 0, n x (u32 item, u32 digest, i64 time), newest first
    MEAN        i64 ten-thousandths, i64 count, i64 last time
    MIN, MAX    f64 value, i64 last time
    FIRST       as LAST
    DISTINCT    i64 last time, 2^k registers of 4 bits, the even ones low
    QUANTILE    u32 n, u32 0, i64 last time, n x (i32 bin, u32 count), bins ascending
    WINDOW_*    u32 n, u32 0, i64 last time, n tiles, ascending: i32 tile, u32 values, and of
                COUNT nothing, SUM and MEAN i64 ten-thousandths, MIN and MAX f64 value, DISTINCT 2^k registers

The dense form is the same with every block at its largest and in a fixed place. aggregates.h has the kernels and their
guarantees (which are exact, which bounded; more in windows.h, hyperloglog.h, quantiles.h), record.h the checked walk over stored bytes.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.math cimport isfinite, NAN
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

COUNT, SUM, LAST, TIME_SINCE = TB_COUNT, TB_SUM, TB_LAST, TB_TIME_SINCE
DECAYED, TOP_K, LAST_K = TB_DECAYED, TB_TOP_K, TB_LAST_K
MEAN, MIN, MAX, FIRST = TB_MEAN, TB_MIN, TB_MAX, TB_FIRST
DISTINCT, QUANTILE = TB_DISTINCT, TB_QUANTILE
WINDOW_COUNT, WINDOW_SUM, WINDOW_MEAN = TB_WINDOW_COUNT, TB_WINDOW_SUM, TB_WINDOW_MEAN
WINDOW_MIN, WINDOW_MAX, WINDOW_DISTINCT = TB_WINDOW_MIN, TB_WINDOW_MAX, TB_WINDOW_DISTINCT
FRESH, STALE, MISSING, WARMING = TB_FRESH, TB_STALE, TB_MISSING, TB_WARMING
DEFAULTED, MASKED = TB_DEFAULTED, TB_MASKED
TOP_K_MAX, LAST_K_MAX, FEATURES_MAX = TB_TOP_K_MAX, TB_LAST_K_MAX, TB_FEATURES_MAX
QUANTILE_BINS_MAX, TILES_MAX = TB_QUANTILE_BINS_MAX, TB_TILES_MAX
PRECISION_MIN, PRECISION_MAX = TB_PRECISION_MIN, TB_PRECISION_MAX
SUM_UNITS_PER_ONE = 10_000
FLAG_SATURATED = TB_FLAG_SATURATED

# By tb_record_fault: reason, what was expected. {where} is the offset in bytes.
cdef tuple FAULTS = (
    None,
    ("RECORD_SHORT", "expected more bytes, the record of {length} bytes ends inside the part at {where}"),
    ("RECORD_LONG", "expected the record to end at {where}, got {length} bytes"),
    ("RECORD_FORMAT", "expected record format 1 at offset {where}; written by another release"),
    ("RECORD_ALGORITHM", "expected a plain payload (algorithm 0) at offset {where}; open it with its key first"),
    ("RECORD_LAYOUT", "expected layout version {version} at offset {where}; unpack with its own layout, then upgrade"),
    ("RECORD_CHECKSUM", "checksum at offset {where} does not fit the {length} bytes; restore the snapshot and replay"),
    ("RECORD_BITMAP", "features past the last of {count} are marked present at offset {where}"),
    ("RECORD_BLOCK", "expected a feature block at offset {where}, got bytes no writer makes"),
)


# What an event that brings no value can be folded into.
cdef frozenset VALUELESS = frozenset([TB_COUNT, TB_SUM, TB_TIME_SINCE, TB_DECAYED, TB_WINDOW_COUNT, TB_WINDOW_SUM])


class RecordError(ValueError):
    """A layout, program or record that cannot be used. `reason` is the machine's name for it."""

    def __init__(self, reason, message):
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __str__(self):
        return f"{self.reason}: {self.message}"

    def __reduce__(self):
        return type(self), (self.reason, self.message)


@cython.final
cdef class RecordLayout:
    """Which features a record holds and how they are kept; made once per configuration version, shared by all records.

    One descriptor per feature: `ops` (COUNT ... WINDOW_DISTINCT), `k` (entries of TOP_K, LAST_K and QUANTILE, precision
    of DISTINCT), `half_life_ms` (of DECAYED and TOP_K, 0 = no decay), `required` (bits a mask must have to read),
    `admit` (bits it must have to update or merge), `max_age_ms` (older is STALE, 0 = never), and, where there are any:
    `window_ms` and `hop_ms` (of windows), `quantile` (which, in [0, 1]), `default` (what speaks where the feature cannot,
    NaN = nothing), `warming` (1 = it must not speak yet). Raises RecordError for a descriptor that does not exist.
    """

    def __cinit__(self, int version, const uint8_t[::1] ops not None, *, const uint32_t[::1] k not None,
                  const double[::1] half_life_ms not None, const uint64_t[::1] required not None,
                  const uint64_t[::1] admit not None, const int64_t[::1] max_age_ms not None,
                  const int64_t[::1] window_ms=None, const int64_t[::1] hop_ms=None, const double[::1] quantile=None,
                  const double[::1] default=None, const uint8_t[::1] warming=None):
        cdef Py_ssize_t count = ops.shape[0], f
        cdef uint32_t offset = sizeof(tb_header) + (count + 63) // 64 * 8
        cdef tb_feature* feature
        cdef uint64_t shape[5]
        cdef uint64_t fingerprint = <uint64_t>version
        if not 0 <= version <= 0xFFFF:
            raise RecordError("LAYOUT_VERSION", f"expected a layout version of 0 to 65535, got {version}")
        if count > TB_FEATURES_MAX:
            raise RecordError("LAYOUT_FEATURES", f"expected at most {TB_FEATURES_MAX} features, got {count}")
        lengths = {"k": k.shape[0], "half_life_ms": half_life_ms.shape[0], "required": required.shape[0],
                   "admit": admit.shape[0], "max_age_ms": max_age_ms.shape[0]}
        for name, given in (("window_ms", window_ms), ("hop_ms", hop_ms), ("quantile", quantile),
                            ("default", default), ("warming", warming)):
            if given is not None:
                lengths[name] = len(given)
        for name, length in lengths.items():
            if length != count:
                raise RecordError("LAYOUT_FEATURES", f"expected {count} values in {name}, got {length}")
        self.features = <tb_feature*> PyMem_Calloc(count + 1, sizeof(tb_feature))
        if self.features == NULL:
            raise MemoryError
        for f in range(count):
            feature = &self.features[f]
            feature.op = ops[f]
            feature.k = k[f]
            feature.half_life_ms = half_life_ms[f]
            feature.required = required[f]
            feature.admit = admit[f]
            feature.max_age_ms = max_age_ms[f]
            feature.hops.window_ms = 0 if window_ms is None else window_ms[f]
            feature.hops.hop_ms = 0 if hop_ms is None else hop_ms[f]
            feature.quantile = 0.5 if quantile is None else quantile[f]
            feature.default_value = NAN if default is None else default[f]
            feature.has_default = isfinite(feature.default_value)
            feature.warming = warming is not None and warming[f] != 0
            self.has_warming |= feature.warming
            if not tb_feature_complete(feature):
                raise RecordError("LAYOUT_FEATURE", f"feature {f}: expected a known op, k of 1 to {TB_TOP_K_MAX} for TOP_K, "
                                  f"{TB_LAST_K_MAX} for LAST_K, {TB_QUANTILE_BINS_MAX} for QUANTILE, {TB_PRECISION_MIN} to "
                                  f"{TB_PRECISION_MAX} for DISTINCT, and a window of 1 to {TB_TILES_MAX - 1} hops, got op "
                                  f"{ops[f]} with k {k[f]}, window {feature.hops.window_ms} ms, hop {feature.hops.hop_ms} ms")
            if not (isfinite(half_life_ms[f]) and half_life_ms[f] >= 0.0 and max_age_ms[f] >= 0):
                raise RecordError("LAYOUT_FEATURE", f"feature {f}: expected half_life_ms and max_age_ms of 0 or more, "
                                  f"got {half_life_ms[f]} and {max_age_ms[f]}")
            if not 0.0 <= feature.quantile <= 1.0:
                raise RecordError("LAYOUT_FEATURE", f"feature {f}: expected a quantile of 0 to 1, got {feature.quantile}")
            feature.dense_offset = offset
            offset += feature.dense_bytes
            shape[0] = ops[f]
            shape[1] = k[f]
            memcpy(&shape[2], &feature.half_life_ms, 8)
            shape[3] = <uint64_t>feature.hops.hop_ms
            shape[4] = <uint64_t>feature.hops.tiles
            fingerprint = tb_xxh64(shape, sizeof(shape), fingerprint)
        self.version = version
        self.feature_count = count
        self.dense_bytes = self.packed_bytes_max = offset  # full blocks are stored at their dense size
        self.fingerprint = fingerprint
        self.starts = [0]

    def __dealloc__(self):
        PyMem_Free(self.features)
        PyMem_Free(self.entries)

    @property
    def offsets(self):
        """Where each feature's block stands in the dense form, in bytes."""
        return tuple([self.features[f].dense_offset for f in range(self.feature_count)])

    @property
    def ops(self):
        return bytes([self.features[f].op for f in range(self.feature_count)])

    @property
    def bytes_max(self):
        """What each feature takes at its largest, in bytes."""
        return tuple([self.features[f].dense_bytes for f in range(self.feature_count)])

    @property
    def program_count(self):
        return len(self.starts) - 1

    def add_program(self, entries):
        """Register what one signal type updates, as (feature_index, slot_index, weight); returns the program's number.

        slot_index -1 takes no value: COUNT and SUM then add the weight, DECAYED counts it, TIME_SINCE needs none.
        COUNT weights are whole numbers, of a window 0 to 2^32 - 1. Raises RecordError for an entry that fits no feature.
        """
        cdef list rows = list(entries)
        cdef Py_ssize_t total = self.entry_count + len(rows)
        cdef Entry* grown
        cdef Py_ssize_t place = self.entry_count
        cdef int64_t feature, slot
        cdef double weight
        cdef uint8_t op
        grown = <Entry*> PyMem_Realloc(self.entries, max(total, 1) * sizeof(Entry))
        if grown == NULL:
            raise MemoryError
        self.entries = grown
        for feature, slot, weight in rows:
            if not 0 <= feature < self.feature_count:
                raise RecordError("PROGRAM_ENTRY",
                                  f"expected a feature of 0 to {self.feature_count - 1}, got {feature}")
            op = self.features[feature].op
            if not -1 <= slot < 0x7FFF or (slot < 0 and op not in VALUELESS):
                raise RecordError("PROGRAM_ENTRY",
                                  f"feature {feature}: expected a slot that holds its value, got {slot}")
            if not isfinite(weight) or (op == TB_COUNT and (weight != <double><int64_t>max(min(weight, 1e15), -1e15))):
                raise RecordError("PROGRAM_ENTRY",
                                  f"feature {feature}: expected a finite weight, whole for a COUNT, got {weight}")
            if op == TB_WINDOW_COUNT and not (0.0 <= weight <= 4294967295.0 and weight == <double><uint32_t>weight):
                raise RecordError("PROGRAM_ENTRY", f"feature {feature}: expected a whole weight of 0 to 4294967295 for a "
                                  f"count in a window, got {weight}")
            grown[place] = Entry(<int32_t>feature, <int32_t>slot, weight)
            place += 1
        self.entry_count = total
        self.starts.append(total)
        return len(self.starts) - 2


cdef int fold_weight(const tb_feature* feature, void* block, double weight, int64_t time) noexcept nogil:
    """Fold an event that brings no value into one of VALUELESS; returns 1."""
    if feature.op == TB_COUNT:
        tb_count_add(<tb_count*>block, <int64_t>weight, time)
    elif feature.op == TB_TIME_SINCE:
        tb_time_since_offer(<tb_time_since*>block, time)
    elif feature.op == TB_WINDOW_COUNT:
        tb_window_count(&feature.hops, <tb_window*>block, <uint32_t>weight, time)
    else:
        fold_number(feature, block, weight, time)
    return 1


cdef void fold_number(const tb_feature* feature, void* block, double number, int64_t time) noexcept nogil:
    """Fold a finite number."""
    cdef uint8_t op = feature.op
    if op == TB_SUM:
        tb_sum_add(<tb_sum*>block, tb_sum_units(number), time)
    elif op == TB_DECAYED:
        tb_decayed_add(feature.half_life_ms, <tb_decayed*>block, number, time)
    elif op == TB_MEAN:
        tb_mean_add(<tb_mean*>block, tb_sum_units(number), 1, time)
    elif op == TB_MIN or op == TB_MAX:
        tb_extreme_offer(op, <tb_extreme*>block, number + 0.0, time)  # no negative zero
    elif op == TB_QUANTILE:
        tb_quantiles_add(feature.k, <tb_quantiles*>block, tb_bin_key(number), 1, time)
    else:
        tb_window_value(&feature.hops, <tb_window*>block, number + 0.0, time)


cdef int folds_numbers(uint8_t op) noexcept nogil:
    return (op == TB_SUM or op == TB_DECAYED or op == TB_MEAN or op == TB_MIN or op == TB_MAX or op == TB_QUANTILE
            or op == TB_WINDOW_SUM or op == TB_WINDOW_MEAN or op == TB_WINDOW_MIN or op == TB_WINDOW_MAX)


cdef double number_of(object value) except? -1.0:
    """The value as a float; NaN for an integer beyond floats, which is then absent like every other NaN."""
    if PyFloat_CheckExact(value):
        return PyFloat_AS_DOUBLE(value)
    try:
        return <double>value
    except OverflowError:
        return NAN


cdef int fold_value(const tb_feature* feature, void* block, double weight, object value,
                    int64_t time, uint64_t digest) except -1:
    """Fold one slot value; 1, or 0 when it is NaN or infinite and so counts as absent."""
    cdef double number
    cdef uint64_t bits
    cdef tb_occurrence fresh
    cdef uint8_t op = feature.op
    if op == TB_COUNT or op == TB_TIME_SINCE or op == TB_WINDOW_COUNT:
        return fold_weight(feature, block, weight, time)
    if folds_numbers(op):
        number = number_of(value) * weight
        if not isfinite(number):
            return 0
        fold_number(feature, block, number, time)
        return 1
    if op == TB_LAST or op == TB_FIRST:
        if isinstance(value, int):
            bits = value
        else:
            number = number_of(value)
            if not isfinite(number):
                return 0
            memcpy(&bits, &number, 8)
        if op == TB_LAST:
            tb_last_offer(<tb_last*>block, bits, time, digest)
        else:
            tb_first_offer(<tb_first*>block, bits, time, digest)
    elif op == TB_DISTINCT:
        tb_distinct_add(feature.k, <tb_distinct*>block, <uint64_t>value, time)
    elif op == TB_WINDOW_DISTINCT:
        tb_window_key(&feature.hops, <tb_window*>block, <uint64_t>value, time)
    elif op == TB_TOP_K:
        bits = value
        tb_top_k_add(feature.half_life_ms, feature.k, <tb_top_k*>block, bits, weight, time)
    else:
        fresh.item = value
        fresh.digest = <uint32_t>(digest >> 32)
        fresh.time = time
        tb_last_k_offer(feature.k, <tb_last_k*>block, fresh)
    return 1


cdef void merge_features(const tb_feature* features, Py_ssize_t feature_count, uint64_t mask,
                         uint8_t* into, const uint8_t* source) noexcept nogil:
    cdef uint64_t* into_presence = <uint64_t*>(into + sizeof(tb_header))
    cdef const uint64_t* presence = <const uint64_t*>(source + sizeof(tb_header))
    cdef const tb_feature* feature
    cdef uint64_t bit
    cdef uint8_t* block
    cdef Py_ssize_t f
    for f in range(feature_count):
        feature = &features[f]
        bit = <uint64_t>1 << (f & 63)
        if not presence[f >> 6] & bit or mask & feature.admit != feature.admit:
            continue
        block = into + feature.dense_offset
        if into_presence[f >> 6] & bit:
            tb_block_merge(feature, block, source + feature.dense_offset)
        else:
            memcpy(block, source + feature.dense_offset, feature.dense_bytes)
            into_presence[f >> 6] |= bit
        if tb_block_saturated(feature, block):
            (<tb_header*>into).flags |= TB_FLAG_SATURATED


cdef class RecordHeader:
    """The header fields, of a Record (to read and write) or a RecordView (to read)."""

    def __cinit__(self):
        memset(&self.empty, 0, sizeof(tb_header))
        self.header = &self.empty

    cdef int _check_writable(self) except -1:
        if not self.writable:
            raise AttributeError("a RecordView is read-only; change a Record and pack it")
        return 0

    @property
    def flags(self): return self.header.flags
    @property
    def layout_version(self): return self.header.layout_version

    @property
    def partition(self): return self.header.partition
    @partition.setter
    def partition(self, uint8_t value):
        self._check_writable()
        self.header.partition = value

    @property
    def member_count(self): return self.header.member_count
    @member_count.setter
    def member_count(self, uint16_t value):
        self._check_writable()
        self.header.member_count = value

    @property
    def key_id(self): return self.header.key_id
    @key_id.setter
    def key_id(self, uint32_t value):
        self._check_writable()
        self.header.key_id = value

    @property
    def fragment_id(self): return PyBytes_FromStringAndSize(<char*>self.header.fragment_id, 16)
    @fragment_id.setter
    def fragment_id(self, bytes value not None):
        self._check_writable()
        if len(value) != 16:
            raise RecordError("FRAGMENT_ID", f"expected a fragment id of 16 bytes, got {len(value)}")
        memcpy(self.header.fragment_id, PyBytes_AS_STRING(value), 16)

    @property
    def granted(self): return self.header.granted
    @granted.setter
    def granted(self, uint64_t value):
        self._check_writable()
        self.header.granted = value

    @property
    def denied(self): return self.header.denied
    @denied.setter
    def denied(self, uint64_t value):
        self._check_writable()
        self.header.denied = value

    @property
    def restricted(self): return self.header.restricted
    @restricted.setter
    def restricted(self, uint64_t value):
        self._check_writable()
        self.header.restricted = value

    @property
    def explicit(self): return self.header.explicit_choice
    @explicit.setter
    def explicit(self, uint64_t value):
        self._check_writable()
        self.header.explicit_choice = value

    @property
    def first_seen(self): return self.header.first_seen
    @first_seen.setter
    def first_seen(self, int64_t value):
        self._check_writable()
        self.header.first_seen = value

    @property
    def last_seen(self): return self.header.last_seen
    @last_seen.setter
    def last_seen(self, int64_t value):
        self._check_writable()
        self.header.last_seen = value

    @property
    def consent_time(self): return self.header.consent_time
    @consent_time.setter
    def consent_time(self, int64_t value):
        self._check_writable()
        self.header.consent_time = value


@cython.final
cdef class Record(RecordHeader):
    """The dense working copy of a fragment or head: updated and merged in place, packed to store; one thread."""

    def __cinit__(self, RecordLayout layout not None):
        self.dense = <uint8_t*> PyMem_Malloc(layout.dense_bytes)
        if self.dense == NULL:
            raise MemoryError
        memset(self.dense, 0, sizeof(tb_header) + (layout.feature_count + 63) // 64 * 8)
        self._layout = layout
        self.writable = True
        self.header = <tb_header*>self.dense
        self.header.format = TB_RECORD_FORMAT
        self.header.layout_version = layout.version
        self.presence__w = <uint64_t*>(self.dense + sizeof(tb_header))

    def __dealloc__(self):
        PyMem_Free(self.dense)

    @property
    def layout(self):
        return self._layout

    @staticmethod
    def unpack(RecordLayout layout not None, data):
        """Copy a stored record. `data` is bytes-like; RecordError if it is not whole, not ours or of another layout."""
        cdef Record record = Record.__new__(Record, layout)
        cdef Py_buffer view
        if PyBytes_CheckExact(data):
            record._spread(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            return record
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            record._spread(<const uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        return record

    cdef int _spread(self, const uint8_t* data, Py_ssize_t length) except -1:
        cdef uint32_t offsets__f[TB_FEATURES_MAX]
        cdef size_t where
        cdef RecordLayout layout = self._layout
        cdef int fault = tb_record_check(layout.features, layout.feature_count, layout.version, data, length,
                                         offsets__f, &where)
        if fault != TB_RECORD_OK:
            raise_fault(layout, fault, length, where)
        tb_record_spread(layout.features, layout.feature_count, data, offsets__f, self.dense)
        return 0

    def pack(self):
        """The bytes to store: equal records give equal bytes."""
        cdef RecordLayout layout = self._layout
        cdef size_t size = tb_record_pack(layout.features, layout.feature_count, self.dense, NULL)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
        tb_record_pack(layout.features, layout.feature_count, self.dense, <uint8_t*>PyBytes_AS_STRING(out))
        return out

    def copy(self):
        cdef Record record = Record.__new__(Record, self._layout)
        memcpy(record.dense, self.dense, self._layout.dense_bytes)
        return record

    @property
    def feature_count(self):
        """How many features are present."""
        return sum([int(self.presence__w[w]).bit_count() for w in range((self._layout.feature_count + 63) // 64)])

    def clear_features(self):
        """Make every feature absent; the header stays, but for the mark of saturation."""
        memset(self.presence__w, 0, (self._layout.feature_count + 63) // 64 * 8)
        self.header.flags &= ~TB_FLAG_SATURATED

    def clear_feature(self, Py_ssize_t index):
        """Make one feature absent."""
        check_index(self._layout, index)
        self.presence__w[index >> 6] &= ~(<uint64_t>1 << (index & 63))

    def update(self, Py_ssize_t program, int64_t event_time, uint64_t digest, tuple slots not None, uint64_t mask):
        """Fold one event into the features its program names and `mask` admits. The header is the caller's to update.

        A slot holds None (absent), a value, or a tuple or list of values: a number for SUM, MEAN, MIN, MAX, QUANTILE and
        DECAYED, multiplied by the entry's weight; a float or an int symbol (u64) for LAST and FIRST; an int key (u64) for
        TOP_K and DISTINCT; an item number (u32) for LAST_K; windows as without. COUNT and TIME_SINCE with a slot look only at how many values it holds. NaN and infinity are
        absent. A value of another type or range raises TypeError or OverflowError half way: drop the record.
        """
        cdef RecordLayout layout = self._layout
        cdef const tb_feature* feature
        cdef const Entry* entry
        cdef uint8_t* block
        cdef uint64_t bit
        cdef Py_ssize_t e, start, end
        cdef int folded
        cdef object value, part
        if not 0 <= program < len(layout.starts) - 1:
            raise IndexError(f"expected a program of 0 to {len(layout.starts) - 2}, got {program}")
        start = layout.starts[program]
        end = layout.starts[program + 1]
        for e in range(start, end):
            entry = &layout.entries[e]
            feature = &layout.features[entry.feature]
            if mask & feature.admit != feature.admit:
                continue
            block = self.dense + feature.dense_offset
            bit = <uint64_t>1 << (entry.feature & 63)
            if not self.presence__w[entry.feature >> 6] & bit:
                tb_block_clear(feature, block)
            if entry.slot < 0:
                folded = fold_weight(feature, block, entry.weight, event_time)
            else:
                if entry.slot >= len(slots):
                    raise RecordError("SLOT_MISSING",
                                      f"program {program} reads slot {entry.slot}, got {len(slots)} slots")
                value = slots[entry.slot]
                folded = 0
                if isinstance(value, (tuple, list)):
                    for part in value:
                        if part is not None:
                            folded |= fold_value(feature, block, entry.weight, part, event_time, digest)
                elif value is not None:
                    folded = fold_value(feature, block, entry.weight, value, event_time, digest)
            if folded:
                self.presence__w[entry.feature >> 6] |= bit
                if tb_block_saturated(feature, block):
                    self.header.flags |= TB_FLAG_SATURATED

    def merge(self, Record other not None, uint64_t data_mask):
        """Fold in the features of `other` that `data_mask` admits, and first and last seen. Consent is the caller's.

        Bounded features depend on the order of merges: merge in canonical fragment order.
        """
        cdef tb_header* header = self.header
        if other._layout is not self._layout and other._layout.fingerprint != self._layout.fingerprint:
            raise RecordError("RECORD_LAYOUT", f"expected a record of layout {self._layout.version}, got one of layout "
                              f"{other._layout.version} or of other features; upgrade it first")
        with nogil:
            merge_features(self._layout.features, self._layout.feature_count, data_mask, self.dense, other.dense)
        if other.header.first_seen != 0 and (header.first_seen == 0 or other.header.first_seen < header.first_seen):
            header.first_seen = other.header.first_seen
        if other.header.last_seen != 0 and (header.last_seen == 0 or other.header.last_seen > header.last_seen):
            header.last_seen = other.header.last_seen

    def upgraded(self, RecordLayout new_layout not None, const int32_t[::1] mapping not None):
        """The record in another layout; `mapping` gives for each new feature the old one, or -1 for none.

        A smaller k drops the weakest or oldest entries, of QUANTILE it joins bins. RecordError when op, half life, hop or
        precision differ: a definition never changes.
        """
        cdef Record record = Record.__new__(Record, new_layout)
        memcpy(record.header, self.header, sizeof(tb_header))
        record.header.layout_version = new_layout.version
        record.take(self, mapping)
        return record

    def take(self, Record other not None, const int32_t[::1] mapping not None):
        """Replace features by those of a record of any layout, absent where they are absent there; the header stays.

        `mapping` gives for each feature the one of `other`, or -1 for those that stay. RecordError as of `upgraded`.
        """
        cdef const tb_feature* old
        cdef const tb_feature* new
        cdef Py_ssize_t f
        if mapping.shape[0] != self._layout.feature_count:
            raise RecordError("UPGRADE_MAPPING",
                              f"expected {self._layout.feature_count} entries, got {mapping.shape[0]}")
        for f in range(self._layout.feature_count):
            if mapping[f] == -1:
                continue
            if not 0 <= mapping[f] < other._layout.feature_count:
                raise RecordError("UPGRADE_MAPPING", f"feature {f}: expected an old feature of -1 to "
                                  f"{other._layout.feature_count - 1}, got {mapping[f]}")
            old = &other._layout.features[mapping[f]]
            new = &self._layout.features[f]
            if (old.op != new.op or old.half_life_ms != new.half_life_ms or old.hops.hop_ms != new.hops.hop_ms
                    or (old.k != new.k and (new.op == TB_DISTINCT or new.op == TB_WINDOW_DISTINCT))):
                raise RecordError("UPGRADE_MAPPING", f"feature {f}: expected the op, half life, hop and precision of old "
                                  f"feature {mapping[f]}; give a changed definition a version of its own")
            self.presence__w[f >> 6] &= ~(<uint64_t>1 << (f & 63))
            if other.presence__w[mapping[f] >> 6] >> (mapping[f] & 63) & 1:
                tb_block_copy(new, self.dense + new.dense_offset, other.dense + old.dense_offset)
                self.presence__w[f >> 6] |= <uint64_t>1 << (f & 63)

    cdef const uint8_t* _block(self, Py_ssize_t index) except? NULL:
        """The block, or NULL when absent."""
        check_index(self._layout, index)
        if not self.presence__w[index >> 6] >> (index & 63) & 1:
            return NULL
        return self.dense + self._layout.features[index].dense_offset

    def bytes_used(self, Py_ssize_t index):
        """Bytes the feature takes when stored, 0 when absent."""
        cdef const uint8_t* block = self._block(index)
        return 0 if block == NULL else tb_block_bytes(&self._layout.features[index], block)

    def feature(self, Py_ssize_t index):
        """The feature for display, undecayed and unmasked; None when absent.

        COUNT value; SUM ten-thousandths; LAST and FIRST (bits, time); TIME_SINCE time; DECAYED (value, reference time);
        TOP_K [(key, weight at the reference time)], keys ascending; LAST_K [(item, time)], newest first; MEAN
        (ten-thousandths, count); MIN and MAX value; DISTINCT registers, as bytes; QUANTILE [(bin, count)], bins ascending;
        a window [(tile, count, total)], tiles ascending, the total in the form of its aggregate, None of a COUNT.
        """
        cdef const void* block = self._block(index)
        if block == NULL:
            return None
        return block_value(&self._layout.features[index], block)


cdef object block_value(const tb_feature* feature, const void* block):
    cdef const tb_last* last = <const tb_last*>block
    cdef const tb_decayed* decayed = <const tb_decayed*>block
    cdef const tb_top_k* top = <const tb_top_k*>block
    cdef const tb_last_k* recent = <const tb_last_k*>block
    cdef Py_ssize_t i
    if feature.op == TB_LAST or feature.op == TB_FIRST:
        return last.bits, last.event_time
    if feature.op == TB_MEAN:
        return (<const tb_mean*>block).units, (<const tb_mean*>block).count
    if feature.op == TB_MIN or feature.op == TB_MAX:
        return (<const tb_extreme*>block).value
    if feature.op == TB_DISTINCT:
        return (<const char*>(<const tb_distinct*>block).registers)[:tb_register_bytes(feature.k)]
    if feature.op == TB_QUANTILE:
        return [((<const tb_quantiles*>block).entries[i].key, (<const tb_quantiles*>block).entries[i].count)
                for i in range((<const tb_quantiles*>block).n)]
    if tb_is_window(feature.op):
        return [tile_value(feature, tb_window_tile(&feature.hops, <const tb_window*>block, i))
                for i in range((<const tb_window*>block).n)]
    if feature.op == TB_DECAYED:
        return decayed.value, decayed.ref_time
    if feature.op == TB_TOP_K:
        return [(top.entries[i].key, top.entries[i].weight) for i in range(top.n)]
    if feature.op == TB_LAST_K:
        return [(recent.entries[i].item, recent.entries[i].time) for i in range(recent.n)]
    return (<const int64_t*>block)[0]  # COUNT, SUM, TIME_SINCE


cdef object tile_value(const tb_feature* feature, const tb_tile* tile):
    cdef object total = None
    if feature.op == TB_WINDOW_SUM or feature.op == TB_WINDOW_MEAN:
        total = (<const tb_sum_tile*>tile).units
    elif feature.op == TB_WINDOW_MIN or feature.op == TB_WINDOW_MAX:
        total = (<const tb_extreme_tile*>tile).value
    elif feature.op == TB_WINDOW_DISTINCT:
        total = (<const char*>(<const tb_distinct_tile*>tile).registers)[:tb_register_bytes(feature.k)]
    return tile.tile, tile.count, total


cdef int check_index(RecordLayout layout, Py_ssize_t index) except -1:
    if layout is None or not 0 <= index < layout.feature_count:
        raise IndexError(f"expected a feature of a loaded record, got {index}")
    return 0


cdef int raise_fault(RecordLayout layout, int fault, Py_ssize_t length, size_t where) except -1:
    reason, message = FAULTS[fault]
    text = message.format(length=length, where=where, version=layout.version, count=layout.feature_count)
    raise RecordError(reason, text)


def stored_layout_version(const uint8_t[::1] data not None):
    """The layout version a stored record names, to choose the layout to unpack it with. RecordError when too short."""
    if data.shape[0] < <Py_ssize_t>sizeof(tb_header):
        raise RecordError("RECORD_SHORT", f"expected a header of {sizeof(tb_header)} bytes, got {data.shape[0]} in all")
    return data[4] | data[5] << 8


@cython.final
cdef class RecordView(RecordHeader):
    """Reads features straight from a stored record at decision time. Load it again and again; not for two threads.

    `load` copies the stored bytes as they are (LMDB aligns values to 2 bytes only, and they are gone with the
    transaction), checks them, and notes where each block stands: nothing is unpacked and, after the first load of a
    layout, nothing allocated.
    """

    def __dealloc__(self):
        PyMem_Free(self.data)
        PyMem_Free(self.offsets__f)

    @property
    def layout(self):
        """The layout of the loaded record, None before a load."""
        return self._layout

    def load(self, RecordLayout layout not None, data):
        """Take a stored record (bytes-like). RecordError as in `Record.unpack`; then none is loaded."""
        cdef Py_buffer view
        if PyBytes_CheckExact(data):
            self._take(layout, <const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            return
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self._take(layout, <const uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef int _take(self, RecordLayout layout, const uint8_t* data, Py_ssize_t length) except -1:
        cdef size_t where = 0
        cdef int fault, f
        cdef RecordLayout previous = self._layout
        self._layout = None
        self.header = &self.empty
        if previous is not layout:
            PyMem_Free(self.data)
            PyMem_Free(self.offsets__f)
            self.offsets__f = NULL
            self.data = <uint8_t*> PyMem_Malloc(layout.packed_bytes_max)
            self.offsets__f = <uint32_t*> PyMem_Malloc((layout.feature_count + 1) * sizeof(uint32_t))
            if self.data == NULL or self.offsets__f == NULL:
                raise MemoryError
        if length > layout.packed_bytes_max:
            raise_fault(layout, TB_RECORD_LONG, length, layout.packed_bytes_max)
        memcpy(self.data, data, length)
        fault = tb_record_check(layout.features, layout.feature_count, layout.version, self.data, length,
                                self.offsets__f, &where)
        if fault != TB_RECORD_OK:
            raise_fault(layout, fault, length, where)
        if layout.has_warming:  # What is not backfilled yet is as if it were not there.
            for f in range(layout.feature_count):
                if layout.features[f].warming:
                    self.offsets__f[f] = 0
        self._layout = layout
        self.header = <tb_header*>self.data
        return 0

    cdef const uint8_t* _block(self, Py_ssize_t index) except? NULL:
        """The block, or NULL when absent."""
        check_index(self._layout, index)
        return self.data + self.offsets__f[index] if self.offsets__f[index] else NULL

    def read_vector(self, const int32_t[::1] indices not None, int64_t at, uint64_t mask,
                    float[::1] out not None, uint8_t[::1] status not None):
        """Write each feature as one number as of `at`, and its status; return how many are FRESH and how many MASKED.

        The number is the feature's default where the status is DEFAULTED, 0 where it is neither that nor FRESH. COUNT as
        it is, SUM in units, LAST and FIRST when they hold a number (the reader must know which hold symbols), TIME_SINCE in
        seconds and never below 0, DECAYED at `at`, DISTINCT and QUANTILE as estimated, windows up to `at`. TOP_K and
        LAST_K are MISSING. All three arrays have one length.
        """
        cdef RecordLayout layout = self._layout
        cdef Py_ssize_t count = indices.shape[0], i
        cdef Py_ssize_t feature_count = 0 if layout is None else layout.feature_count
        cdef Py_ssize_t fresh = 0, masked = 0
        cdef uint32_t offset
        cdef bint known = True
        if out.shape[0] != count or status.shape[0] != count:
            raise ValueError(f"expected {count} places, one per index, "
                             f"got {out.shape[0]} in out, {status.shape[0]} in status")
        for i in range(count):
            known &= 0 <= indices[i] < feature_count
        if not known:
            raise IndexError(f"expected features of a loaded record, 0 to {feature_count - 1}")
        with nogil:
            for i in range(count):
                offset = self.offsets__f[indices[i]]
                status[i] = tb_read_number(&layout.features[indices[i]], self.data + offset if offset else NULL,
                                           at, mask, &out[i])
                fresh += status[i] == TB_FRESH
                masked += status[i] == TB_MASKED
        return fresh, masked

    def status(self, Py_ssize_t index, int64_t at, uint64_t mask):
        """FRESH, STALE, MISSING, WARMING or MASKED: whether the feature may speak, whatever its kind."""
        cdef const uint8_t* block = self._block(index)
        return tb_block_status(&self._layout.features[index], block, at, mask)

    def age(self, Py_ssize_t index, int64_t at):
        """Milliseconds since the feature last heard of an event, 0 if that is not past, -1 when absent."""
        cdef const uint8_t* block = self._block(index)
        return -1 if block == NULL else tb_age_ms(tb_block_time(&self._layout.features[index], block), at)

    def symbol(self, Py_ssize_t index, int64_t at, uint64_t mask):
        """The bits of a LAST or FIRST that may speak, else None."""
        cdef const uint8_t* block
        check_index(self._layout, index)
        block = self._typed(index, TB_FIRST if self._layout.features[index].op == TB_FIRST else TB_LAST, at, mask)
        return None if block == NULL else (<const tb_last*>block).bits

    cdef const uint8_t* _typed(self, Py_ssize_t index, uint8_t op, int64_t at, uint64_t mask) except? NULL:
        """The block of a feature of that kind, NULL when it may not speak."""
        cdef const uint8_t* block = self._block(index)
        cdef const tb_feature* feature = &self._layout.features[index]
        if feature.op != op:
            raise RecordError("FEATURE_KIND", f"feature {index}: expected op {op}, got {feature.op}")
        return block if tb_block_status(feature, block, at, mask) == TB_FRESH else NULL

    def recent(self, Py_ssize_t index, int64_t at, uint64_t mask, uint32_t[::1] out_items not None,
               int64_t[::1] out_times not None):
        """Write the items of a LAST_K and their times, newest first, none past the maximum age; returns how many."""
        cdef const uint8_t* block = self._typed(index, TB_LAST_K, at, mask)
        cdef Py_ssize_t room = min(out_items.shape[0], out_times.shape[0])
        if block == NULL or room == 0:
            return 0
        return tb_read_recent(&self._layout.features[index], <const tb_last_k*>block, at, room,
                              &out_items[0], &out_times[0])

    def top(self, Py_ssize_t index, int64_t at, uint64_t mask, uint64_t[::1] out_keys not None,
            float[::1] out_weights not None):
        """Write the keys of a TOP_K and their weights at `at`, heaviest first, then smaller key; returns how many."""
        cdef const uint8_t* block = self._typed(index, TB_TOP_K, at, mask)
        cdef Py_ssize_t room = min(out_keys.shape[0], out_weights.shape[0])
        if block == NULL or room == 0:
            return 0
        return tb_read_top(&self._layout.features[index], <const tb_top_k*>block, at, room,
                           &out_keys[0], &out_weights[0])

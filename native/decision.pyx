"""The common decision without an object per item, from the bytes of a DecideRequest to those of its answer, or in pieces.

It covers a ranking of given candidates by popularity in context and the person's vector, for whoever is known by plain
identifiers. Of anything else, errors too, it says nothing, and the general decider
(engine/decider.py) is asked, whose word is the last: where this one answers, it answers the same bytes
(tests/engine/test_quick_decisions.py).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from tailorbird.native.anchors cimport PlainHasher, is_plain
from tailorbird.native.lmdb_pages cimport (
    LmdbTable, TB_LMDB_DAMAGED, TB_LMDB_FOUND, tb_lmdb_bytes, tb_lmdb_cursor, tb_lmdb_entry, tb_lmdb_next, tb_lmdb_seek,
)
from tailorbird.native.mentions cimport MentionCount
from tailorbird.native.record cimport (
    RecordLayout, RecordView, TB_FRESH, TB_LAST_K, TB_MASKED, tb_block_status, tb_feature, tb_last_k, tb_read_number,
    tb_read_recent,
)
from tailorbird.native.scoring cimport (
    ItemTable, Prior, TB_BATCH, tb_evidence, tb_item, tb_item_at, tb_item_id, tb_mark, tb_marks_clear, tb_normaliser,
    tb_ranked, tb_ranking, tb_reason_code, tb_rules, tb_scores,
)
from tailorbird.native.servings cimport ServedLog, tb_served_newest, tb_served_prefetch, tb_served_prefetch_at
from tailorbird.native.signed_ids cimport CountedIds
from tailorbird.native.wire cimport Answered, Asked, DecisionEncoder, PAIRS_MAX, Pairs, Text, dict_of, str_of

from tailorbird.native.record import RecordError

cdef enum:
    KEY_BYTES = 16
    CONTEXT_BYTES_MAX = 1024
    FEATURES_MAX = 1024
    TIER_COUNT = 5
    WINDOWS_MAX = 4
    CAPS_MAX = 4
    RECENT_MAX = 128
    FRAGMENTS_MAX = 16
    # What stands at a key of the table of people.
    LINK_ROW = 0
    HEAD_ROW = 1
    # Where the head of a stored person has its layout's version, how many fragments there are, and which one holds all.
    VERSION_AT = 4
    MEMBERS_AT = 6
    HOLDER_AT = 16


@cython.final
cdef class QuickPlan:
    """A placement that can be decided on here, with all that is looked up in it once. The lists it reads are `windows`:
    (code, how far back in ms, the consent it needs), and `caps`: (code, how many mentions, how far back in ms, the consent)."""

    cdef str placement
    cdef bytes name
    cdef uint32_t number
    cdef int32_t k
    cdef bint require_stock, record_served, vector_log
    cdef const int32_t[::1] features__f, recent__f, vector__f
    cdef Py_ssize_t feature_count, window_count
    cdef uint8_t[WINDOWS_MAX] codes
    cdef int64_t[WINDOWS_MAX] windows_ms
    cdef uint64_t[WINDOWS_MAX] consents
    cdef Py_ssize_t cap_count
    cdef uint8_t[CAPS_MAX] cap_codes
    cdef uint32_t[CAPS_MAX] cap_times
    cdef int64_t[CAPS_MAX] cap_windows_ms
    cdef uint64_t[CAPS_MAX] cap_consents

    def __cinit__(self, RecordLayout layout not None, str placement not None, uint32_t number, int32_t k, *, bint require_stock,
                  bint record_served, const int32_t[::1] features not None, const int32_t[::1] exclude_recent not None,
                  const int32_t[::1] vector not None, bint vector_log, tuple windows not None,
                  tuple caps not None):
        cdef Py_ssize_t i
        if features.shape[0] + vector.shape[0] > FEATURES_MAX or len(windows) > WINDOWS_MAX or len(caps) > CAPS_MAX:
            raise ValueError(f"expected at most {FEATURES_MAX} features, {WINDOWS_MAX} windows and {CAPS_MAX} caps")
        check_features(layout, features)
        check_features(layout, exclude_recent)
        check_features(layout, vector)
        for i in range(exclude_recent.shape[0]):
            if layout.features[exclude_recent[i]].op != TB_LAST_K:
                raise ValueError(f"expected features of last_k in exclude_recent, got {exclude_recent[i]}")
        self.placement, self.name, self.number, self.k = placement, placement.encode(), number, k
        self.require_stock, self.record_served, self.vector_log = require_stock, record_served, vector_log
        self.features__f, self.recent__f, self.vector__f = features, exclude_recent, vector
        self.feature_count = features.shape[0] + vector.shape[0]
        self.window_count = len(windows)
        for i, (code, window_ms, consent) in enumerate(windows):
            self.codes[i], self.windows_ms[i], self.consents[i] = code, window_ms, consent
        self.cap_count = len(caps)
        for i, (code, times, window_ms, consent) in enumerate(caps):
            self.cap_codes[i], self.cap_times[i], self.cap_windows_ms[i], self.cap_consents[i] = code, times, window_ms, consent


@cython.final
cdef class QuickContext:
    """What popularity says in one context at one moment, and the reasons it gives, as they stand in an answer."""

    cdef Prior prior
    cdef int64_t tier  # of an answer that nothing of a person carries
    cdef readonly object chain  # what the reasons are found by
    cdef readonly object derived  # the context as it may be told
    cdef bint is_kept  # for other requests of the moment
    cdef dict reasons, told  # by reason code: as they stand in an answer, and as they are

    def __cinit__(self, Prior prior not None, int64_t tier, chain, derived, bint is_kept):
        self.prior, self.tier, self.chain, self.derived, self.is_kept = prior, tier, chain, derived, is_kept
        self.reasons, self.told = {}, {}


# Of an item of the answer.
cdef struct Ranked:
    float score
    uint32_t code


# Who is asked about.
cdef struct Person:
    bint is_known
    bint is_seen
    uint8_t[KEY_BYTES] key
    Py_ssize_t fragment_count
    uint8_t[FRAGMENTS_MAX][KEY_BYTES] fragments  # that may hold lists
    uint8_t[KEY_BYTES] served  # the one their servings belong to
    uint64_t permitted
    int64_t last_seen


@cython.final
cdef class QuickDecider:
    """Decides from what it was last given by `take_up` and `follow`. One decision at a time.

    `namespaces` are {name: (PlainHasher or None, priority)}, `person_hasher` makes the ids of people of their keys,
    `decision_id(request_id, at)` those of decisions, `loose_ids` those of decisions that are neither named nor logged; `context(values, at)` gives the `QuickContext` of a context, None for one that
    is refused, `reasons(context, code)` what a reason code stands for, `item(id, score, propensity, reasons)` an item. `encoder` must be its own: whoever is called back may let
    others encode meanwhile. Decisions are counted in `tier_counts__t`, int64 by tier from 1.
    """

    cdef dict namespaces
    cdef PlainHasher person_hasher
    cdef object decision_id, context_of, reasons_of, item_of
    cdef CountedIds loose_ids
    cdef DecisionEncoder encoder
    cdef Asked asked
    cdef RecordView view
    # Of the configuration in force.
    cdef RecordLayout layout
    cdef dict plans  # by encoded name
    cdef int64_t configuration_version
    cdef Py_ssize_t candidates_max
    cdef int32_t k_max
    cdef uint64_t always  # consent that needs no grant
    cdef uint64_t all_bits
    cdef uint64_t served_consent
    cdef uint8_t served_code
    cdef double notable
    cdef bint depends_on_time
    # Of the moment.
    cdef LmdbTable people
    cdef tb_lmdb_cursor cursor  # over people
    cdef ItemTable items
    cdef ServedLog served
    cdef dict allowed  # by placement
    cdef object servings
    cdef tuple counts  # of mentions, by cap
    cdef object stale  # at -> names of what is stale, None where nothing can be
    cdef tuple degraded
    cdef int64_t position
    cdef dict contexts
    cdef float[FEATURES_MAX] vector
    cdef int64_t[::1] tier_counts__t  # by tier as in an answer, from 1

    def __cinit__(self, dict namespaces not None, PlainHasher person_hasher not None, servings not None, decision_id not None,
                  CountedIds loose_ids not None, context not None, reasons not None, item not None, DecisionEncoder encoder not None, int64_t[::1] tier_counts__t not None):
        if tier_counts__t.shape[0] != TIER_COUNT + 1:
            raise ValueError(f"expected {TIER_COUNT + 1} counts, got {tier_counts__t.shape[0]}")
        self.tier_counts__t = tier_counts__t
        self.namespaces, self.person_hasher, self.servings = namespaces, person_hasher, servings
        self.decision_id, self.loose_ids, self.context_of, self.reasons_of = decision_id, loose_ids, context, reasons
        self.item_of = item
        self.asked, self.view = Asked.__new__(Asked), RecordView()
        self.encoder = encoder
        self.plans, self.contexts = {}, {}
        self.counts = tuple([MentionCount() for _ in range(CAPS_MAX)])

    def take_up(self, RecordLayout layout not None, plans not None, *, int64_t version,
                Py_ssize_t candidates_max, int32_t k_max, uint64_t always, uint64_t all_bits, uint64_t served_consent,
                uint8_t served_code, double notable, bint depends_on_time):
        """Decide by another configuration; `plans` are its placements that can be decided on here."""
        cdef QuickPlan plan
        self.layout, self.configuration_version = layout, version
        self.plans = {}
        for plan in plans:
            self.plans[plan.name] = plan
        self.candidates_max, self.k_max = candidates_max, k_max
        self.always, self.all_bits, self.served_consent = always, all_bits, served_consent
        self.served_code, self.notable, self.depends_on_time = served_code, notable, depends_on_time

    def follow(self, LmdbTable people not None, ItemTable items not None, ServedLog served not None, dict allowed not None,
               tuple degraded not None, int64_t position, stale):
        """Decide on another moment: whoever decides keeps a read transaction of it open. `degraded` is what all its answers lack,
        `allowed` which items a placement admits."""
        self.people = people
        self.items, self.served, self.allowed, self.degraded = items, served, allowed, degraded
        self.position, self.stale = position, stale
        self.contexts.clear()

    def decide(self, bytes request not None, int64_t now, log):
        """Return the encoded decision on an encoded request, with its serving added; None where the general decider must be asked.

        `now` in ms since 1970 counts where the request names no time. `log`, None for nobody, is called with the request
        (placement, identifiers, context, candidates, item count, id) and what `decide_request` returns.
        """
        if not self.asked.read(request, self.candidates_max) or self.asked.events is not None:
            return None
        return self._decide(self.asked.ids, self.asked.ids.count, now, True, log)

    def decide_request(self, str placement not None, dict identifiers not None, dict context not None, candidates not None,
                       int64_t at, int32_t k, str request_id not None, int64_t min_position, int64_t now, log):
        """Return the decision on a request in pieces, or None, as `decide`: its items, and what else there is: the answer from
        its id on, the `QuickContext`, what consent permits, the fragments, the vector."""
        cdef Asked asked = self.asked
        if len(candidates) > self.candidates_max:
            return None
        asked.at_ms, asked.item_count, asked.min_position, asked.served_acknowledgement = at, k, min_position, 0
        if not (put_pairs(&asked.identifiers, identifiers) and put_pairs(&asked.context, context)
                and put_str(&asked.placement, placement) and put_str(&asked.request_id, request_id)):
            return None
        return self._decide(candidates, len(candidates), now, False, log)

    cdef object _decide(self, candidates, Py_ssize_t candidate_count, int64_t now, bint is_encoded, log):
        cdef Asked asked = self.asked
        cdef QuickPlan plan
        cdef QuickContext context
        cdef tb_evidence evidence
        cdef tb_rules rules
        cdef tb_ranking ranking
        cdef tb_ranked[TB_BATCH] heap
        cdef Ranked[TB_BATCH] ranked
        cdef Answered answered
        cdef Person person
        cdef const uint8_t[::1] allowed
        cdef Py_ssize_t fresh = 0, masked = 0, unknown
        cdef bint speaks = False
        cdef int32_t k
        cdef int64_t at
        cdef tuple degraded, told = None
        cdef str decision_id
        if candidate_count == 0 or asked.min_position > self.position or asked.served_acknowledgement:
            return None
        plan = self.plans.get(PyBytes_FromStringAndSize(asked.placement.at, asked.placement.length))
        if plan is None:
            return None
        k = asked.item_count or plan.k
        at = asked.at_ms or now
        if not 1 <= k <= min(self.k_max, <int32_t>TB_BATCH) or at < 0:
            return None
        context = self._context(at)
        if context is None or not self._find(&person):
            return None
        if person.is_known and plan.record_served and not person.is_seen:
            return None  # The first that happens to a fragment is told apart.

        tb_marks_clear(&self.items.marks)
        evidence = context.prior.evidence
        if person.is_known:
            speaks = self._read(plan, at, person.permitted, &fresh, &masked)
            if (plan.window_count or plan.cap_count) and not self._exclude(plan, &person, at):
                return None
            if plan.recent__f.shape[0]:
                self._exclude_recent(plan, at, person.permitted)
            if speaks:
                self.items._set_vector(&evidence, self.vector, plan.vector__f.shape[0], plan.vector_log)
        self.items._set_uniform(&evidence)
        rules.now_s, rules.require_stock, rules.allowed = <uint32_t>(at // 1000), plan.require_stock, NULL
        if self.allowed:
            found = self.allowed.get(plan.placement)
            if found is not None:
                allowed = found
                if allowed.shape[0] < self.items.items.count:
                    return None
                rules.allowed = &allowed[0]
        ranking.kept = ranking.candidate_count = ranking.excluded_count = ranking.eligible_count = 0
        ranking.score_sum = ranking.estimate_sum = 0.0
        unknown = self.items._rank_ids(&evidence, &rules, candidates, k, heap, &ranking)

        if log is None and not asked.request_id.length:
            decision_id = self.loose_ids._next(at)
        else:
            decision_id = self.decision_id(str_of(&asked.request_id), at)
        self._explain(context, &evidence, heap, &ranking, ranked)
        if ranking.kept == 0:
            answered.tier = 5
        else:
            answered.tier = 1 if speaks else context.tier
        if 0 < answered.tier <= TIER_COUNT:
            self.tier_counts__t[answered.tier] += 1
        answered.completeness = <double>fresh / <double>plan.feature_count if plan.feature_count else 0.0
        answered.profile_age_ms = max(<int64_t>0, at - person.last_seen) if person.last_seen else -1
        answered.masked_count, answered.excluded_count = masked, ranking.excluded_count
        answered.candidate_count, answered.unknown_candidate_count = ranking.candidate_count, unknown
        answered.position, answered.configuration_version, answered.at = self.position, self.configuration_version, at
        answered.served_position = 0
        answered.placement.at, answered.placement.length = PyBytes_AS_STRING(plan.name), PyBytes_GET_SIZE(plan.name)
        cdef char[2 * KEY_BYTES] person_id
        answered.person_id.at, answered.person_id.length = person_id, 0
        if person.is_known:
            self._write_person_id(person.key, person_id)
            answered.person_id.length = 2 * KEY_BYTES
        degraded = self._degraded(&person, ranking.kept, unknown, at)
        if log is not None or not is_encoded:
            told = self._pieces(plan, context, decision_id, heap, ranked, ranking.kept, &answered, degraded, &person, speaks)
        if log is not None:
            log((plan.placement, dict_of(&asked.identifiers), context, candidates, asked.item_count, str_of(&asked.request_id)),
                *told)
        if person.is_known and plan.record_served and ranking.kept and person.permitted & self.served_consent:
            self._record(plan, &person, at, heap, ranking.kept)
        if not is_encoded:
            return told
        self.encoder.used = 0
        self.encoder._text(1, decision_id)
        self._write_items(context, heap, ranked, ranking.kept)
        self.encoder._end_of_decision(&answered, degraded)
        return self.encoder._encoded()

    # ---- who ---------------------------------------------------------------------------------------------------------

    cdef bint _find(self, Person* person) except *:
        """Find the person that the identifiers name, their head loaded and the cursor on it; tell whether that could be done here."""
        cdef const Pairs* given = &self.asked.identifiers
        cdef uint8_t[16][KEY_BYTES] keys
        cdef int64_t[16] priorities
        cdef Py_ssize_t i, best = -1, at_best = -1, length, members
        cdef PlainHasher hasher
        cdef uint8_t[KEY_BYTES + 1] at  # a key and what stands there
        cdef uint8_t[KEY_BYTES] named  # the person that an identifier is of
        cdef tb_lmdb_bytes key, row
        cdef const uint8_t* data
        cdef bint is_there
        person.is_known = person.is_seen = False
        person.permitted = 0
        person.last_seen = 0
        for i in range(given.count):
            found = self.namespaces.get(PyBytes_FromStringAndSize(given.names[i].at, given.names[i].length))
            if found is None:
                return False
            hasher, priorities[i] = found
            if hasher is None or not is_plain(<const uint8_t*>given.values[i].at, given.values[i].length):
                return False
            hasher.hash(<const uint8_t*>given.values[i].at, given.values[i].length, keys[i])
        if given.count:  # Whoever has one identifier mostly has their state under it: both are far away, so ask for them early.
            self._prefetch_served(keys[0])
        for i in range(given.count):  # All that are known must be known as the same person.
            memcpy(at, keys[i], KEY_BYTES)
            at[KEY_BYTES] = LINK_ROW
            if not self._seek(at, &row, &is_there):
                return False
            if not is_there:
                continue
            if row.length < KEY_BYTES or (best >= 0 and memcmp(row.data, named, KEY_BYTES) != 0):
                return False
            memcpy(named, row.data, KEY_BYTES)
            if best < 0 or priorities[i] < priorities[best] or (
                    priorities[i] == priorities[best] and memcmp(keys[i], keys[best], KEY_BYTES) < 0):
                best = i
            at_best = i
        if best < 0:
            return True
        memcpy(at, named, KEY_BYTES)
        at[KEY_BYTES] = HEAD_ROW
        if at_best == given.count - 1 and memcmp(keys[at_best], named, KEY_BYTES) == 0:
            # A head stands behind the identifier it goes by.
            if tb_lmdb_next(&self.cursor) != TB_LMDB_FOUND or tb_lmdb_entry(&self.cursor, &key, &row) != TB_LMDB_FOUND:
                return False
            if key.length != KEY_BYTES + 1 or memcmp(key.data, at, KEY_BYTES + 1) != 0:
                return False
        elif not self._seek(at, &row, &is_there) or not is_there:
            return False
        data, length = row.data, row.length
        if length < HOLDER_AT + KEY_BYTES or data[VERSION_AT] + 256 * data[VERSION_AT + 1] != self.layout.version:
            return False
        members = data[MEMBERS_AT] + 256 * data[MEMBERS_AT + 1]
        if members > 1:
            length -= KEY_BYTES * members
        if length < HOLDER_AT + KEY_BYTES:
            return False
        memcpy(person.key, named, KEY_BYTES)
        memcpy(person.served, data + HOLDER_AT, KEY_BYTES)
        person.fragment_count = 1
        memcpy(person.fragments[0], person.served, KEY_BYTES)
        if is_zeros(person.served):  # Several hold state, and their lists.
            if not 1 < members <= FRAGMENTS_MAX:
                return False
            memcpy(person.served, keys[best], KEY_BYTES)
            memcpy(person.fragments[0], data + length, KEY_BYTES * members)
            person.fragment_count = members
        try:
            self.view._take(self.layout, data, length)
        except RecordError:
            return False
        tb_served_prefetch_at(&self.served.log, tb_served_newest(&self.served.log, person.fragments[0]))
        person.is_known = True
        person.is_seen = self.view.header.first_seen != 0
        person.last_seen = self.view.header.last_seen
        person.permitted = ((self.view.header.granted | self.always) & ~self.view.header.denied & ~self.view.header.restricted
                            & self.all_bits)
        return True

    cdef bint _seek(self, const uint8_t* key, tb_lmdb_bytes* row, bint* is_there) noexcept:
        """Put the cursor on a row of people, if there is one by a key of KEY_BYTES + 1; tell whether that could be read."""
        cdef tb_lmdb_bytes found
        cdef int status = tb_lmdb_seek(&self.people.tree, &self.cursor, key, KEY_BYTES + 1, is_there)
        if status == TB_LMDB_FOUND and is_there[0]:
            status = tb_lmdb_entry(&self.cursor, &found, row)
        return status != TB_LMDB_DAMAGED

    cdef int _prefetch_served(self, const uint8_t* fragment) except -1:
        cdef ServedLog log
        tb_served_prefetch(&self.served.log, fragment)
        for log in self.servings.logs:
            tb_served_prefetch(&log.log, fragment)
        return 0

    cdef bint _read(self, QuickPlan plan, int64_t at, uint64_t permitted, Py_ssize_t* fresh, Py_ssize_t* masked) noexcept:
        """Read what the placement asks of the person; tell whether the vector says anything."""
        cdef RecordView view = self.view
        cdef Py_ssize_t i, vector_fresh = 0
        cdef int32_t f
        cdef uint8_t status
        for i in range(plan.features__f.shape[0]):
            f = plan.features__f[i]
            status = tb_block_status(&self.layout.features[f], block_of(view, f), at, permitted)
            fresh[0] += status == TB_FRESH
            masked[0] += status == TB_MASKED
        for i in range(plan.vector__f.shape[0]):
            f = plan.vector__f[i]
            status = tb_read_number(&self.layout.features[f], block_of(view, f), at, permitted, &self.vector[i])
            vector_fresh += status == TB_FRESH
            masked[0] += status == TB_MASKED
        fresh[0] += vector_fresh
        return vector_fresh > 0

    cdef bint _exclude(self, QuickPlan plan, const Person* person, int64_t at) except -1:
        """Exclude what the person's lists have, or have too often, and what was served and is not in a list yet; tell whether the
        lists could be read."""
        cdef int64_t[256] since_s
        cdef bint[256] is_read
        cdef Py_ssize_t w
        cdef uint8_t code
        cdef uint8_t[KEY_BYTES + 1] lists
        cdef int last = -1, status
        cdef bint is_exact
        cdef Py_ssize_t i
        cdef tb_lmdb_bytes key, chunk
        cdef ServedLog log
        cdef int64_t[CAPS_MAX] cap_since_s
        cdef bint[CAPS_MAX] is_counted
        for w in range(256):
            is_read[w] = False
        for w in range(plan.window_count):
            if person.permitted & plan.consents[w]:
                since_s[plan.codes[w]] = floor_s(at - plan.windows_ms[w])
                is_read[plan.codes[w]] = True
                last = max(last, <int>plan.codes[w])
        for w in range(plan.cap_count):
            is_counted[w] = (person.permitted & plan.cap_consents[w]) != 0
            if is_counted[w]:
                cap_since_s[w] = floor_s(at - plan.cap_windows_ms[w])
                last = max(last, <int>plan.cap_codes[w])
                (<MentionCount>self.counts[w])._clear()
        if last < 0:
            return True
        lists[KEY_BYTES] = LIST_ROWS
        for i in range(person.fragment_count):
            if i == 0 and memcmp(person.key, person.fragments[0], KEY_BYTES) == 0:
                status = tb_lmdb_next(&self.cursor)  # from the head
            else:
                memcpy(lists, person.fragments[i], KEY_BYTES)
                status = tb_lmdb_seek(&self.people.tree, &self.cursor, lists, KEY_BYTES + 1, &is_exact)
            while status == TB_LMDB_FOUND:
                status = tb_lmdb_entry(&self.cursor, &key, &chunk)
                if status != TB_LMDB_FOUND or key.length <= KEY_BYTES or memcmp(key.data, person.fragments[i], KEY_BYTES) != 0:
                    break
                code = key.data[KEY_BYTES] - <uint8_t>LIST_ROWS
                if is_read[code]:
                    self.items._exclude_listed(<const char*>chunk.data, chunk.length, since_s[code])
                for w in range(plan.cap_count):
                    if is_counted[w] and plan.cap_codes[w] == code:
                        (<MentionCount>self.counts[w])._add_chunk(<const char*>chunk.data, chunk.length, cap_since_s[w])
                if code == last and memcmp(key.data + key.length - 4, OLDEST_CHUNK, 4) == 0:
                    break
                status = tb_lmdb_next(&self.cursor)
            if status == TB_LMDB_DAMAGED:
                return False
            if is_read[self.served_code]:
                self.items._exclude_served(&self.served.log, person.fragments[i], since_s[self.served_code])
                for log in self.servings.logs:
                    self.items._exclude_served(&log.log, person.fragments[i], since_s[self.served_code])
        for w in range(plan.cap_count):
            if is_counted[w]:
                if plan.cap_codes[w] == self.served_code:
                    self._count_served(<MentionCount>self.counts[w], person, cap_since_s[w])
                (<MentionCount>self.counts[w])._exclude(self.items, plan.cap_times[w])
        return True

    cdef int _count_served(self, MentionCount counted, const Person* person, int64_t since_s) except -1:
        """Count what was served and is not in a list yet, each serving once: beside the state only what it does not hold."""
        cdef Py_ssize_t i
        cdef ServedLog log
        for i in range(person.fragment_count):
            counted._add_served(&self.served.log, person.fragments[i], since_s)
        for log in self.servings.beside(self.position):
            for i in range(person.fragment_count):
                counted._add_served(&log.log, person.fragments[i], since_s)
        return 0

    cdef void _exclude_recent(self, QuickPlan plan, int64_t at, uint64_t permitted) noexcept:
        """Exclude what the person's features of last_k have."""
        cdef uint32_t[RECENT_MAX] items
        cdef int64_t[RECENT_MAX] times
        cdef const tb_feature* feature
        cdef const uint8_t* block
        cdef int64_t count, j
        cdef Py_ssize_t i
        for i in range(plan.recent__f.shape[0]):
            feature, block = &self.layout.features[plan.recent__f[i]], block_of(self.view, plan.recent__f[i])
            if tb_block_status(feature, block, at, permitted) != TB_FRESH:
                continue
            count = tb_read_recent(feature, <const tb_last_k*>block, at, RECENT_MAX, items, times)
            for j in range(count):
                if items[j] < self.items.items.count:
                    tb_mark(&self.items.marks, self.items.marks.excluded, items[j])

    # ---- where -------------------------------------------------------------------------------------------------------

    cdef QuickContext _context(self, int64_t at):
        """Return what is known of the request's context, None for one that is refused."""
        cdef const Pairs* given = &self.asked.context
        cdef char[CONTEXT_BYTES_MAX] key
        cdef size_t used = 0
        cdef Py_ssize_t i
        cdef int64_t quarter = at // 900_000
        if self.depends_on_time:
            memcpy(key, &quarter, 8)
            used = 8
        for i in range(given.count):
            if used + given.names[i].length + given.values[i].length + 16 > CONTEXT_BYTES_MAX:
                return None
            used = put_text(key, used, &given.names[i])
            used = put_text(key, used, &given.values[i])
        name = PyBytes_FromStringAndSize(key, used)
        context = self.contexts.get(name)
        if context is None:
            context = self.context_of(dict_of(given), at)
            if context is None or not (<QuickContext>context).is_kept:
                return context
            if len(self.contexts) >= CONTEXTS_KEPT:
                self.contexts.clear()
            self.contexts[name] = context
        return context

    # ---- the answer --------------------------------------------------------------------------------------------------

    cdef void _explain(self, QuickContext context, const tb_evidence* evidence, const tb_ranked* heap, const tb_ranking* ranking,
                       Ranked* ranked) noexcept:
        """Write the scores of the winners and the codes of their reasons."""
        cdef double normaliser = tb_normaliser(ranking)
        cdef tb_scores scores
        cdef size_t i
        self.items._score(evidence, heap, ranking.kept, &scores)
        for i in range(ranking.kept):
            ranked[i].score = <float>(scores.score[i] * normaliser)
            ranked[i].code = tb_reason_code(&scores, i, evidence.uniform, self.notable)

    cdef int _write_items(self, QuickContext context, const tb_ranked* heap, const Ranked* ranked, size_t kept) except -1:
        cdef const tb_item* item
        cdef size_t i, start
        for i in range(kept):
            item = tb_item_at(&self.items.items, heap[i].item)
            reasons = context.reasons.get(ranked[i].code)
            if reasons is None:
                reasons = context.reasons[ranked[i].code] = self._reasons(context, ranked[i].code)
            start = self.encoder._begin_item(tb_item_id(&self.items.items, item), item.id_length, ranked[i].score, PROPENSITY)
            self.encoder._append(<bytes>reasons)
            self.encoder._close(start)
        return 0

    cdef bytes _reasons(self, QuickContext context, uint32_t code):
        cdef DecisionEncoder encoder = DecisionEncoder(self.encoder.reasons, self.encoder.tiers)
        return encoder._reasons(self.reasons_of(context, code))

    cdef tuple _pieces(self, QuickPlan plan, QuickContext context, str decision_id, const tb_ranked* heap, const Ranked* ranked,
                       size_t kept, const Answered* answered, tuple degraded, const Person* person, bint speaks):
        cdef Py_ssize_t i
        items = []
        for i in range(<Py_ssize_t>kept):
            reasons = context.told.get(ranked[i].code)
            if reasons is None:
                reasons = context.told[ranked[i].code] = self.reasons_of(context, ranked[i].code)
            items.append(self.item_of(self.items._id(heap[i].item), ranked[i].score, PROPENSITY, reasons))
        fragments = [PyBytes_FromStringAndSize(<const char*>person.fragments[i], KEY_BYTES)
                     for i in range(person.fragment_count if person.is_known else 0)]
        vector = PyBytes_FromStringAndSize(<const char*>self.vector, 4 * plan.vector__f.shape[0]) if speaks else b""
        return tuple(items), (decision_id, answered.tier, answered.completeness, answered.profile_age_ms, answered.masked_count,
                       answered.excluded_count, answered.candidate_count, answered.unknown_candidate_count, answered.at,
                       str_of(&answered.person_id), degraded), (context, person.permitted, fragments, vector)

    cdef tuple _degraded(self, const Person* person, size_t kept, Py_ssize_t unknown, int64_t at):
        if (kept and not unknown and self.stale is None and not self.degraded
                and (person.is_known or not self.asked.identifiers.count)):
            return ()
        found = [] if person.is_known or not self.asked.identifiers.count else ["NO_PROFILE"]
        if not self.items.live_count:
            found.append("EMPTY_CATALOGUE")
        elif not kept:
            found.append("NOTHING_ELIGIBLE")
        if unknown:
            found.append("UNKNOWN_CANDIDATES")
        found.extend(self.degraded)
        if self.stale is not None:
            found.extend(self.stale(at))
        return tuple(found)

    cdef int _write_person_id(self, const uint8_t* key, char* text) except -1:
        cdef uint8_t[KEY_BYTES] digest
        cdef Py_ssize_t i
        self.person_hasher.hash(key, KEY_BYTES, digest)
        for i in range(KEY_BYTES):
            text[2 * i], text[2 * i + 1] = HEX[digest[i] >> 4], HEX[digest[i] & 15]
        return 0

    cdef int _record(self, QuickPlan plan, const Person* person, int64_t at, const tb_ranked* heap, size_t kept) except -1:
        """Remember what was served, so that it is not served again, until it is written."""
        cdef uint32_t[TB_BATCH] numbers
        cdef ServedLog log
        cdef size_t i
        for i in range(kept):
            numbers[i] = heap[i].item
        for log in self.servings.taking:
            log._add(person.served, at, plan.number, numbers, kept)
        return 0


cdef double PROPENSITY = 1.0  # Nothing is explored here.
cdef const char* HEX = "0123456789abcdef"
cdef int LIST_ROWS = 16
cdef const char* OLDEST_CHUNK = b"\xff\xff\xff\xff"
cdef Py_ssize_t CONTEXTS_KEPT = 1024


cdef int check_features(RecordLayout layout, const int32_t[::1] indices) except -1:
    cdef Py_ssize_t i
    for i in range(indices.shape[0]):
        if not 0 <= indices[i] < layout.feature_count:
            raise IndexError(f"expected features of 0 to {layout.feature_count - 1}, got {indices[i]}")
    return 0


cdef inline const uint8_t* block_of(RecordView view, int32_t feature) noexcept:
    return view.data + view.offsets__f[feature] if view.offsets__f[feature] else NULL


cdef bint put_str(Text* text, str value) except *:
    """Let a text be that of a str, which must live as long; tell whether it is UTF-8."""
    cdef Py_ssize_t length = 0
    try:
        text.at = PyUnicode_AsUTF8AndSize(value, &length)
    except UnicodeEncodeError:
        return False
    text.length = length
    return True


cdef bint put_pairs(Pairs* pairs, dict values) except *:
    """Let pairs be those of a dict, which must live as long; tell whether they are texts and there is room."""
    pairs.count = 0
    if len(values) > PAIRS_MAX:
        return False
    for name, value in values.items():
        if type(name) is not str or type(value) is not str:
            return False
        if not put_str(&pairs.names[pairs.count], name) or not put_str(&pairs.values[pairs.count], value):
            return False
        pairs.count += 1
    return True


cdef inline bint is_zeros(const uint8_t* key) noexcept:
    cdef uint64_t[2] words
    memcpy(words, key, KEY_BYTES)
    return words[0] == 0 and words[1] == 0


cdef inline int64_t floor_s(int64_t ms) noexcept:
    """Seconds, rounded down also below 0."""
    return ms // 1000 if ms >= 0 else -((999 - ms) // 1000)


cdef inline size_t put_text(char* key, size_t used, const Text* text) noexcept:
    """Append a text behind its length; return where the next begins."""
    memcpy(key + used, &text.length, 8)
    memcpy(key + used + 8, text.at, text.length)
    return used + 8 + text.length

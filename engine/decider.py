"""Decisions: one read transaction, one moment, one formula from a stranger to a regular."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import lmdb
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from tailorbird.engine.applier import LIST_KINDS, product_lines
from tailorbird.engine.caps import CapCount
from tailorbird.engine.compiled import CompiledConfiguration
from tailorbird.engine.consent import ALL_BITS, ConsentMasks, DataType, Purpose, bit, permitted
from tailorbird.engine.context import RAW, Contexts, check_context
from tailorbird.engine.decision_id import DecisionIds
from tailorbird.engine.decision_log import DecisionSink, Evidenced
from tailorbird.engine.errors import CallerError, NotFound, TailorbirdError, Unavailable
from tailorbird.engine.evidence import Chain, Evidence
from tailorbird.engine.identifiers import IdentifierError, IdentifierHasher
from tailorbird.engine.placed import Placed, placed_of
from tailorbird.engine.reason_codes import OF_THE_ITEM, reasons_of
from tailorbird.engine.requests import DecidedItem, DecideRequest, Decision, Reason, ReasonDetail, Tier
from tailorbird.engine.servings import Servings
from tailorbird.engine.signals import Signal
from tailorbird.engine.state import (
    NO_FRAGMENT,
    OLDEST_CHUNK_NUMBER,
    damaged_record,
    members_of_row,
    packed_head,
    read_record,
    seek_head,
)
from tailorbird.engine.store import HEAD_ROW, LIST_ROWS, Store, stale_categories, u32
from tailorbird.engine.symbols import symbol_of
from tailorbird.engine.update_programs import slot_values
from tailorbird.engine.vocabulary import ItemList
from tailorbird.native import history as native_history
from tailorbird.native import neighbours as native_neighbours
from tailorbird.native.decision import QuickContext, QuickDecider, QuickPlan
from tailorbird.native.record import FRESH, MASKED, Record, RecordError, RecordView
from tailorbird.native.scoring import UNKNOWN_ITEM
from tailorbird.native.wire import DecisionEncoder

if TYPE_CHECKING:
    from tailorbird.native.decision import QuickAnswer, QuickEvidence
    from tailorbird.native.lmdb_pages import LmdbTable
    from tailorbird.native.scoring import Together

WHOLE_CATALOGUE_MAX = 20_000
RECENT_ITEMS_MAX = 256
AFFINITY_STRENGTH = 5.0
NOTABLE = 1.1  # a lift or share ratio from which it is named as a reason
AFFINITY_VALUES = 4  # of a person's values, those that bring candidates
TOGETHER_STRENGTH = 1.0  # of the estimate that co-occurrence is blended with
FIRST_LIST = bytes([LIST_ROWS])
OLDEST_CHUNK = u32(OLDEST_CHUNK_NUMBER)
SERVED_CODE = LIST_KINDS[ItemList.SERVED]
SERVED_CONSENT = bit(DataType.BEHAVIOURAL, Purpose.COLLECT)
TIERS = PERSON, CONTEXT, POPULAR, CATALOGUE, EMPTY = tuple(Tier)  # looked up once: an enumeration's attributes are slow
_NO_ITEMS = np.zeros(0, np.uint32)
_NO_WEIGHTS = np.zeros(0, np.float32)

# Items with the times (ms) they were met at; and of an attribute its index, the person's values, their lifts, any other's.
Mentions = tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]
# A decision, the fragment its serving belongs to (empty: not to be recorded), the numbers of its items, and whether nothing
# else may have happened to the fragment yet.
Answer = tuple[Decision, bytes, tuple[int, ...], bool]
Affinity = tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.float64], float]


class Given(NamedTuple):
    """What the events of a request bring: the items they are about, and as (list, item, time in ms) what enters lists with them."""

    items: npt.NDArray[np.uint32] = _NO_ITEMS
    listed: tuple[tuple[int, int, int], ...] = ()


@dataclass(slots=True)
class Person:
    """Whoever is asked about, as one transaction sees them; `fragments` are those that may hold lists.

    `key` is that of their head, on which `cursor` still stands where nobody else was asked about: their lists are next.
    """

    view: RecordView | None
    permitted: int
    key: bytes
    fragments: tuple[bytes, ...]
    served_key: bytes
    last_seen: int
    cursor: lmdb.Cursor[bytes]


class Known:
    """What speaks for a person in one decision."""

    __slots__ = ("affinities", "fresh_count", "masked_count", "recent", "vector", "weights")

    def __init__(self) -> None:
        self.recent = _NO_ITEMS
        self.weights = _NO_WEIGHTS
        self.affinities: tuple[Affinity, ...] = ()
        self.vector: npt.NDArray[np.float32] | None = None
        self.fresh_count = self.masked_count = 0

    @property
    def speaks(self) -> bool:
        """Whether anything is known that the ranking uses."""
        return self.vector is not None or bool(self.affinities) or len(self.recent) > 0


def check_position(position: int, min_position: int) -> None:
    """Raise `Unavailable` POSITION_NOT_REACHED where the state is not where the caller needs it."""
    if position < min_position:
        raise Unavailable(
            "POSITION_NOT_REACHED", f"expected a state of min_position {min_position}, got {position}; try again"
        )


class Decider:
    """Answers from a store it only reads. One decision at a time; the engine sees to that."""

    def __init__(
        self,
        store: Store,
        evidence: Evidence,
        hasher: IdentifierHasher,
        servings: Servings,
        contexts: Contexts,
        tier_counts: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Decisions are counted in `tier_counts`, by their place in `TIERS` from 1, where others may count as well."""
        self.tier_counts = np.zeros(len(TIERS) + 1, np.int64) if tier_counts is None else tier_counts
        self.store = store
        self.evidence = evidence
        self.hasher = hasher
        self.servings = servings
        self.contexts = contexts
        self.ids = DecisionIds(hasher)
        self.log: DecisionSink | None = None
        self._begin = store.environment.begin
        self._placed: dict[str, Placed] = {}
        self._compiled: CompiledConfiguration | None = None
        self._view = RecordView()
        self._quick: QuickDecider | None = None  # made when it is first asked
        self._quick_of: tuple[CompiledConfiguration, bool] | None = None
        self._quick_moment = -1
        self._keys = np.zeros(64, np.uint64)
        self._weights = np.zeros(64, np.float32)
        self._items = np.zeros(128, np.uint32)
        self._times = np.zeros(128, np.int64)
        self._capped = CapCount()

    # ---- the decision --------------------------------------------------------------------------------------------

    def decide(self, request: DecideRequest, now: int) -> Answer:
        """Return the decision on one request."""
        txn = self._begin()
        try:
            return self._answer(txn, request, now, ())
        finally:
            txn.abort()

    def decide_page(self, requests: Sequence[DecideRequest], now: int) -> list[Answer]:
        """Return the decisions on the placements of one page, of one moment, no item twice: the earlier placement has it."""
        txn = self._begin()
        try:
            answers: list[Answer] = []
            on_page: list[int] = []
            for request in requests:
                answers.append(self._answer(txn, request, now, on_page))
                on_page += answers[-1][2]
            return answers
        finally:
            txn.abort()

    def decide_each(
        self, requests: Iterable[DecideRequest], now: int
    ) -> Generator[Answer | TailorbirdError, None, None]:
        """Yield the decision on each request, or why there is none, all of one moment."""
        txn = self._begin()
        try:
            for request in requests:
                try:
                    answer: Answer | TailorbirdError = self._answer(txn, request, now, ())
                except TailorbirdError as error:
                    answer = error
                yield answer
        finally:
            txn.abort()

    def decide_again(self, request: DecideRequest, refused: Sequence[int]) -> Decision:
        """Return the decision on a request that was logged, earlier placements of whose page had the items `refused`."""
        txn = self._begin()
        try:
            return self._answer(txn, request, 0, refused)[0]
        finally:
            txn.abort()

    def _answer(self, txn: lmdb.Transaction[bytes], request: DecideRequest, now: int, refused: Sequence[int]) -> Answer:
        head = self.evidence.follow(txn)
        check_position(head.position, request.min_position)
        self.evidence.used_orders.clear()
        return self._decide(txn, request, request.at or now, refused)

    def _decide(self, txn: lmdb.Transaction[bytes], request: DecideRequest, at: int, refused: Sequence[int]) -> Answer:
        evidence = self.evidence
        compiled = self._take_up_configuration()
        placed = self._placed.get(request.placement)
        if placed is None:
            names = ", ".join(self._placed) or "none; declare one under `placements:`"
            raise NotFound("UNKNOWN_PLACEMENT", f"expected a placement of {names}; got {request.placement!r}")
        placement, limits = placed.declaration, compiled.configuration.limits
        if len(request.candidates) > limits.candidates_max:
            raise CallerError(
                "TOO_MANY_CANDIDATES",
                f"expected at most limits.candidates_max = {limits.candidates_max} candidates, got {len(request.candidates)}; "
                "send fewer, or leave them out and let the placement's retrievers find them",
            )
        check_context(request.context, limits.field_bytes_max)
        k = request.k or placement.k
        if not 1 <= k <= limits.k_max:
            raise CallerError("BAD_K", f"expected k from 1 to limits.k_max = {limits.k_max}, got {k}")
        degraded: list[str] = []
        request = self._with_context(request, compiled, at)
        context = request.context
        person = self._person(txn, request, degraded)
        given = self._fold_events(txn, person, request.events, compiled, at) if request.events else Given()
        chain = evidence.chain(context)
        items = evidence.catalogue.items
        items.begin()
        if refused:
            items.exclude(refused)
        known = self._known(person, placed, given, at)

        together: Together | None = None
        touched_count = 0
        neighbours = evidence.neighbours
        if neighbours is not None and len(known.recent):
            parameters = neighbours.parameters
            touched_count = native_neighbours.accumulate(
                neighbours.indptr,
                neighbours.items,
                neighbours.weights,
                known.recent,
                known.weights,
                evidence.scratch,
                evidence.touched,
            )
            support = parameters.support_per_item * float(known.weights.sum())
            exponent = parameters.popularity_exponent
            together = evidence.scratch, evidence.touched[:touched_count], support, TOGETHER_STRENGTH, exponent
        found = request.candidates or self._retrieve(placed, touched_count, known.affinities, chain)
        rank = partial(
            items.rank,
            now_s=max(0, at // 1000),
            prior=chain.prior,
            require_stock=placement.require_stock,
            allowed=evidence.catalogue.allowed(placement.name),
            together=together,
            affinities=known.affinities,
            vector=known.vector,
            vector_log=placed.vector_log,
            notable=NOTABLE,
        )
        try:
            winners, numbers, candidate_count, excluded_count, _, unknown = rank(found, k)
            if len(winners) < k and placement.fallback and not request.candidates:
                more, more_numbers, *_ = rank(placement.fallback, k - len(winners))
                winners, numbers = winners + more, numbers + more_numbers
            common = chain.reasons
            decided = tuple(
                [
                    DecidedItem(
                        item_id,
                        score,
                        1.0,
                        common.get(code) or self._explain(txn, placed, chain, known, item, code, index),
                    )
                    for item, item_id, score, code, index in winners
                ]
            )
        finally:
            if touched_count:
                native_neighbours.clear(evidence.scratch, evidence.touched, touched_count)
        if not items.live_count:
            degraded.append("EMPTY_CATALOGUE")
        elif not winners:
            degraded.append("NOTHING_ELIGIBLE")
        if unknown:
            degraded.append("UNKNOWN_CANDIDATES")
        if evidence.model_damages:
            degraded.append("DAMAGED_MODEL")
        if compiled.freshness_ms:
            degraded += self._stale(at)
        tier = EMPTY if not winners else PERSON if known.speaks else self._tier_without_person(chain)
        self.tier_counts[TIERS.index(tier) + 1] += 1
        decision = Decision(
            decision_id=self._decision_id(request.request_id, at),
            placement=placement.name,
            items=decided,
            tier=tier,
            completeness=known.fresh_count / placed.feature_count if placed.feature_count else 0.0,
            profile_age_ms=max(0, at - person.last_seen) if person.last_seen else -1,
            masked_count=known.masked_count,
            excluded_count=excluded_count,
            candidate_count=candidate_count,
            unknown_candidate_count=unknown,
            position=evidence.head.position,
            configuration_version=compiled.version,
            at=at,
            person_id=self.hasher.person_id(person.key).hex() if person.key else "",
            degraded=tuple(degraded),
        )
        if self.log is not None:
            self._log(self.log, request, decision, person, known, refused)
        served_key = person.served_key if placement.record_served and person.permitted & SERVED_CONSENT else b""
        return decision, served_key, numbers, person.view is not None and person.view.first_seen == 0

    def _with_context(self, request: DecideRequest, compiled: CompiledConfiguration, at: int) -> DecideRequest:
        """Return the request with its context derived, and that of its events: nothing raw goes further."""
        contexts = self.contexts.of(compiled)
        context = contexts.derive(request.context, at, now=not request.at)
        events = request.events
        if events:
            events = tuple(
                [
                    replace(event, context=dict(contexts.derive(event.context, event.event_time or at, now=False)))
                    for event in events
                ]
            )
        elif context is request.context:
            return request
        return replace(request, context=dict(context), events=events)

    # ---- the common decision, without objects ---------------------------------------------------------------------

    def decide_encoded(self, request: bytes, now: int) -> bytes | None:
        """Return the encoded decision on an encoded request, its serving remembered; None where `decide` must be asked."""
        txn = self._begin()
        try:
            quick = self._quick_at(txn)
            if quick is None:
                return None
            return quick.decide(request, now, self._quick_log if self.log is not None else None)
        finally:
            txn.abort()

    def decide_quickly(self, request: DecideRequest, now: int) -> Decision | None:
        """Return the decision on a request, its serving remembered; None where `decide` must be asked."""
        if request.events or not request.candidates:
            return None
        txn = self._begin()
        try:
            quick = self._quick_at(txn)
            if quick is None:
                return None
            found = quick.decide_request(
                request.placement,
                request.identifiers,
                request.context,
                request.candidates,
                request.at,
                request.k,
                request.request_id,
                request.min_position,
                now,
                self._quick_log if self.log is not None else None,
            )
        except (TypeError, OverflowError):  # Of other types than declared; `decide` says which.
            return None
        finally:
            txn.abort()
        return None if found is None else self._quick_decision(request.placement, found[0], found[1])

    def _quick_at(self, txn: lmdb.Transaction[bytes]) -> QuickDecider | None:
        if txn.id() == self._quick_moment and self._quick is not None:
            return self._quick
        self.evidence.follow(txn)
        if self._quick_moment != self.evidence.moment or self._quick is None:
            people = self.store.people(txn)
            if people is None:
                return None
            self._quick = self._quick_follow(people)
        return self._quick

    def forget_moment(self) -> None:
        """Look at everything anew in the next decision: something changed beside the state."""
        self._quick_moment = -1

    def _quick_follow(self, people: LmdbTable) -> QuickDecider:
        """Return the quick decider, which sees what `decide` would see now."""
        evidence, compiled, hasher = self.evidence, self._take_up_configuration(), self.hasher
        quick = self._quick
        if quick is None:
            quick = QuickDecider(
                {name.encode(): (hasher.plain[name], found.priority) for name, found in hasher.namespaces.items()},
                hasher.plain_person,
                self.servings,
                self._decision_id,
                self.ids.loose_ids,
                self._quick_context,
                self._quick_reasons,
                DecidedItem,
                DecisionEncoder(tuple(Reason), TIERS),
                self.tier_counts,
            )
        quick_of = compiled, evidence.neighbours is None
        if self._quick_of != quick_of:
            limits = compiled.configuration.limits
            quick.take_up(
                compiled.features.layout,
                [self._quick_plan(placed) for placed in self._placed.values() if self._is_quick(placed)],
                version=compiled.version,
                candidates_max=limits.candidates_max,
                k_max=limits.k_max,
                always=permitted(0, 0, 0, compiled.configuration.jurisdiction),
                all_bits=ALL_BITS,
                served_consent=SERVED_CONSENT,
                served_code=SERVED_CODE,
                notable=NOTABLE,
                depends_on_time=self.contexts.of(compiled).depends_on_time,
            )
            self._quick_of = quick_of
        catalogue = evidence.catalogue
        quick.follow(
            people,
            catalogue.items,
            evidence.served,
            catalogue.allowances,
            ("DAMAGED_MODEL",) if evidence.model_damages else (),
            evidence.head.position,
            self._stale if compiled.freshness_ms else None,
        )
        self._quick_moment = evidence.moment
        return quick

    def _is_quick(self, placed: Placed) -> bool:
        """Return whether nothing but popularity and the person's vector ranks what is given."""
        return not placed.affinity and (self.evidence.neighbours is None or not (placed.recent or placed.speaking))

    def _quick_plan(self, placed: Placed) -> QuickPlan:
        assert self._compiled is not None
        declaration = placed.declaration
        return QuickPlan(
            self._compiled.features.layout,
            declaration.name,
            self.servings.placement(declaration.name),
            declaration.k,
            require_stock=declaration.require_stock,
            record_served=declaration.record_served,
            features=np.array(placed.features, np.int32),
            exclude_recent=np.array(placed.exclude_recent, np.int32),
            vector=placed.vector if placed.vector is not None else np.zeros(0, np.int32),
            vector_log=placed.vector_log,
            windows=placed.windows,
            caps=placed.caps,
        )

    def _quick_context(self, context: dict[str, str], at: int) -> QuickContext | None:
        compiled = self._take_up_configuration()
        deriver = self.contexts.of(compiled)
        if deriver.asks_weather:  # which may come any moment
            return None
        try:
            check_context(context, compiled.configuration.limits.field_bytes_max)
        except CallerError:
            return None
        derived = deriver.derive(context, at)
        chain = self.evidence.chain(derived)
        tier = TIERS.index(self._tier_without_person(chain)) + 1
        return QuickContext(chain.prior, tier, chain, derived, RAW.isdisjoint(context))

    def _quick_reasons(self, context: QuickContext, code: int) -> tuple[ReasonDetail, ...]:
        return self._common_reasons(context.chain, code)

    def _quick_decision(self, placement: str, items: tuple[DecidedItem, ...], answer: QuickAnswer) -> Decision:
        assert self._compiled is not None
        return Decision(
            decision_id=answer[0],
            placement=placement,
            items=items,
            tier=TIERS[answer[1] - 1],
            completeness=answer[2],
            profile_age_ms=answer[3],
            masked_count=answer[4],
            excluded_count=answer[5],
            candidate_count=answer[6],
            unknown_candidate_count=answer[7],
            position=self.evidence.head.position,
            configuration_version=self._compiled.version,
            at=answer[8],
            person_id=answer[9],
            degraded=answer[10],
        )

    def _quick_log(
        self,
        asked: tuple[str, dict[str, str], QuickContext, Sequence[str], int, str],
        items: tuple[DecidedItem, ...],
        answer: QuickAnswer,
        evidence: QuickEvidence,
    ) -> None:
        """Log a quick decision, as `decide` would."""
        assert self.log is not None
        placement, identifiers, context, candidates, k, request_id = asked
        _, permitted, fragments, vector = evidence
        request = DecideRequest(
            placement=placement,
            identifiers=identifiers,
            context=dict(context.derived),
            candidates=candidates,
            k=k,
            request_id=request_id,
        )
        decision = self._quick_decision(placement, items, answer)
        position = self.evidence.head.position
        served = [entry for fragment in fragments for entry in self.servings.of(fragment, position)]
        model = self.evidence.model_name
        self.log.add(request, decision, Evidenced(bool(answer[9]), permitted, (), served, [], model, vector, b""))

    # ---- who -----------------------------------------------------------------------------------------------------

    def _person(self, txn: lmdb.Transaction[bytes], request: DecideRequest, degraded: list[str]) -> Person:
        """Return the person the identifiers name: the best known one's profile, and the fragments of all of them."""
        evidence = self.evidence
        assert evidence.layouts is not None
        cursor = txn.cursor(db=self.store.tables["people"])
        if not request.identifiers:
            return Person(None, 0, b"", (), b"", 0, cursor)
        anchors = []
        for namespace, value in request.identifiers.items():
            try:
                anchors.append(self.hasher.anchor(namespace, value))
            except IdentifierError as error:
                if error.reason == "UNKNOWN_NAMESPACE":
                    raise
                degraded.append(error.reason)
        if len(anchors) > 1:
            anchors.sort(key=lambda anchor: (self.hasher.namespaces[anchor.namespace].priority, anchor.key))
        found: Person | None = None
        for anchor in anchors:
            known = seek_head(cursor, anchor.key)
            if known is None:
                continue
            key, data = known
            if found is None:
                self._load(packed_head(data))
                view = self._view
                allowed = permitted(
                    view.granted, view.denied, view.restricted, evidence.layouts.current.configuration.jurisdiction
                )
                holder = view.fragment_id
                # Where one fragment holds all there is, it holds the lists too.
                fragments = (holder,) if holder != NO_FRAGMENT else members_of_row(data)
                served_key = holder if holder != NO_FRAGMENT else anchor.key
                found = Person(view, allowed, key, fragments, served_key, view.last_seen, cursor)
            elif key != found.key:  # Another person's devices still must not be shown the same again.
                found.fragments = tuple(dict.fromkeys([*found.fragments, *members_of_row(data)]))
        if found is None:
            degraded.append("NO_PROFILE")
            return Person(None, 0, b"", (), b"", 0, cursor)
        return found

    def _load(self, data: bytes) -> None:
        assert self.evidence.layouts is not None
        current = self.evidence.layouts.current
        if int.from_bytes(data[4:6], "little") != current.layout_version:
            data = read_record(self.evidence.layouts, data).pack()
        try:
            self._view.load(current.features.layout, data)
        except RecordError as error:
            raise damaged_record(error) from error

    def _fold_events(
        self,
        txn: lmdb.Transaction[bytes],
        person: Person,
        events: tuple[Signal, ...],
        compiled: CompiledConfiguration,
        at: int,
    ) -> Given:
        """Fold events into a private copy of the profile; return what they are about.

        Events of the request are used under the person's own permissions and, for a stranger, under what each event brings.
        """
        assert self.evidence.layouts is not None
        layout = compiled.features.layout
        jurisdiction = compiled.configuration.jurisdiction
        if person.view is not None:
            data = txn.get(person.key + HEAD_ROW, db=self.store.tables["people"])
            assert data is not None
            record = read_record(self.evidence.layouts, packed_head(data))
            masks = ConsentMasks(record.granted, record.denied, record.restricted, record.explicit)
        else:
            record, masks = Record(layout), ConsentMasks()
            record.member_count = 1
        items = self.evidence.catalogue.items
        mentioned: dict[str, None] = {}
        entries: list[tuple[int, str, int]] = []
        for number, event in enumerate(events):
            plan = compiled.plans.get(event.type) if isinstance(event.type, str) else None
            if plan is None:
                raise CallerError(
                    "UNKNOWN_SIGNAL_TYPE",
                    f"expected a declared signal type, got {event.type!r:.60} in events[{number}]",
                )
            if event.consent is not None:
                masks = masks.after(event.consent)
            allowed = masks.permits(jurisdiction)
            if not allowed & plan.profile:
                continue
            try:
                lines = [line for line in product_lines(event.properties) if isinstance(line.get("product_id"), str)]
                slots = slot_values(
                    plan.update,
                    event.properties,
                    event.context,
                    lines,
                    symbol_of,
                    lambda item_id: int(items.lookup([item_id])[0][0]),
                    lambda item_id, name: None,
                    self.evidence.head.currency,
                )
                record.update(plan.update.program, event.event_time or at, number, slots, allowed)
            except CallerError as error:
                raise CallerError(error.reason, f"{error.message}, in events[{number}]") from None
            except (TypeError, OverflowError, ValueError, AttributeError) as error:
                raise CallerError(
                    "WRONG_TYPE", f"expected properties of the declared kinds in events[{number}], got: {error!s:.100}"
                ) from None
            mentioned.update((line["product_id"], None) for line in lines)
            if plan.adds_to is not None:
                code, time = LIST_KINDS[plan.adds_to], event.event_time or at
                entries += [(code, line["product_id"], time) for line in lines]
            record.last_seen = max(record.last_seen, event.event_time or at)
        if not mentioned and person.view is None:
            return Given()
        self._view.load(layout, record.pack())
        person.view, person.permitted, person.last_seen = self._view, masks.permits(jurisdiction), record.last_seen
        numbers, _ = items.lookup(list(mentioned))
        number_of = dict(zip(mentioned, numbers.tolist(), strict=True))
        return Given(
            numbers[numbers != UNKNOWN_ITEM],
            tuple([(code, number_of[name], time) for code, name, time in entries if number_of[name] != UNKNOWN_ITEM]),
        )

    # ---- what is known of them -------------------------------------------------------------------------------------

    def _known(self, person: Person, placed: Placed, given: Given, at: int) -> Known:
        """Return what the profile, the lists and the events of the request say, as far as consent lets them."""
        known = Known()
        if person.view is None:
            return known
        view, allowed = person.view, person.permitted
        for index in placed.features:
            status = view.status(index, at, allowed)
            known.fresh_count += status == FRESH
            known.masked_count += status == MASKED
        exclude = self.evidence.catalogue.items.exclude
        about = given.items
        mentions: list[Mentions] = [(about, np.full(len(about), at))] if len(about) and placed.recent else []
        if placed.windows:
            exclude(about.tolist())
        if placed.windows or placed.caps:
            mentions += self._exclude_listed(person, placed, given, at)
        for index in placed.exclude_recent:
            exclude(self._recent(view, index, at, allowed)[0].tolist())
        neighbours = self.evidence.neighbours
        if neighbours is not None:
            mentions += [self._recent(view, index, at, allowed) for index in placed.recent]
            if mentions:
                known.recent, known.weights = native_history.distinct_newest(
                    mentions, RECENT_ITEMS_MAX, neighbours.parameters.recency_half_life_ms
                )
        if placed.affinity:
            known.affinities = tuple(self._affinities(view, placed, at, allowed))
        if placed.vector is not None:
            fresh, masked = view.read_vector(placed.vector, at, allowed, placed.vector_values, placed.vector_statuses)
            known.masked_count += masked
            known.fresh_count += fresh
            if fresh:
                known.vector = placed.vector_values
        return known

    def _recent(self, view: RecordView, index: int, at: int, allowed: int) -> Mentions:
        n = view.recent(index, at, allowed, self._items, self._times)
        return self._items[:n].copy(), self._times[:n].copy()

    def _exclude_listed(self, person: Person, placed: Placed, given: Given, at: int) -> list[Mentions]:
        """Exclude what is in the lists of all the person's devices, or is there too often; return the items of those lists that
        speak."""
        items = self.evidence.catalogue.items
        mentions: list[Mentions] = []
        since: dict[int, int] = {}
        for code, window_ms, consent in placed.windows:
            if person.permitted & consent:
                since[code] = (at - window_ms) // 1000
        capped = self._capped
        capped.begin(placed.caps, person.permitted, at)
        read = since.keys() | capped.since_s.keys()
        if not read:
            return mentions
        cursor = person.cursor
        last = LIST_ROWS + max(read)
        for fragment in person.fragments:
            more = cursor.next() if cursor.key() == fragment + HEAD_ROW else cursor.set_range(fragment + FIRST_LIST)
            while more:
                key, chunk = cursor.item()
                if not key.startswith(fragment):
                    break
                code = key[16] - LIST_ROWS
                if code in since:
                    items.exclude_listed(chunk, since[code])
                    if code in placed.speaking:
                        mentions.append(native_history.read_chunk(chunk, since[code]))
                if code in capped.since_s:
                    capped.of(code).add_chunk(chunk, capped.since_s[code])
                if key[16] == last and key.endswith(OLDEST_CHUNK):
                    break
                more = cursor.next()
            if SERVED_CODE in since:
                items.exclude_served(self.evidence.served, fragment, since[SERVED_CODE])
                self.servings.exclude(items, fragment, since[SERVED_CODE])
        if capped.since_s:
            self._count_mentions(capped, person.fragments, given)
            capped.exclude(items)
        return mentions

    def _count_mentions(self, capped: CapCount, fragments: Sequence[bytes], given: Given) -> None:
        """Count what was served and is in no list yet, and what the events of the request bring."""
        since_s = capped.since_s.get(SERVED_CODE)
        if since_s is not None:
            counted = capped.of(SERVED_CODE)
            for fragment in fragments:
                counted.add_served(self.evidence.served, fragment, since_s)
            self.servings.count(counted, fragments, since_s, self.evidence.head.position)
        for code, number, time in given.listed:
            if code in capped.since_s and time // 1000 >= capped.since_s[code]:
                capped.of(code).add((number,))

    def _affinities(self, view: RecordView, placed: Placed, at: int, permitted: int) -> list[Affinity]:
        """Return, per attribute, P(value | person) / P(value): the person's weights with the shop's shares as the prior."""
        found: list[Affinity] = []
        for attribute, feature in placed.affinity:
            n = view.top(feature, at, permitted, self._keys, self._weights)
            if not n:
                continue
            keys, weights = self._keys[:n].copy(), self._weights[:n].astype(np.float64)
            shares = self.evidence.attribute_shares(attribute)
            prior = np.array([shares.get(int(key), 1e-6) for key in keys])
            total = float(np.add.accumulate(weights)[-1])
            lifts = (weights + AFFINITY_STRENGTH * prior) / (total + AFFINITY_STRENGTH) / prior
            found.append((attribute, keys, lifts, AFFINITY_STRENGTH / (total + AFFINITY_STRENGTH)))
        return found

    # ---- candidates ----------------------------------------------------------------------------------------------

    def _retrieve(
        self, placed: Placed, touched_count: int, affinities: tuple[Affinity, ...], chain: Chain
    ) -> npt.NDArray[np.uint32] | None:
        """Return the placement's own candidates, None for the whole catalogue."""
        evidence, quota = self.evidence, placed.declaration.retrieve
        count = evidence.catalogue.items.count
        if count <= WHOLE_CATALOGUE_MAX and (quota.whole_catalogue or count <= quota.popular):
            return None
        parts = [evidence.newest(quota.new), evidence.popular(evidence.statistics.everything)[: quota.popular]]
        parts += [evidence.popular(cell)[: quota.popular] for cell in chain.cells]
        if touched_count and quota.cooccurrence:
            chosen, scores = np.empty(quota.cooccurrence, np.uint32), np.empty(quota.cooccurrence, np.float32)
            n = native_neighbours.top(
                evidence.scratch, evidence.touched, touched_count, quota.cooccurrence, chosen, scores
            )
            parts.append(chosen[:n])
        for attribute, keys, lifts, _ in affinities:
            best = np.argsort(-lifts, kind="stable")[:AFFINITY_VALUES]
            each = quota.affinity // (len(best) * len(affinities))
            parts += [evidence.posting(attribute, int(keys[i]))[:each] for i in best]
        return np.concatenate(parts)

    # ---- the answer ----------------------------------------------------------------------------------------------

    def _explain(
        self,
        txn: lmdb.Transaction[bytes],
        placed: Placed,
        chain: Chain,
        known: Known,
        item: int,
        code: int,
        affinity_index: int,
    ) -> tuple[ReasonDetail, ...]:
        """Return why an item stands where it stands, the strongest reason first."""
        named = reasons_of(code)
        if OF_THE_ITEM.isdisjoint(named):
            return self._common_reasons(chain, code)
        return tuple(
            [
                ReasonDetail(reason, self._detail(txn, placed, chain, known, reason, item, affinity_index))
                for reason in named
            ]
        )

    def _common_reasons(self, chain: Chain, code: int) -> tuple[ReasonDetail, ...]:
        """Return the reasons of a code that every item of a context has for the same cause."""
        reasons = chain.reasons.get(code)
        if reasons is None:
            named = reasons_of(code)
            reasons = chain.reasons[code] = tuple(
                [ReasonDetail(reason, chain.label if reason is Reason.POPULAR_IN_CONTEXT else "") for reason in named]
            )
        return reasons

    def _detail(
        self,
        txn: lmdb.Transaction[bytes],
        placed: Placed,
        chain: Chain,
        known: Known,
        reason: Reason,
        item: int,
        affinity_index: int,
    ) -> str:
        """Return what a reason rests on."""
        catalogue, neighbours = self.evidence.catalogue, self.evidence.neighbours
        if reason is Reason.POPULAR_IN_CONTEXT:
            return chain.label
        if reason is Reason.AFFINITY:
            attribute = placed.affinity[affinity_index][0]
            symbol = catalogue.items.symbol(attribute, item)
            text = txn.get(symbol.to_bytes(8, "big"), db=self.store.tables["symbols"])
            return f"{catalogue.attributes[attribute]}={text.decode() if text is not None else '?'}"
        if reason is Reason.BOUGHT_TOGETHER and neighbours is not None:
            source = native_neighbours.explain(
                neighbours.indptr, neighbours.items, neighbours.weights, known.recent, known.weights, item
            )
            return catalogue.items.id(int(known.recent[source])) if source >= 0 else ""
        return ""

    def _decision_id(self, request_id: str, at: int) -> str:
        """Return a signed id; the same request id gives the same one."""
        if self.log is not None:
            return self.log.id_for(request_id)
        return self.ids.named(self.ids.name(request_id)) if request_id else self.ids.loose(at)

    def _log(
        self,
        log: DecisionSink,
        request: DecideRequest,
        decision: Decision,
        person: Person,
        known: Known,
        refused: Sequence[int],
    ) -> None:
        """Log a finished decision with what it rested on beside the state."""
        position = self.evidence.head.position
        served = [entry for fragment in person.fragments for entry in self.servings.of(fragment, position)]
        vector = b"" if known.vector is None else known.vector.tobytes()
        log.add(
            request,
            decision,
            Evidenced(
                person.key != b"",
                person.permitted,
                refused,
                served,
                [(*order, position) for order, position in self.evidence.used_orders.items()],
                self.evidence.model_name,
                vector,
                known.recent.tobytes(),
            ),
        )

    def _tier_without_person(self, chain: Chain) -> Tier:
        """Return what carries an answer that nothing of the person does."""
        if chain.has_evidence:
            return CONTEXT
        return POPULAR if self.evidence.over_all.total > 0.0 else CATALOGUE

    def _stale(self, at: int) -> list[str]:
        """Return what the answer must say of categories that are past their declared freshness."""
        assert self._compiled is not None
        stale = stale_categories(self.evidence.head, self._compiled.freshness_ms, at)
        return [f"STALE_{category.name}" for category in stale]

    def _take_up_configuration(self) -> CompiledConfiguration:
        assert self.evidence.layouts is not None
        compiled = self.evidence.layouts.current
        if compiled is not self._compiled:
            index, attributes = compiled.features.index, compiled.configuration.attributes
            self._placed = {
                placement.name: placed_of(placement, compiled, index, attributes)
                for placement in compiled.configuration.placements
            }
            for name in self._placed:  # Numbered in their order, whoever decides first.
                self.servings.placement(name)
            self._compiled = compiled
        return compiled

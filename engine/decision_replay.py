"""Decisions again, bit for bit: what was logged, asked again of the state that the fact log alone leads to.

The log is replayed in a scratch directory, from the newest snapshot before the first decision that is asked for, or from
empty, and stops at the position of each. What a decision saw beside the state is in its record: servings that were not
written yet, what earlier placements of the page had, and at which positions the orders it used were derived. Where a decision
was asked on given candidates and is none of those sampled, its winners are the candidates: their order and reasons do not hang
on what else was there, and must be the same; their scores, of which all candidates' together are one whole, but for one common
factor; counts are not compared.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

from tailorbird.engine.compiled import namespaces_of
from tailorbird.engine.configuration import read_configuration
from tailorbird.engine.context import Contexts
from tailorbird.engine.decider import Decider
from tailorbird.engine.decision_id import DecisionIds
from tailorbird.engine.decision_log import Evidenced
from tailorbird.engine.decision_record import LoggedDecision, Stored
from tailorbird.engine.directory import Directory
from tailorbird.engine.errors import PreconditionFailed, TailorbirdError
from tailorbird.engine.evidence import Evidence, OrderKind, Postings, UsedOrder
from tailorbird.engine.facts import Anchor
from tailorbird.engine.identifiers import IdentifierError, IdentifierHasher
from tailorbird.engine.log import LocalLog
from tailorbird.engine.requests import DecideRequest, Decision
from tailorbird.engine.servings import Serving, Servings
from tailorbird.engine.signals import Signal
from tailorbird.engine.statistics import Cell
from tailorbird.engine.store import Store
from tailorbird.engine.writer import Writer
from tailorbird.native.mentions import MentionCount
from tailorbird.native.scoring import ItemTable

_COUNTS = ("candidate_count", "excluded_count", "unknown_candidate_count", "degraded")
ROUNDING = 2.0**-21  # relative, of two scores of 24 bits and of their quotient
REFUSED = "!"  # before the reason that stands in the place of an identifier's key


class Passed(StrEnum):
    """Why a decision was not replayed."""

    ERASED = "erased"  # with the person
    WITHHELD = "withheld"  # consent let nothing of the person be logged
    NO_LOG = "no_log"  # the fact log begins later, and no snapshot is older
    DAMAGED = "damaged"


class Replayed(NamedTuple):
    """What came of one decision: `passed` is why it was not replayed, `difference` the first one, both empty where it is the same."""

    stored: Stored
    passed: Passed | None = None
    difference: str = ""
    whole: bool = True  # whether every bit was compared: see the module for given candidates


def replay_decisions(
    path: str | Path, wanted: Iterable[Stored], progress: Callable[[int], None] | None = None
) -> Iterator[Replayed]:
    """Yield what comes of each decision when it is computed again, by position. Writes nothing to `path`.

    `progress` gets each position the state has reached.
    """
    directory = Directory(Path(path))
    directory.prepare(create=False)
    decisions: list[tuple[Stored, tuple[UsedOrder, ...]]] = []
    for stored in wanted:
        if stored.payload is None:
            yield Replayed(stored, Passed.DAMAGED)
        elif (logged := stored.logged()) is None:
            yield Replayed(stored, Passed.ERASED)
        elif logged.withheld:
            yield Replayed(stored, Passed.WITHHELD)
        else:
            decisions.append((stored, logged.used_orders))
    if not decisions:
        return
    decisions.sort(key=lambda each: (each[0].position, each[0].place))
    needed = min(min([stored.position, *(order[2] for order in used)]) for stored, used in decisions)
    configuration, _ = read_configuration(directory.configuration)
    hasher = IdentifierHasher(directory.read_identity_key(), namespaces_of(configuration))
    log = LocalLog.open(directory.log, read_only=True)
    try:
        with tempfile.TemporaryDirectory(prefix="tailorbird-decisions-") as folder:
            snapshot = _snapshot(directory, log, needed)
            if snapshot is not None:
                shutil.copyfile(snapshot / "data.mdb", Path(folder) / "data.mdb")
            elif log.start > 0:
                for stored, _ in decisions:
                    yield Replayed(stored, Passed.NO_LOG)
                return
            store = Store(Path(folder), read_only=False, map_bytes=configuration.limits.map_bytes, synced=False)
            try:
                yield from _Replay(directory, store, log, hasher, configuration.limits.map_bytes).run(
                    decisions, progress
                )
            finally:
                store.close()
    finally:
        log.close()


def _snapshot(directory: Directory, log: LocalLog, needed: int) -> Path | None:
    """Return the newest whole snapshot at or before a position, None where there is none to go on from."""
    for position, snapshot in directory.list_snapshots():
        if log.start <= position <= needed:
            try:
                directory.check_snapshot(snapshot)
            except TailorbirdError:
                continue
            return snapshot
    return None


class _Replay:
    """Decides again at one position after the other."""

    def __init__(
        self, directory: Directory, store: Store, log: LocalLog, hasher: IdentifierHasher, map_bytes: int
    ) -> None:
        self._store = store
        self._log = log
        self._ids = DecisionIds(hasher)
        self._hasher = _LoggedHasher(hasher)
        self._evidence = _OrderedEvidence(store, directory.models)
        self._served = _LoggedServings()
        self._contexts = Contexts()  # what was derived is logged; there is nothing raw to derive from
        self._decider = Decider(store, self._evidence, self._hasher, self._served, self._contexts)
        self._decider.log = self
        self._evidenced: Evidenced
        self._writer = Writer(store, log, hasher, lambda: 0, map_bytes, self._contexts)

    def run(
        self, decisions: list[tuple[Stored, tuple[UsedOrder, ...]]], progress: Callable[[int], None] | None
    ) -> Iterator[Replayed]:
        """Yield what comes of each decision, in the order given: by position."""
        derived: dict[int, set[tuple[int, int]]] = defaultdict(set)
        uses: Counter[UsedOrder] = Counter()
        for _, used in decisions:
            for kind, key, position in set(used):
                derived[position].add((kind, key))
                uses[kind, key, position] += 1
        positions = sorted(derived)
        for stored, used in decisions:
            while positions and positions[0] <= stored.position:
                self._derive(positions[0], derived[positions[0]])
                positions.pop(0)
            self._advance(stored.position)
            if progress is not None:
                progress(stored.position)
            yield self._decide(stored)
            for order in set(used):
                uses[order] -= 1
                if not uses[order]:
                    self._evidence.forget(order)

    def _advance(self, position: int) -> None:
        """Apply facts up to a position. Raises `PreconditionFailed` STATE_AHEAD_OF_LOG where the log ends before it."""
        if position > self._log.end:
            raise PreconditionFailed(
                "STATE_AHEAD_OF_LOG",
                f"expected a log up to the decision's position {position}, got one up to {self._log.end}: facts were lost",
            )
        self._writer.catch_up(until=position)

    def _derive(self, position: int, orders: set[tuple[int, int]]) -> None:
        self._advance(position)
        with self._store.reading() as txn:
            self._evidence.follow(txn)
            for kind, key in sorted(orders):
                self._evidence.derive(kind, key)

    def _decide(self, stored: Stored) -> Replayed:
        logged = stored.logged()
        assert logged is not None
        decision_id = self._ids.named(logged.name) if logged.name else self._ids.placed(stored.place)
        expected = stored.decision(decision_id, logged)
        whole = not logged.given_count or len(logged.candidates) == logged.given_count
        if not whole and not logged.items:  # There is no candidate left to decide on.
            return Replayed(stored, None, "", whole)
        self._served.logged = logged.served
        self._evidence.ordered_at = {(kind, key): position for kind, key, position in logged.used_orders}
        try:
            answer = self._decider.decide_again(_request(stored, logged, whole), logged.refused)
        except TailorbirdError as error:
            return Replayed(stored, None, f"expected an answer, got {error}", whole)
        found = difference(expected, answer, whole=whole)
        for name in ("model", "vector", "recent"):
            one, other = getattr(logged, name), getattr(self._evidenced, name)
            if not found and one != other:
                found = f"{name}: logged {one!r}, replayed {other!r}"
        return Replayed(stored, None, found, whole)

    def id_for(self, request_id: str) -> str:
        """Return no id: see `difference`."""
        return ""

    def add(self, request: DecideRequest, decision: Decision, evidenced: Evidenced) -> None:
        """Keep what a decision rested on."""
        self._evidenced = evidenced


def _request(stored: Stored, logged: LoggedDecision, whole: bool) -> DecideRequest:
    candidates = logged.candidates if whole else tuple(item.id for item in logged.items)
    return DecideRequest(
        placement=logged.placement,
        identifiers={namespace: key.hex() or REFUSED + reason for namespace, key, reason in logged.identifiers},
        context=logged.context,
        candidates=candidates,
        at=stored.at,
        k=logged.k,
        events=tuple(
            Signal(
                type=event.type,
                event_time=event.event_time,
                identifiers={},
                properties=event.properties,
                context=event.context,
                consent=event.consent,
            )
            for event in logged.events
        ),
    )


def difference(expected: Decision, got: Decision, *, whole: bool = True) -> str:
    """Return the first thing two decisions differ in, to the bit, empty where they do not; ids and positions aside.

    Where not `whole`, scores may differ by one factor, and counts are not compared.
    """
    skipped = {"decision_id", "position", "at", "items", *(() if whole else _COUNTS)}
    factor = 1.0
    if not whole and expected.items and got.items and got.items[0].score:
        factor = expected.items[0].score / got.items[0].score
    for number, (one, other) in enumerate(zip(expected.items, got.items, strict=False)):
        for name in one.__struct_fields__:
            if not whole and name == "score" and isclose(one.score, other.score * factor, rel_tol=ROUNDING):
                continue
            if _bits(getattr(one, name)) != _bits(getattr(other, name)):
                return f"items[{number}].{name}: logged {_shown(getattr(one, name))}, replayed {_shown(getattr(other, name))}"
    if len(expected.items) != len(got.items):
        return f"items: logged {len(expected.items)}, replayed {len(got.items)}"
    for name in expected.__struct_fields__:
        if name not in skipped and _bits(getattr(expected, name)) != _bits(getattr(got, name)):
            return f"{name}: logged {_shown(getattr(expected, name))}, replayed {_shown(getattr(got, name))}"
    return ""


def _bits(value: object) -> object:
    return struct.pack("<d", value) if isinstance(value, float) else value


def _shown(value: object) -> str:
    return f"{value!r} ({value.hex()})" if isinstance(value, float) else repr(value)


class _LoggedHasher(IdentifierHasher):
    """Takes the keys and refusals that the log has in the place of identifiers."""

    def __init__(self, hasher: IdentifierHasher) -> None:
        self.namespaces = hasher.namespaces
        self.person_id = hasher.person_id  # type: ignore[method-assign]
        self.message_key = hasher.message_key  # type: ignore[method-assign]
        self.decision_signature = hasher.decision_signature  # type: ignore[method-assign]
        self.decision_signer = hasher.decision_signer

    def anchor(self, namespace: str, raw: str) -> Anchor:
        """Return the anchor that was logged. Raises `IdentifierError` with the logged reason."""
        if raw.startswith(REFUSED):
            raise IdentifierError(
                raw.removeprefix(REFUSED), "expected what was refused when it was asked, got it again"
            )
        return Anchor(namespace, bytes.fromhex(raw))


class _LoggedServings(Servings):
    """Has served, to whoever is asked about, what the decision under way found served beside the state."""

    logged: Sequence[Serving] = ()

    def exclude(self, items: ItemTable, fragment: bytes, since_s: int) -> None:
        """Keep out what was served no longer ago than `since_s`."""
        for at, numbers in self.logged:
            if at // 1_000 >= since_s:
                items.exclude(numbers)

    def count(self, counted: MentionCount, fragments: Sequence[bytes], since_s: int, position: int) -> None:
        """Count what was served no longer ago than `since_s`, to all fragments together."""
        for at, numbers in self.logged:
            if at // 1_000 >= since_s:
                counted.add(numbers)

    def of(self, fragment: bytes, position: int) -> list[Serving]:
        """Return what was logged."""
        return list(self.logged)


class _OrderedEvidence(Evidence):
    """Answers with orders derived at the positions that decisions found them derived at."""

    def __init__(self, store: Store, models: Path) -> None:
        super().__init__(store, models)
        self.ordered_at: Mapping[tuple[int, int], int] = {}
        self._orders: dict[UsedOrder, Any] = {}

    def derive(self, kind: int, key: int) -> None:
        """Derive an order as of now."""
        self._forget_orders()
        order: Any
        if kind == OrderKind.POPULAR:
            cell = self.statistics.cells.get(key)
            order = super().popular(cell) if cell is not None else None
        elif kind == OrderKind.SHARES:
            order = super().attribute_shares(key)
        else:
            order = super().postings(key)
        self._orders[kind, key, self.head.position] = order

    def forget(self, order: UsedOrder) -> None:
        """Let go of an order that no decision needs any more."""
        self._orders.pop(order, None)

    def _derived(self, kind: OrderKind, key: int) -> Any:
        return self._orders.get((kind, key, self.ordered_at.get((kind, key), -1)))

    def popular(self, cell: Cell) -> Any:
        """Return the order a decision used, the present one where it used none."""
        order = self._derived(OrderKind.POPULAR, cell.key)
        return super().popular(cell) if order is None else order

    def attribute_shares(self, attribute: int) -> dict[int, float]:
        """Return the shares a decision used, the present ones where it used none."""
        shares: dict[int, float] | None = self._derived(OrderKind.SHARES, attribute)
        return super().attribute_shares(attribute) if shares is None else shares

    def postings(self, attribute: int) -> Postings:
        """Return the postings a decision used, the present ones where it used none."""
        postings: Postings | None = self._derived(OrderKind.POSTINGS, attribute)
        return super().postings(attribute) if postings is None else postings

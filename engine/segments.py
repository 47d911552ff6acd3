"""Segments: features that say who belongs, and what changes about that, as events.

A segment is a feature with `segment: true` whose rule is a formula; who belongs reads 1. At every tick, which is a fact, the
segments of whoever something happened to since the last one are read anew; each that changed is put into the outbox. What time
alone changes (a window that runs out) is noticed when something happens to the person again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import lmdb
import msgspec

from tailorbird.engine.store import Head, Store, scan, u64

if TYPE_CHECKING:
    from tailorbird.engine.catalogue import Catalogue
    from tailorbird.engine.feature_table import FeatureReader
    from tailorbird.engine.identifiers import IdentifierHasher
    from tailorbird.engine.score_model import Learned
    from tailorbird.engine.state import Layouts, State

OUTBOX_KEPT = 1_000_000  # changes; the oldest are dropped


class SegmentChange(msgspec.Struct, frozen=True, array_like=True):
    """Somebody came into a segment or left it, by the state at log `position`, read at `at` (ms).

    `sequence` counts changes from 0; `person_id` is the opaque id of profiles and decisions.
    """

    sequence: int
    person_id: str
    segment: str
    entered: bool
    at: int
    position: int


_encode = msgspec.msgpack.Encoder().encode
_decode_change = msgspec.msgpack.Decoder(SegmentChange).decode
_decode_names = msgspec.msgpack.Decoder(tuple[str, ...]).decode


class _Moment:
    """The state inside the writer's transaction, as a `FeatureReader` reads it."""

    catalogue: Catalogue  # which no rule reads

    def __init__(self, layouts: Layouts, head: Head) -> None:
        self.layouts: Layouts | None = layouts
        self.head = head
        self.scores: Mapping[str, Learned] = {}


class Segments:
    """Who belongs to what, for one writer."""

    def __init__(self, state: State, hasher: IdentifierHasher) -> None:
        self._state = state
        self._hasher = hasher
        self._reader: FeatureReader | None = None
        self._reader_of: object = None

    def touched(self, fragment: bytes) -> None:
        """Note that something happened to whoever a fragment belongs to."""
        if self._state.compiled.segments and self._state.txn.put(
            fragment, b"", db=self._state.tables["touched"], overwrite=False
        ):
            self._state.head.touched += 1

    def tick(self, at: int) -> None:
        """Put into the outbox what changed for whoever something happened to."""
        state = self._state
        if not state.head.touched:
            return
        state.flush()
        touched = [key for key, _ in scan(state.txn, state.tables["touched"], b"")]
        state.txn.drop(state.tables["touched"], delete=False)
        state.head.touched = 0
        if not state.compiled.segments:
            return
        people = sorted({person for fragment in touched if (person := state.person_of(fragment)) is not None})
        table = self._reading().read(state.store, state.txn, self._moment(), people, at)
        belongs = table.values == 1.0  # what is masked belongs nowhere
        for row, person in enumerate(people):
            now = tuple(name for column, name in enumerate(table.names) if belongs[row, column])
            self._put(person, now, at)

    def _put(self, person: bytes, now: tuple[str, ...], at: int) -> None:
        state = self._state
        members = state.members_of(person)
        for member in members:  # whom they were before they were found to be one
            if member != person:
                state.txn.delete(member, db=state.tables["memberships"])
        raw = state.txn.get(person, db=state.tables["memberships"])
        before = _decode_names(raw) if raw is not None else ()
        if now == before:
            return
        state.txn.put(person, _encode(now), db=state.tables["memberships"])
        person_id = self._hasher.person_id(person).hex()
        for name in state.compiled.segments:
            if (name in now) != (name in before):
                self._publish(person_id, name, name in now, at)

    def _publish(self, person_id: str, segment: str, entered: bool, at: int) -> None:
        state, head = self._state, self._state.head
        change = SegmentChange(head.outbox_end, person_id, segment, entered, at, head.position)
        state.txn.put(u64(head.outbox_end), _encode(change), db=state.tables["outbox"], append=True)
        if head.outbox_end >= OUTBOX_KEPT:
            state.txn.delete(u64(head.outbox_end - OUTBOX_KEPT), db=state.tables["outbox"])
        head.outbox_end += 1

    def _moment(self) -> _Moment:
        assert self._state.layouts is not None
        return _Moment(self._state.layouts, self._state.head)

    def _reading(self) -> FeatureReader:
        from tailorbird.engine.feature_table import FeatureReader

        layouts = self._state.layouts
        if self._reader is None or self._reader_of is not layouts:
            compiled = self._state.compiled
            self._reader, self._reader_of = FeatureReader(compiled.features, compiled.segments), layouts
        return self._reader


def read_changes(store: Store, txn: lmdb.Transaction[Any], first: int, limit: int) -> Iterator[SegmentChange]:
    """Yield up to `limit` changes from sequence `first` on, or from the oldest kept where that is later."""
    cursor = txn.cursor(db=store.tables["outbox"])
    found = cursor.set_range(u64(first))
    while found and limit > 0:
        yield _decode_change(cursor.value())
        limit -= 1
        found = cursor.next()

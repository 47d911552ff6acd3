"""The writer: the one place where facts are appended, applied and committed, in groups, exactly once.

A group is admitted and applied in an open LMDB transaction, appended to the log, synced, and only then committed: what was
acknowledged is in the log, and the state is never ahead of it (docs/adr/0002).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lmdb
import msgspec

from tailorbird.engine.admission import Admission
from tailorbird.engine.applier import Applier
from tailorbird.engine.compiled import compile_configuration
from tailorbird.engine.consent import ConsentChoice
from tailorbird.engine.context import Contexts
from tailorbird.engine.errors import InternalError, PreconditionFailed, TailorbirdError, Unavailable
from tailorbird.engine.facts import (
    ConfigurationFact,
    FactKind,
    ItemsPutFact,
    TickFact,
    _Fact,
    decode_fact,
    encode_fact,
)
from tailorbird.engine.feature_compiler import refuse_changed
from tailorbird.engine.identifiers import IdentifierHasher
from tailorbird.engine.items import Item
from tailorbird.engine.log import LocalLog
from tailorbird.engine.signals import IngestReport, Outcome, Signal, Status
from tailorbird.engine.state import stored_features
from tailorbird.engine.store import Store, commit, map_full

REPLAY_GROUP = 10_000
ITEMS_PER_FACT = 500


class Writer:
    """Owns the log and every write to the store."""

    def __init__(
        self,
        store: Store,
        log: LocalLog,
        hasher: IdentifierHasher,
        clock: Callable[[], int],
        map_bytes: int,
        contexts: Contexts,
    ) -> None:
        self.store = store
        self.log = log
        self.clock = clock
        self.map_bytes = map_bytes
        self.applier = Applier(store, hasher)
        self.admission = Admission(self.applier, hasher, contexts)
        self._last_append = 0
        self._failure = ""

    @property
    def position(self) -> int:
        """The next log offset."""
        return self.log.end

    @property
    def failed(self) -> bool:
        """Whether a failure stopped the writer for good."""
        return bool(self._failure)

    @property
    def failure(self) -> str:
        """What stopped the writer for good, empty while it works."""
        return self._failure

    # ---- catching up ---------------------------------------------------------------------------------------------

    def catch_up(self, progress: Callable[[int], None] | None = None, until: int | None = None) -> int:
        """Apply what the log has beyond the state, up to `until`; return how many facts. Raises STATE_AHEAD_OF_LOG."""
        with self.store.reading() as txn:
            position = self.store.read_head(txn).position
        if position > self.log.end:
            raise PreconditionFailed(
                "STATE_AHEAD_OF_LOG",
                f"expected a state at or before the log's end {self.log.end}, got one at {position}: facts were lost from "
                "the log; restore it from a backup, or remove the state directory to go on without them",
            )
        if self.log.end > self.log.start:
            # The clock may have been set back while nothing ran: append times never go back.
            self._last_append = max(record.append_time for record in self.log.read(self.log.end - 1, 1))
        applied = 0
        end = self.log.end if until is None else until
        while position < end:
            self.applier.begin()
            try:
                for record in self.log.read(position, min(REPLAY_GROUP, end - position)):
                    self.apply_record(record.offset, record.append_time, record.kind, record.payload)
                    position = record.offset + 1
                    applied += 1
                self.applier.flush()
            except lmdb.MapFullError as error:
                self.applier.abort()
                raise map_full(self.map_bytes) from error
            except BaseException:
                self.applier.abort()
                raise
            commit(self.applier.state.txn, self.map_bytes)
            if progress is not None:
                progress(position)
        return applied

    def apply_record(self, offset: int, append_time: int, kind: int, payload: bytes) -> None:
        """Decode and apply one log record. Raises `InternalError` UNKNOWN_FACT for what this release cannot read."""
        try:
            fact = decode_fact(kind, payload)
        except (KeyError, msgspec.DecodeError) as error:
            raise InternalError(
                "UNKNOWN_FACT",
                f"expected a fact of this release at offset {offset}, got kind {kind}: {error}; use a newer release",
            ) from error
        self._last_append = max(self._last_append, append_time)
        self.applier.apply(offset, append_time, kind, fact)

    # ---- groups --------------------------------------------------------------------------------------------------

    def ingest(self, signals: Sequence[Signal], import_consent: ConsentChoice | None = None) -> IngestReport:
        """Admit, append, apply and commit one group; return the outcome of each signal.

        Raises `ResourceExhausted` (DISK_FULL, MAP_FULL) or `Unavailable`; then nothing of the group was written, or, when
        the message says so, all of it is in the log and the writer has stopped. Sending it again is safe either way.
        """
        outcomes: list[Outcome] = []

        def fill(group: _Group) -> None:
            for signal in signals:
                outcome, facts = self.admission.admit(signal, group.append_time, import_consent)
                for fact in facts:
                    group.add(fact)
                outcomes.append(outcome or Outcome(Status.APPLIED, position=group.offset - 1))
            if self.applier.tick_due(group.append_time):
                group.add(TickFact(self.applier.state.head.latest_event_time))

        position = self._write(fill)
        return IngestReport(tuple(outcomes), position)

    def append(self, *facts: _Fact) -> int:
        """Append, apply and commit facts of the engine's own; return the position from which they are visible."""

        def fill(group: _Group) -> None:
            for fact in facts:
                group.add(fact)

        return self._write(fill)

    def put_items(self, items: Sequence[Item]) -> int:
        """Put those items that differ from what the catalogue holds; return the position."""
        latest = list({item.id: item for item in items}.values())

        def fill(group: _Group) -> None:
            for start in range(0, len(latest), ITEMS_PER_FACT):
                # Compared as they will be read back: a price of 5 is 5.0, a list of tags a tuple.
                fact = decode_fact(*encode_fact(ItemsPutFact(tuple(latest[start : start + ITEMS_PER_FACT]))))
                changed = tuple(item for item in fact.items if not self.applier.state.holds(item))
                if changed:
                    group.add(ItemsPutFact(changed))

        return self._write(fill)

    def tick(self) -> int:
        """Publish the statistics gathered so far; return the position."""

        def fill(group: _Group) -> None:
            head = self.applier.state.head
            if head.pending_end or head.touched:
                group.add(TickFact(head.latest_event_time))

        return self._write(fill)

    def configure(self, text: str) -> int:
        """Put a configuration text in force when it is another than the last. Raises `ConfigurationError` FEATURE_CHANGED."""
        with self.store.reading() as txn:
            head = self.store.read_head(txn)
            if head.latest_event_time:
                current, earlier = stored_features(self.store, txn, head)
                refuse_changed(current, earlier, compile_configuration(text, 1, 1).features)
        return self.append(ConfigurationFact(head.configuration + 1, text))

    def _write(self, fill: Callable[[_Group], None]) -> int:
        if self._failure:
            raise Unavailable(
                "WRITER_STOPPED",
                f"expected a working writer, got one stopped by {self._failure}; close the engine and open it again",
            )
        self.applier.begin()
        start = self.log.end
        group = _Group(self.applier, start, max(self.clock(), self._last_append))
        try:
            fill(group)
            if not group.records:
                self.applier.state.abort()
                return start
            self.applier.flush()
            self.log.append_group(group.append_time, group.records)
        except lmdb.MapFullError as error:
            self.applier.abort()
            raise map_full(self.map_bytes) from error
        except BaseException:
            self.applier.abort()
            raise
        try:
            self.log.sync()
            commit(self.applier.state.txn, self.map_bytes)
        except BaseException as error:
            # Whether the group is durable is not known: only a new start, which reads the log, can tell.
            self._failure = error.reason if isinstance(error, TailorbirdError) else type(error).__name__
            self.applier.abort()
            raise
        self._last_append = group.append_time
        return self.log.end


class _Group:
    """Facts on their way into the log, applied as they come."""

    def __init__(self, applier: Applier, offset: int, append_time: int) -> None:
        self.applier = applier
        self.offset = offset
        self.append_time = append_time
        self.records: list[tuple[int, bytes]] = []

    def add(self, fact: _Fact) -> None:
        """Apply a fact at the next offset."""
        kind, payload = record = encode_fact(fact)
        if (
            kind != FactKind.SIGNAL
        ):  # Admission has checked every value of a signal; of the rest, apply what replay will read.
            fact = decode_fact(kind, payload)
        self.applier.apply(self.offset, self.append_time, kind, fact)
        self.records.append(record)
        self.offset += 1

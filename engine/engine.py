"""The engine: signals in, decisions out, in this process. The server is one of its clients."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import lmdb
import msgspec
import numpy as np

from tailorbird.engine.backfill import Backfill, BackfillProgress
from tailorbird.engine.compiled import compile_configuration, namespaces_of
from tailorbird.engine.configuration import Configuration, Limits, parse_configuration, read_configuration
from tailorbird.engine.consent import ConsentChoice, DataType
from tailorbird.engine.context import USER_AGENT, Contexts, WeatherProvider
from tailorbird.engine.decider import TIERS, Answer, Decider, check_position
from tailorbird.engine.decision_log import DecisionLog, erase
from tailorbird.engine.directory import Directory, sync_folder, write_durably
from tailorbird.engine.errors import CallerError, Damaged, NotFound, PreconditionFailed, TailorbirdError, Unavailable
from tailorbird.engine.evidence import COOCCURRENCE, Evidence
from tailorbird.engine.facts import (
    ConsentFact,
    ItemsDeletedFact,
    LinkFact,
    ModelFact,
    ServedFact,
    ServingsFact,
    SplitFact,
    decode_fact,
    encode_fact,
)
from tailorbird.engine.feature_table import FeatureReaders, FeatureTable
from tailorbird.engine.features import Feature, FeatureSet
from tailorbird.engine.hashing import state_hash
from tailorbird.engine.identifiers import IdentifierHasher
from tailorbird.engine.identity import LinkKind
from tailorbird.engine.items import Item, check_item, check_item_id
from tailorbird.engine.log import LocalLog
from tailorbird.engine.profile import Profile
from tailorbird.engine.profiles import read_profile
from tailorbird.engine.pushes import PushedRow, by_row, pushed_signals
from tailorbird.engine.requests import DecideRequest, DecideRequestFields, Decision, PageRequest
from tailorbird.engine.score_model import ROLE, Clusters, Score, ScoreModel, write_model
from tailorbird.engine.score_training import train_clusters, train_score, updated_score
from tailorbird.engine.segments import SegmentChange, read_changes
from tailorbird.engine.servings import Servings
from tailorbird.engine.signals import IngestReport, Signal
from tailorbird.engine.state import read_layouts, seek_head
from tailorbird.engine.store import Head, Store, stale_categories
from tailorbird.engine.training import train_cooccurrence
from tailorbird.engine.training_set import sample_people, training_set
from tailorbird.engine.writer import Writer

SERVINGS_QUEUED_MAX = 10_000
ITEMS_PER_GROUP = 1_000  # that a decision may have to take in at once
CLUSTERED_PEOPLE_MAX = 200_000  # who clusters are found among
SERVINGS_WHILE_WRITING = 4  # times as many may wait while a writer is at work, or in another process


def system_clock() -> int:
    """Return milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


class Engine:
    """One open data directory. Calls from several threads take turns.

    `recovery` tells what opening had to repair, empty after a clean stop.
    """

    def __init__(
        self,
        directory: Directory,
        configuration: Configuration,
        hasher: IdentifierHasher,
        store: Store,
        log: LocalLog,
        clock: Callable[[], int],
        lock: int | None,
    ) -> None:
        """Use `Engine.open`."""
        self.directory = directory
        self.configuration = configuration
        self.recovery: list[str] = []
        self._hasher = hasher
        self._store = store
        self._log = log
        self._clock = clock
        self._lock = lock
        # Writers take turns, and so do readers, whose evidence is shared; no reader waits for a write. Taken in this order.
        self._turn = threading.RLock()
        self._reading = threading.RLock()
        self._contexts = Contexts()
        self._writer = (
            Writer(store, log, hasher, clock, configuration.limits.map_bytes, self._contexts)
            if lock is not None
            else None
        )
        self._servings = Servings(is_recorded=lock is not None)
        self._evidence = Evidence(store, directory.models)
        self._tier_counts = np.zeros(len(TIERS) + 1, np.int64)
        self._decider = Decider(store, self._evidence, hasher, self._servings, self._contexts, self._tier_counts)
        self._idle_deciders: list[Decider] = []  # of batches
        self._closed = False
        self._backfilling = threading.Lock()
        self._readers = FeatureReaders()
        self._decision_log: DecisionLog | None = None

    # ---- opening and closing -------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: str | Path | None = None,
        *,
        read_only: bool = False,
        clock: Callable[[], int] | None = None,
        lock: int | None = None,
    ) -> Engine:
        """Open a data directory, made when `config` is given and it is not there yet.

        `config` is the path of a configuration, or, with a line break in it, its text; default is the directory's own
        `tailorbird.yaml`. Recovers from any crash: the log's torn tail is cut, a damaged state is rebuilt from the newest
        whole snapshot and the log. `lock` is a descriptor of `Directory.lock` that a parent process holds and has handed on.
        Raises `ConfigurationError`; `PreconditionFailed` NO_DATA, NO_STATE (read only), DATA_VERSION,
        ALREADY_OPEN, STATE_AHEAD_OF_LOG; `Damaged` DAMAGED_LOG, NO_WAY_BACK.
        """
        directory = Directory(Path(path))
        if config is None:
            configuration, text = read_configuration(directory.configuration)
        elif isinstance(config, str) and "\n" in config:
            configuration, text = parse_configuration(config, "config"), config
        else:
            configuration, text = read_configuration(Path(config))
        # Before anything is made: a configuration that cannot work leaves no trace.
        _check_compiles(text)
        directory.prepare(create=not read_only)
        if not read_only and not directory.configuration.exists():
            write_durably(directory.configuration, text.encode())
        if read_only:
            lock = None
        elif lock is None:
            lock = directory.lock()
        try:
            engine = cls._assemble(directory, configuration, clock or system_clock, lock)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise
        try:
            engine._start(text)
            engine._check_models()
        except BaseException:
            engine._release()
            raise
        return engine

    @classmethod
    def _assemble(
        cls, directory: Directory, configuration: Configuration, clock: Callable[[], int], lock: int | None
    ) -> Engine:
        read_only = lock is None
        hasher = _hasher(directory.read_identity_key(), configuration)
        log = LocalLog.open(directory.log, read_only=read_only)
        try:
            store, recovery = cls._open_state(directory, configuration, log, read_only)
        except BaseException:
            log.close()
            raise
        engine = cls(directory, configuration, hasher, store, log, clock, lock)
        engine.recovery = recovery
        return engine

    @staticmethod
    def _open_state(
        directory: Directory, configuration: Configuration, log: LocalLog, read_only: bool
    ) -> tuple[Store, list[str]]:
        """Return the store, restored where it is not there or cannot be trusted, and what was done."""
        recovery = []
        if log.torn_bytes:
            recovery.append(f"cut {log.torn_bytes} bytes of an unfinished group off the log's end")
        synced = configuration.state_sync == "commit"
        if read_only and not directory.has_state():
            raise PreconditionFailed(
                "NO_STATE",
                f"expected the state in {directory.state}, got none; the process that writes builds it, open it again then",
            )
        if not read_only:
            if directory.boot_mark.exists() and directory.boot_mark.read_text() != _boot_id():
                recovery.append("the machine stopped while state was written without syncs: state is not trusted")
                directory.set_state_aside()
            if not directory.has_state() and log.end > 0:
                recovery += directory.restore(log.start, log.end)
            directory.state.mkdir(exist_ok=True)
            if not synced:  # Before the first byte of state: what is there without a mark is trusted.
                write_durably(directory.boot_mark, _boot_id().encode())
        is_new = not directory.has_state()
        try:
            store = Store(directory.state, read_only=read_only, map_bytes=configuration.limits.map_bytes, synced=synced)
        except Damaged as error:
            if read_only:
                raise
            recovery.append(error.message)
            directory.set_state_aside()
            recovery += directory.restore(log.start, log.end)
            directory.state.mkdir(exist_ok=True)
            is_new = True
            store = Store(directory.state, read_only=read_only, map_bytes=configuration.limits.map_bytes, synced=synced)
        if is_new and not read_only:
            store.sync()
            directory.sync_state_names()
        return store, recovery

    def _start(self, text: str) -> None:
        """Catch up with the log, rebuild what turns out damaged, and put the configuration in force."""
        if self._writer is None:
            return
        try:
            applied = self._writer.catch_up()
        except (Damaged, lmdb.CorruptedError, lmdb.PageNotFoundError, msgspec.DecodeError) as error:
            if isinstance(error, Damaged) and error.reason in ("DAMAGED_LOG", "NO_WAY_BACK"):
                raise
            self.recovery.append(f"state is damaged: {error}")
            self._rebuild()
            applied = self._writer.catch_up()
        if applied:
            self.recovery.append(f"applied {applied} facts that the log had and the state had not")
        with self._store.reading() as txn:
            layouts = read_layouts(self._store, txn, self._store.read_head(txn))
        if layouts is None or layouts.current.text != text:
            self._writer.configure(text)

    def _check_models(self) -> None:
        """Tell of models that decisions will have to do without."""
        with self._store.reading() as txn:
            self._evidence.follow_models(self._store.read_head(txn))
        self.recovery += map(str, self._evidence.model_damages.values())

    def _rebuild(self) -> None:
        self._store.close()
        self.directory.set_state_aside()
        self.recovery += self.directory.restore(self._log.start, self._log.end)
        self.directory.state.mkdir(exist_ok=True)
        limits: Limits = self.configuration.limits
        self._store = Store(
            self.directory.state,
            read_only=False,
            map_bytes=limits.map_bytes,
            synced=self.configuration.state_sync == "commit",
        )
        self._writer = Writer(self._store, self._log, self._hasher, self._clock, limits.map_bytes, self._contexts)
        self._evidence = Evidence(self._store, self.directory.models)
        self._decider = Decider(
            self._store, self._evidence, self._hasher, self._servings, self._contexts, self._tier_counts
        )
        self._idle_deciders.clear()

    def close(self) -> None:
        """Write what waits, and let go of the directory."""
        with self._turn:
            if self._closed:
                return
            try:
                if self._writer is not None and not self._writer.failed:
                    self.flush()
                    self._writer.tick()
                    self._store.sync()
                    self.directory.boot_mark.unlink(missing_ok=True)
            finally:
                if self._decision_log is not None:
                    self._decision_log.close()
                self._release()

    def _release(self) -> None:
        self._contexts.close()
        with self._reading:
            self._closed = True
            self._store.close()
        self._log.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- beside the data: weather, and a log of decisions -----------------------------------------------------------

    def use_weather(self, provider: WeatherProvider | None) -> None:
        """Let a provider say the weather of places where a caller does not, or nobody (None).

        It is called by a thread of its own with country, region and city, at most once in a quarter of an hour per place. No
        decision waits for it: the first of a place goes without.
        """
        with self._reading:
            self._contexts.use_weather(provider)
            self._decider.forget_moment()

    def log_decisions(self, process: int = 0) -> None:
        """Log every decision from now on, unless `decision_log.enabled` is false; see decision_log.py.

        `process` (0 to 65,535) tells apart the processes that decide on this directory. What was decided is written by
        `flush`, or where the buffer is full.
        """
        if self._decision_log is None and self.configuration.decision_log.enabled:
            log = DecisionLog(
                self.directory.decisions, self.configuration.decision_log, self._hasher, self._clock, process=process
            )
            with self._reading:
                self._decision_log = self._decider.log = log
                self._idle_deciders.clear()

    @property
    def decision_log(self) -> DecisionLog | None:
        """The decision log of this process, None where nothing is logged."""
        return self._decision_log

    @property
    def tier_counts(self) -> dict[str, int]:
        """How many decisions each tier has carried since the directory was opened here."""
        return {str(tier): int(count) for tier, count in zip(TIERS, self._tier_counts[1:], strict=True)}

    def _flush_decisions(self) -> None:
        """Write the decisions that wait to be logged."""
        if self._decision_log is not None:
            self._decision_log.flush()

    def erase_decisions(self, identifiers: Mapping[str, str]) -> int:
        """Overwrite every logged decision on one person, by all identifiers they are known by; return how many.

        Other processes that log have to have written what they decided on them.
        """
        keys = {anchor.key for anchor in self._hasher.anchors(identifiers)}
        self._flush_decisions()
        with self._store.reading() as txn:
            cursor = txn.cursor(db=self._store.tables["people"])
            people = {found[0] for key in keys if (found := seek_head(cursor, key)) is not None}

            @cache
            def is_of(key: bytes) -> bool:
                return key in keys or ((found := seek_head(cursor, key)) is not None and found[0] in people)

            return erase(self.directory.decisions, is_of)

    # ---- writing -------------------------------------------------------------------------------------------------

    @property
    def writer(self) -> Writer:
        """The writer. Raises `PreconditionFailed` READ_ONLY."""
        if self._writer is None:
            raise PreconditionFailed(
                "READ_ONLY", "expected an engine opened for writing, got one opened with read_only=True"
            )
        return self._writer

    @property
    def position(self) -> int:
        """The log position from which everything acknowledged is visible."""
        return self._log.end if self._writer is not None else self._refreshed().position

    @property
    def configuration_version(self) -> int:
        """The number of the configuration in force."""
        return self._refreshed().configuration

    def ingest(self, signals: Sequence[Signal], *, consent: ConsentChoice | None = None) -> IngestReport:
        """Take a batch of signals as one durable group and return what became of each.

        `consent` is what an import rests on: recorded for every person on whom nothing is known yet. Raises `CallerError`
        BATCH_TOO_LARGE; `ResourceExhausted` or `Unavailable`, after which nothing of the batch was written.
        """
        limit = self.configuration.limits.batch_signals_max
        if len(signals) > limit:
            raise CallerError(
                "BATCH_TOO_LARGE",
                f"expected at most limits.batch_signals_max = {limit} signals, got {len(signals)}; split it",
            )
        with self._turn:
            self._write_servings()
            return self.writer.ingest(signals, consent)

    def put_items(self, items: Sequence[Item]) -> int:
        """Put items into the catalogue, each replaced whole; return the position. Raises `CallerError` BAD_ITEM.

        Of two with one id the later counts. What the catalogue holds already is not written again. Many are put in groups of
        `ITEMS_PER_GROUP`, between which decisions go on, none of which takes in more than a group; after an error earlier
        groups may have been put, and sending all again is safe.
        """
        for item in items:
            check_item(item, self.configuration)
        limit = self.configuration.limits.items_per_put_max
        if len(items) > limit:
            raise CallerError(
                "BATCH_TOO_LARGE",
                f"expected at most limits.items_per_put_max = {limit} items, got {len(items)}; split it",
            )
        latest = list({item.id: item for item in items}.values())
        with self._turn:
            position = self.position
            for start in range(0, len(latest), ITEMS_PER_GROUP):
                position = self.writer.put_items(latest[start : start + ITEMS_PER_GROUP])
                self.follow()
            return position

    def delete_items(self, ids: Sequence[str]) -> int:
        """Take items out of the catalogue, in groups as `put_items`; return the position. Raises `CallerError` BAD_ITEM."""
        for item_id in ids:
            check_item_id(item_id)
        with self._turn:
            position = self.position
            for start in range(0, len(ids), ITEMS_PER_GROUP):
                position = self.writer.append(ItemsDeletedFact(tuple(ids[start : start + ITEMS_PER_GROUP])))
                self.follow()
            return position

    def set_consent(self, identifiers: Mapping[str, str], choice: ConsentChoice) -> int:
        """Record a choice made under the best of a person's identifiers; return the position from which it is obeyed."""
        anchors = self._hasher.anchors(identifiers)
        with self._turn:
            return self.writer.append(ConsentFact(anchors[0], choice, self._clock()))

    def link(self, one: tuple[str, str], other: tuple[str, str], *, kind: str = "manual", event_time: int = 0) -> int:
        """State that two identifiers (namespace, value) are one person's; return the position."""
        if kind.upper() not in LinkKind.__members__:
            known = ", ".join(k.name.lower() for k in LinkKind)
            raise CallerError("BAD_LINK", f"expected a kind of {known}, got {kind!r}")
        ends = self._hasher.anchor(*one), self._hasher.anchor(*other)
        with self._turn:
            return self.writer.append(LinkFact(kind, *ends, event_time or self._clock()))

    def split(self, one: tuple[str, str], other: tuple[str, str] | None = None, *, reason: str = "") -> int:
        """Take the link of two identifiers back for good, or all of one's; both sides get their own state again."""
        first = self._hasher.anchor(*one)
        second = self._hasher.anchor(*other) if other is not None else None
        with self._turn:
            return self.writer.append(SplitFact(first, second, self._clock(), reason))

    def push_features(
        self, namespace: str, rows: Sequence[PushedRow], *, source: str = "", consent: ConsentChoice | None = None
    ) -> IngestReport:
        """Take feature values computed elsewhere, one person a row, and return what became of each row's.

        A value counts from its `event_time` on and never replaces one of a later time. Of a row whose features are of several
        categories the first outcome that is not APPLIED is told. Raises as `ingest`, and `NotFound` UNKNOWN_FEATURE, `CallerError` NOT_PUSHED.
        """
        signals, counts = pushed_signals(self.configuration, namespace, rows, source)
        return by_row(self.ingest(signals, consent=consent), counts)

    def configure(self, text: str) -> int:
        """Put another configuration in force; return the position from which it holds.

        Decisions go on meanwhile: a catalogue with other columns or rules is made before the configuration is in force. What was
        declared anew is `warming` until `backfill`. Settings that are read at the start (`limits.map_bytes`,
        `state_sync`, `identity`) hold from the next one. Raises `ConfigurationError`.
        """
        configuration = parse_configuration(text, "config")
        _check_compiles(text)
        with self._turn:
            self._write_servings()
            for evidence in self._resting_evidence():
                evidence.prepare(configuration)
            try:
                position = self.writer.configure(text)
            except BaseException:
                for evidence in self._resting_evidence():
                    evidence.prepare(self.configuration)
                raise
            self.follow()
            write_durably(self.directory.configuration, text.encode())
            self.configuration = configuration
            return position

    def follow_configuration(self) -> None:
        """Take up the limits and settings that another process has put in force; decisions follow them by themselves."""
        with self._reading, self._store.reading() as txn:
            self._evidence.follow(txn)
            if self._evidence.layouts is not None:
                self.configuration = self._evidence.layouts.current.configuration

    def check_readers(self) -> None:
        """Let go of the moments that processes were reading when they were killed; else the state cannot use their pages again."""
        with self._turn:
            self._store.environment.reader_check()

    def backfill(self, progress: Callable[[BackfillProgress], None] | None = None) -> tuple[str, ...]:
        """Give warming features what the whole log says, while events go on arriving; return their names.

        Raises `PreconditionFailed` BACKFILL_RUNNING, LOG_TRUNCATED, CONFIGURATION_CHANGED. Interrupted, it goes on from
        where it was when it is started again.
        """
        if not self._backfilling.acquire(blocking=False):
            raise PreconditionFailed("BACKFILL_RUNNING", "expected no backfill under way, got one; wait for its end")
        try:
            return Backfill(
                store=self._store,
                log=self._log,
                log_path=self.directory.log,
                writer=self.writer,
                turn=self._turn,
                checkpoint=self.directory.backfill,
                progress=progress,
            ).run()
        finally:
            self._backfilling.release()

    def tick(self) -> int:
        """Publish the statistics gathered so far."""
        with self._turn:
            return self.writer.tick()

    def flush(self) -> int:
        """Write the servings, and the decisions to be logged, that wait; return the position."""
        self._flush_decisions()
        with self._turn:
            self._write_servings()
            return self.position

    def train_cooccurrence(self) -> dict[str, Any]:
        """Train the co-occurrence model from the log, publish it, and return what it is."""
        with self._turn:
            self.flush()
            file, checksum, built_at, summary = train_cooccurrence(self._log, self._store, self.directory.models)
            self.writer.append(ModelFact(COOCCURRENCE, file, built_at, checksum))
            return summary

    def train_score(
        self, feature: str, namespace: str, values: Sequence[str], times: Sequence[int], labels: Sequence[int]
    ) -> dict[str, float]:
        """Train the score of a feature with `learned_from` on what was known of people just before the times (ms) and on 0 or
        1 for each, publish it, and return what it is.

        Raises as `training_set`, `NotFound` UNKNOWN_FEATURE, `CallerError` NOT_LEARNED, BAD_LABELS, `PreconditionFailed`
        MISSING_EXTRA.
        """
        features, learned = self._learned(feature, clusters=False)
        table = self._labelled(learned, namespace, values, times, labels)
        return self._publish(train_score(feature, features, table, labels, table.position))

    def update_score(
        self, feature: str, namespace: str, values: Sequence[str], times: Sequence[int], labels: Sequence[int]
    ) -> dict[str, float]:
        """Let a trained score take in newly labelled moments: its calibration follows them, its trees stay.

        Cheap enough for every hour. What was known before weighs on, a little less with every update. Raises as
        `train_score`, and `PreconditionFailed` NOT_TRAINED.
        """
        _, learned = self._learned(feature, clusters=False)
        table = self._labelled(learned, namespace, values, times, labels)
        with self._reading:
            model = self._evidence.scores.get(feature)
        if not isinstance(model, ScoreModel):
            raise PreconditionFailed(
                "NOT_TRAINED", f"expected a trained score of {feature!r}, got none; train it first"
            )
        numbers = {name: table.column(name) for name in model.names if name not in table.texts}
        return self._publish(updated_score(model.score, model.totals(numbers, table.texts), labels, table.position))

    def train_clusters(self, feature: str) -> dict[str, float]:
        """Find the kinds of people of a feature with `clusters`, among all whose consent covers training, and publish them.

        Return how many people are of each. Raises `NotFound` UNKNOWN_FEATURE, `CallerError` NOT_LEARNED, TOO_FEW_PEOPLE,
        `PreconditionFailed` LOG_TRUNCATED, MISSING_EXTRA.
        """
        features, learned = self._learned(feature, clusters=True)
        with self._store.reading() as txn:
            keys = sample_people(self._store, txn, CLUSTERED_PEOPLE_MAX)
        now = [self._clock() + 1] * len(keys)
        table = self._training_table(keys, now, learned.learned_from)
        return self._publish(train_clusters(feature, features, table, learned.clusters, table.position))

    def _learned(self, name: str, *, clusters: bool) -> tuple[FeatureSet, Feature]:
        with self._reading, self._store.reading() as txn:
            self._evidence.follow(txn)
            layouts = self._evidence.layouts
        assert layouts is not None
        learned = layouts.current.features.by_name.get(name)
        if learned is None:
            raise NotFound("UNKNOWN_FEATURE", f"expected a declared feature, got {name!r:.100}")
        if not learned.learned_from or bool(learned.clusters) is not clusters:
            wanted = "`learned_from` and `clusters`" if clusters else "`learned_from` and no `clusters`"
            raise CallerError("NOT_LEARNED", f"expected a feature with {wanted}, got {name!r}")
        return layouts.current.features, learned

    def _labelled(
        self, learned: Feature, namespace: str, values: Sequence[str], times: Sequence[int], labels: Sequence[int]
    ) -> FeatureTable:
        if len(labels) != len(values):
            raise CallerError("BAD_LABELS", f"expected a label for each of {len(values)} people, got {len(labels)}")
        return self.training_set(namespace, values, times, learned.learned_from)

    def _publish(self, model: Score | Clusters) -> dict[str, float]:
        """Put a model in force; return its report."""
        with self._turn:
            path, checksum = write_model(self.directory.models, model)
            self.writer.append(ModelFact(ROLE + model.feature, path.name, model.built_at, checksum))
        return model.report

    def snapshot(self) -> Path:
        """Copy the state as of now into `snapshots/`; return the folder."""
        with self._turn:
            self.flush()
            copied = self.directory.snapshots / "new"
            if copied.exists():
                for leftover in copied.iterdir():
                    leftover.unlink()
            copied.mkdir(exist_ok=True)
            position = self._refreshed().position
            self._store.environment.copy(str(copied), compact=True)
            kept = self.directory.keep_snapshot(copied, position)
            sync_folder(self.directory.root)
            return kept

    # ---- reading -------------------------------------------------------------------------------------------------

    def decide(self, request: DecideRequest | None = None, **fields: Unpack[DecideRequestFields]) -> Decision:
        """Return the placement's items for whoever is asked about, best first.

        Takes a `DecideRequest` or its fields. Never raises for a missing, sparse or stale profile: `tier` and `degraded`
        tell what answered. Raises `NotFound` UNKNOWN_PLACEMENT, `CallerError` TOO_MANY_CANDIDATES, BAD_K, UNKNOWN_NAMESPACE,
        `Unavailable` POSITION_NOT_REACHED.
        """
        if request is None:
            request = DecideRequest(**fields)
        with self._reading:
            now = self._clock()
            decision = self._decider.decide_quickly(request, now)
            if decision is None:
                decision = self._record(self._decider.decide(request, now))
        self._relieve_servings()
        return decision

    def decide_encoded(self, request: bytes) -> bytes | None:
        """Return what `decide` would, as DecideResponse, for the bytes of a DecideRequest; None where `decide` is to be asked.

        It answers the common requests, at a third of the cost, and never with an error.
        """
        with self._reading:
            answer = self._decider.decide_encoded(request, self._clock())
        if answer is not None:
            self._relieve_servings()
        return answer

    def decide_page(self, request: PageRequest) -> list[Decision]:
        """Return the decisions on the placements of one page, in their order, of one moment, and no item twice.

        Raises as `decide`, and `CallerError` PAGE_TOO_LARGE.
        """
        limit = self.configuration.limits.page_placements_max
        if not 1 <= len(request.parts) <= limit:
            raise CallerError(
                "PAGE_TOO_LARGE",
                f"expected 1 to limits.page_placements_max = {limit} placements, got {len(request.parts)}; split the page",
            )
        with self._reading:
            answers = self._decider.decide_page(request.requests(), self._clock())
            decisions = [self._record(answer) for answer in answers]
        self._relieve_servings()
        return decisions

    def decide_each(self, requests: Sequence[DecideRequest]) -> Generator[Decision | TailorbirdError, None, None]:
        """Yield the decision on each of a batch of independent requests, or why there is none, all of one moment.

        Other decisions may be made between two of them; they see what is newest. Raises `CallerError` BATCH_TOO_LARGE.
        """
        limits = self.configuration.limits
        candidate_count = sum(len(request.candidates) for request in requests)
        if len(requests) > limits.batch_decisions_max or candidate_count > limits.batch_candidates_max:
            raise CallerError(
                "BATCH_TOO_LARGE",
                f"expected at most limits.batch_decisions_max = {limits.batch_decisions_max} requests of "
                f"limits.batch_candidates_max = {limits.batch_candidates_max} candidates in all, got {len(requests)} of "
                f"{candidate_count}; send several batches",
            )
        return self._decide_each(requests)

    def _decide_each(self, requests: Sequence[DecideRequest]) -> Generator[Decision | TailorbirdError, None, None]:
        # What a batch reads stays of its moment while other decisions go on with newer ones: it has evidence of its own.
        with self._reading:
            if self._idle_deciders:
                decider = self._idle_deciders.pop()
            else:
                evidence = Evidence(self._store, self.directory.models)
                decider = Decider(
                    self._store, evidence, self._hasher, self._servings, self._contexts, self._tier_counts
                )
                decider.log = self._decision_log
            answers = decider.decide_each(requests, self._clock())
            self._servings.begin_batch()
        try:
            for _ in requests:
                with self._reading:
                    answer = next(answers)
                    decided = answer if isinstance(answer, TailorbirdError) else self._record(answer)
                self._relieve_servings()
                yield decided
        finally:
            with self._reading:
                answers.close()
                self._servings.end_batch()
                if decider.store is self._store:
                    self._idle_deciders.append(decider)

    def _record(self, answer: Answer) -> Decision:
        """Remember what was served, so that it is not served again, until it is written."""
        decision, fragment, items, is_first = answer
        if fragment and items:
            self._servings.add(fragment, decision.at, decision.placement, items, is_first)
        return decision

    def follow(self) -> int:
        """Take in what has changed, so that no decision has to; return the position. Cheap where nothing has."""
        position = self.position
        for evidence in self._resting_evidence():
            with self._reading, self._store.reading() as txn:
                if evidence in self._resting_evidence():
                    position = evidence.follow(txn).position
        return position

    def _resting_evidence(self) -> list[Evidence]:
        """Return what decisions rest on, and batches that are not under way."""
        with self._reading:
            return [self._evidence, *(decider.evidence for decider in self._idle_deciders)]

    def warm(self) -> None:
        """Map the state and fill what decisions fill as they go, so that no caller has to wait for it."""
        with self._reading:
            self._store.warm()
            self._decider.log = None
            counted = self._tier_counts.copy()
            try:
                for placement in self.configuration.placements:
                    self._decider.decide(DecideRequest(placement=placement.name), self._clock())
                layouts = self._evidence.layouts
                if layouts is not None and layouts.current.context_names & {"device", "os", "browser"}:
                    self._contexts.of(layouts.current).derive({USER_AGENT: "Mozilla/5.0"}, self._clock())
            finally:
                self._decider.log = self._decision_log
                self._tier_counts[:] = counted

    def profile(self, identifiers: Mapping[str, str], *, at: int = 0) -> Profile:
        """Return one person's profile as of `at` (ms, 0 is now). Raises `NotFound` NO_PROFILE."""
        anchors = self._hasher.anchors(identifiers)
        with self._reading, self._store.reading() as txn:
            self._evidence.follow(txn)
            found = read_profile(self._store, txn, self._evidence, self._hasher, anchors, at or self._clock())
            if found is None:
                raise NotFound("NO_PROFILE", f"expected a known person, got nobody by {', '.join(identifiers)}")
            return found

    def get_features(
        self,
        namespace: str,
        values: Sequence[str],
        features: Sequence[str] = (),
        *,
        at: int = 0,
        min_position: int = 0,
    ) -> FeatureTable:
        """Return features, by default all that are declared, of the people with these identifiers of one namespace.

        A stranger, and a value nobody can be known by, has a row too, and `known` is False for it. Raises `NotFound`
        UNKNOWN_FEATURE, `CallerError` BATCH_TOO_LARGE, UNKNOWN_NAMESPACE, `Unavailable` POSITION_NOT_REACHED.
        """
        limit = self.configuration.limits.features_people_max
        if len(values) > limit:
            raise CallerError(
                "BATCH_TOO_LARGE",
                f"expected at most limits.features_people_max = {limit} people, got {len(values)}; ask in several calls",
            )
        keys = self._hasher.keys(namespace, values)
        with self._reading:
            txn = self._store.environment.begin()
            try:
                evidence = self._evidence
                head = evidence.follow(txn)
                if head.position < min_position:
                    check_position(head.position, min_position)
                assert evidence.layouts is not None
                reader = self._readers.of(evidence.layouts, features)
                return reader.read(self._store, txn, evidence, keys, at or self._clock())
            finally:
                txn.abort()

    def training_set(
        self, namespace: str, values: Sequence[str], times: Sequence[int], features: Sequence[str] = ()
    ) -> FeatureTable:
        """Return the features of people just before the times (ms) beside them, with nothing of what came later.

        Read from the log, under what consent permits for training. Raises as `get_features`, and `PreconditionFailed`
        LOG_TRUNCATED.
        """
        if len(values) != len(times):
            raise CallerError("BAD_TABLE", f"expected a time for each of {len(values)} people, got {len(times)}")
        return self._training_table(self._hasher.keys(namespace, values), times, features)

    def _training_table(self, keys: Sequence[bytes], times: Sequence[int], features: Sequence[str]) -> FeatureTable:
        log = LocalLog.open(self.directory.log, read_only=True)
        try:
            if log.start > 0:
                raise PreconditionFailed(
                    "LOG_TRUNCATED",
                    f"expected the whole log, got one from offset {log.start} on; restore older segments",
                )
            with self._reading, self._store.reading() as txn:
                position = self._evidence.follow(txn).position
                records = log.read(0, position)
                return training_set(self._store, txn, self._evidence, records, keys, times, features)
        finally:
            log.close()

    def segment_changes(self, first: int = 0, limit: int = 1_000) -> list[SegmentChange]:
        """Return up to `limit` changes of who belongs to a segment, from sequence `first` on (the oldest kept, where that is later).

        They are there once `tick` was: `serve` sees to that every `statistics.tick`.
        """
        with self._store.reading() as txn:
            return list(read_changes(self._store, txn, first, limit))

    @property
    def currency(self) -> str:
        """The currency that sums of money are kept in: as declared, else that of the first amount; empty before it."""
        return self.configuration.money.currency or self._refreshed().currency

    def warming_features(self) -> tuple[str, ...]:
        """Return the features that were declared late and not backfilled yet."""
        return tuple(sorted(self._refreshed().warming))

    def category_ages_ms(self, at: int = 0) -> dict[DataType, int]:
        """Return how long ago, as of `at` (ms, 0 is now), the newest event of each category was; -1 before the first."""
        head = self._refreshed()
        at = at or self._clock()
        return {
            category: max(0, at - newest) if (newest := head.newest_of_category[category]) else -1
            for category in DataType
        }

    def stale_categories(self, at: int = 0) -> tuple[DataType, ...]:
        """Return the categories whose newest event is older, as of `at`, than their declared `freshness`."""
        targets = self.configuration.freshness_ms()
        return tuple(stale_categories(self._refreshed(), targets, at or self._clock())) if targets else ()

    def source_offset(self, source: str) -> int:
        """Return the highest `source_offset` stored from a source, -1 when there is none."""
        with self._store.reading() as txn:
            seen = txn.get(source.encode("utf-8", "replace"), db=self._store.tables["sources"]) if source else None
            return int.from_bytes(seen, "big") if seen is not None else -1

    @property
    def state_bytes(self) -> int:
        """How many bytes of the memory map are in use, pages that wait to be used again included."""
        return self._store.used_bytes

    @property
    def latest_event_time(self) -> int:
        """The newest event time in the state, ms since 1970 UTC; 0 before the first."""
        return self._refreshed().latest_event_time

    def item_names(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the names of items, for display."""
        with self._reading, self._store.reading() as txn:
            self._evidence.follow(txn)
            wanted = list(ids)
            numbers, _ = self._evidence.catalogue.items.lookup(wanted)
            names = self._evidence.catalogue.names
            return {
                item: names[number]
                for item, number in zip(wanted, numbers.tolist(), strict=True)
                if number < len(names)
            }

    def state_hash(self) -> str:
        """Return the hash of the whole state: equal for equal logs."""
        with self._turn:
            self.flush()
            with self._store.reading() as txn:
                return state_hash(self._store, txn)

    def _refreshed(self) -> Head:
        with self._store.reading() as txn:
            return self._store.read_head(txn)

    # ---- servings ------------------------------------------------------------------------------------------------

    @property
    def servings_dropped_count(self) -> int:
        """How many servings were forgotten because they could not be written."""
        return self._servings.dropped_count

    @property
    def servings_waiting_count(self) -> int:
        """How many servings wait to be written."""
        return len(self._servings.waiting)

    def _relieve_servings(self) -> None:
        """Write the servings where too many wait, unless a writer is at work; the oldest are forgotten where none can be."""
        if len(self._servings.waiting) < SERVINGS_QUEUED_MAX:
            return
        if self._writer is not None and self._turn.acquire(blocking=False):
            try:
                self._write_servings()
            except Unavailable:
                with self._reading:
                    self._servings.drop_oldest()
            finally:
                self._turn.release()
        elif len(self._servings.waiting) >= SERVINGS_WHILE_WRITING * SERVINGS_QUEUED_MAX:
            with self._reading:
                self._servings.drop_oldest()

    # Where another process writes: what is served here is taken, handed over, and forgotten once it is written there.

    def collect_servings(self) -> None:
        """Keep what is served from now on for `take_servings`, although this engine does not write."""
        with self._reading:
            self._servings.record()

    def take_servings(self) -> list[tuple[int, bytes]]:
        """Return what was served and waits, for `write_servings` in the process that writes.

        It is not served again meanwhile. `servings_written` or `servings_given_back` follows before the next one is taken.
        """
        with self._reading:
            return [encode_fact(fact) for fact in self._servings.take()] if len(self._servings.waiting) else []

    def servings_written(self, position: int) -> None:
        """What was taken stands in the state from `position` on, as `write_servings` returned it."""
        with self._reading:
            self._servings.written(position)

    def servings_given_back(self) -> None:
        """What was taken was perhaps not written, and waits again."""
        with self._reading:
            self._servings.give_back()

    def write_servings(self, taken: Sequence[tuple[int, bytes]]) -> int:
        """Write what another process has taken; return the position from which it is visible. Raises `CallerError` BAD_SERVINGS."""
        try:
            facts = [decode_fact(kind, payload) for kind, payload in taken]
        except (KeyError, msgspec.DecodeError) as error:
            raise CallerError("BAD_SERVINGS", f"expected servings of this release, got: {error}") from error
        if not all(isinstance(fact, ServedFact | ServingsFact) for fact in facts):
            raise CallerError("BAD_SERVINGS", "expected servings and nothing else, got other facts")
        with self._turn:
            return self.writer.append(*facts)

    def _write_servings(self) -> None:
        """Write what was served. Whoever calls has the writers' turn."""
        if self._writer is None or not self._servings.waiting:
            return
        with self._reading:
            taken = self._servings.take(self._writer.position)
        try:
            self._writer.append(*taken)
        except BaseException:
            with self._reading:
                self._servings.give_back()
            raise
        with self._reading:  # A decision under way may still read the state from before.
            self._servings.written()


def _hasher(key: bytes, configuration: Configuration) -> IdentifierHasher:
    return IdentifierHasher(
        key,
        namespaces_of(configuration),
        configuration.identity.refused_values,
        phone_region=configuration.identity.phone_region,
    )


def _check_compiles(text: str) -> None:
    """Raise `ConfigurationError` for a configuration that cannot work, its context included."""
    Contexts().of(compile_configuration(text, 1, 1))


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"

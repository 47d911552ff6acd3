"""Backfilling: features that were declared late get what the whole history says, while events go on arriving.

History is read beside the writer up to the log's end as it then is. The rest is short: in turns with the writer each chunk of
people is brought to the very end of the log and written as a fact, which replaces what had been counted of these features since
they were declared. A checkpoint in the directory's `backfill` file saves reading again after an interruption.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec
import xxhash

from tailorbird.engine.directory import write_durably
from tailorbird.engine.errors import PreconditionFailed
from tailorbird.engine.facts import BackfillFact, WarmedFact
from tailorbird.engine.feature_history import FeatureHistory
from tailorbird.engine.log import LocalLog
from tailorbird.engine.state import read_layouts
from tailorbird.engine.store import Store
from tailorbird.engine.writer import Writer
from tailorbird.native.record import Record

READ_AT_ONCE = 20_000
CHUNK_PEOPLE = 500
CHUNK_TEXTS = 5_000
CHECKPOINT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """How far a backfill of features `names` is: log records read of those there are, fragments written of those found."""

    names: tuple[str, ...]
    read: int
    end: int
    written: int
    found: int


class _Checkpoint(msgspec.Struct, array_like=True):
    """What was read so far; `configuration` and `names` say under which declarations."""

    configuration: int
    names: tuple[str, ...]
    position: int
    texts: list[str]
    records: list[tuple[bytes, bytes]]
    attributes: dict[str, dict[str, str]]


class Backfill:
    """One run over the log of an open engine. `turn` keeps other writers out for as long as it is held."""

    def __init__(
        self,
        *,
        store: Store,
        log: LocalLog,
        log_path: Path,
        writer: Writer,
        turn: AbstractContextManager[object],
        checkpoint: Path,
        progress: Callable[[BackfillProgress], None] | None,
    ) -> None:
        self._store = store
        self._log = log
        self._log_path = log_path
        self._writer = writer
        self._turn = turn
        self._checkpoint = checkpoint
        self._progress = progress
        self._records: dict[bytes, Record] = {}
        self._position = 0
        self._texts_written = 0
        self._written = 0

    def run(self) -> tuple[str, ...]:
        """Backfill every warming feature; return their names. Raises `PreconditionFailed` LOG_TRUNCATED, CONFIGURATION_CHANGED."""
        with self._store.reading() as txn:
            head = self._store.read_head(txn)
            layouts = read_layouts(self._store, txn, head)
        assert layouts is not None, "an open engine has a configuration"
        names, configuration = tuple(sorted(head.warming)), head.configuration
        if not names:
            return ()
        if self._log.start > 0:
            raise PreconditionFailed(
                "LOG_TRUNCATED",
                f"expected the whole log to backfill {', '.join(names)}, got one from offset {self._log.start} on; restore "
                "the older segments",
            )
        history = FeatureHistory(layouts.current, names, self._store, head.currency)
        self._resume(history, configuration)
        self._read_beside_writer(history, configuration)
        for chunk in self._chunks(history):
            with self._turn:
                self._check_unchanged(names, configuration)
                self._read(history, self._log, self._log.end)
                self._writer.append(chunk())
            self._tell(names)
        with self._turn:
            self._check_unchanged(names, configuration)
            self._writer.append(WarmedFact(names))
        self._checkpoint.unlink(missing_ok=True)
        return names

    def _check_unchanged(self, names: tuple[str, ...], configuration: int) -> None:
        with self._store.reading() as txn:
            head = self._store.read_head(txn)
        if (tuple(sorted(head.warming)), head.configuration) != (names, configuration):
            raise PreconditionFailed(
                "CONFIGURATION_CHANGED",
                "expected one configuration for as long as the backfill runs, got another; start the backfill again",
            )

    # ---- reading -------------------------------------------------------------------------------------------------

    def _read_beside_writer(self, history: FeatureHistory, configuration: int) -> None:
        saved = time.monotonic()
        while True:
            log = LocalLog.open(self._log_path, read_only=True)
            try:
                end = log.end
                while self._position < end:
                    self._read(history, log, min(end, self._position + READ_AT_ONCE))
                    self._tell(history.names)
                    if time.monotonic() - saved > CHECKPOINT_SECONDS:
                        self._save(history, configuration)
                        saved = time.monotonic()
            finally:
                log.close()
            if self._log.end - self._position < READ_AT_ONCE:
                return

    def _read(self, history: FeatureHistory, log: LocalLog, end: int) -> None:
        with self._store.reading() as txn:
            for change in history.changes(log.read(self._position, end - self._position), txn):
                record = self._records.get(change.fragment)
                if record is None:
                    record = self._records[change.fragment] = Record(history.layout)
                history.fold(change, record)
        self._position = max(self._position, end)

    # ---- writing -------------------------------------------------------------------------------------------------

    def _chunks(self, history: FeatureHistory) -> Iterator[Callable[[], BackfillFact]]:
        """Yield what makes the fact of each chunk, to be called when the chunk is at the end of the log."""
        while self._texts_written < len(history.texts):  # first the texts, so that no written symbol is without its own
            yield partial(self._fact, history, [], CHUNK_TEXTS)
        # New people of the meantime are complete without: whatever happened to them was counted.
        fragments = sorted(self._records)
        for start in range(0, len(fragments), CHUNK_PEOPLE):
            yield partial(self._fact, history, fragments[start : start + CHUNK_PEOPLE])

    def _fact(self, history: FeatureHistory, fragments: Sequence[bytes], texts_max: int | None = None) -> BackfillFact:
        end = None if texts_max is None else self._texts_written + texts_max
        texts = tuple(islice(history.texts, self._texts_written, end))
        self._texts_written += len(texts)
        self._written += len(fragments)
        return BackfillFact(
            history.names, texts, tuple((fragment, self._records[fragment].pack()) for fragment in fragments)
        )

    def _tell(self, names: tuple[str, ...]) -> None:
        if self._progress is not None:
            progress = BackfillProgress(names, self._position, self._log.end, self._written, len(self._records))
            self._progress(progress)

    # ---- checkpoint ----------------------------------------------------------------------------------------------

    def _save(self, history: FeatureHistory, configuration: int) -> None:
        body = msgspec.msgpack.encode(
            _Checkpoint(
                configuration,
                history.names,
                self._position,
                list(history.texts),
                [(fragment, record.pack()) for fragment, record in self._records.items()],
                {item: dict(attributes) for item, attributes in history.attributes.items()},
            )
        )
        write_durably(self._checkpoint, xxhash.xxh3_64_digest(body) + body)

    def _resume(self, history: FeatureHistory, configuration: int) -> None:
        """Go on from a checkpoint that is whole and of the same declarations; else from the start."""
        with suppress(OSError, msgspec.DecodeError, ValueError):
            raw = self._checkpoint.read_bytes()
            if xxhash.xxh3_64_digest(raw[8:]) != raw[:8]:
                return
            saved = msgspec.msgpack.decode(raw[8:], type=_Checkpoint)
            if (saved.configuration, saved.names) != (configuration, history.names) or saved.position > self._log.end:
                return
            self._records = {fragment: Record.unpack(history.layout, packed) for fragment, packed in saved.records}
            history.texts.update(dict.fromkeys(saved.texts))
            history.attributes.update(saved.attributes)
            self._position = saved.position

"""The LMDB environment of one data directory: its tables, its format, and transactions over it.

LMDB holds views of the log and can be thrown away. Every byte order in keys is big endian, so that keys sort by number.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from tailorbird.engine.consent import DataType
from tailorbird.engine.errors import Damaged, PreconditionFailed, ResourceExhausted, Unavailable
from tailorbird.engine.resident import make_resident
from tailorbird.native.lmdb_pages import LmdbFile, LmdbTable

# py-lmdb ships two engines whose files differ; this one is recorded in `meta` and asked for by name.
LMDB_ENGINE = 0
STATE_FORMAT = 4
READERS_MAX = 2048

TABLES = (
    "meta",
    "people",
    "fragments",
    "windows",
    "touched",
    "memberships",
    "outbox",
    "served",
    "edges",
    "links",
    "consents",
    "items",
    "item_ids",
    "item_changes",
    "symbols",
    "cells",
    "counts",
    "count_changes",
    "pending",
    "messages_0",
    "messages_1",
    "messages_2",
    "sources",
    "configurations",
)


# Everything a decision reads of one person stands side by side in `people`, where one descent of the tree finds it: under the
# 16 bytes of an identifier's key its row, the head of the person whose best identifier it is, and the lists of its fragment.
IDENTIFIER_ROW = b"\0"
HEAD_ROW = b"\1"
LIST_ROWS = 16  # plus the kind of the list; behind it the number of the chunk


class Head(msgspec.Struct, array_like=True):
    """Where the state stands: written with every commit, read first by every decision.

    `position` is the next log offset. The `*_end` fields are the next sequence of their change feed. `warming` names the
    features that are not backfilled yet; `newest_of_category` is the newest event time of each signal category; `currency` is
    that of the first amount of money; `touched` counts the fragments whose segments are to be read anew; `served_bytes` is what the
    rows of `served` take.
    """

    position: int = 0
    configuration: int = 0
    items: int = 0
    item_changes_end: int = 0
    count_changes_end: int = 0
    models: dict[str, tuple[str, int]] = {}
    latest_event_time: int = 0
    landmark: int = 0
    last_tick_append: int = 0
    last_tick_event: int = 0
    links_end: int = 0
    consents_end: int = 0
    pending_end: int = 0
    generation: int = 0
    level_evidence: list[list[float]] = []
    warming: list[str] = []
    newest_of_category: list[int] = msgspec.field(default_factory=lambda: [0] * 8)
    symbols: int = 0
    currency: str = ""
    touched: int = 0
    outbox_end: int = 0
    served_end: int = 0
    served_bytes: int = 0


def stale_categories(head: Head, targets: Mapping[DataType, int], at: int) -> list[DataType]:
    """Return the categories whose newest event is older, as of `at`, than its target in ms."""
    return [
        category
        for category, target in targets.items()
        if at - (head.newest_of_category[category] or -1 << 62) > target
    ]


_HEAD_DECODER = msgspec.msgpack.Decoder(Head)


class Store:
    """An open state directory."""

    def __init__(self, path: Path, *, read_only: bool, map_bytes: int, synced: bool) -> None:
        self.path = path
        self.read_only = read_only
        try:
            self.environment = lmdb.open(
                str(path),
                map_size=map_bytes,
                max_dbs=len(TABLES) + 1,
                readonly=read_only,
                create=not read_only,
                metasync=False,
                sync=synced,
                max_readers=READERS_MAX,
                max_spare_txns=4,
                meminit=False,
                lib_version=LMDB_ENGINE,
            )
            if not read_only:
                self.environment.reader_check()
                with self.environment.begin(write=True) as txn:
                    self.tables = {
                        name: self.environment.open_db(name.encode(), txn=txn, create=True) for name in TABLES
                    }
            else:
                self.tables = {name: self.environment.open_db(name.encode(), create=False) for name in TABLES}
            self._check_format()
            self._pages = LmdbFile(path / "data.mdb", map_bytes)
            with self.reading() as txn:
                self.people(txn)  # which tells a file that is not ours to read
        except (
            lmdb.CorruptedError,
            lmdb.InvalidError,
            lmdb.PageNotFoundError,
            lmdb.NotFoundError,
            lmdb.PanicError,
        ) as error:
            raise _damaged(path, error) from error
        except lmdb.VersionMismatchError as error:
            raise PreconditionFailed(
                "DATA_VERSION",
                f"expected state of LMDB 0.9 in {path}, got: {error}; open it with the release that wrote it",
            ) from error
        except lmdb.MapFullError as error:
            raise map_full(map_bytes) from error

    def _check_format(self) -> None:
        with self.environment.begin(db=self.tables["meta"]) as txn:
            raw = txn.get(b"format")
        if raw is None:
            if self.read_only:
                raise Damaged("STATE_DAMAGED", f"expected a format mark in {self.path}, found none")
            with self.environment.begin(write=True, db=self.tables["meta"]) as txn:
                txn.put(b"format", b"%d" % STATE_FORMAT)
                txn.put(b"lmdb_engine", b"%d" % LMDB_ENGINE)
        elif raw != b"%d" % STATE_FORMAT:
            raise PreconditionFailed(
                "DATA_VERSION",
                f"expected state format {STATE_FORMAT} in {self.path}, got {raw.decode(errors='replace')}; use the release "
                "that wrote it, or remove the state directory to have it rebuilt from the log",
            )

    def begin(self, *, write: bool = False, buffers: bool = False) -> lmdb.Transaction[Any]:
        """Return a transaction; the caller ends it."""
        if buffers:
            return self.environment.begin(write=write, buffers=True)
        return self.environment.begin(write=write)

    @contextmanager
    def reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        """Give a read transaction, ended on leaving."""
        txn = self.environment.begin()
        try:
            yield txn
        finally:
            txn.abort()

    def read_head(self, txn: lmdb.Transaction[Any]) -> Head:
        """Return where the state stands in a transaction."""
        raw = txn.get(b"head", db=self.tables["meta"])
        return _HEAD_DECODER.decode(raw) if raw is not None else Head()

    def people(self, txn: lmdb.Transaction[Any]) -> LmdbTable | None:
        """Return the table `people` of a read transaction, to be read without LMDB while that is open.

        None where more than one commit came between. Raises `Damaged` STATE_DAMAGED.
        """
        try:
            return self._pages.table(txn.id(), b"people")
        except ValueError as error:
            raise _damaged(self.path, error) from error

    def warm(self) -> int:
        """Map the pages in use, as far as memory allows; return how many bytes of them are mapped now."""
        return make_resident(self.path / "data.mdb", self.used_bytes)

    @property
    def used_bytes(self) -> int:
        """How many bytes of the file hold pages."""
        return int((self.environment.info()["last_pgno"] + 1) * self.environment.stat()["psize"])

    def sync(self) -> None:
        """Force everything committed to disk."""
        self.environment.sync(True)

    def close(self) -> None:
        """Close the environment."""
        self.environment.close()


def _damaged(path: Path, error: Exception) -> Damaged:
    return Damaged(
        "STATE_DAMAGED",
        f"expected an LMDB environment in {path}, got: {error}; remove it, it is rebuilt from snapshot and log",
    )


def map_full(map_bytes: int) -> ResourceExhausted:
    """Return the error of a full map."""
    return ResourceExhausted(
        "MAP_FULL",
        f"expected room in the memory map, got none left of limits.map_bytes = {map_bytes}; nothing of this batch was "
        "written, and nothing accepted is lost; raise limits.map_bytes and open again",
    )


_IN_THE_LOG = "the log has the whole batch, and the next start applies it"


def commit(txn: lmdb.Transaction[Any], map_bytes: int) -> None:
    """Commit; LMDB's failures become ours. After a failure the transaction is gone and the file as it was before."""
    try:
        txn.commit()
    except lmdb.MapFullError as error:
        raise ResourceExhausted(
            "MAP_FULL",
            f"expected room in the memory map to commit, got none left of limits.map_bytes = {map_bytes}; raise it and "
            f"open again: {_IN_THE_LOG}",
        ) from error
    except (lmdb.Error, OSError) as error:
        code = getattr(error, "code", 0) or getattr(error, "errno", 0)
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceExhausted(
                "DISK_FULL", f"expected room on the disk to commit, got none; free some and open again: {_IN_THE_LOG}"
            ) from error
        detail = os.strerror(code) if code > 0 else str(error)
        if code == errno.EIO:  # What LMDB also says of a write that was cut short.
            detail += " (the disk may be full)"
        raise Unavailable(
            "STATE_WRITE_FAILED",
            f"expected to commit, got: {detail}; check the disk, make room, and open again: {_IN_THE_LOG}",
        ) from error


def u32(number: int) -> bytes:
    """Return a key part that sorts by number."""
    return number.to_bytes(4, "big")


def u64(number: int) -> bytes:
    """Return a key part that sorts by number."""
    return number.to_bytes(8, "big")


def scan(txn: lmdb.Transaction[Any], table: Any, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of every key with a prefix, in order, as copies."""
    cursor = txn.cursor(db=table)
    found = cursor.set_range(prefix)
    while found:
        key = bytes(cursor.key())
        if not key.startswith(prefix):
            return
        yield key, bytes(cursor.value())
        found = cursor.next()

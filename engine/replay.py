"""Replay: the same log applied from empty must give the same state, hash for hash."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from tailorbird.engine.configuration import read_configuration
from tailorbird.engine.context import Contexts
from tailorbird.engine.directory import Directory
from tailorbird.engine.errors import PreconditionFailed
from tailorbird.engine.hashing import state_hash
from tailorbird.engine.identifiers import IdentifierHasher
from tailorbird.engine.log import LocalLog
from tailorbird.engine.store import Store
from tailorbird.engine.writer import Writer


def replayed_hash(
    path: str | Path, until: int | None = None, progress: Callable[[int], None] | None = None
) -> tuple[str, int]:
    """Return the hash of the state that the log alone leads to, and the position reached. Writes nothing to `path`."""
    directory = Directory(Path(path))
    configuration, _ = read_configuration(directory.configuration)
    log = LocalLog.open(directory.log, read_only=True)
    try:
        if log.start > 0:
            raise PreconditionFailed(
                "LOG_TRUNCATED",
                f"expected a log from offset 0 to replay, got one from {log.start}; restore the older segments",
            )
        hasher = IdentifierHasher(directory.read_identity_key())
        with tempfile.TemporaryDirectory(prefix="tailorbird-replay-") as folder:
            store = Store(Path(folder), read_only=False, map_bytes=configuration.limits.map_bytes, synced=False)
            try:
                writer = Writer(store, log, hasher, lambda: 0, configuration.limits.map_bytes, Contexts())
                writer.catch_up(progress)
                with store.reading() as txn:
                    return state_hash(store, txn), store.read_head(txn).position
            finally:
                store.close()
    finally:
        log.close()


def verify(path: str | Path, progress: Callable[[int], None] | None = None) -> tuple[str, str]:
    """Return (hash of the stored state, hash of the replayed one). Raises `PreconditionFailed` STATE_BEHIND_LOG."""
    directory = Directory(Path(path))
    directory.prepare(create=False)
    replayed, position = replayed_hash(path, progress=progress)
    configuration, _ = read_configuration(directory.configuration)
    store = Store(directory.state, read_only=True, map_bytes=configuration.limits.map_bytes, synced=True)
    try:
        with store.reading() as txn:
            at = store.read_head(txn).position
            if at != position:
                raise PreconditionFailed(
                    "STATE_BEHIND_LOG",
                    f"expected a state at the log's end {position}, got one at {at}; open the directory once",
                )
            return state_hash(store, txn), replayed
    finally:
        store.close()

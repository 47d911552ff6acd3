"""The data directory: where things are, which release wrote it, who may write, and how state is recovered.

DIR/FORMAT           "tailorbird data 1"
DIR/tailorbird.yaml  the configuration
DIR/log/             the fact log: the truth
DIR/state/           LMDB: a view of the log
DIR/keys/identity    the secret that identifiers are hashed with
DIR/models/          mapped model files
DIR/decisions/       what was decided: segments of each deciding process (decision_log.py)
DIR/snapshots/       copies of the state by log position
DIR/state.aside/     the last state that was not trusted, kept for whoever wants to know why; may be removed
DIR/writer.lock      held by the one process that writes
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import xxhash

from tailorbird.engine.errors import Damaged, PreconditionFailed, ResourceExhausted, Unavailable

DATA_FORMAT = "tailorbird data 1"
SNAPSHOTS_KEPT = 2


@dataclass(frozen=True, slots=True)
class Directory:
    """Paths of one data directory."""

    root: Path

    @property
    def configuration(self) -> Path:
        return self.root / "tailorbird.yaml"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def decisions(self) -> Path:
        return self.root / "decisions"

    @property
    def backfill(self) -> Path:
        """What an interrupted backfill had read."""
        return self.root / "backfill"

    @property
    def identity_key(self) -> Path:
        return self.root / "keys" / "identity"

    @property
    def boot_mark(self) -> Path:
        return self.root / "state.boot"

    def prepare(self, *, create: bool) -> None:
        """Make or check the directory. Raises `PreconditionFailed` NO_DATA or DATA_VERSION."""
        mark = self.root / "FORMAT"
        if mark.exists():
            found = mark.read_text(errors="replace").strip()
            if found != DATA_FORMAT:
                raise PreconditionFailed(
                    "DATA_VERSION",
                    f"expected {DATA_FORMAT!r} in {mark}, got {found[:60]!r}; open it with the release that wrote it",
                )
        elif self.log.exists() and any(self.log.iterdir()):
            raise PreconditionFailed(
                "DATA_VERSION", f"expected {mark} beside a log, found none; restore it from a backup of the directory"
            )
        elif not create:
            raise PreconditionFailed(
                "NO_DATA", f"expected a data directory at {self.root}, found none; `tailorbird init DIR` makes one"
            )
        if not self.root.is_dir():
            make_folder(self.root)
        for folder in (self.log, self.models, self.snapshots, self.identity_key.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if not mark.exists():
            write_durably(mark, DATA_FORMAT.encode() + b"\n")

    def read_identity_key(self) -> bytes:
        """Return the secret of this directory, made at first use."""
        if not self.identity_key.exists():
            if any(self.log.iterdir()):
                raise PreconditionFailed(
                    "NO_IDENTITY_KEY",
                    f"expected the secret that identifiers were hashed with at {self.identity_key}, found none; "
                    "restore it from a backup: without it nobody is recognised",
                )
            write_durably(self.identity_key, secrets.token_bytes(32), mode=0o600)
        key = self.identity_key.read_bytes()
        if len(key) != 32:
            raise Damaged(
                "DAMAGED_KEY", f"expected 32 bytes in {self.identity_key}, got {len(key)}; restore it from a backup"
            )
        return key

    def lock(self) -> int:
        """Return the held lock's descriptor. Raises `PreconditionFailed` ALREADY_OPEN."""
        descriptor = os.open(self.root / "writer.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise PreconditionFailed(
                "ALREADY_OPEN",
                f"expected to be the only writer of {self.root}, got process {holder} writing it; stop it, or open with "
                "read_only=True",
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        return descriptor

    # ---- snapshots -----------------------------------------------------------------------------------------------

    def list_snapshots(self) -> list[tuple[int, Path]]:
        """Return (position, folder) of every snapshot, newest first."""
        found = [(int(path.name), path) for path in self.snapshots.iterdir() if path.name.isdigit()]
        return sorted(found, reverse=True)

    def keep_snapshot(self, copied: Path, position: int) -> Path:
        """Give a copied environment its manifest and its name; the oldest beyond two go."""
        data = copied / "data.mdb"
        manifest = {
            "format": DATA_FORMAT,
            "position": position,
            "bytes": data.stat().st_size,
            "xxh3_128": _checksum(data),
        }
        write_durably(copied / "manifest.json", json.dumps(manifest).encode())
        with data.open("rb") as file:
            os.fsync(file.fileno())
        final = self.snapshots / f"{position:020d}"
        if final.exists():
            shutil.rmtree(final)
        copied.rename(final)
        sync_folder(self.snapshots)
        for _, path in self.list_snapshots()[SNAPSHOTS_KEPT:]:
            shutil.rmtree(path)
        return final

    def check_snapshot(self, snapshot: Path) -> None:
        """Raise `Damaged` DAMAGED_SNAPSHOT unless a snapshot is what was written."""
        try:
            manifest = json.loads((snapshot / "manifest.json").read_text())
            data = snapshot / "data.mdb"
            if manifest["format"] != DATA_FORMAT:
                detail = f"one of format {manifest['format']!r:.60}"
            elif data.stat().st_size != manifest["bytes"]:
                detail = f"expected {manifest['bytes']} bytes, got {data.stat().st_size}"
            elif _checksum(data) != manifest["xxh3_128"]:
                detail = "its checksum does not fit"
            else:
                return
        except (OSError, ValueError, KeyError, TypeError) as error:
            detail = str(error)
        raise Damaged(
            "DAMAGED_SNAPSHOT",
            f"expected a whole snapshot in {snapshot}, got: {detail}; an older one or the log serves",
        )

    def set_state_aside(self) -> None:
        """Move the state directory to `state.aside`, so that it can be rebuilt; what was there before goes."""
        if self.state.exists():
            aside = self.root / "state.aside"
            if aside.exists():
                shutil.rmtree(aside)
            self.state.rename(aside)
            sync_folder(self.root)

    def has_state(self) -> bool:
        """Return whether there is a state file; a folder alone is what a crash at the first start leaves."""
        return (self.state / "data.mdb").exists()

    def state_stamp(self) -> tuple[int, int]:
        """Return what tells one state file from another that was put in its place; (0, 0) while there is none."""
        try:
            found = (self.state / "data.mdb").stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_dev, found.st_ino

    def sync_state_names(self) -> None:
        """Make the names of a state that was just made durable: LMDB syncs what is in its files, not that they exist."""
        sync_folder(self.state)
        sync_folder(self.root)

    def restore(self, log_start: int, log_end: int) -> list[str]:
        """Put the newest usable snapshot in the place of the state; return what was passed over and why.

        Raises `Damaged` NO_WAY_BACK when the log no longer begins at 0 and no snapshot reaches into it.
        """
        notes = []
        for position, snapshot in self.list_snapshots():
            if not log_start <= position <= log_end:
                notes.append(f"snapshot {position} is outside the log, which holds {log_start} to {log_end}")
                continue
            try:
                self.check_snapshot(snapshot)
            except Damaged as error:
                notes.append(error.message)
                continue
            self._copy_state(snapshot)
            notes.append(f"restored the state from the snapshot at {position}")
            return notes
        if log_start > 0:
            raise Damaged(
                "NO_WAY_BACK",
                f"expected a snapshot at {log_start} or later, got none usable ({'; '.join(notes) or 'none there'}); "
                "restore the directory from a backup",
            )
        notes.append("rebuilding the state from the whole log")
        return notes

    def _copy_state(self, snapshot: Path) -> None:
        """Put a copy of a snapshot in the place of the state, whole or not at all."""
        copy = self.root / "state.new"
        if copy.exists():
            shutil.rmtree(copy)
        copy.mkdir()
        shutil.copyfile(snapshot / "data.mdb", copy / "data.mdb")
        with (copy / "data.mdb").open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(copy)
        if self.state.exists():
            shutil.rmtree(self.state)
        copy.rename(self.state)
        sync_folder(self.root)


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a small file so that after a crash it is there whole or not at all.

    Raises `ResourceExhausted` DISK_FULL, `Unavailable` FILE_WRITE_FAILED; then the file is as it was.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_failed(error, path) from error


def write_failed(error: OSError, path: Path) -> Unavailable:
    """Return our error for one of the operating system's in writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceExhausted(
            "DISK_FULL", f"expected room to write {path}, got none: {error.strerror}; free some and try again"
        )
    return Unavailable(
        "FILE_WRITE_FAILED", f"expected to write {path}, got: {error.strerror}; check the disk and its permissions"
    )


def make_folder(path: Path) -> None:
    """Make a folder and its parents, durably. Raises `PreconditionFailed` NOT_A_FOLDER, `Unavailable` FILE_WRITE_FAILED."""
    made = [path, *path.parents]
    made = made[: next(i for i, folder in enumerate(made) if folder.exists())]
    try:
        path.mkdir(parents=True, exist_ok=True)
        for folder in made:
            sync_folder(folder.parent)
    except (FileExistsError, NotADirectoryError) as error:
        raise PreconditionFailed(
            "NOT_A_FOLDER", f"expected a folder at {path}, got a file in its place; name another"
        ) from error
    except OSError as error:
        raise write_failed(error, path) from error


def sync_folder(path: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

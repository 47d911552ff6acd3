"""A disk that forgets: replays a trace of file operations and builds what a power failure could leave at any point.

The model is stricter than the file systems it stands for (ext4 in ordered mode, XFS):

- What a file holds is durable once an fsync or fdatasync of it, begun after the write, has ended; a write through
  O_SYNC or O_DSYNC when it returns. Truncating and allocating are writes of the size.
- Every other write is, each by itself, kept, dropped or torn: of a torn one any set of its 512-byte sectors is kept.
  A later write may thus be there without an earlier one. Where the file has grown past what was kept it reads as zeros.
- Names (created, renamed, removed files and directories) are kept in their order up to any point after the last fsync
  of a directory. A file's own fsync does not keep its name, and a kept name says nothing of what the file holds.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from tailorbird.bench.io_trace import Operation, TraceRecord
from tailorbird.engine.errors import InternalError

SECTOR_BYTES = 512


@dataclass(slots=True, frozen=True)
class Change:
    """A change of one file: `data` at `position`, or, where `data` is None, of its size to or at least `position`."""

    number: int
    position: int
    data: bytes | None
    grows_only: bool = False
    durable: bool = False

    def apply(self, content: bytearray) -> None:
        if self.data is not None:
            _put(content, self.position, self.data)
        elif self.position > len(content):
            content.extend(bytes(self.position - len(content)))
        elif not self.grows_only:
            del content[self.position :]


@dataclass(slots=True, eq=False)
class File:
    """A file or directory whatever it is called: its durable content and the changes since."""

    is_directory: bool = False
    content: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)
    is_mapped: bool = False

    def live(self) -> bytearray:
        """Return what the process sees."""
        content = bytearray(self.content)
        for change in self.changes:
            change.apply(content)
        return content


@dataclass(slots=True, frozen=True)
class NameChange:
    """`path` now names `file`, or nothing; renaming `source` is both in one step."""

    number: int
    path: str
    file: File | None
    source: str = ""

    def apply(self, names: dict[str, File]) -> None:
        if self.source:
            for name in [n for n in names if n.startswith(self.source + "/")]:
                names[self.path + name[len(self.source) :]] = names.pop(name)
            names.pop(self.source, None)
        if self.file is None:
            names.pop(self.path, None)
        else:
            names[self.path] = self.file


class Disk:
    """The files below `root` (absolute), empty at first, changed by `apply` and cut off by `write_image`."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._number = 0
        self._names: dict[str, File] = {self.root: File(is_directory=True)}
        self._durable_names = dict(self._names)
        self._name_changes: list[NameChange] = []
        self._open: dict[tuple[int, int], tuple[File, int]] = {}
        self._syncs: dict[tuple[int, int], tuple[File, int]] = {}

    def apply(self, record: TraceRecord) -> None:
        """Go one record further."""
        self._number += 1
        operation, handle, a, b, data = record
        if operation is Operation.OPEN:
            self._apply_open(handle, data.decode(), a)
        elif operation is Operation.CLOSE:
            self._open.pop(handle, None)
        elif operation is Operation.WRITE:
            file, flags = self._open[handle]
            file.changes.append(Change(self._number, a, data, durable=bool(flags & os.O_DSYNC)))
        elif operation is Operation.TRUNCATE:
            self._open[handle][0].changes.append(Change(self._number, a, None))
        elif operation is Operation.ALLOCATE:
            self._open[handle][0].changes.append(Change(self._number, a + b, None, grows_only=True))
        elif operation is Operation.SYNC:
            self._syncs[handle[0], a] = (self._open[handle][0], self._number)
        elif operation is Operation.SYNC_END:
            self._settle(*self._syncs.pop((handle[0], a)))
        elif operation is Operation.RENAME:
            source, target = data.decode().split("\0")
            self._rename(NameChange(self._number, target, self._names[source], source))
        elif operation is Operation.UNLINK:
            self._rename(NameChange(self._number, data.decode(), None))
        elif operation is Operation.MKDIR:
            self._rename(NameChange(self._number, data.decode(), File(is_directory=True)))
        elif operation is Operation.MAPPED:
            self._open[handle][0].is_mapped = True

    def _apply_open(self, handle: tuple[int, int], path: str, flags: int) -> None:
        file = self._names.get(path)
        if file is None:
            if not flags & os.O_CREAT:
                raise InternalError("TRACE_INCOMPLETE", f"{path} was opened, and nothing recorded made it")
            file = File()
            self._rename(NameChange(self._number, path, file))
        elif flags & os.O_TRUNC:
            file.changes.append(Change(self._number, 0, None))
        self._open[handle] = (file, flags)

    def _rename(self, change: NameChange) -> None:
        change.apply(self._names)
        self._name_changes.append(change)

    def _settle(self, file: File, begun: int) -> None:
        """Make durable what was done to `file` before its sync began."""
        if file.is_directory:
            while self._name_changes and self._name_changes[0].number < begun:
                self._name_changes.pop(0).apply(self._durable_names)
            return
        done = [change for change in file.changes if change.number < begun]
        for change in done:
            change.apply(file.content)
        del file.changes[: len(done)]

    def check_against_files(self, mapped_allowed: frozenset[str]) -> None:
        """Compare what the trace led to with the real files. Raises `InternalError` TRACE_INCOMPLETE on a difference.

        Files named in `mapped_allowed` may have been written through mappings; their content is not compared.
        """
        real = {str(path) for path in Path(self.root).rglob("*")} | {self.root}
        if real != set(self._names):
            raise InternalError("TRACE_INCOMPLETE", f"expected the files {sorted(self._names)}, found {sorted(real)}")
        for path, file in self._names.items():
            name = Path(path).name
            if file.is_mapped and name not in mapped_allowed:
                raise InternalError("TRACE_INCOMPLETE", f"{path} was mapped for writing, which no trace can follow")
            if not file.is_directory and name not in mapped_allowed and file.live() != Path(path).read_bytes():
                raise InternalError("TRACE_INCOMPLETE", f"{path} holds bytes that no recorded write explains")

    def write_image(self, target: Path, rng: random.Random) -> bool:
        """Write below `target` what a power failure now could leave; tell whether that is less than the process saw."""
        keep = rng.choice((0.0, 0.3, 0.7, 0.95, 1.0))
        tear = rng.choice((0.0, 0.3, 1.0))
        kept_names = rng.choice((0, len(self._name_changes), rng.randint(0, len(self._name_changes))))
        names = dict(self._durable_names)
        for change in self._name_changes[:kept_names]:
            change.apply(names)
        lost = kept_names < len(self._name_changes)
        target.mkdir(parents=True)
        for path in sorted(names):
            place = target / os.path.relpath(path, self.root)
            if names[path].is_directory:
                place.mkdir(exist_ok=True)
                continue
            content = bytearray(names[path].content)
            for written in names[path].changes:
                lost |= not _apply_by_chance(written, content, rng, keep, tear)
            place.write_bytes(content)
        return lost


def _apply_by_chance(change: Change, content: bytearray, rng: random.Random, keep: float, tear: float) -> bool:
    """Keep, drop or tear one change; tell whether it was kept whole."""
    if change.durable or rng.random() < keep:
        change.apply(content)
        return True
    if change.data is None or rng.random() >= tear:
        return False
    position, data = change.position, change.data
    starts = [position, *range((position // SECTOR_BYTES + 1) * SECTOR_BYTES, position + len(data), SECTOR_BYTES)]
    shape = rng.choice(("any", "first", "last"))
    boundary = rng.randint(0, len(starts))
    for index, start in enumerate(starts):
        kept = {"any": rng.random() < 0.5, "first": index < boundary, "last": index >= boundary}[shape]
        if kept:
            stop = (start // SECTOR_BYTES + 1) * SECTOR_BYTES
            _put(content, start, data[start - position : stop - position])
    if rng.random() < 0.5:  # The size may be there without the sectors.
        Change(change.number, position + len(data), None, grows_only=True).apply(content)
    return False


def _put(content: bytearray, position: int, data: bytes) -> None:
    if position > len(content):
        content.extend(bytes(position - len(content)))
    content[position : position + len(data)] = data

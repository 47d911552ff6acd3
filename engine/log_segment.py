"""Segment files of the local log: `<base offset, 20 digits>.log`, a 64-byte header, then records.

    magic      8 bytes  TBRDLOG and a zero
    version    u16      1
    partition  u16
    reserved   u32      0
    base       u64      offset of the segment's first record
    salt       u64      seed of the records' checksums, drawn at random
    reserved   24 bytes 0
    checksum   u64      XXH3-64 of the 56 bytes before

A segment appears under its name only once its header is durable: temporary name, fsync, rename, fsync of the directory.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct

from xxhash import xxh3_64_intdigest

from tailorbird.engine.errors import Damaged, PreconditionFailed

SEGMENT_HEADER_BYTES = 64
FORMAT_VERSION = 1

_MAGIC = b"TBRDLOG\0"
_HEADER = Struct("<8sHHIQQ24s")
_CHECKSUM = Struct("<Q")
_TEMPORARY = ".new"
RESTORE = "restore this file from a backup; what stands before this byte can still be read"


@dataclass(slots=True)
class Segment:
    """One segment file. `places` are (offset, position) pairs in rising order, where a read may begin."""

    path: Path
    base: int
    salt: int
    places: list[tuple[int, int]] = field(default_factory=list)

    def place_before(self, offset: int) -> tuple[int, int]:
        """Return the last known (offset, position) at or below `offset`."""
        low, high = 0, len(self.places)
        while low < high:
            middle = (low + high) // 2
            if self.places[middle][0] <= offset:
                low = middle + 1
            else:
                high = middle
        return self.places[low - 1] if low else (self.base, SEGMENT_HEADER_BYTES)

    def remember(self, offset: int, position: int) -> None:
        """Note where a record begins; at most one place per 1,024 records is kept, so memory is bounded."""
        if offset >= (self.places[-1][0] if self.places else self.base) + 1024:
            self.places.append((offset, position))

    def forget_from(self, offset: int) -> None:
        """Drop the places beyond `offset`, whose records are gone."""
        while self.places and self.places[-1][0] > offset:
            self.places.pop()


def create_segment(directory: Path, partition: int, base: int) -> Segment:
    """Make an empty durable segment. Raises `OSError`, leaving at most a temporary file."""
    salt = secrets.randbits(64)
    path = directory / f"{base:020d}.log"
    temporary = path.with_suffix(_TEMPORARY)
    head = _HEADER.pack(_MAGIC, FORMAT_VERSION, partition, 0, base, salt, bytes(24))
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(head + _CHECKSUM.pack(xxh3_64_intdigest(head)))
        file.flush()
        os.fsync(fd)
    os.rename(temporary, path)
    sync_directory(directory)
    return Segment(path, base, salt)


def read_segment(path: Path, partition: int) -> Segment:
    """Read a segment's header.

    Raises `Damaged` DAMAGED_LOG when it is none or does not fit the file's name, `PreconditionFailed` LOG_VERSION or
    LOG_PARTITION when it belongs to another version or partition.
    """
    with path.open("rb") as file:
        head = file.read(SEGMENT_HEADER_BYTES)
    body = head[: _HEADER.size]
    if len(head) < SEGMENT_HEADER_BYTES or _CHECKSUM.unpack(head[_HEADER.size :])[0] != xxh3_64_intdigest(body):
        raise Damaged(
            "DAMAGED_LOG", f"expected a segment header, got bytes that are none, in {path} at byte 0; {RESTORE}"
        )
    magic, version, home, _, base, salt, _ = _HEADER.unpack(body)
    if magic != _MAGIC:
        raise Damaged("DAMAGED_LOG", f"expected magic {_MAGIC!r}, got {magic!r}, in {path} at byte 0; {RESTORE}")
    if version != FORMAT_VERSION:
        raise PreconditionFailed(
            "LOG_VERSION",
            f"expected log format {FORMAT_VERSION}, got {version}, in {path}; open it with the version that wrote it",
        )
    if path.stem != f"{base:020d}":
        raise Damaged(
            "DAMAGED_LOG", f"expected base offset {int(path.stem)}, got {base}, in {path} at byte 16; {RESTORE}"
        )
    if home != partition:
        raise PreconditionFailed(
            "LOG_PARTITION", f"expected partition {partition}, got {home}, in {path}; open the right directory"
        )
    return Segment(path, base, salt)


def list_segments(directory: Path, partition: int) -> list[Segment]:
    """Read the headers of all segments, oldest first."""
    paths = sorted(p for p in directory.glob("*.log") if len(p.stem) == 20 and p.stem.isascii() and p.stem.isdigit())
    return [read_segment(path, partition) for path in paths]


def remove_temporaries(directory: Path) -> None:
    """Remove what a crash between creating and naming a segment left."""
    for path in directory.glob(f"*{_TEMPORARY}"):
        path.unlink()


def sync_directory(directory: Path) -> None:
    """Make names made, changed or removed in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

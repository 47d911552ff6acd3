"""The record of the local log: 32 bytes of header and a payload, little-endian, packed without padding.

    checksum   u32   low 32 bits of XXH3-64 over everything after this field, seeded with the segment's salt
    length     u32   payload bytes, at most `RECORD_BYTES_MAX`
    kind       u8    the fact's kind
    flags      u8    AFTER_SYNC, MARK
    algorithm  u8    0: the payload is plain
    partition  u8
    key id     u32   the sealing key; 0 while payloads are plain
    offset     u64   sequence number in the partition: a record cannot be read in another's place
    time       i64   append time, ms since 1970 UTC

AFTER_SYNC says that every record before this one had reached the disk before this one was written. It tells a torn tail
from damage: what lies before such a record was once durable. MARK is a record without payload that takes no offset; a
clean close writes one, so that the last group, too, has an AFTER_SYNC behind it.

The salt is drawn per segment: bytes of another file, or a record somebody sent inside a payload, are never a record.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

HEADER = Struct("<IIBBBBIQq")
HEADER_BYTES = HEADER.size
RECORD_BYTES_MAX = 16 << 20  # limits.record_bytes_max
AFTER_SYNC = 1
MARK = 2
ALGORITHM_PLAIN = 0

_CHECKSUM = Struct("<I")
_REST = Struct("<IBBBBIQq")
_LOW_32 = 0xFFFFFFFF
_READ_BYTES = 1 << 20


class LogRecord(NamedTuple):
    """One fact as the log holds it; `append_time` is milliseconds since 1970 UTC, `kind` 0..255."""

    offset: int
    append_time: int
    kind: int
    payload: bytes


class BadRecord(Exception):
    """The bytes at `position` are no record of `offset`: torn or damaged, which only the caller can tell."""

    def __init__(self, position: int, offset: int, detail: str) -> None:
        super().__init__(detail)
        self.position = position
        self.offset = offset
        self.detail = detail


class UnknownAlgorithm(Exception):
    """A whole record whose payload is packed in a way this version does not know."""

    def __init__(self, algorithm: int, offset: int) -> None:
        super().__init__(f"algorithm {algorithm} at offset {offset}")
        self.algorithm = algorithm
        self.offset = offset


def pack_group(
    salt: int,
    partition: int,
    first_offset: int,
    append_time: int,
    records: Sequence[tuple[int, bytes]],
    after_sync: bool,
) -> bytes:
    """Return the bytes of consecutive records, (kind, payload) each; `after_sync` flags the first."""
    parts: list[bytes] = []
    add, rest, checksum, digest = parts.append, _REST.pack, _CHECKSUM.pack, xxh3_64_intdigest
    flags = AFTER_SYNC if after_sync else 0
    offset = first_offset
    for kind, payload in records:
        body = rest(len(payload), kind, flags, ALGORITHM_PLAIN, partition, 0, offset, append_time) + payload
        add(checksum(digest(body, salt) & _LOW_32))
        add(body)
        flags = 0
        offset += 1
    return b"".join(parts)


def pack_mark(salt: int, partition: int, offset: int) -> bytes:
    """Return the mark that every record below `offset` is durable."""
    body = _REST.pack(0, 0, AFTER_SYNC | MARK, ALGORITHM_PLAIN, partition, 0, offset, 0)
    return _CHECKSUM.pack(xxh3_64_intdigest(body, salt) & _LOW_32) + body


def walk(fd: int, salt: int, partition: int, position: int, size: int, offset: int) -> Iterator[tuple[int, LogRecord]]:
    """Yield (position after it, record) for each record of bytes [position, size), the first being `offset`.

    The file must not shrink below `size` meanwhile. Raises `BadRecord` at the first bytes that are no record of the
    next offset, `UnknownAlgorithm` at a whole record that cannot be unpacked.
    """
    unpack, digest, new = HEADER.unpack_from, xxh3_64_intdigest, LogRecord._make
    chunk, view, start, length = b"", memoryview(b""), position, 0
    at = stop = 0
    while start + at < size:
        need = HEADER_BYTES if at + HEADER_BYTES > len(chunk) else stop - at
        start += at
        if start + need > size:
            raise BadRecord(start, offset, f"expected {need} bytes of a record, the file has {size - start}")
        chunk = os.pread(fd, min(max(_READ_BYTES, need), size - start), start)
        if len(chunk) < need:
            raise BadRecord(start, offset, f"expected {need} bytes of a record, the file gave {len(chunk)}")
        view, at, end = memoryview(chunk), 0, len(chunk)
        while at + HEADER_BYTES <= end:
            checksum, length, kind, flags, algorithm, home, _, named, time = unpack(chunk, at)
            stop = at + HEADER_BYTES + length
            if length > RECORD_BYTES_MAX:
                raise BadRecord(start + at, offset, f"expected a length up to {RECORD_BYTES_MAX}, got {length}")
            if stop > end:
                break
            if digest(view[at + 4 : stop], salt) & _LOW_32 != checksum:
                raise BadRecord(start + at, offset, "the checksum does not fit")
            if named != offset or home != partition:
                raise BadRecord(
                    start + at, offset, f"expected offset {offset} of partition {partition}, got {named} of {home}"
                )
            if flags & MARK:
                at = stop
                continue
            if algorithm != ALGORITHM_PLAIN:
                raise UnknownAlgorithm(algorithm, offset)
            yield start + stop, new((offset, time, kind, chunk[at + HEADER_BYTES : stop]))
            at = stop
            offset += 1


def skip_to(fd: int, position: int, size: int, offset: int, wanted: int) -> int:
    """Return the position of record `wanted`, found by lengths alone from record `offset` at `position`.

    Nothing is checked but bounds: a wrong length leads to bytes whose checksum cannot fit `wanted`, which `walk` then
    says. Raises `BadRecord` when the file ends first.
    """
    chunk, start, at = b"", position, 0
    while offset < wanted:
        if at + HEADER_BYTES > len(chunk):
            start, at = start + at, 0
            chunk = os.pread(fd, max(0, min(_READ_BYTES, size - start)), start)
            if len(chunk) < HEADER_BYTES:
                raise BadRecord(start, offset, f"expected record {wanted} further on, the file ends")
        _, length, _, flags, _, _, _, _, _ = HEADER.unpack_from(chunk, at)
        if length > RECORD_BYTES_MAX:
            raise BadRecord(start + at, offset, f"expected a length up to {RECORD_BYTES_MAX}, got {length}")
        at += HEADER_BYTES + length
        offset += 0 if flags & MARK else 1
    return start + at


def synced_beyond(fd: int, salt: int, partition: int, position: int, size: int, offset: int) -> int | None:
    """Return where in [position, size) a whole record stands which says that record `offset` was durable, or None.

    Every byte position is tried: the length of what stands before is not to be trusted.
    """
    tail = os.pread(fd, size - position, position)
    while len(tail) < size - position:  # A read gives at most 2 GiB.
        more = os.pread(fd, size - position - len(tail), position + len(tail))
        if not more:
            break
        tail += more
    room = len(tail) - HEADER_BYTES
    if room < 0:
        return None
    candidates: list[int] = []
    for shift in range(8):
        offsets = np.frombuffer(tail, "<u8", count=(len(tail) - shift) // 8, offset=shift)
        # Unsigned difference: one comparison for offset <= named <= offset + the records that fit.
        near = np.flatnonzero(offsets - np.uint64(offset) <= np.uint64(room // HEADER_BYTES + 1))
        candidates.extend(int(i) * 8 + shift - 16 for i in near)
    for at in sorted(candidates):
        if not 0 <= at <= room:
            continue
        checksum, length, _, flags, _, home, _, _, _ = HEADER.unpack_from(tail, at)
        stop = at + HEADER_BYTES + length
        if not flags & AFTER_SYNC or home != partition or length > RECORD_BYTES_MAX or stop > len(tail):
            continue
        if xxh3_64_intdigest(tail[at + 4 : stop], salt) & _LOW_32 == checksum:
            return position + at
    return None

"""Reads the traces that native/iotrace.h writes."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from tailorbird.engine.errors import Damaged

_HEADER = Struct("<IBBHiiqq")


class Operation(IntEnum):
    """What a record says was done; the numbers are those of iotrace.h."""

    OPEN = 1
    WRITE = 2
    TRUNCATE = 3
    ALLOCATE = 4
    CLOSE = 5
    SYNC = 6
    SYNC_END = 7
    RENAME = 8
    UNLINK = 9
    MKDIR = 10
    MARK = 11
    MAPPED = 12


class TraceRecord(NamedTuple):
    """One operation; `handle` is (process, file descriptor), the meaning of `a` and `b` is in iotrace.h."""

    operation: Operation
    handle: tuple[int, int]
    a: int
    b: int
    data: bytes


def read_trace(path: Path) -> list[TraceRecord]:
    """Return all records of a trace. Raises `Damaged` DAMAGED_TRACE when it does not end with a whole record."""
    return list(_records(path))


def _records(path: Path) -> Iterator[TraceRecord]:
    trace = path.read_bytes()
    at = 0
    while at < len(trace):
        stop = at + _HEADER.size
        if stop <= len(trace):
            length, operation, _, _, process, fd, a, b = _HEADER.unpack_from(trace, at)
            stop += length
        if stop > len(trace):
            raise Damaged(
                "DAMAGED_TRACE",
                f"expected a whole record, got {len(trace) - at} bytes, at byte {at} of {path}; record anew",
            )
        yield TraceRecord(Operation(operation), (process, fd), a, b, trace[stop - length : stop])
        at = stop

"""The fact log in segment files: everything that changes state, in order, durable before it is applied.

Formats: log_segment.py, log_record.py. Offsets are sequence numbers of a partition: 0, 1, 2, ...

What a crash leaves is decided once, when the log is opened for writing. The groups after the last sync may be there
whole, in part, or with holes where a disk wrote later sectors first; none was acknowledged, so the log ends before the
first record that is not whole (`torn_bytes` are cut). A record that is not whole although a later one says that it had
been synced (AFTER_SYNC) is damage, and so is any in an earlier segment: those raise `Damaged`, and nothing is cut.
Damage to the very last group, after a crash, looks like a torn tail; the state then stands beyond the log's end, which
its opener refuses.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tailorbird.engine.errors import (
    CallerError,
    Damaged,
    InternalError,
    NotFound,
    PreconditionFailed,
    ResourceExhausted,
    Unavailable,
)
from tailorbird.engine.fact_log import FactLog
from tailorbird.engine.log_record import (
    RECORD_BYTES_MAX,
    BadRecord,
    LogRecord,
    UnknownAlgorithm,
    pack_group,
    pack_mark,
    skip_to,
    synced_beyond,
    walk,
)
from tailorbird.engine.log_segment import (
    RESTORE,
    SEGMENT_HEADER_BYTES,
    Segment,
    create_segment,
    list_segments,
    remove_temporaries,
    sync_directory,
)

__all__ = ["FactLog", "LocalLog", "LogIO", "LogRecord"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class LogIO:
    """The three system calls appending makes; tests put failing ones here."""

    write: Callable[[int, bytes | memoryview, int], int] = os.pwrite
    sync: Callable[[int], None] = os.fdatasync
    truncate: Callable[[int, int], None] = os.ftruncate


class LocalLog:
    """A `FactLog` in a directory, for one thread at a time; the store's lock keeps a second writer out."""

    def __init__(self, directory: Path, partition: int, read_only: bool, segment_bytes: int, io: LogIO) -> None:
        """Use `LocalLog.open`."""
        self._directory = directory
        self._partition = partition
        self._read_only = read_only
        self._segment_bytes = segment_bytes
        self._io = io
        self._segments: list[Segment] = []
        self._fd = -1
        self._size = 0  # bytes of the last segment that hold records
        self._end = 0
        self._synced = 0  # first offset not known to be durable
        self._synced_size = 0
        self._marked = True  # the file ends in an AFTER_SYNC mark, or holds nothing new since it was opened
        self._poison = ""
        self._resume: tuple[int, int, int] = (-1, 0, 0)  # segment base, offset, position where the last read ended
        self.torn_bytes = 0

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        read_only: bool = False,
        segment_bytes: int = 64 << 20,
        partition: int = 0,
        io: LogIO | None = None,
    ) -> LocalLog:
        """Open or create the log in directory `path`; opened for writing, its torn tail is cut and the rest synced.

        Raises `Damaged` DAMAGED_LOG, `PreconditionFailed` LOG_VERSION or LOG_PARTITION, `NotFound` NO_LOG (read-only
        and nothing there), `ResourceExhausted` DISK_FULL, `Unavailable` LOG_WRITE_FAILED.
        """
        if not 0 <= partition <= 255:
            raise CallerError("BAD_PARTITION", f"expected a partition of 0..255, got {partition}")
        log = cls(Path(path), partition, read_only, segment_bytes, io or LogIO())
        try:
            log._open()
        except OSError as error:
            log.close()
            log._raise_write_failed(error)
        except BaseException:
            log.close()
            raise
        return log

    def _open(self) -> None:
        if not self._read_only:
            if not self._directory.is_dir():
                self._directory.mkdir(parents=True)
                sync_directory(self._directory.parent)
            remove_temporaries(self._directory)
        self._segments = list_segments(self._directory, self._partition)
        if not self._segments:
            if self._read_only:
                raise NotFound(
                    "NO_LOG", f"expected segment files (*.log) in {self._directory}, found none; check the path"
                )
            self._segments = [create_segment(self._directory, self._partition, 0)]
        last = self._segments[-1]
        self._fd = os.open(last.path, (os.O_RDONLY if self._read_only else os.O_RDWR) | os.O_CLOEXEC)
        file_size = os.fstat(self._fd).st_size
        self._size, self._end = self._find_end(last, file_size)
        self.torn_bytes = file_size - self._size
        if not self._read_only:
            if self.torn_bytes:
                self._io.truncate(self._fd, self._size)
            # What a killed process wrote may be in the page cache only; nothing may be applied before it is durable.
            self._io.sync(self._fd)
            self._synced, self._synced_size = self._end, self._size

    def _find_end(self, segment: Segment, file_size: int) -> tuple[int, int]:
        """Return position and offset after the last whole record, raising `Damaged` when more was once durable."""
        end = segment.base
        try:
            for after, record in walk(self._fd, segment.salt, self._partition, SEGMENT_HEADER_BYTES, file_size, end):
                end = record.offset + 1
                segment.remember(end, after)
        except BadRecord as bad:
            proof = synced_beyond(self._fd, segment.salt, self._partition, bad.position, file_size, bad.offset)
            if proof is not None:
                self._raise_damaged(segment, bad, f"; it had been synced, says the record at byte {proof}")
            return bad.position, end
        except UnknownAlgorithm as unknown:
            self._raise_unknown(segment, unknown)
        return file_size, end

    @property
    def start(self) -> int:
        """The oldest offset kept."""
        return self._segments[0].base

    @property
    def end(self) -> int:
        """The offset the next record gets."""
        return self._end

    @property
    def synced(self) -> int:
        """The first offset not known to be durable."""
        return self._synced

    @property
    def partition(self) -> int:
        return self._partition

    def append_group(self, append_time: int, records: Sequence[tuple[int, bytes]]) -> int:
        """Append (kind, payload) records in one write, all stamped `append_time` (ms UTC); return the first offset.

        A group lies in one segment. A full segment is followed by a new one once everything in it is synced, so what
        can still be rolled back is always in the last. Raises `CallerError` RECORD_TOO_LARGE, `ResourceExhausted`
        DISK_FULL, `Unavailable` LOG_WRITE_FAILED or LOG_SYNC_FAILED; after any of them the log ends where it did.
        """
        self._check_writable()
        first = self._end
        if not records:
            return first
        for _, payload in records:
            if len(payload) > RECORD_BYTES_MAX:
                raise CallerError(
                    "RECORD_TOO_LARGE",
                    f"expected at most {RECORD_BYTES_MAX} bytes (limits.record_bytes_max), got {len(payload)}; "
                    "split the fact",
                )
        if self._size >= self._segment_bytes and self._synced == first:
            self._roll()
        last = self._segments[-1]
        data = pack_group(last.salt, self._partition, first, append_time, records, first == self._synced)
        self._write(data)
        self._end = first + len(records)
        self._marked = False
        last.remember(self._end, self._size)
        return first

    def sync(self) -> None:
        """Make everything appended durable.

        A failed sync poisons the log: the kernel may have dropped the pages it could not write, so a second sync that
        succeeds proves nothing. Every later append and sync raises `Unavailable` LOG_SYNC_FAILED until it is reopened.
        """
        self._check_writable()
        try:
            self._io.sync(self._fd)
        except OSError as error:
            self._poison = f"fdatasync of {self._segments[-1].path} failed: {error.strerror}"
            self._check_writable()
        self._synced, self._synced_size = self._end, self._size

    def read(self, from_offset: int, limit: int = 10_000) -> Iterator[LogRecord]:
        """Yield up to `limit` records from `from_offset` on, synced or not; none at or beyond the end.

        Raises `PreconditionFailed` OFFSET_TRUNCATED below `start`, `Damaged` DAMAGED_LOG with file, byte and offset.
        """
        if from_offset < self.start:
            raise PreconditionFailed(
                "OFFSET_TRUNCATED",
                f"expected an offset of {self.start} or later, got {from_offset}, in {self._directory}; "
                "restore a snapshot at or after it",
            )
        return self._read(from_offset, limit)

    def _read(self, offset: int, limit: int) -> Iterator[LogRecord]:
        stop = min(self._end, offset + limit)
        while offset < stop:
            index = bisect_right(self._segments, offset, key=lambda segment: segment.base) - 1
            segment = self._segments[index]
            is_last = index == len(self._segments) - 1
            segment_end = self._end if is_last else self._segments[index + 1].base
            fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = self._size if is_last else os.fstat(fd).st_size
                for record in self._read_segment(segment, fd, size, offset, min(stop, segment_end)):
                    yield record
                    offset += 1
            except BadRecord as bad:
                self._raise_damaged(segment, bad)
            except UnknownAlgorithm as unknown:
                self._raise_unknown(segment, unknown)
            finally:
                os.close(fd)

    def _read_segment(self, segment: Segment, fd: int, size: int, offset: int, stop: int) -> Iterator[LogRecord]:
        if self._resume[:2] == (segment.base, offset):
            position = self._resume[2]
        else:
            known, position = segment.place_before(offset)
            position = skip_to(fd, position, size, known, offset)
        for after, record in walk(fd, segment.salt, self._partition, position, size, offset):
            offset += 1
            if offset & 1023 == 0:
                segment.remember(offset, after)
            if offset == stop:
                self._resume = (segment.base, offset, after)
                yield record
                return
            yield record
        raise BadRecord(size, offset, f"expected records up to offset {stop - 1}, the file ends")

    def rollback_to(self, offset: int) -> None:
        """Drop the records from `offset` on, as when their group's transaction is aborted.

        Raises `InternalError` ROLLBACK_OF_SYNCED when one of them has been synced, `Unavailable` LOG_WRITE_FAILED.
        """
        self._check_writable()
        if not self._synced <= offset <= self._end:
            raise InternalError(
                "ROLLBACK_OF_SYNCED",
                f"expected an offset of {self._synced}..{self._end}, got {offset}, in {self._directory}",
            )
        last = self._segments[-1]
        size = self._synced_size
        if offset > self._synced:
            size = skip_to(self._fd, size, self._size, self._synced, offset)
        self._truncate(size)
        self._size, self._end = size, offset
        last.forget_from(offset)
        self._resume = (-1, 0, 0)

    def drop_before(self, offset: int) -> int:
        """Delete the segments whose records all lie below `offset`, never the last; return how many."""
        self._check_writable()
        count = 0
        while len(self._segments) > 1 and self._segments[1].base <= offset:
            self._segments[0].path.unlink()
            # One by one, so that no crash can leave a gap between segments.
            sync_directory(self._directory)
            del self._segments[0]
            count += 1
        return count

    def close(self) -> None:
        """Close the files; what was not synced may be lost. Marks a log whose records are all durable as such."""
        if self._fd < 0:
            return
        if not (self._read_only or self._poison or self._marked) and self._synced == self._end:
            try:
                self._write(pack_mark(self._segments[-1].salt, self._partition, self._end))
            except Unavailable:
                self._marked = (
                    True  # The mark only sharpens the next opening's judgement; a full disk may keep it away.
                )
        os.close(self._fd)
        self._fd = -1

    def _roll(self) -> None:
        try:
            segment = create_segment(self._directory, self._partition, self._end)
            fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            self._raise_write_failed(error)
        os.close(self._fd)
        self._fd = fd
        self._segments.append(segment)
        self._size = self._synced_size = SEGMENT_HEADER_BYTES

    def _write(self, data: bytes) -> None:
        """Write at the end of the last segment; on an error the file is as before."""
        written = 0
        try:
            while written < len(data):  # Once, but for a disk that fills up or a group beyond 2 GiB.
                written += self._io.write(
                    self._fd, memoryview(data)[written:] if written else data, self._size + written
                )
        except OSError as error:
            self._truncate(self._size)
            self._raise_write_failed(error)
        self._size += len(data)

    def _truncate(self, size: int) -> None:
        try:
            self._io.truncate(self._fd, size)
        except OSError as error:
            self._poison = f"ftruncate of {self._segments[-1].path} to {size} failed: {error.strerror}"
            self._check_writable()

    def _check_writable(self) -> None:
        if self._poison:
            raise Unavailable(
                "LOG_SYNC_FAILED",
                f"the log stopped: {self._poison}; check the disk, then restart: what was acknowledged is kept",
            )
        if self._read_only or self._fd < 0:
            raise PreconditionFailed(
                "LOG_READ_ONLY", f"expected a log open for writing, got a closed or read-only one, in {self._directory}"
            )

    def _raise_write_failed(self, error: OSError) -> NoReturn:
        where = error.filename or (self._segments[-1].path if self._segments else self._directory)
        if error.errno in _FULL:
            raise ResourceExhausted(
                "DISK_FULL", f"no room to append to {where}: {error.strerror}; free space or raise the quota"
            ) from error
        raise Unavailable(
            "LOG_WRITE_FAILED", f"cannot write {where}: {error.strerror}; check the disk and its permissions"
        ) from error

    def _raise_damaged(self, segment: Segment, bad: BadRecord, evidence: str = "") -> NoReturn:
        raise Damaged(
            "DAMAGED_LOG",
            f"expected the record of offset {bad.offset}, got bytes that are none ({bad.detail}), in {segment.path} "
            f"at byte {bad.position}{evidence}; {RESTORE}",
        ) from bad

    def _raise_unknown(self, segment: Segment, unknown: UnknownAlgorithm) -> NoReturn:
        raise PreconditionFailed(
            "LOG_VERSION",
            f"expected a plain record, got algorithm {unknown.algorithm}, at offset {unknown.offset} in {segment.path};"
            " open it with the version that wrote it",
        ) from unknown

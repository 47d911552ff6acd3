"""The decision log: what one process decided, in segment files of its own that nothing waits for.

A record is appended to a buffer in memory, and written by whoever calls `flush` (the service's upkeep, ten times a second) or
by the decision that fills the buffer. Nothing is synced: a crash of the process loses what was not flushed, one of the machine
what the system had not written. What cannot be written is dropped and counted, and the next segment is begun: decisions
never fail for it. A file is `PROCESS-SEGMENT.decisions`; the segment's number is the second it was begun in, or the next one free, so
that no number, and no decision id, comes twice. docs/adr/0013 says why.

    magic "TBIRDDEC", version u16, partition u8, process u16, segment u32, salt u64, checksum u32: 32 bytes, then records
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
from xxhash import xxh3_64_intdigest

from tailorbird.engine import decision_record
from tailorbird.engine.configuration import DecisionLogDeclaration
from tailorbird.engine.consent import ConsentChoice, DataType, Purpose, bit
from tailorbird.engine.decision_id import DecisionIds, Place
from tailorbird.engine.decision_record import HEADER_BYTES, PAYLOAD_BYTES_MAX, Stored
from tailorbird.engine.durations import duration_ms
from tailorbird.engine.errors import Damaged, NotFound
from tailorbird.engine.identifiers import HASH_BYTES, IdentifierError, IdentifierHasher

if TYPE_CHECKING:
    from tailorbird.engine.evidence import UsedOrder
    from tailorbird.engine.requests import DecideRequest, Decision
    from tailorbird.engine.servings import Serving

SUFFIX = ".decisions"
SEGMENT_HEADER_BYTES = 32
SEGMENTS_PER_AGE = 8  # a segment is closed after this part of `age_max`, so that age is kept to it
BUFFERS_MAX = 4  # of `buffer_bytes`, that may wait while one is being written
NOBODY = bytes(HASH_BYTES)
# What consent must permit for anything of a person to stand in the log.
LOG_CONSENT = bit(DataType.BEHAVIOURAL, Purpose.COLLECT) | bit(DataType.BEHAVIOURAL, Purpose.MEASURE)
SAMPLES = 1 << 32
_MAGIC = b"TBIRDDEC"
_VERSION = 1
_HEAD = Struct("<8sHBxH2xIQ")
_CHECKSUM = Struct("<I")
_LOW_32 = 0xFFFFFFFF


class Segment(NamedTuple):
    """A segment's file by its name."""

    process: int
    number: int
    path: Path


class Evidenced(NamedTuple):
    """What a decision rested on, beside the state: see `LoggedDecision`."""

    known: bool  # whether the identifiers led to a person
    permitted: int
    refused: Sequence[int]
    served: Sequence[Serving]
    used_orders: Sequence[UsedOrder]
    model: str
    vector: bytes
    recent: bytes


class DecisionSink(Protocol):
    """What a decider tells of its decisions: `id_for` before each, `add` after it, in turns."""

    def id_for(self, request_id: str) -> str:
        """Return the id of the decision that `add` is called with next, on a request of this id, empty for none."""

    def add(self, request: DecideRequest, decision: Decision, evidenced: Evidenced) -> None:
        """Take a finished decision, under the id it was given."""


class _Chunk:
    """Records that wait to be written to one segment, from a byte of it on."""

    __slots__ = ("data", "number", "record_count", "salt", "start")

    def __init__(self, number: int, salt: int, start: int) -> None:
        self.number, self.salt, self.start = number, salt, start
        self.data = bytearray()
        self.record_count = 0


class DecisionLog:
    """Logs the decisions of one process. `id_for` and `add` are called in turns, `flush` by any thread."""

    def __init__(
        self,
        folder: Path,
        declaration: DecisionLogDeclaration,
        hasher: IdentifierHasher,
        clock: Callable[[], int],
        *,
        process: int = 0,
        partition: int = 0,
    ) -> None:
        self.folder = folder
        self.ids = DecisionIds(hasher)
        self.process, self.partition = process, partition
        self.logged_count = self.dropped_count = 0
        self._hasher = hasher
        self._clock = clock
        self._declaration = declaration
        self._age_max_ms = duration_ms(declaration.age_max, "decision_log.age_max")
        self._sampled_below = int(declaration.candidates_sampled * SAMPLES)
        folder.mkdir(exist_ok=True)
        self._lock = threading.Lock()  # of the buffer
        self._writing = threading.Lock()  # of the files; taken first
        self._file = -1
        self._file_number = -1
        self._number = max((segment.number for segment in list_segments(folder, process)), default=0)
        self._waiting: list[_Chunk] = []
        self._waiting_bytes = 0
        self._pack = decision_record.new_packer().pack
        self._promised, self._salt = Place(partition, process, 0, 0), 0
        self._begin_segment()

    # ---- deciding ------------------------------------------------------------------------------------------------

    def id_for(self, request_id: str) -> str:
        """Return the id of the decision that `add` is called with next, on a request of this id, empty for none."""
        with self._lock:
            chunk = self._chunk
            if chunk.start + len(chunk.data) >= self._declaration.segment_bytes:
                self._begin_segment()
                chunk = self._chunk
            self._promised = Place(self.partition, self.process, chunk.number, chunk.start + len(chunk.data))
            self._salt = chunk.salt
        if request_id:
            return self.ids.named(self.ids.name(request_id))
        return self.ids.placed(self._promised)

    def add(self, request: DecideRequest, decision: Decision, evidenced: Evidenced) -> None:
        """Log a finished decision under the id it was given. Never raises, never waits for a disk that is slow or full."""
        place = self._promised
        seed = xxh3_64_intdigest(place.offset.to_bytes(4, "little"), place.segment)
        fields = self._fields(request, decision, evidenced, seed)
        try:
            record = self._pack(self._salt, decision.at, decision.position, fields)
        except (TypeError, ValueError, OverflowError):  # An event in process may hold what no log can.
            record = b""
        with self._lock:
            chunk = self._chunk
            full = self._waiting_bytes >= self._declaration.buffer_bytes
            fits = self._waiting_bytes < BUFFERS_MAX * self._declaration.buffer_bytes
            fits = fits and 0 < len(record) <= HEADER_BYTES + PAYLOAD_BYTES_MAX
            # The place is gone where its segment could not be written meanwhile.
            if fits and (chunk.number, chunk.start + len(chunk.data)) == (place.segment, place.offset):
                chunk.data += record
                chunk.record_count += 1
                self._waiting_bytes += len(record)
            else:
                self.dropped_count += 1
        if full and self._writing.acquire(blocking=False):
            try:
                self._write_waiting()
            finally:
                self._writing.release()

    def _fields(
        self, request: DecideRequest, decision: Decision, evidenced: Evidenced, seed: int
    ) -> tuple[object, ...]:
        """Return the fields of a `LoggedDecision`; of a person who did not agree to it, none that is theirs."""
        withheld = (evidenced.known or bool(request.events)) and evidenced.permitted & LOG_CONSENT != LOG_CONSENT
        identifiers: Sequence[tuple[str, bytes, str]] = ()
        if not withheld and request.identifiers:
            identifiers = self._identifiers(request, evidenced.known)
        sampled = seed & (SAMPLES - 1) < self._sampled_below
        return (
            self.ids.name(request.request_id) if request.request_id else b"",
            decision.placement,
            identifiers,
            withheld,
            request.context,
            request.k,
            ()
            if withheld or not request.events
            else [(e.type, e.event_time, e.properties, e.context, _choice(e.consent)) for e in request.events],
            len(request.candidates),
            list(request.candidates) if sampled else (),
            evidenced.refused,
            () if withheld else evidenced.served,
            evidenced.used_orders,
            evidenced.model,
            b"" if withheld else evidenced.vector,
            b"" if withheld else evidenced.recent,
            seed,
            [(i.id, i.score, i.propensity, ()) for i in decision.items] if withheld else decision.items,
            decision.tier,
            decision.completeness,
            -1 if withheld else decision.profile_age_ms,
            decision.masked_count,
            decision.excluded_count,
            decision.candidate_count,
            decision.unknown_candidate_count,
            decision.configuration_version,
            "" if withheld else decision.person_id,
            decision.degraded,
        )

    def _identifiers(self, request: DecideRequest, known: bool) -> list[tuple[str, bytes, str]]:
        found: list[tuple[str, bytes, str]] = []
        for namespace, value in request.identifiers.items():
            try:
                key = self._hasher.anchor(namespace, value).key
                # Nobody is known by it: the log is no place to become known in.
                found.append((namespace, key if known else NOBODY, ""))
            except IdentifierError as error:
                found.append((namespace, b"", error.reason))
        return found

    # ---- writing -------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what waits, and remove what has been kept long enough. Never raises; see `dropped_count`."""
        with self._writing:
            self._write_waiting()
            if self._clock() // 1_000 - self._number > self._age_max_ms // 1_000 // SEGMENTS_PER_AGE:
                with self._lock:
                    if self._chunk.start + len(self._chunk.data) > SEGMENT_HEADER_BYTES:
                        self._begin_segment()
                self._retain()

    def close(self) -> None:
        """Write what waits, and let go of the file."""
        self.flush()
        with self._writing:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _begin_segment(self) -> None:
        """Take the next number; the file is made when there is something to write. Whoever calls has the lock."""
        self._number = max(self._number + 1, min(self._clock() // 1_000, _LOW_32))
        self._chunk = _Chunk(self._number, secrets.randbits(64), SEGMENT_HEADER_BYTES)
        self._waiting.append(self._chunk)

    def _write_waiting(self) -> None:
        with self._lock:
            taken, current = self._waiting, self._chunk
            self._chunk = _Chunk(current.number, current.salt, current.start + len(current.data))
            self._waiting, self._waiting_bytes = [self._chunk], 0
        failed = -1
        for chunk in taken:
            if not chunk.record_count:
                continue
            if chunk.number != failed:
                try:
                    self._write(chunk)
                    self.logged_count += chunk.record_count
                    continue
                except OSError:
                    failed = chunk.number
            self.dropped_count += chunk.record_count
        if failed == current.number:  # What came meanwhile stands behind bytes that are not there.
            with self._lock:
                if self._chunk.number == failed:
                    self.dropped_count += self._chunk.record_count
                    self._waiting_bytes -= len(self._chunk.data)
                    self._waiting.remove(self._chunk)
                    self._begin_segment()

    def _write(self, chunk: _Chunk) -> None:
        if chunk.number != self._file_number:
            self._open(chunk)
        try:
            with memoryview(chunk.data) as rest:
                written = 0
                while written < len(rest):
                    written += os.pwrite(self._file, rest[written:], chunk.start + written)
        except OSError:
            os.ftruncate(self._file, chunk.start)
            raise

    def _open(self, chunk: _Chunk) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file, self._file_number = -1, -1
        path = self.folder / f"{self.process:05d}-{chunk.number:010d}{SUFFIX}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        head = _HEAD.pack(_MAGIC, _VERSION, self.partition, self.process, chunk.number, chunk.salt)
        try:
            if os.pwrite(file, head + _CHECKSUM.pack(xxh3_64_intdigest(head) & _LOW_32), 0) != SEGMENT_HEADER_BYTES:
                raise OSError("a short write")
        except OSError:
            os.close(file)
            path.unlink()
            raise
        self._file, self._file_number = file, chunk.number
        self._retain()

    def _retain(self) -> None:
        """Remove the oldest segments: beyond the bytes, and those followed by one that is old itself.

        Of other processes those nobody has written to for as long: one may not come back under its number.
        """
        try:
            for segment in list_segments(self.folder):
                written_ms = segment.path.stat().st_mtime_ns // 1_000_000
                if segment.process != self.process and self._clock() - written_ms > self._age_max_ms:
                    segment.path.unlink()
            segments = list_segments(self.folder, self.process)
            sizes = [segment.path.stat().st_size for segment in segments]
            total, oldest_s = sum(sizes), (self._clock() - self._age_max_ms) // 1_000
            following = [*(segment.number for segment in segments[1:]), self._number]
            for segment, size, ended_s in zip(segments, sizes, following, strict=True):
                if segment.number == self._file_number and segment.number == self._number:
                    break
                if total <= self._declaration.bytes_max and ended_s >= oldest_s:
                    break
                segment.path.unlink()
                total -= size
        except OSError:  # Tried again with the next segment.
            return


def _choice(choice: ConsentChoice | None) -> tuple[object, ...] | None:
    return None if choice is None else msgspec.structs.astuple(choice)


# ---- reading -----------------------------------------------------------------------------------------------------


def list_segments(folder: Path, process: int | None = None) -> list[Segment]:
    """Return the segments of one process, or of all, oldest first."""
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        parts = path.stem.split("-")
        if len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts):
            segment = Segment(int(parts[0]), int(parts[1]), path)
            if process is None or segment.process == process:
                found.append(segment)
    return sorted(found, key=lambda segment: (segment.number, segment.process))


def read_at(folder: Path, place: Place) -> Stored | None:
    """Return the decision at a place by one read, None where it is not (any more)."""
    path = folder / f"{place.process:05d}-{place.segment:010d}{SUFFIX}"
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        salt, _ = _read_head(os.pread(file, SEGMENT_HEADER_BYTES, 0), path)
        data = os.pread(file, 1 << 16, place.offset)
        if len(data) >= HEADER_BYTES:
            length = HEADER_BYTES + int.from_bytes(data[4:8], "little")
            if len(data) < length <= HEADER_BYTES + PAYLOAD_BYTES_MAX:
                data += os.pread(file, length - len(data), place.offset + len(data))
        return decision_record.unpack(salt, data, place)
    finally:
        os.close(file)


def find(folder: Path, ids: DecisionIds, decision_id: str) -> list[Stored]:
    """Return what is logged under an id: one decision, or for the id of a caller's request each attempt, the newest first.

    Raises `CallerError` BAD_DECISION_ID, `NotFound` NO_DECISION.
    """
    meant = ids.read(decision_id)
    found: list[Stored] = []
    if isinstance(meant, Place):
        stored = read_at(folder, meant)
        found = [] if stored is None else [stored]
    elif meant is not None:
        found = _named(folder, meant)
    if not found:
        raise NotFound(
            "NO_DECISION",
            "expected a decision in the log, found none by this id: it was not logged, not written before a crash, or has "
            "been kept for decision_log.age_max",
        )
    return found


def read_segment(segment: Segment, start: int = SEGMENT_HEADER_BYTES) -> Iterator[Stored]:
    """Yield the decisions of a segment from a byte on, up to its end or to where its writing was cut off."""
    try:
        data = segment.path.read_bytes()
    except FileNotFoundError:  # Its time has come meanwhile.
        return
    if len(data) < SEGMENT_HEADER_BYTES:
        return
    salt, partition = _read_head(data, segment.path)
    view = memoryview(data)
    offset = start
    while stored := decision_record.unpack(
        salt, view[offset:], Place(partition, segment.process, segment.number, offset)
    ):
        yield stored
        offset = stored.end


def read_all(folder: Path) -> Iterator[Stored]:
    """Yield every decision of every process, a segment at a time."""
    for segment in list_segments(folder):
        yield from read_segment(segment)


def _named(folder: Path, name: bytes) -> list[Stored]:
    """Return the decisions on requests of one name, the newest first; every segment is searched."""
    prefix = b"\xdc\x00" + bytes([len(decision_record.LoggedDecision.__struct_fields__)])
    prefix += b"\xc4" + bytes([len(name)]) + name
    return [stored for stored in read_all(folder) if stored.payload and stored.payload.startswith(prefix)][::-1]


def erase(folder: Path, is_of: Callable[[bytes], bool]) -> int:
    """Overwrite every decision with an identifier key that is the person's, and what is damaged, durably; return how many.

    Whoever calls has flushed what waits. An erasure that is cut off is done again from the start.
    """
    erased = 0
    for segment in list_segments(folder):
        places = [stored for stored in read_segment(segment) if stored.payload != b"" and _names(stored, is_of)]
        if not places:
            continue
        with segment.path.open("r+b") as file:
            for stored in places:
                start = stored.place.offset + HEADER_BYTES
                os.pwrite(file.fileno(), bytes(stored.end - start), start)
            os.fsync(file.fileno())
        erased += len(places)
    return erased


def _names(stored: Stored, is_of: Callable[[bytes], bool]) -> bool:
    try:
        logged = stored.logged()
    except Damaged:
        return True
    return logged is not None and any(key and is_of(key) for _, key, _ in logged.identifiers)


def _read_head(data: bytes, path: Path) -> tuple[int, int]:
    """Return the salt and the partition of a segment. Raises `Damaged` DAMAGED_DECISION."""
    head = data[: _HEAD.size]
    if len(data) >= SEGMENT_HEADER_BYTES:
        magic, version, partition, _, _, salt = _HEAD.unpack(head)
        (checksum,) = _CHECKSUM.unpack_from(data, _HEAD.size)
        if magic == _MAGIC and version == _VERSION and checksum == xxh3_64_intdigest(head) & _LOW_32:
            return salt, partition
    raise Damaged(
        "DAMAGED_DECISION",
        f"expected a segment of decisions of version {_VERSION}, got other bytes, in {path}; remove it",
    )

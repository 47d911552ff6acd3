"""A crash subject that is the fact log alone: groups of all sizes, rollbacks, retention, reopening."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from struct import Struct

from xxhash import xxh3_64_intdigest

from tailorbird.bench.crash_subject import Verdict
from tailorbird.engine.log import LocalLog

# A note is what was promised: offsets [first, last) hold the facts of serial numbers from `serial` on, or (kind 1) that
# nothing below `first` is wanted any more.
_NOTE = Struct("<BQQQ")
_SERIAL = Struct("<Q")
_SEGMENT_BYTES = 8_192
_STEPS = 60


def run_workload(path: Path, seed: int, acknowledge: Callable[[bytes], None]) -> None:
    """Append for `_STEPS` steps."""
    rng = random.Random(seed)
    log = LocalLog.open(path / "log", segment_bytes=_SEGMENT_BYTES)
    for step in range(_STEPS):
        first, serial = log.end, (seed << 32) + (step << 16)
        count = rng.choice((1, 1, 3, 10, 40))
        facts = [_fact(serial + i) for i in range(count)]
        half = rng.randint(0, count)
        log.append_group(step, facts[:half])
        if rng.random() < 0.2:
            log.rollback_to(first)
            log.append_group(step, facts[:half])
        log.append_group(step, facts[half:])
        log.sync()
        acknowledge(_NOTE.pack(0, first, log.end, serial))
        if rng.random() < 0.05:
            below = rng.randint(log.start, log.end)
            acknowledge(_NOTE.pack(1, below, 0, 0))
            log.drop_before(below)
        if rng.random() < 0.05:
            log.close()
            log = LocalLog.open(path / "log", segment_bytes=_SEGMENT_BYTES)
    log.close()


def verify(path: Path, acknowledged: Sequence[bytes]) -> Verdict:
    """Read everything, write one fact more, read again."""
    log = LocalLog.open(path / "log", segment_bytes=_SEGMENT_BYTES)
    dropped, found, wrong, doubled = 0, dict[int, int](), 0, 0
    serials = set[int]()
    for record in log.read(log.start, log.end):
        (serial,) = _SERIAL.unpack_from(record.payload)
        wrong += record.payload != _fact(serial)[1]
        doubled += serial in serials
        serials.add(serial)
        found[record.offset] = serial
    lost = []
    for kind, first, _, _ in _notes(acknowledged):
        if kind == 1:
            dropped = max(dropped, first)
    for kind, first, last, serial in _notes(acknowledged):
        if kind == 0:
            lost += [o for o in range(max(first, dropped), last) if found.get(o) != serial + o - first]
    end = log.append_group(0, [_fact((1 << 63) + log.end)]) + 1
    log.sync()
    log.close()
    log = LocalLog.open(path / "log", read_only=True)
    wrong += log.end != end or sum(1 for _ in log.read(log.start, end)) != len(found) + 1
    log.close()
    return Verdict(len(lost), doubled, wrong, f"lost offsets {lost[:5]} of {end - 1}" if lost else "")


def reboot(path: Path) -> None:
    """Nothing of the log depends on the boot."""


def _notes(acknowledged: Sequence[bytes]) -> Iterator[tuple[int, int, int, int]]:
    return (_NOTE.unpack(note) for note in acknowledged)


def _fact(serial: int) -> tuple[int, bytes]:
    """Return a fact whose payload follows from its serial number: 8 to 1,031 bytes, long ones crossing sectors."""
    digest = xxh3_64_intdigest(_SERIAL.pack(serial))
    return digest & 0xFF, _SERIAL.pack(serial) + _SERIAL.pack(digest) * (digest >> 8 & 127)

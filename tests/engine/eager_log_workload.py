"""A crash subject that promises too early: the harness must find it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tailorbird.bench.crash_subject import Verdict
from tailorbird.engine.log import LocalLog, LogIO


def run_workload(path: Path, seed: int, acknowledge: Callable[[bytes], None]) -> None:
    """Acknowledge facts before, and never after, the log's sync."""
    log = LocalLog.open(path / "log", io=LogIO(sync=lambda fd: None))
    for number in range(50):
        log.append_group(seed, [(1, b"%d" % number)])
        log.sync()
        acknowledge(b"%d" % number)
    log.close()


def reboot(path: Path) -> None:
    """Nothing of the log depends on the boot."""


def verify(path: Path, acknowledged: Sequence[bytes]) -> Verdict:
    """Look for what was acknowledged; nothing is repaired."""
    log = LocalLog.open(path / "log")
    found = [record.payload for record in log.read(0)]
    log.close()
    return Verdict(lost=len(set(acknowledged) - set(found)), doubled=len(found) - len(set(found)))

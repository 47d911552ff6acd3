"""What a crash test runs: a module that works on a directory, says what it was promised, and checks the promises later.

Such a module has three functions:

    def run_workload(path: Path, seed: int, acknowledge: Callable[[bytes], None]) -> None
        Work on the directory `path`, new or left by an earlier run that was cut off, and call `acknowledge` with a note
        of each promise just after it was given. Ends by itself. Different seeds give different facts.

    def verify(path: Path, acknowledged: Sequence[bytes]) -> Verdict
        Open the directory as a fresh start would and compare. An exception is an unclean start.

    def reboot(path: Path) -> None
        Make the directory look as if the machine had been started anew, called before `verify` after a power failure.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from tailorbird.bench.musts import Must


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one start found: promises not kept, facts there twice, states that are not what their log says."""

    lost: int = 0
    doubled: int = 0
    hash_mismatches: int = 0
    detail: str = ""


class CrashSubject(Protocol):
    """A module as described above."""

    def run_workload(self, path: Path, seed: int, acknowledge: Callable[[bytes], None]) -> None: ...

    def verify(self, path: Path, acknowledged: Sequence[bytes]) -> Verdict: ...

    def reboot(self, path: Path) -> None: ...


# Names of `Tally.counts`: a single broken promise is one too many.
MUSTS = tuple(Must(name, at_most=0) for name in ("lost", "doubled", "unclean_starts", "hash_mismatches"))


class Tally:
    """Adds up verdicts; keeps the first few failures in words."""

    DETAILS_MAX = 10

    def __init__(self) -> None:
        self.counts = {"lost": 0, "doubled": 0, "unclean_starts": 0, "hash_mismatches": 0}
        self.details: list[str] = []

    def add(self, where: str, verdict: Verdict) -> None:
        """Count what one start found."""
        found = {"lost": verdict.lost, "doubled": verdict.doubled, "hash_mismatches": verdict.hash_mismatches}
        for name, count in found.items():
            self.counts[name] += count
        if any(found.values()):
            self._describe(f"{where}: {found} {verdict.detail}".rstrip())

    def add_unclean(self, where: str, error: str) -> None:
        """Count a start that failed."""
        self.counts["unclean_starts"] += 1
        self._describe(f"{where}: {error}")

    def _describe(self, text: str) -> None:
        if len(self.details) < self.DETAILS_MAX:
            self.details.append(text)


def describe_failure(error: BaseException) -> str:
    """Return an exception and the two innermost places it came from, one line each."""
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    places = "".join(f" at {Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames)
    return f"{type(error).__name__}: {error}{places}"


def load_subject(name: str) -> CrashSubject:
    """Import the module `name`."""
    return cast(CrashSubject, importlib.import_module(name))

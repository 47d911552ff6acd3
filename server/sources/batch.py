"""What a source yields and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tailorbird.engine.consent import ConsentChoice
from tailorbird.engine.items import Item
from tailorbird.engine.signals import Signal

SIGNALS_PER_BATCH = 1_000
PROBLEMS_KEPT_MAX = 100


@dataclass(frozen=True, slots=True)
class Batch:
    """Items to put, then signals to ingest, in the file's order."""

    items: tuple[Item, ...]
    signals: tuple[Signal, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that was left out because it could not be read; `line` counts from 1."""

    line: int
    reason: str


@dataclass(slots=True)
class Counts:
    """What was read so far. Every line is in `used`, in one entry of `left_out`, or in `malformed`.

    `lines` does not count a header. `used` counts lines by what they became, `signals` signals by type, `left_out`
    lines by why they are no product line of an order or a refund, `facts` whatever else the source tells (guests, ...).
    Of the malformed lines the first `PROBLEMS_KEPT_MAX` are told apart in `problems`.
    """

    lines: int = 0
    items: int = 0
    malformed: int = 0
    used: Counter[str] = field(default_factory=Counter)
    signals: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    facts: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    def malform(self, line: int, reason: str) -> None:
        """Count a line that cannot be read."""
        self.malformed += 1
        if len(self.problems) < PROBLEMS_KEPT_MAX:
            self.problems.append(Problem(line, reason))


class Reader(Protocol):
    """Reads a file of one format, streaming.

    Yields batches in the file's order and adds to `counts` as it goes. `consent` is put on every signal. A line that
    cannot be read is counted and left out; bytes that cannot be read raise `CallerError` after what came before was
    yielded.
    """

    def __call__(
        self, path: Path, *, consent: ConsentChoice | None = None, counts: Counts | None = None
    ) -> Iterator[Batch]: ...

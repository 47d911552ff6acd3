"""`tailorbird ingest`: signals and items from files. A bad line is counted and kept, and never stops the others."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tailorbird.engine import Engine, Signal
from tailorbird.engine.consent import ConsentChoice, Jurisdiction, parse_choice
from tailorbird.engine.errors import CallerError
from tailorbird.engine.items import Item
from tailorbird.engine.signals import Status
from tailorbird.server.commands.arguments import CONSENT_EXAMPLE, add_consent_arguments
from tailorbird.server.commands.data_directory import add_data_argument, find_data_directory
from tailorbird.server.commands.rejections import Rejections
from tailorbird.server.sources import FORMATS
from tailorbird.server.sources.batch import Counts
from tailorbird.server.sources.jsonl import BadLine, SignalLine, read_lines

JSONL = "jsonl"
BATCH = 1_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_argument(parser)
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+", help="plain or compressed with gzip")
    parser.add_argument(
        "--format", choices=[JSONL, *FORMATS], default=JSONL, help=f"default {JSONL}: one signal a line"
    )
    add_consent_arguments(parser)
    parser.add_argument("--batch", type=int, default=BATCH, metavar="N", help=f"signals a commit (default {BATCH})")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after N signals")


def run(arguments: argparse.Namespace) -> int:
    directory = find_data_directory(arguments.data)
    choice = parse_choice(arguments.consent, arguments.basis) if arguments.consent else None
    with Engine.open(directory) as engine, Rejections(directory) as rejections:
        batch_max = engine.configuration.limits.batch_signals_max
        for name, value in (("--batch", arguments.batch), ("--limit", arguments.limit)):
            if value is not None and value < 1:
                raise CallerError("BAD_ARGUMENT", f"expected at least 1, got {value} in {name}")
        if arguments.batch > batch_max:
            raise CallerError(
                "BAD_ARGUMENT",
                f"expected at most limits.batch_signals_max = {batch_max}, got {arguments.batch} in --batch",
            )
        load = Load(engine, rejections, choice, arguments.batch, arguments.limit)
        started = time.perf_counter()
        try:
            for path in arguments.files:
                load.read(path, arguments.format)
        finally:
            # Also when a damaged file ends it: what is stored is stored, and should be told.
            if load.written:
                engine.tick()
            if load.started:
                print("\n".join(load.lines(time.perf_counter() - started)), flush=True)
    return 0 if load.taken or not rejections.counts else 2


class Load:
    """One run over some files: groups signals, writes them, and counts what became of each."""

    def __init__(
        self,
        engine: Engine,
        rejections: Rejections,
        choice: ConsentChoice | None,
        batch: int,
        limit: int | None,
    ) -> None:
        self._engine = engine
        self._rejections = rejections
        self._choice = choice
        self._batch = batch
        self._left = limit
        self._counts = Counts()
        self._outcomes: Counter[Status] = Counter()
        self._withheld: Counter[str] = Counter()

    @property
    def started(self) -> bool:
        """Whether anything was read."""
        return bool(self._counts.lines)

    @property
    def written(self) -> bool:
        """Whether anything came into the log."""
        return bool(self._outcomes[Status.APPLIED] or self._counts.items)

    @property
    def taken(self) -> bool:
        """Whether anything was good, new or not."""
        return self.written or bool(self._outcomes[Status.DUPLICATE] or self._outcomes[Status.WITHHELD])

    def read(self, path: Path, form: str) -> None:
        """Read one file to its end or the limit. Raises `CallerError` for a file that cannot be read."""
        if form == JSONL:
            self._read_jsonl(path)
            return
        self._ask_for_basis(path)
        problem_count = len(self._counts.problems)
        try:
            for batch in FORMATS[form](path, counts=self._counts):
                self._put(batch.items)
                entries = [(signal, None) for signal in batch.signals]
                for group in self._groups(entries):
                    self._write(path, group)
                if self._left == 0:
                    break
        finally:
            for problem in self._counts.problems[problem_count:]:
                self._rejections.add(path, problem.line, "MALFORMED", problem.reason, "")

    def _read_jsonl(self, path: Path) -> None:
        waiting: list[tuple[Signal, SignalLine | None]] = []
        for line in read_lines(path, self._engine.configuration.limits.signal_bytes_max):
            self._counts.lines += 1
            if isinstance(line, BadLine):
                self._counts.malformed += 1
                self._rejections.add(path, line.line_number, line.reason, line.message, line.text)
                continue
            waiting.append((line.signal, line))
            if len(waiting) == self._batch or len(waiting) == self._left:
                self._write(path, waiting)
                if self._left is not None:
                    self._left -= len(waiting)
                waiting = []
                if self._left == 0:
                    return
        self._write(path, waiting)

    def _groups(self, entries: list[tuple[Signal, None]]) -> Iterator[list[tuple[Signal, None]]]:
        """Yield the entries in groups of the asked size, up to the limit."""
        if self._left is not None:
            entries = entries[: self._left]
            self._left -= len(entries)
        for start in range(0, len(entries), self._batch):
            yield entries[start : start + self._batch]

    def _put(self, items: Sequence[Item]) -> None:
        batch_max = self._engine.configuration.limits.items_per_put_max
        for start in range(0, len(items), batch_max):
            self._engine.put_items(items[start : start + batch_max])

    def _ask_for_basis(self, path: Path) -> None:
        """Refuse a file that names no consent where nothing may be stored without."""
        if self._choice is None and self._engine.configuration.jurisdiction is Jurisdiction.OPT_IN:
            raise CallerError(
                "NO_CONSENT_BASIS",
                f"expected to know what the storage of {path} rests on, because the jurisdiction is opt-in; nothing of "
                f"it was stored; say it, for example with {CONSENT_EXAMPLE}",
            )

    def _write(self, path: Path, entries: Sequence[tuple[Signal, SignalLine | None]]) -> None:
        if not entries:
            return
        report = self._engine.ingest([signal for signal, _ in entries], consent=self._choice)
        for (signal, line), outcome in zip(entries, report.outcomes, strict=True):
            self._outcomes[outcome.status] += 1
            if outcome.status is Status.WITHHELD:
                self._withheld[outcome.reason] += 1
            elif outcome.status is Status.REJECTED:
                text = line.text if line is not None else msgspec.json.encode(signal)
                number = line.line_number if line is not None else None
                self._rejections.add(path, number, outcome.reason, outcome.message, text.decode())

    def lines(self, taken_s: float) -> list[str]:
        """Return the summary."""
        counts, outcomes = self._counts, self._outcomes
        rate = counts.lines / taken_s if taken_s else 0.0
        lines = [
            f"read {counts.lines:,} lines in {taken_s:.1f} s ({rate:,.0f} lines/s)",
            "signals: " + ", ".join(f"{outcomes[status]:,} {status}" for status in Status),
        ]
        sections = (
            ("by type", counts.signals),
            ("items put", Counter({"": counts.items} if counts.items else {})),
            ("lines used", counts.used),
            ("lines left out", counts.left_out),
            ("found", counts.facts),
            ("withheld", self._withheld),
            ("rejected", self._rejections.counts),
        )
        for title, section in sections:
            if section:
                lines.append(f"{title}: " + ", ".join(f"{n:,} {name}".strip() for name, n in section.most_common()))
        if self._withheld and self._choice is None:
            lines.append(f"withheld signals have no basis in consent; where there is one, say {CONSENT_EXAMPLE}")
        if self._rejections.counts:
            lines.append(f"rejected lines are kept in {self._rejections.path}")
        lines.append(f"log position {self._engine.position}")
        return lines

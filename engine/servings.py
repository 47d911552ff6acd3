"""What decisions have served and the log does not hold yet. Whoever calls holds the engine's lock for reading."""

from __future__ import annotations

from collections.abc import Sequence

from tailorbird.engine.facts import ServedFact, ServingsFact
from tailorbird.engine.state import SERVED_ROW_BYTES_MAX
from tailorbird.native.mentions import MentionCount
from tailorbird.native.scoring import ItemTable
from tailorbird.native.servings import ServedLog

# When, and which items.
Serving = tuple[int, tuple[int, ...]]
NOT_KNOWN = 1 << 63  # no state reaches this position
FACT_ROWS_MAX = 1_000  # so that no fact is near the largest record


class Servings:
    """Servings that wait to be written, and what must not be served again meanwhile.

    `logs` are those a decision passes over, beside what the state holds; of these, `beside` gives what the state of a position
    does not hold itself, for whoever counts. `taking` are those that what it serves is added to, none where nothing
    `is_recorded`.
    """

    def __init__(self, *, is_recorded: bool = True) -> None:
        self._is_recorded = is_recorded
        self.waiting = ServedLog()
        self.placements: dict[str, int] = {}
        self.dropped_count = 0
        self._firsts: dict[bytes, ServedFact] = {}
        self._taken_firsts: dict[bytes, ServedFact] = {}
        self._being_written: ServedLog | None = None
        self._written_from = 0  # the position of the facts that it is written with
        self._written: list[tuple[int, ServedLog]] = []  # since the oldest batch under way began
        self._batch_count = 0
        self.logs: tuple[ServedLog, ...]
        self.taking: tuple[ServedLog, ...]
        self._set_logs()

    def record(self) -> None:
        """Record what is served from now on."""
        self._is_recorded = True
        self._set_logs()

    def _set_logs(self) -> None:
        being_written = () if self._being_written is None else (self._being_written,)
        self.logs = (*(log for _, log in self._written), *being_written, self.waiting)
        self.taking = (self.waiting,) if self._is_recorded else ()

    def placement(self, name: str) -> int:
        """Return the number by which servings of a placement are added."""
        return self.placements.setdefault(name, len(self.placements))

    def add(self, fragment: bytes, at: int, placement: str, items: tuple[int, ...], is_first: bool) -> None:
        """Remember what was just served; `is_first` where nothing else may have happened to the fragment yet."""
        number = self.placement(placement)
        for log in self.taking:
            log.add(fragment, at, number, items)
        if is_first and self._is_recorded:
            self._firsts.setdefault(fragment, ServedFact(fragment, placement, at, ()))

    def exclude(self, items: ItemTable, fragment: bytes, since_s: int) -> None:
        """Keep out of a ranking what a fragment was served no longer ago than `since_s`, in seconds since 1970."""
        for log in self.logs:
            items.exclude_served(log, fragment, since_s)

    def beside(self, position: int) -> list[ServedLog]:
        """Return the logs of what the state of a position does not hold: whatever was served is in one or the other."""
        found = [log for written_from, log in self._written if position <= written_from]
        if self._being_written is not None and position <= self._written_from:
            found.append(self._being_written)
        return [*found, self.waiting]

    def count(self, counted: MentionCount, fragments: Sequence[bytes], since_s: int, position: int) -> None:
        """Count what fragments were served no longer ago than `since_s`, beside the state of a position."""
        for log in self.beside(position):
            for fragment in fragments:
                counted.add_served(log, fragment, since_s)

    def of(self, fragment: bytes, position: int) -> list[Serving]:
        """Return what a fragment was served that a decision does not find in the state of a position."""
        return [serving for log in self.beside(position) for serving in log.of(fragment)]

    def take(self, position: int = NOT_KNOWN) -> list[ServedFact | ServingsFact]:
        """Return all that waits, to be written as one group from `position` on; `written` or `give_back` follows.

        Where that is not known until it is written, whoever counts may meanwhile count what was taken twice.
        """
        self._being_written, self.waiting, self._written_from = self.waiting, ServedLog(), position
        self._taken_firsts, self._firsts = self._firsts, {}
        self._set_logs()
        rows, names = self._being_written.rows(SERVED_ROW_BYTES_MAX), tuple(self.placements)
        starts = range(0, len(rows), FACT_ROWS_MAX)
        return [
            *self._taken_firsts.values(),
            *(ServingsFact(names, rows[start : start + FACT_ROWS_MAX]) for start in starts),
        ]

    def written(self, visible_from: int = 0) -> None:
        """Forget what was taken: decisions from now on find it in the state.

        `visible_from` is the position from which the state has it, for whoever took it without knowing.
        """
        if visible_from:
            self._written_from = visible_from - 1
        assert self._being_written is not None
        if self._batch_count:
            self._written.append((self._written_from, self._being_written))
        self._being_written, self._taken_firsts = None, {}
        self._set_logs()

    def give_back(self) -> None:
        """Let what was taken wait again, before what has come since."""
        assert self._being_written is not None
        for row in self.waiting.rows(SERVED_ROW_BYTES_MAX):
            self._being_written.extend(row)
        self.waiting, self._being_written = self._being_written, None
        self._firsts = self._taken_firsts | self._firsts
        self._set_logs()

    def drop_oldest(self) -> None:
        """Forget one serving, where there is no room for more."""
        self.waiting.drop()
        self.dropped_count += 1
        if len(self._firsts) > len(self.waiting):
            del self._firsts[next(iter(self._firsts))]

    def begin_batch(self) -> None:
        """Keep what is written from now on until the batch ends: it does not see it in the state."""
        self._batch_count += 1

    def end_batch(self) -> None:
        """A batch is over."""
        self._batch_count -= 1
        if not self._batch_count:
            self._written.clear()
            self._set_logs()

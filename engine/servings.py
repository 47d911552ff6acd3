"""What decisions have served and the log does not hold yet. Whoever calls holds the engine's lock for reading."""

from __future__ import annotations

from tailorbird.engine.facts import ServedFact, ServingsFact
from tailorbird.engine.state import SERVED_ROW_BYTES_MAX
from tailorbird.native.scoring import ItemTable
from tailorbird.native.servings import ServedLog

# When, and which items.
Serving = tuple[int, tuple[int, ...]]
FACT_ROWS_MAX = 1_000  # so that no fact is near the largest record


class Servings:
    """Servings that wait to be written, and what must not be served again meanwhile.

    `logs` are those a decision passes over, beside what the state holds; `taking` those that what it serves is added to, none
    where nothing `is_recorded`.
    """

    def __init__(self, *, is_recorded: bool = True) -> None:
        self._is_recorded = is_recorded
        self.waiting = ServedLog()
        self.placements: dict[str, int] = {}
        self.dropped_count = 0
        self._firsts: dict[bytes, ServedFact] = {}
        self._taken_firsts: dict[bytes, ServedFact] = {}
        self._being_written: ServedLog | None = None
        self._since_batches = ServedLog()
        self._batch_count = 0
        self.logs: tuple[ServedLog, ...]
        self.taking: tuple[ServedLog, ...]
        self._set_logs()

    def record(self) -> None:
        """Record what is served from now on."""
        self._is_recorded = True
        self._set_logs()

    def _set_logs(self) -> None:
        found = [self._being_written, self.waiting, self._since_batches if self._batch_count else None]
        self.logs = tuple([log for log in found if log is not None])
        self.taking = ()
        if self._is_recorded:
            self.taking = (self.waiting, self._since_batches) if self._batch_count else (self.waiting,)

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

    def of(self, fragment: bytes) -> list[Serving]:
        """Return what a fragment was served that a decision may not find in the state."""
        return [serving for log in self.logs for serving in log.of(fragment)]

    def take(self) -> list[ServedFact | ServingsFact]:
        """Return all that waits, to be written; `written` or `give_back` follows."""
        self._being_written, self.waiting = self.waiting, ServedLog()
        self._taken_firsts, self._firsts = self._firsts, {}
        self._set_logs()
        rows, names = self._being_written.rows(SERVED_ROW_BYTES_MAX), tuple(self.placements)
        starts = range(0, len(rows), FACT_ROWS_MAX)
        return [
            *self._taken_firsts.values(),
            *(ServingsFact(names, rows[start : start + FACT_ROWS_MAX]) for start in starts),
        ]

    def written(self) -> None:
        """Forget what was taken: decisions from now on find it in the state."""
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
        """Keep what is served from now on until the batch ends: it does not see what is written meanwhile."""
        self._batch_count += 1
        self._set_logs()

    def end_batch(self) -> None:
        """A batch is over."""
        self._batch_count -= 1
        if not self._batch_count:
            self._since_batches = ServedLog()
            self._set_logs()

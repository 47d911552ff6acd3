"""What decisions have served and the log does not hold yet. Whoever calls holds the engine's lock for reading."""

from __future__ import annotations

from collections import defaultdict

from tailorbird.engine.facts import ServedFact

# When, and which items.
Serving = tuple[int, tuple[int, ...]]
ByFragment = dict[bytes, list[Serving]]


class Servings:
    """Servings that wait to be written, and what must not be served again meanwhile."""

    def __init__(self) -> None:
        self.waiting: list[ServedFact] = []
        self.dropped_count = 0
        self._waiting_of: ByFragment = defaultdict(list)
        self._being_written: ByFragment = {}
        self._since_batches: ByFragment = defaultdict(list)
        self._batch_count = 0

    def add(self, serving: ServedFact) -> None:
        """Remember what was just served."""
        entry = serving.at, serving.items
        self.waiting.append(serving)
        self._waiting_of[serving.key].append(entry)
        if self._batch_count:
            self._since_batches[serving.key].append(entry)

    def of(self, fragment: bytes) -> list[Serving]:
        """Return what a fragment was served that a decision may not find in the state."""
        found = self._waiting_of.get(fragment, [])
        if self._being_written or self._batch_count:
            found = found + self._being_written.get(fragment, []) + self._since_batches.get(fragment, [])
        return found

    def take(self) -> list[ServedFact]:
        """Return all that waits, to be written; `written` or `give_back` follows."""
        taken, self.waiting = self.waiting, []
        self._being_written, self._waiting_of = self._waiting_of, defaultdict(list)
        return taken

    def written(self) -> None:
        """Forget what was taken: decisions from now on find it in the state."""
        self._being_written = {}

    def give_back(self, taken: list[ServedFact]) -> None:
        """Let what was taken wait again, before what has come since."""
        newer, self.waiting = self.waiting, taken
        self._waiting_of, self._being_written = self._being_written, {}
        for serving in newer:
            self.waiting.append(serving)
            self._waiting_of[serving.key].append((serving.at, serving.items))

    def drop_oldest(self) -> None:
        """Forget one serving, where there is no room for more."""
        oldest = self.waiting.pop(0)
        del self._waiting_of[oldest.key][:1]
        self.dropped_count += 1

    def begin_batch(self) -> None:
        """Keep what is served from now on until the batch ends: it does not see what is written meanwhile."""
        self._batch_count += 1

    def end_batch(self) -> None:
        """A batch is over."""
        self._batch_count -= 1
        if not self._batch_count:
            self._since_batches.clear()

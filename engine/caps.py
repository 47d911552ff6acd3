"""Frequency caps: which items a person met so often that a placement does not offer them for now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tailorbird.native.mentions import MentionCount
from tailorbird.native.scoring import ItemTable


class ListCap(NamedTuple):
    """At most `times` mentions of an item in a list within a window, and what consent reading the list takes."""

    code: int
    times: int
    window_ms: int
    consent: int


class CapCount:
    """Counts mentions of items in the lists of one person, one decision after the other.

    Every mention within the window counts, of whichever device and whichever placement; whoever adds sees to it that none is
    added twice. `since_s` has the code of each list that counts, with the time in seconds since 1970 from which it does.
    """

    def __init__(self) -> None:
        self.since_s: dict[int, int] = {}
        self._times: dict[int, int] = {}
        self._counts: dict[int, MentionCount] = {}

    def begin(self, caps: Iterable[ListCap], permitted: int, at: int) -> None:
        """Begin to count what consent permits, for a decision at `at` (ms)."""
        self.since_s.clear()
        for cap in caps:
            if permitted & cap.consent:
                self.since_s[cap.code] = (at - cap.window_ms) // 1000
                self._times[cap.code] = cap.times
                self.of(cap.code).clear()

    def of(self, code: int) -> MentionCount:
        """Return what counts the mentions in a list."""
        found = self._counts.get(code)
        if found is None:
            found = self._counts[code] = MentionCount()
        return found

    def exclude(self, items: ItemTable) -> None:
        """Keep out of a ranking what has reached a cap."""
        for code in self.since_s:
            self._counts[code].exclude(items, self._times[code])

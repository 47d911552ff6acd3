"""Frequency caps: which items a person met so often that a placement does not offer them for now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tailorbird.native import history as native_history


class ListCap(NamedTuple):
    """At most `times` mentions of an item in a list within a window, and what consent reading the list takes."""

    code: int
    times: int
    window_ms: int
    consent: int


class MentionCount:
    """Counts the mentions of items in lists of one person, for one decision at `at` (ms).

    Every mention within the window counts, of whichever device and whichever placement; nothing may be added twice.
    """

    def __init__(self, caps: Iterable[ListCap], permitted: int, at: int) -> None:
        self._times: dict[int, int] = {}
        self.since_s: dict[int, int] = {}  # by the code of a list, in seconds since 1970
        self._found: dict[int, list[npt.NDArray[np.uint32]]] = {}
        for cap in caps:
            if permitted & cap.consent:
                self._times[cap.code] = cap.times
                self.since_s[cap.code] = (at - cap.window_ms) // 1000
                self._found[cap.code] = []

    def add_chunk(self, code: int, chunk: bytes) -> None:
        """Add the entries of a chunk of a list, where it is one that counts."""
        if code in self.since_s:
            self._found[code].append(native_history.read_chunk(chunk, self.since_s[code])[0])

    def add(self, code: int, numbers: npt.NDArray[np.uint32]) -> None:
        """Add mentions within the window of a list that counts: an item number each."""
        self._found[code].append(numbers)

    def reached(self) -> list[int]:
        """Return the numbers of the items that have reached a cap."""
        reached: list[int] = []
        for code, found in self._found.items():
            if found:
                numbers, counts = np.unique(np.concatenate(found), return_counts=True)
                reached += numbers[counts >= self._times[code]].tolist()
        return reached

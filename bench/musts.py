"""Musts: what a benchmark's results have to keep to, for `tailorbird bench NAME --check`.

A benchmark that has some names them in its module's `MUSTS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Must:
    """A result and its bounds, both included."""

    name: str
    at_least: float | None = None
    at_most: float | None = None

    def fault(self, results: Mapping[str, object]) -> str | None:
        """Return what is wrong with the results, or None. A result that is not there or no number is missed."""
        found = results.get(self.name)
        bounds = [("at least", self.at_least), ("at most", self.at_most)]
        expected = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        if isinstance(found, int | float) and (
            (self.at_least is None or found >= self.at_least) and (self.at_most is None or found <= self.at_most)
        ):
            return None
        return f"expected {self.name} of {expected}, got {found}"


def missed(results: Mapping[str, object], musts: Sequence[Must]) -> list[str]:
    """Return what is wrong with the results, one line a must."""
    return [fault for must in musts if (fault := must.fault(results)) is not None]

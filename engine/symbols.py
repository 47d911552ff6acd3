"""Symbols: the numbers that stand for texts in records and columns. XXH3, since nobody is hurt by a collision here."""

from __future__ import annotations

import xxhash

NO_SYMBOL = 0


def symbol_of(text: str) -> int:
    """Return the 64-bit symbol of a text, never `NO_SYMBOL`."""
    return xxhash.xxh3_64_intdigest(text.encode()) or 1

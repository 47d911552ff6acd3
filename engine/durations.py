"""Durations as configuration writes them: `250ms`, `90s`, `5m`, `12h`, `7d`, `20y`."""

from __future__ import annotations

import re

from tailorbird.engine.errors import ConfigurationError

UNITS_MS = {
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 7 * 86_400_000,
    "y": 365 * 86_400_000,
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w|y)")


def duration_ms(text: str, where: str) -> int:
    """Return a duration in milliseconds; a year is 365 days. Raises `ConfigurationError` naming `where`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(
            "BAD_DURATION",
            f"expected a number and a unit of {', '.join(UNITS_MS)} (such as 7d), got {text!r}, in {where}",
        )
    return round(float(match[1]) * UNITS_MS[match[2]])


def duration_text(ms: int) -> str:
    """Return a duration as it is written, in the largest unit up to days that leaves no rest."""
    unit = max((unit for unit in ("ms", "s", "m", "h", "d") if ms % UNITS_MS[unit] == 0), key=UNITS_MS.__getitem__)
    return f"{ms // UNITS_MS[unit]}{unit}"

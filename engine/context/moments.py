"""What the local time says: the part of the day, the hour, the day, the season."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from importlib import resources
from zoneinfo import ZoneInfo

DAYPART = "daypart"
_PARTS = ("night",) * 6 + ("morning",) * 6 + ("afternoon",) * 6 + ("evening",) * 6
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SEASONS = ("winter", "winter", *("spring",) * 3, *("summer",) * 3, *("autumn",) * 3, "winter")
_QUARTER_MS = 900_000
_FIRST_MS, _LAST_MS = -62_000_000_000_000, 253_000_000_000_000  # years 5 and 9987, between which calendars are sure


@lru_cache(maxsize=1)
def _southern() -> frozenset[str]:
    """Return the zones south of the equator, where the seasons are half a year apart, from the time zone database's own table."""
    table = (resources.files("tzdata") / "zoneinfo" / "zone.tab").read_text("utf-8")
    rows = (line.split("\t") for line in table.splitlines() if line and not line.startswith("#"))
    return frozenset(zone for _, place, zone, *_ in rows if place.startswith("-"))


@lru_cache(maxsize=4096)
def _local(quarter: int, zone: str) -> datetime:
    return datetime.fromtimestamp(quarter * 900, ZoneInfo(zone))


def _season(moment: datetime, zone: str) -> str:
    """Return the meteorological season, whole months, of the zone's half of the earth."""
    return _SEASONS[(moment.month - 1 + (6 if zone in _southern() else 0)) % 12]


# Name in the context -> its value at a local moment of a zone.
MOMENTS: dict[str, Callable[[datetime, str], str]] = {
    DAYPART: lambda moment, zone: _PARTS[moment.hour],
    "hour": lambda moment, zone: str(moment.hour),
    "weekday": lambda moment, zone: _DAYS[moment.weekday()],
    "weekend": lambda moment, zone: "yes" if moment.weekday() >= 5 else "no",
    "season": _season,
}


def moment_value(name: str, at: int, zone: str) -> str:
    """Return one of `MOMENTS` at `at` ms since 1970 UTC, local time of `zone`.

    Parts of the day are night (from 0), morning (6), afternoon (12) and evening (18).
    """
    return MOMENTS[name](_local(min(max(at, _FIRST_MS), _LAST_MS) // _QUARTER_MS, zone), zone)


def daypart(at: int, zone: str) -> str:
    """Return the part of the day; see `moment_value`."""
    return moment_value(DAYPART, at, zone)

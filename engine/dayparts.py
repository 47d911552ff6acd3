"""Parts of the day in the shop's zone, where the caller does not say."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

DAYPART = "daypart"
_PARTS = ("night",) * 6 + ("morning",) * 6 + ("afternoon",) * 6 + ("evening",) * 6
_HOUR_MS = 3_600_000


@lru_cache(maxsize=4096)
def _daypart_of_quarter(quarter: int, zone: str) -> str:
    return _PARTS[datetime.fromtimestamp(quarter * 900, ZoneInfo(zone)).hour]


def daypart(at: int, zone: str) -> str:
    """Return night (from 0), morning (6), afternoon (12) or evening (18) at `at` ms since 1970 UTC, local time of `zone`."""
    return _daypart_of_quarter(at // (_HOUR_MS // 4), zone)


def with_daypart(context: Mapping[str, str], at: int, zone: str) -> Mapping[str, str]:
    """Return a context that says the part of the day."""
    return context if DAYPART in context else {**context, DAYPART: daypart(at, zone)}

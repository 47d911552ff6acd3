"""Moments as people and files write them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from tailorbird.engine.errors import CallerError


def datetime_ms(moment: datetime) -> int:
    """Return milliseconds since 1970 UTC, of UTC where there is no offset."""
    return round((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp() * 1_000)


def text_ms(text: str) -> int:
    """Return milliseconds since 1970 UTC of a text of ISO 8601 (UTC without offset) or of milliseconds. Raises `ValueError`."""
    return int(text) if text.removeprefix("-").isdecimal() else datetime_ms(datetime.fromisoformat(text))


def moments_ms(values: Sequence[object], column: str) -> list[int]:
    """Return a column of times as milliseconds since 1970 UTC: of integers, timestamps, or texts as `text_ms` takes them.

    Raises `CallerError` BAD_FILE.
    """
    found = []
    for row, value in enumerate(values):
        moment: object = value
        if isinstance(value, datetime):
            moment = datetime_ms(value)
        elif isinstance(value, str):
            try:
                moment = text_ms(value)
            except ValueError:
                moment = None
        if not isinstance(moment, int) or isinstance(moment, bool):
            raise CallerError(
                "BAD_FILE",
                f"expected milliseconds since 1970, a timestamp or ISO 8601, got {value!r}, in column {column!r}, row {row}",
            )
        found.append(moment)
    return found


def moment_text(at: int) -> str:
    """Return a moment as people read it, in UTC."""
    return datetime.fromtimestamp(at / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

"""What the engine needs of a log, whichever keeps it: segment files here, or a broker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from tailorbird.engine.log_record import LogRecord


class FactLog(Protocol):
    """An ordered, durable log of one partition: one writer, any number of readers."""

    @property
    def start(self) -> int:
        """The oldest offset kept."""
        ...

    @property
    def end(self) -> int:
        """The offset the next record gets."""
        ...

    def append_group(self, append_time: int, records: Sequence[tuple[int, bytes]]) -> int:
        """Append (kind, payload) records; return the first one's offset. Durable only after `sync`."""
        ...

    def sync(self) -> None:
        """Make everything appended durable."""
        ...

    def read(self, from_offset: int, limit: int = 10_000) -> Iterator[LogRecord]:
        """Yield up to `limit` records from `from_offset` on; none at or beyond the end."""
        ...

    def rollback_to(self, offset: int) -> None:
        """Drop the records from `offset` on, none of which may have been synced."""
        ...

    def drop_before(self, offset: int) -> int:
        """Drop whole storage units that lie below `offset`; return how many."""
        ...

    def close(self) -> None:
        """Release files and connections; idempotent."""
        ...

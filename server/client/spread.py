"""Which connection the next call goes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Usable(Protocol):
    """A connection as it is chosen."""

    @property
    def in_flight(self) -> int: ...

    @property
    def is_open(self) -> bool: ...


C = TypeVar("C", bound=Usable)


def least_busy(connections: Sequence[C], count_max: int, opening_count: int) -> tuple[C | None, list[C], list[C]]:
    """Return the one with the fewest in flight, or None where another is needed; which to keep; which to close.

    Another is needed where all are busy and there are fewer than `count_max`, those counted that are being opened. One that
    takes no more calls is kept while calls run on it. With ties the longest unused comes first, for the chosen one moves to
    the end.
    """
    if len(connections) == 1 and connections[0].is_open and not connections[0].in_flight:
        return connections[0], list(connections), []
    ended = [connection for connection in connections if not (connection.is_open or connection.in_flight)]
    kept = [connection for connection in connections if connection.is_open or connection.in_flight]
    usable = [connection for connection in kept if connection.is_open]
    if not usable:
        return None, kept, ended
    found = min(usable, key=lambda connection: connection.in_flight)
    if found.in_flight and len(usable) + opening_count < count_max:
        return None, kept, ended
    kept.remove(found)
    kept.append(found)
    return found, kept, ended

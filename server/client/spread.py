"""Which connection the next call goes to."""

from __future__ import annotations

from typing import Protocol, TypeVar

from tailorbird.client.exchange import Link


class Usable(Protocol):
    """A connection as it is chosen: by what its link says."""

    link: Link


C = TypeVar("C", bound=Usable)


def least_busy(connections: list[C], count_max: int, opening_count: int) -> tuple[C | None, list[C], list[C]]:
    """Return the one with the fewest in flight, or None where another is needed; which to keep; which to close.

    Another is needed where all are busy and there are fewer than `count_max`, those counted that are being opened. One that
    takes no more calls is kept while calls run on it. With ties the longest unused comes first, for the chosen one moves to
    the end.
    """
    if len(connections) == 1 and connections[0].link.is_idle:
        return connections[0], connections, []
    ended = [connection for connection in connections if not (connection.link.is_open or connection.link.in_flight)]
    kept = [connection for connection in connections if connection.link.is_open or connection.link.in_flight]
    usable = [connection for connection in kept if connection.link.is_open]
    if not usable:
        return None, kept, ended
    found = min(usable, key=lambda connection: connection.link.in_flight)
    if found.link.in_flight and len(usable) + opening_count < count_max:
        return None, kept, ended
    kept.remove(found)
    kept.append(found)
    return found, kept, ended

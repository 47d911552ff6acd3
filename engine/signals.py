"""What callers send: signals, the outcome of each, and the report of a batch."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from tailorbird.engine.consent import ConsentChoice


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """Something a person did, is, wants or bought, as the sender reports it.

    `event_time` is milliseconds since 1970-01-01 UTC by the sender's clock. `identifiers` maps namespaces (`user_id`,
    `crm_id`, `email`, `phone`, `loyalty_card`, `device_id`, `anonymous_id`) to raw values; they are hashed at admission and
    never stored raw. `properties` holds scalars, and under `products` a list of product lines. `context` holds what was
    true around the event: `country`, `device`, `daypart`, `weather`, `referrer`, ... Repeats are refused by
    (`source`, `message_id`), or, where `source_offset` >= 0, by the highest offset seen from that source.
    """

    type: str
    event_time: int
    identifiers: dict[str, str]
    message_id: str = ""
    properties: dict[str, Any] = {}
    context: dict[str, str] = {}
    source: str = ""
    source_offset: int = -1
    consent: ConsentChoice | None = None


class Status(StrEnum):
    """What became of one signal."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    WITHHELD = "withheld"  # no basis to store it: nothing was written
    REJECTED = "rejected"


class Outcome(msgspec.Struct, frozen=True):
    """What became of one signal, why, and at which log position it stands (-1 when it was not written)."""

    status: Status
    reason: str = ""
    message: str = ""
    position: int = -1


class IngestReport(msgspec.Struct, frozen=True):
    """The outcomes of a batch in its order, and the log position from which all of it is visible."""

    outcomes: tuple[Outcome, ...]
    position: int

    def count(self, status: Status) -> int:
        """Return how many signals ended in `status`."""
        return sum(1 for outcome in self.outcomes if outcome.status is status)

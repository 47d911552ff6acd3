"""What a decision is asked with, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TypedDict

import msgspec

from tailorbird.engine.signals import Signal


class DecideRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asked about (any identifiers, or none), where (a placement), and in which context.

    `candidates` are item ids; empty means the placement's own retrievers. `at` is milliseconds since 1970 UTC, 0 the engine's
    clock. `k` of 0 is the placement's own number of items. `events` are folded into a private copy of the profile for this
    answer alone; they are not stored. `min_position` fails the request (POSITION_NOT_REACHED) when the state is older.
    """

    placement: str
    identifiers: dict[str, str] = {}
    context: dict[str, str] = {}
    candidates: Sequence[str] = ()
    at: int = 0
    k: int = 0
    events: tuple[Signal, ...] = ()
    request_id: str = ""
    min_position: int = 0


class PagePart(msgspec.Struct, frozen=True, kw_only=True):
    """One placement of a page; see `DecideRequest` for the fields."""

    placement: str
    candidates: Sequence[str] = ()
    k: int = 0


class PageRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Several placements shown to one visitor at once, in the order of their importance; see `DecideRequest` for the fields."""

    parts: tuple[PagePart, ...]
    identifiers: dict[str, str] = {}
    context: dict[str, str] = {}
    at: int = 0
    events: tuple[Signal, ...] = ()
    request_id: str = ""
    min_position: int = 0

    def requests(self) -> list[DecideRequest]:
        """Return what is asked for each placement."""
        return [
            DecideRequest(
                placement=part.placement,
                identifiers=self.identifiers,
                context=self.context,
                candidates=part.candidates,
                at=self.at,
                k=part.k,
                events=self.events,
                request_id=f"{self.request_id}/{number}" if self.request_id else "",
                min_position=self.min_position,
            )
            for number, part in enumerate(self.parts)
        ]


class DecideRequestFields(TypedDict, total=False):
    """The fields of a `DecideRequest`, for callers who name them one by one."""

    placement: str
    identifiers: dict[str, str]
    context: dict[str, str]
    candidates: Sequence[str]
    at: int
    k: int
    events: tuple[Signal, ...]
    request_id: str
    min_position: int


class Tier(StrEnum):
    """The best evidence that carried an answer, strongest first."""

    PERSON = "person"
    CONTEXT = "context"
    POPULAR = "popular"
    CATALOGUE = "catalogue"  # nothing is known yet: newest items, ties by id
    EMPTY = "empty"


class Reason(StrEnum):
    """Why an item is where it is."""

    BOUGHT_TOGETHER = "bought_together"
    AFFINITY = "affinity"
    MODEL = "model"
    POPULAR_IN_CONTEXT = "popular_in_context"
    POPULAR = "popular"
    NEW = "new"


class ReasonDetail(msgspec.Struct, frozen=True):
    """A reason with what it rests on: an item id, `attribute=value`, or the context cell."""

    reason: Reason
    detail: str = ""


class DecidedItem(msgspec.Struct, frozen=True):
    """One item of an answer: `score` is P(item | evidence) in [0, 1]; `propensity` the chance it had of this place."""

    id: str
    score: float
    propensity: float
    reasons: tuple[ReasonDetail, ...] = ()


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The placement's items best first, ties broken by item id, and what carried them.

    `completeness` is the share of the placement's features that were fresh, in [0, 1]; `masked_count` how many consent
    withheld; `profile_age_ms` the time since the person's last signal, -1 without a profile; `position` the log position the
    answer was read at; `degraded` names what was missing (`NO_PROFILE`, `EMPTY_CATALOGUE`, ...), never an error; `served_position`
    is the log position from which what was served is not served again, 0 where nobody waited for that.
    """

    decision_id: str
    placement: str
    items: tuple[DecidedItem, ...]
    tier: Tier
    completeness: float
    profile_age_ms: int
    masked_count: int
    excluded_count: int
    candidate_count: int
    unknown_candidate_count: int
    position: int
    configuration_version: int
    at: int
    person_id: str = ""
    degraded: tuple[str, ...] = ()
    served_position: int = 0

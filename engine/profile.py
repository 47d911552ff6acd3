"""A profile as people read it: the answer of `Engine.profile`."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from tailorbird.engine.consent import ConsentMasks


class FeatureStatus(IntEnum):
    """Why a feature's value is, or is not, there. The numbers are the native record's."""

    FRESH = 0
    STALE = 1
    MISSING = 2
    WARMING = 3
    DEFAULTED = 4
    MASKED = 5


class FeatureValue(msgspec.Struct, frozen=True):
    """One feature read at a time: a number, a text, or (key, weight) pairs, heaviest or newest first.

    `value` is None unless the status is fresh or defaulted. `age_ms` is the time since the value's last event, -1 when unknown.
    """

    name: str
    value: float | str | tuple[tuple[str, float], ...] | None
    age_ms: int
    status: FeatureStatus


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One person as of `at` and log `position`. `member_count` fragments (devices, logins, cards) make the person."""

    person_id: str
    member_count: int
    consent: ConsentMasks
    first_seen: int
    last_seen: int
    features: tuple[FeatureValue, ...]
    bought_count: int
    at: int
    position: int

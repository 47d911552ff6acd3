"""Profiles out."""

from __future__ import annotations

from tailorbird.engine.profile import FeatureStatus, FeatureValue, Profile
from tailorbird.server.messages.consent import standing_messages
from tailorbird.v1 import profile_service_pb2 as api

_STATUSES = {
    FeatureStatus.FRESH: api.FEATURE_STATUS_FRESH,
    FeatureStatus.STALE: api.FEATURE_STATUS_STALE,
    FeatureStatus.MISSING: api.FEATURE_STATUS_MISSING,
    FeatureStatus.WARMING: api.FEATURE_STATUS_WARMING,
    FeatureStatus.DEFAULTED: api.FEATURE_STATUS_DEFAULTED,
    FeatureStatus.MASKED: api.FEATURE_STATUS_MASKED,
}


def profile_message(profile: Profile) -> api.GetProfileResponse:
    """Return the answer about one person."""
    return api.GetProfileResponse(
        person_id=profile.person_id,
        member_count=profile.member_count,
        consent=standing_messages(profile.consent),
        first_seen_ms=profile.first_seen,
        last_seen_ms=profile.last_seen,
        features=[_feature(feature) for feature in profile.features],
        bought_count=profile.bought_count,
        at_ms=profile.at,
        position=profile.position,
    )


def _feature(feature: FeatureValue) -> api.FeatureValue:
    message = api.FeatureValue(
        name=feature.name,
        status=_STATUSES[feature.status],
        age_ms=feature.age_ms if feature.age_ms >= 0 else None,
    )
    match feature.value:
        case None:
            pass
        case str(text):
            message.text = text
        case tuple(pairs):
            message.weighted_keys.keys.extend(key for key, _ in pairs)
            message.weighted_keys.weights.extend(weight for _, weight in pairs)
            # An empty list is a value too.
            message.weighted_keys.SetInParent()
        case number:
            message.number = number
    return message

"""Requests for decisions in, decisions out."""

from __future__ import annotations

from tailorbird.engine.requests import DecidedItem, DecideRequest, Decision, Reason, Tier
from tailorbird.server.messages.pairs import context_from, identifiers_from
from tailorbird.server.messages.signals import signal_from
from tailorbird.v1 import decision_service_pb2 as api

_TIERS = {
    Tier.PERSON: api.TIER_PERSON,
    Tier.CONTEXT: api.TIER_CONTEXT,
    Tier.POPULAR: api.TIER_POPULAR,
    Tier.CATALOGUE: api.TIER_CATALOGUE,
    Tier.EMPTY: api.TIER_EMPTY,
}
_REASONS = {
    Reason.BOUGHT_TOGETHER: api.ITEM_REASON_KIND_BOUGHT_TOGETHER,
    Reason.AFFINITY: api.ITEM_REASON_KIND_AFFINITY,
    Reason.MODEL: api.ITEM_REASON_KIND_MODEL,
    Reason.POPULAR_IN_CONTEXT: api.ITEM_REASON_KIND_POPULAR_IN_CONTEXT,
    Reason.POPULAR: api.ITEM_REASON_KIND_POPULAR,
    Reason.NEW: api.ITEM_REASON_KIND_NEW,
}


def request_from(message: api.DecideRequest) -> DecideRequest:
    """Return the engine's request. Raises `CallerError` for what the message alone shows to be wrong."""
    return DecideRequest(
        placement=message.placement,
        identifiers=identifiers_from(message.identifiers),
        context=context_from(message.context),
        candidates=tuple(message.candidate_ids),
        at=message.at_ms,
        k=message.item_count,
        events=tuple(signal_from(event) for event in message.events),
        request_id=message.request_id,
        min_position=message.min_position,
    )


def decision_message(decision: Decision) -> api.DecideResponse:
    """Return the answer of a decision."""
    return api.DecideResponse(
        decision_id=decision.decision_id,
        items=[_item(item) for item in decision.items],
        tier=_TIERS[decision.tier],
        completeness=decision.completeness,
        profile_age_ms=decision.profile_age_ms if decision.profile_age_ms >= 0 else None,
        masked_count=decision.masked_count,
        excluded_count=decision.excluded_count,
        candidate_count=decision.candidate_count,
        unknown_candidate_count=decision.unknown_candidate_count,
        position=decision.position,
        configuration_version=decision.configuration_version,
        at_ms=decision.at,
        person_id=decision.person_id,
        degraded=decision.degraded,
        placement=decision.placement,
    )


def _item(item: DecidedItem) -> api.DecidedItem:
    return api.DecidedItem(
        item_id=item.id,
        score=item.score,
        propensity=item.propensity,
        reasons=[api.ItemReason(kind=_REASONS[reason.reason], detail=reason.detail) for reason in item.reasons],
    )

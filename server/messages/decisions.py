"""Requests for decisions in, decisions out."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from tailorbird.engine.errors import CallerError
from tailorbird.engine.requests import DecideRequest, PagePart, PageRequest, Reason, Tier
from tailorbird.native.wire import DecisionEncoder, decode_decide
from tailorbird.server.messages.pairs import context_from, identifiers_from
from tailorbird.server.messages.signals import read_signal, signal_from
from tailorbird.server.messages.wire import decode, split_repeated
from tailorbird.v1 import decision_service_pb2 as api

# In the order of their numbers in decision_service.proto, from 1.
TIERS = (Tier.PERSON, Tier.CONTEXT, Tier.POPULAR, Tier.CATALOGUE, Tier.EMPTY)
REASONS = (
    Reason.BOUGHT_TOGETHER,
    Reason.AFFINITY,
    Reason.MODEL,
    Reason.POPULAR_IN_CONTEXT,
    Reason.POPULAR,
    Reason.NEW,
)
_ENCODER = DecisionEncoder(REASONS, TIERS)
write_decision, write_page, write_batch = _ENCODER.encode, _ENCODER.encode_page, _ENCODER.encode_batch
REQUESTS_FIELD = api.DecideBatchRequest.REQUESTS_FIELD_NUMBER


def read_request(data: bytes, candidates_max: int) -> DecideRequest:
    """Return the engine's request. Raises `CallerError` for what the bytes alone show to be wrong."""
    found = decode_decide(data, candidates_max)
    if found is None:
        return _request_from(decode(api.DecideRequest, data), candidates_max)
    placement, identifiers, context, candidates, at, k, events, request_id, min_position = found
    try:
        signals = tuple([read_signal(event) for event in events])
    except DecodeError:
        return _request_from(decode(api.DecideRequest, data), candidates_max)
    return DecideRequest(
        placement=placement,
        identifiers=identifiers,
        context=context,
        candidates=candidates,
        at=at,
        k=k,
        events=signals,
        request_id=request_id,
        min_position=min_position,
    )


def _request_from(message: api.DecideRequest, candidates_max: int) -> DecideRequest:
    """Return the request of a message; for what `read_request` leaves to protobuf's own codec."""
    if len(message.candidate_ids) > candidates_max:
        # The engine says the same; asked here, a million ids are not made into a tuple first.
        raise CallerError(
            "TOO_MANY_CANDIDATES",
            f"expected at most limits.candidates_max = {candidates_max} candidate_ids, got "
            f"{len(message.candidate_ids)}; send fewer, or none to let the placement find its own",
        )
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


def read_batch(data: bytes, candidates_max: int) -> list[DecideRequest | CallerError]:
    """Return each request of a batch, or what is wrong with it. Raises `CallerError` BAD_MESSAGE for what is no batch."""
    found: list[DecideRequest | CallerError] = []
    elements, rest = split_repeated(data, REQUESTS_FIELD)
    decode(api.DecideBatchRequest, rest)
    for element in elements:
        try:
            found.append(read_request(element, candidates_max))
        except CallerError as error:
            found.append(error)
    return found


def read_page(data: bytes) -> PageRequest:
    """Return the engine's request. Raises `CallerError` for what the bytes alone show to be wrong."""
    message = decode(api.DecidePageRequest, data)
    return PageRequest(
        parts=tuple(
            PagePart(placement=part.placement, candidates=tuple(part.candidate_ids), k=part.item_count)
            for part in message.parts
        ),
        identifiers=identifiers_from(message.identifiers),
        context=context_from(message.context),
        at=message.at_ms,
        events=tuple(signal_from(event) for event in message.events),
        request_id=message.request_id,
        min_position=message.min_position,
    )

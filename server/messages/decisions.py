"""Requests for decisions in, decisions out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from tailorbird.engine.errors import CallerError
from tailorbird.engine.requests import DecideRequest, PagePart, PageRequest, Reason, Tier
from tailorbird.engine.signals import Signal
from tailorbird.native.wire import DecisionEncoder, decode_decide
from tailorbird.server.messages.pairs import context_from, identifiers_from
from tailorbird.server.messages.signals import SIGNALS_FIELD, read_signal, signal_from
from tailorbird.server.messages.wire import decode, join_repeated, split_repeated
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


R = TypeVar("R", DecideRequest, PageRequest)


class Asked(NamedTuple, Generic[R]):
    """A request, whether its answer waits until what it serves is written, and an encoded IngestRequest of its events with a
    message id, empty without."""

    request: R
    waits_for_served: bool
    events: bytes


def read_request(data: bytes, candidates_max: int) -> DecideRequest:
    """Return the engine's request. Raises `CallerError` for what the bytes alone show to be wrong."""
    return read_asked(data, candidates_max).request


def read_asked(data: bytes, candidates_max: int) -> Asked[DecideRequest]:
    """Return a request with what else is asked for. Raises as `read_request`."""
    found = decode_decide(data, candidates_max)
    if found is None:
        return _asked_by_protobuf(data, candidates_max)
    placement, identifiers, context, candidates, at, k, events, request_id, min_position, served = found
    try:
        signals = tuple([read_signal(event) for event in events])
    except DecodeError:
        return _asked_by_protobuf(data, candidates_max)
    request = DecideRequest(
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
    return Asked(request, _waits_for_served(served), _to_write(events, signals))


def _asked_by_protobuf(data: bytes, candidates_max: int) -> Asked[DecideRequest]:
    message = decode(api.DecideRequest, data)
    request = _request_from(message, candidates_max)
    return Asked(
        request, _waits_for_served(message.served_acknowledgement), _to_write(_encoded(message.events), request.events)
    )


def _waits_for_served(acknowledgement: int) -> bool:
    """Tell what is asked for. Raises `CallerError` BAD_SERVED_ACKNOWLEDGEMENT for what there is not."""
    if acknowledgement not in api.ServedAcknowledgement.values():
        raise CallerError(
            "BAD_SERVED_ACKNOWLEDGEMENT",
            f"expected one of {', '.join(api.ServedAcknowledgement.keys())}, got {acknowledgement} in served_acknowledgement",
        )
    return acknowledgement == api.SERVED_ACKNOWLEDGEMENT_WRITTEN


def _encoded(events: Iterable[Message]) -> list[bytes]:
    return [event.SerializeToString() for event in events]


def _to_write(encoded: Sequence[bytes], signals: Sequence[Signal]) -> bytes:
    """Return the events with a message id as an IngestRequest; of others it could not be told whether they came before."""
    return join_repeated(
        [event for event, signal in zip(encoded, signals, strict=True) if signal.message_id], SIGNALS_FIELD
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


def read_batch(data: bytes, candidates_max: int) -> list[Asked[DecideRequest] | CallerError]:
    """Return each request of a batch, or what is wrong with it. Raises `CallerError` BAD_MESSAGE for what is no batch."""
    found: list[Asked[DecideRequest] | CallerError] = []
    elements, rest = split_repeated(data, REQUESTS_FIELD)
    decode(api.DecideBatchRequest, rest)
    for element in elements:
        try:
            found.append(read_asked(element, candidates_max))
        except CallerError as error:
            found.append(error)
    return found


def read_page(data: bytes) -> Asked[PageRequest]:
    """Return the engine's request with what else is asked for. Raises `CallerError` for what the bytes alone show to be wrong."""
    message = decode(api.DecidePageRequest, data)
    request = PageRequest(
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
    return Asked(
        request, _waits_for_served(message.served_acknowledgement), _to_write(_encoded(message.events), request.events)
    )

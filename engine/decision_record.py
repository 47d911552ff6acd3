"""The record of a decision: a header of 32 bytes and a msgpack array, little-endian.

    header checksum   u32   low 32 bits of XXH64 over the rest of the header, seeded with the segment's salt
    length            u32   of the payload, at most `PAYLOAD_BYTES_MAX`
    payload checksum  u64   XXH64 of the payload, seeded with the segment's salt
    at                i64   the moment decided at, ms since 1970 UTC
    position          i64   the log position the answer was read at

The header says nothing about a person and outlives an erasure, which leaves a payload of zeros: whoever reads a segment finds
the next record behind it. Identifiers stand as the fact log has them, (namespace, keyed hash).
"""

from __future__ import annotations

from struct import Struct
from typing import Any, NamedTuple

import msgspec

from tailorbird.engine.consent import ConsentChoice
from tailorbird.engine.decision_id import Place
from tailorbird.engine.errors import Damaged
from tailorbird.engine.evidence import UsedOrder
from tailorbird.engine.requests import DecidedItem, Decision, Reason, ReasonDetail, Tier
from tailorbird.native.decision_record import RecordPacker
from tailorbird.native.hashing import xxh64

HEADER_BYTES = 32
PAYLOAD_BYTES_MAX = 16 << 20
_HEADER = Struct("<IIQqq")
_LOW_32 = 0xFFFFFFFF


class LoggedEvent(msgspec.Struct, frozen=True, array_like=True):
    """An event of the request, without its identifiers."""

    type: str
    event_time: int
    properties: dict[str, Any]
    context: dict[str, str]
    consent: ConsentChoice | None


class LoggedItem(msgspec.Struct, frozen=True, array_like=True):
    """One item of the answer."""

    id: str
    score: float
    propensity: float
    reasons: tuple[tuple[Reason, str], ...]


class LoggedDecision(msgspec.Struct, frozen=True, array_like=True):
    """What was asked, what was used and what was answered. Fields are only ever appended, with a default.

    `identifiers` are (namespace, key, ""), or (namespace, b"", reason) for one that nobody can be known by; a stranger's key is
    zeros. `withheld` says that consent let nothing of the person be kept. `candidates` is what the caller gave where the
    decision was sampled. `refused` are the item numbers earlier placements of the page had, `served` those of servings that
    the state did not hold yet, by time. `vector` is float32 as used, `recent` the item numbers (u32) of whatever spoke.
    """

    name: bytes
    placement: str
    identifiers: tuple[tuple[str, bytes, str], ...]
    withheld: bool
    context: dict[str, str]
    k: int
    events: tuple[LoggedEvent, ...]
    given_count: int
    candidates: tuple[str, ...]
    refused: tuple[int, ...]
    served: tuple[tuple[int, tuple[int, ...]], ...]
    used_orders: tuple[UsedOrder, ...]
    model: str
    vector: bytes
    recent: bytes
    seed: int
    items: tuple[LoggedItem, ...]
    tier: Tier
    completeness: float
    profile_age_ms: int
    masked_count: int
    excluded_count: int
    candidate_count: int
    unknown_candidate_count: int
    configuration_version: int
    person_id: str
    degraded: tuple[str, ...]


class Stored(NamedTuple):
    """A record as it stands in a segment, up to byte `end`; `payload` is empty where it was erased, None where it is damaged."""

    place: Place
    end: int
    at: int
    position: int
    payload: bytes | None

    def logged(self) -> LoggedDecision | None:
        """Return what it says, None where it was erased. Raises `Damaged` DAMAGED_DECISION."""
        if self.payload is None:
            raise damaged(self.place, "its checksum does not fit")
        if not self.payload:
            return None
        try:
            return _DECODER.decode(self.payload)
        except msgspec.DecodeError as error:
            raise damaged(self.place, str(error)) from error

    def decision(self, decision_id: str, logged: LoggedDecision) -> Decision:
        """Return the answer that was given."""
        return Decision(
            decision_id=decision_id,
            placement=logged.placement,
            items=tuple(_item(item) for item in logged.items),
            tier=logged.tier,
            completeness=logged.completeness,
            profile_age_ms=logged.profile_age_ms,
            masked_count=logged.masked_count,
            excluded_count=logged.excluded_count,
            candidate_count=logged.candidate_count,
            unknown_candidate_count=logged.unknown_candidate_count,
            position=self.position,
            configuration_version=logged.configuration_version,
            at=self.at,
            person_id=logged.person_id,
            degraded=logged.degraded,
        )


_DECODER = msgspec.msgpack.Decoder(LoggedDecision)


def _item(item: LoggedItem) -> DecidedItem:
    reasons = tuple(ReasonDetail(reason, detail) for reason, detail in item.reasons)
    return DecidedItem(item.id, item.score, item.propensity, reasons)


def new_packer() -> RecordPacker:
    """Return what packs the fields of a `LoggedDecision` in their order, items and reasons as an answer has them."""
    return RecordPacker(DecidedItem, ReasonDetail)


def unpack(salt: int, data: bytes | memoryview, place: Place) -> Stored | None:
    """Return the record at a place, None where there is none; `data` begins at its `offset`."""
    if len(data) < HEADER_BYTES:
        return None
    checksum, length, payload_checksum, at, position = _HEADER.unpack_from(data)
    if checksum != xxh64(data[4:HEADER_BYTES], salt) & _LOW_32:
        return None
    end = HEADER_BYTES + length
    if length > PAYLOAD_BYTES_MAX or len(data) < end:
        return None
    payload: bytes | None = bytes(data[HEADER_BYTES:end])
    assert payload is not None
    if xxh64(payload, salt) != payload_checksum:
        payload = None if any(payload) else b""
    return Stored(place, place.offset + end, at, position, payload)


def damaged(place: Place, detail: str) -> Damaged:
    """Return the error for bytes that are no decision."""
    return Damaged(
        "DAMAGED_DECISION",
        f"expected a decision at byte {place.offset} of segment {place.segment} of process {place.process}, got: {detail}",
    )

"""Consent: entries with enums on the wire, 64-bit masks in the engine."""

from __future__ import annotations

from tailorbird.engine.consent import (
    USUAL_PURPOSES,
    Basis,
    ConsentChoice,
    ConsentMasks,
    DataType,
    Purpose,
    bit,
    mask_of,
)
from tailorbird.engine.errors import CallerError
from tailorbird.v1 import consent_pb2

# By name, because the wire's numbers leave 0 to "not given" and the engine's bits do not.
_WIRE_TYPES = {data_type: getattr(consent_pb2, f"DATA_TYPE_{data_type.name}") for data_type in DataType}
_WIRE_PURPOSES = {purpose: getattr(consent_pb2, f"PURPOSE_{purpose.name}") for purpose in Purpose}
_DATA_TYPES = {number: data_type for data_type, number in _WIRE_TYPES.items()}
_PURPOSES = {number: purpose for purpose, number in _WIRE_PURPOSES.items()}
_BASES: dict[int, Basis] = {
    consent_pb2.CONSENT_BASIS_UNSPECIFIED: Basis.EXPLICIT,
    consent_pb2.CONSENT_BASIS_EXPLICIT: Basis.EXPLICIT,
    consent_pb2.CONSENT_BASIS_IMPLIED: Basis.IMPLIED,
    consent_pb2.CONSENT_BASIS_CONTRACT: Basis.CONTRACT,
    consent_pb2.CONSENT_BASIS_LEGITIMATE_INTEREST: Basis.LEGITIMATE_INTEREST,
    consent_pb2.CONSENT_BASIS_LEGAL: Basis.LEGAL,
}
_STATES = {
    consent_pb2.CONSENT_STATE_GRANTED: "granted",
    consent_pb2.CONSENT_STATE_DENIED: "denied",
    consent_pb2.CONSENT_STATE_RESTRICTED: "restricted",
}


def choice_from(message: consent_pb2.ConsentChoice) -> ConsentChoice:
    """Return the choice as masks. Raises `CallerError` BAD_CONSENT for what is not given or not known."""
    masks = {"granted": 0, "denied": 0, "restricted": 0}
    if not message.entries:
        raise CallerError(
            "BAD_CONSENT", "expected at least one entry, got none in consent.entries; leave consent out instead"
        )
    for index, entry in enumerate(message.entries):
        state = _STATES.get(entry.state)
        if state is None:
            raise _unknown(entry.state, "state", index)
        usual = USUAL_PURPOSES if state == "granted" else tuple(Purpose)
        purposes = tuple(_purpose(number, index) for number in entry.purposes) or usual
        masks[state] |= mask_of((_data_type(entry.data_type, index),), purposes)
    basis = _BASES.get(message.basis)
    if basis is None:
        raise CallerError("BAD_CONSENT", f"expected a basis the API knows, got number {message.basis} in consent.basis")
    return ConsentChoice(
        granted=masks["granted"],
        denied=masks["denied"],
        restricted=masks["restricted"],
        basis=basis,
        notice=message.notice,
    )


def choice_message(choice: ConsentChoice) -> consent_pb2.ConsentChoice:
    """Return a choice on the wire, every purpose named."""
    message = consent_pb2.ConsentChoice(basis=f"CONSENT_BASIS_{choice.basis.name}", notice=choice.notice)
    for state, name in _STATES.items():
        for data_type in DataType:
            purposes = _purposes(getattr(choice, name), data_type)
            if purposes:
                message.entries.add(data_type=_WIRE_TYPES[data_type], state=state, purposes=purposes)
    return message


def standing_messages(masks: ConsentMasks) -> list[consent_pb2.ConsentStanding]:
    """Return what is in force, one message per data type anything was chosen for."""
    standing = []
    for data_type in DataType:
        message = consent_pb2.ConsentStanding(
            data_type=_WIRE_TYPES[data_type],
            granted_purposes=_purposes(masks.granted, data_type),
            explicit_purposes=_purposes(masks.explicit, data_type),
            denied_purposes=_purposes(masks.denied, data_type),
            restricted_purposes=_purposes(masks.restricted, data_type),
        )
        if message.granted_purposes or message.denied_purposes or message.restricted_purposes:
            standing.append(message)
    return standing


def _purposes(mask: int, data_type: DataType) -> list[consent_pb2.Purpose]:
    return [number for purpose, number in _WIRE_PURPOSES.items() if mask & bit(data_type, purpose)]


def _data_type(number: int, index: int) -> DataType:
    if number not in _DATA_TYPES:
        raise _unknown(number, "data_type", index)
    return _DATA_TYPES[number]


def _purpose(number: int, index: int) -> Purpose:
    if number not in _PURPOSES:
        raise _unknown(number, "purposes", index)
    return _PURPOSES[number]


def _unknown(number: int, field: str, index: int) -> CallerError:
    got = "none" if number == 0 else f"number {number}"
    return CallerError(
        "BAD_CONSENT", f"expected a {field} the API knows, got {got} in consent.entries[{index}].{field}"
    )

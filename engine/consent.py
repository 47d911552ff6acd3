"""Consent as arithmetic: one 64-bit mask of 8 data types x 8 purposes, and what a person's masks permit.

Bit `8 * data_type + purpose` stands for one purpose of one data type. A person holds `granted`, `denied`, `restricted` and
`explicit` masks; a bit in neither `granted` nor `denied` is unknown and falls to the jurisdiction: opt-in denies it, opt-out
grants it. `explicit` marks the granted bits whose basis is the person's own explicit choice.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

import msgspec

from tailorbird.engine.errors import CallerError

ALL_BITS = (1 << 64) - 1


class DataType(IntEnum):
    """What a datum is about. The first five are also the signal categories."""

    BEHAVIOURAL = 0
    CONTEXTUAL = 1
    TRANSACTIONAL = 2
    PREFERENCE = 3
    DEMOGRAPHIC = 4
    DEVICE = 5
    LOCATION = 6
    SENSITIVE = 7


class Purpose(IntEnum):
    """What a datum is used for."""

    COLLECT = 0
    PROFILE = 1
    PERSONALISE = 2
    MEASURE = 3
    LINK = 4
    TRAIN = 5
    SHARE = 6
    MESSAGE = 7


class Basis(StrEnum):
    """The ground a permission rests on."""

    EXPLICIT = "explicit"
    IMPLIED = "implied"
    CONTRACT = "contract"
    LEGITIMATE_INTEREST = "legitimate_interest"
    LEGAL = "legal"


class Jurisdiction(StrEnum):
    """What an unknown bit means: nothing without a basis, or anything until it is refused."""

    OPT_IN = "opt_in"
    OPT_OUT = "opt_out"


# What "granted: behavioural" means when no purposes are named: everything done for the person on this site, and neither
# sharing with others nor messages.
USUAL_PURPOSES = (Purpose.COLLECT, Purpose.PROFILE, Purpose.PERSONALISE, Purpose.MEASURE, Purpose.LINK, Purpose.TRAIN)


def bit(data_type: DataType, purpose: Purpose) -> int:
    """Return the mask with the single bit of one purpose of one data type."""
    return 1 << (8 * data_type + purpose)


def mask_of(data_types: tuple[DataType, ...], purposes: tuple[Purpose, ...] = USUAL_PURPOSES) -> int:
    """Return the mask of every named purpose of every named data type."""
    mask = 0
    for data_type in data_types:
        for purpose in purposes:
            mask |= bit(data_type, purpose)
    return mask


class ConsentChoice(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A choice of one person: the masks it grants and denies, and the basis it rests on.

    A bit granted by a later choice leaves `denied`, and the reverse; what is stored under `restricted` bits stays unused,
    whatever is chosen later, until a choice names them in `lifted`.
    """

    granted: int = 0
    denied: int = 0
    restricted: int = 0
    basis: Basis = Basis.EXPLICIT
    notice: str = ""
    lifted: int = 0


def permitted(granted: int, denied: int, restricted: int, jurisdiction: Jurisdiction) -> int:
    """Return the bits that three standing masks allow to be used."""
    if jurisdiction is Jurisdiction.OPT_OUT:
        granted = ALL_BITS
    return granted & ~denied & ~restricted & ALL_BITS


class ConsentMasks(msgspec.Struct, frozen=True, array_like=True):
    """The standing masks of a fragment or a person."""

    granted: int = 0
    denied: int = 0
    restricted: int = 0
    explicit: int = 0

    def after(self, choice: ConsentChoice) -> ConsentMasks:
        """Return the masks once `choice` is in force; where it grants and denies one bit, the denial holds."""
        granted = (self.granted | choice.granted) & ~choice.denied
        denied = (self.denied & ~choice.granted) | choice.denied
        explicit = (self.explicit & ~choice.granted) & granted
        if choice.basis is Basis.EXPLICIT:
            explicit |= choice.granted & granted
        restricted = (self.restricted & ~choice.lifted) | choice.restricted
        return ConsentMasks(granted, denied, restricted, explicit)

    def permits(self, jurisdiction: Jurisdiction) -> int:
        """Return the bits that may be used."""
        return permitted(self.granted, self.denied, self.restricted, jurisdiction)

    def stricter(self, other: ConsentMasks) -> ConsentMasks:
        """Return the masks of a person who is both: a bit either side denies is denied."""
        denied = self.denied | other.denied
        granted = (self.granted | other.granted) & ~denied
        return ConsentMasks(
            granted, denied, self.restricted | other.restricted, (self.explicit | other.explicit) & granted
        )


def parse_choice(text: str, basis: str = Basis.EXPLICIT) -> ConsentChoice:
    """Return the choice written as `granted:behavioural,transactional/collect+profile;denied:location`.

    A data type without purposes stands for `USUAL_PURPOSES` when granted and for every purpose when denied, restricted or
    lifted (a restriction taken back); `all` names every data type. Raises `CallerError` BAD_CONSENT naming the word that is not known.
    """
    masks = {"granted": 0, "denied": 0, "restricted": 0, "lifted": 0}
    for clause in filter(None, text.split(";")):
        verb, colon, targets = clause.strip().partition(":")
        if verb not in masks or not colon:
            raise CallerError(
                "BAD_CONSENT",
                f"expected granted:, denied:, restricted: or lifted: followed by data types, got {clause!r}",
            )
        for target in targets.split(","):
            masks[verb] |= _target_mask(target.strip(), USUAL_PURPOSES if verb == "granted" else tuple(Purpose))
    try:
        ground = Basis(basis)
    except ValueError:
        raise CallerError("BAD_CONSENT", f"expected a basis of {', '.join(Basis)}, got {basis!r}") from None
    return ConsentChoice(
        granted=masks["granted"],
        denied=masks["denied"],
        restricted=masks["restricted"],
        lifted=masks["lifted"],
        basis=ground,
    )


def _target_mask(target: str, default_purposes: tuple[Purpose, ...]) -> int:
    type_name, _, purpose_names = target.partition("/")
    if type_name == "all":
        data_types = tuple(DataType)
    elif type_name.upper() in DataType.__members__:
        data_types = (DataType[type_name.upper()],)
    else:
        known = ", ".join(t.name.lower() for t in DataType)
        raise CallerError("BAD_CONSENT", f"expected a data type of all, {known}; got {type_name!r} in {target!r}")
    if not purpose_names:
        return mask_of(data_types, default_purposes)
    purposes = []
    for name in purpose_names.split("+"):
        if name.upper() not in Purpose.__members__:
            known = ", ".join(p.name.lower() for p in Purpose)
            raise CallerError("BAD_CONSENT", f"expected a purpose of {known}; got {name!r} in {target!r}")
        purposes.append(Purpose[name.upper()])
    return mask_of(data_types, tuple(purposes))

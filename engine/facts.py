"""Facts: the entries of the log. Everything that changes state is one of these; the applier reads nothing else.

A fact is stored as msgpack of an array-like struct, its kind in the record header. Fields are only ever appended, with a
default, so that every older log stays readable. Identifiers appear as (namespace, keyed hash): raw values are not written.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import msgspec

from tailorbird.engine.consent import ConsentChoice
from tailorbird.engine.items import Item


class FactKind(IntEnum):
    """The record kinds of the log; numbers are never reused."""

    CONFIGURATION = 1
    SIGNAL = 2
    CONSENT = 3
    LINK = 4
    SPLIT = 5
    ITEMS_PUT = 6
    ITEMS_DELETED = 7
    SERVED = 8
    TICK = 9
    MODEL = 10
    BACKFILL = 16
    WARMED = 17
    SERVINGS = 18


class Anchor(msgspec.Struct, frozen=True, array_like=True):
    """An identifier as facts carry it: its namespace and its 16-byte keyed hash, which is also its fragment's id."""

    namespace: str
    key: bytes


class _Fact(msgspec.Struct, frozen=True, array_like=True):
    pass


class ConfigurationFact(_Fact, frozen=True):
    """A configuration comes into force; `text` is the whole file."""

    version: int
    text: str


class SignalFact(_Fact, frozen=True):
    """An admitted signal. `anchors` best first; its state goes to the first one's fragment.

    `mask` is what consent permitted at admission; what it did not permit is not in the fact. `message_key` is empty for
    sources with offsets of their own.
    """

    type: str
    event_time: int
    anchors: tuple[Anchor, ...]
    mask: int
    properties: dict[str, Any]
    context: dict[str, str]
    message_key: bytes = b""
    source: str = ""
    source_offset: int = -1


class ConsentFact(_Fact, frozen=True):
    """A person's choice, made on the fragment of `anchor`."""

    anchor: Anchor
    choice: ConsentChoice
    effective_time: int


class LinkFact(_Fact, frozen=True):
    """Two identifiers belong to one person (`kind` ALIAS, IMPORT or MANUAL; logins come with signals)."""

    kind: str
    one: Anchor
    other: Anchor
    event_time: int
    reason: str = ""


class SplitFact(_Fact, frozen=True):
    """Links of `one` (to `other`, or to every neighbour when None) are revoked and may not come back by themselves."""

    one: Anchor
    other: Anchor | None
    event_time: int
    reason: str = ""


class ItemsPutFact(_Fact, frozen=True):
    """Items are added or replaced whole."""

    items: tuple[Item, ...]


class ItemsDeletedFact(_Fact, frozen=True):
    """Items leave the catalogue; their numbers are never reused."""

    ids: tuple[str, ...]


class ServedFact(_Fact, frozen=True):
    """Items were served to the person of `key` at `at` (ms) in a placement, of whom nothing else may be known yet."""

    key: bytes
    placement: str
    at: int
    items: tuple[int, ...]


class ServingsFact(_Fact, frozen=True):
    """Items were served to people whose fragments hold state, in the order of time.

    `rows` are packed servings, see native/servings.pyx; the number of a placement is its place in `placements`.
    """

    placements: tuple[str, ...]
    rows: tuple[bytes, ...]


class TickFact(_Fact, frozen=True):
    """Statistics gathered so far are published to deciders, as of `event_time`, the newest seen."""

    event_time: int


class ModelFact(_Fact, frozen=True):
    """A model file built at log position `built_at` comes into force; `checksum` is xxh3-64 of the file."""

    role: str
    file: str
    built_at: int
    checksum: int


class BackfillFact(_Fact, frozen=True):
    """What the whole history of some fragments adds up to in features that were declared late.

    `records` are (fragment, packed record of the features alone, in the order of `names`); `texts` what their symbols
    stand for.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    records: tuple[tuple[bytes, bytes], ...]


class WarmedFact(_Fact, frozen=True):
    """The backfill of features is done: from now on they speak."""

    names: tuple[str, ...]


Fact = (
    ConfigurationFact
    | SignalFact
    | ConsentFact
    | LinkFact
    | SplitFact
    | ItemsPutFact
    | ItemsDeletedFact
    | ServedFact
    | TickFact
    | ModelFact
    | BackfillFact
    | WarmedFact
    | ServingsFact
)

_TYPES: dict[FactKind, type[_Fact]] = {
    FactKind.CONFIGURATION: ConfigurationFact,
    FactKind.SIGNAL: SignalFact,
    FactKind.CONSENT: ConsentFact,
    FactKind.LINK: LinkFact,
    FactKind.SPLIT: SplitFact,
    FactKind.ITEMS_PUT: ItemsPutFact,
    FactKind.ITEMS_DELETED: ItemsDeletedFact,
    FactKind.SERVED: ServedFact,
    FactKind.TICK: TickFact,
    FactKind.MODEL: ModelFact,
    FactKind.BACKFILL: BackfillFact,
    FactKind.WARMED: WarmedFact,
    FactKind.SERVINGS: ServingsFact,
}
KINDS: dict[type[_Fact], FactKind] = {cls: kind for kind, cls in _TYPES.items()}
_DECODERS = {int(kind): msgspec.msgpack.Decoder(cls) for kind, cls in _TYPES.items()}
_ENCODER = msgspec.msgpack.Encoder()


def encode_fact(fact: _Fact) -> tuple[int, bytes]:
    """Return the record kind and payload of a fact."""
    return int(KINDS[type(fact)]), _ENCODER.encode(fact)


def decode_fact(kind: int, payload: bytes | memoryview) -> Any:
    """Return the fact of a record. Raises `KeyError` for a kind this version does not know, `msgspec.DecodeError` for bytes that are none."""
    return _DECODERS[kind].decode(payload)

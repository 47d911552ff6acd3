"""Decision ids: 24 signed bytes as 32 characters of base64url, which say where the decision stands in the decision log.

    kind       u8    PLACED, NAMED or LOOSE
    body       13 B  PLACED: partition u8, process u16, segment u32, offset u32, zeros; NAMED: the keyed hash of the caller's
                     request id, so that a retry has the same one; LOOSE: time and count, of a decision that is not logged
    signature  10 B  keyed BLAKE2b of the 14 bytes before, under the directory's key

A signature is compared in constant time. Whoever changes a character gets BAD_DECISION_ID, never another decision.
"""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64decode
from binascii import Error as Base64Error
from enum import IntEnum
from hmac import compare_digest
from struct import Struct
from typing import NamedTuple

from tailorbird.engine.errors import CallerError
from tailorbird.engine.identifiers import IdentifierHasher
from tailorbird.native.signed_ids import CountedIds

DECISION_ID = "decision_id"  # the property of a signal that is an outcome of a decision
ID_CHARACTERS = 32
NAME_BYTES = 13
_BODY_BYTES = 1 + NAME_BYTES
_PLACED = Struct("<BBHII2x")


class IdKind(IntEnum):
    """What an id says; numbers are never reused."""

    PLACED = 1
    NAMED = 2
    LOOSE = 3


_PLACED_KIND = int(IdKind.PLACED)  # an enumeration's attributes are slow


class Place(NamedTuple):
    """Where a decision stands: in a process's segment, at a byte."""

    partition: int
    process: int
    segment: int
    offset: int


class DecisionIds:
    """Makes and reads the decision ids of one data directory."""

    def __init__(self, hasher: IdentifierHasher) -> None:
        self._sign = hasher.decision_signature
        self._signed = hasher.decision_signer.text
        self._message_key = hasher.message_key
        self.loose_ids = CountedIds(hasher.decision_signer, IdKind.LOOSE, secrets.randbits(32))

    def placed(self, place: Place) -> str:
        """Return the id of the decision at a place."""
        return self._signed(_PLACED.pack(_PLACED_KIND, *place))

    def name(self, request_id: str) -> bytes:
        """Return what the caller's request id is called in the log. Raises `IdentifierError` INVALID_VALUE."""
        return self._message_key("decision", request_id)[:NAME_BYTES]

    def named(self, name: bytes) -> str:
        """Return the id of every decision on a request of this name."""
        return self._signed(bytes([IdKind.NAMED]) + name)

    def loose(self, at: int) -> str:
        """Return a new id of a decision that stands nowhere."""
        return self.loose_ids.next(at)

    def read(self, text: str) -> Place | bytes | None:
        """Return the place, the name, or None for what is not logged. Raises `CallerError` BAD_DECISION_ID."""
        if len(text) != ID_CHARACTERS or not text.isascii():
            raise _bad(f"expected a decision id of {ID_CHARACTERS} characters, got {len(text)}")
        try:
            packed = urlsafe_b64decode(text)
        except (Base64Error, ValueError):
            raise _bad("expected a decision id of letters, digits, - and _, got others") from None
        body, signature = packed[:_BODY_BYTES], packed[_BODY_BYTES:]
        # Decoding skips characters that are none of base64: then the bytes are too few.
        if len(packed) != ID_CHARACTERS * 3 // 4 or not compare_digest(self._sign(body), signature):
            raise _bad("expected a decision id that this data directory signed, got one that it did not")
        if body[0] == IdKind.PLACED:
            return Place(*_PLACED.unpack(body)[1:])
        return body[1:] if body[0] == IdKind.NAMED else None


def _bad(message: str) -> CallerError:
    return CallerError("BAD_DECISION_ID", f"{message}; send it as the answer had it")

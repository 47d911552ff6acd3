"""The packer of decision records against msgpack's own encoder."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.native.decision_record import RecordPacker
from tailorbird.native.hashing import xxh64

HEADER_BYTES = 32


@dataclass(slots=True)
class Named:
    reason: str
    detail: str


@dataclass(slots=True)
class Item:
    id: str
    score: float
    propensity: float
    reasons: tuple[Named, ...]


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=300),
    st.binary(max_size=300),
)
FIELDS = st.recursive(
    SCALARS,
    lambda each: st.one_of(
        st.lists(each, max_size=20), st.lists(each, max_size=20).map(tuple), st.dictionaries(st.text(max_size=9), each)
    ),
    max_leaves=30,
)
PACK = RecordPacker(Item, Named).pack
I64 = st.integers(-(2**63), 2**63 - 1)


@given(st.integers(0, 2**64 - 1), I64, I64, st.tuples(FIELDS, FIELDS))
def test_a_record_is_a_header_and_what_msgpack_says(
    salt: int, at: int, position: int, fields: tuple[object, ...]
) -> None:
    payload = msgspec.msgpack.encode(fields)
    rest = len(payload).to_bytes(4, "little") + xxh64(payload, salt).to_bytes(8, "little")
    rest += at.to_bytes(8, "little", signed=True) + position.to_bytes(8, "little", signed=True)
    assert PACK(salt, at, position, fields) == xxh64(rest, salt).to_bytes(8, "little")[:4] + rest + payload


@pytest.mark.parametrize("length", [0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536])
def test_every_length_is_packed_as_msgpack_says(length: int) -> None:
    fields = "x" * length, bytes(length), [None] * length, dict.fromkeys(map(str, range(length)))
    assert PACK(1, 0, 0, fields)[HEADER_BYTES:] == msgspec.msgpack.encode(fields)


def test_items_are_packed_as_the_fields_they_have() -> None:
    item = Item("mug", 0.25, 1.0, (Named("affinity", "category=cups"), Named("new", "")))
    expected = [["mug", 0.25, 1.0, [["affinity", "category=cups"], ["new", ""]]]]
    assert PACK(1, 0, 0, ((item,),))[HEADER_BYTES:] == msgspec.msgpack.encode((expected,))


def test_what_no_record_can_hold_is_refused() -> None:
    nested: list[object] = []
    for _ in range(40):
        nested = [nested]
    for value, error in (
        ({1, 2}, TypeError),
        (2**64, OverflowError),
        (nested, ValueError),
        ("\ud800", UnicodeEncodeError),
    ):
        with pytest.raises(error):
            PACK(1, 0, 0, (value,))
    assert PACK(1, 0, 0, (7,))[HEADER_BYTES:] == b"\x91\x07"

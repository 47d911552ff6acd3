"""The log of servings against a plain list of them: the same order, the same fragments, the same rows."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.native.servings import SERVING_BYTES, ServedLog, entries_by_fragment

FRAGMENTS = [bytes([n]) * 16 for n in range(5)] + [b"\0" * 8 + bytes([n]) * 8 for n in range(3)]
NUMBERS = st.integers(0, 2**32 - 1)
SERVING = st.tuples(
    st.sampled_from(FRAGMENTS), st.integers(0, 2**52), st.integers(0, 9), st.lists(NUMBERS, max_size=40).map(tuple)
)
# A serving is added, or the oldest is dropped.
STEPS = st.lists(st.one_of(SERVING, SERVING, st.none()), max_size=300)
Serving = tuple[bytes, int, int, tuple[int, ...]]


def packed(serving: Serving) -> bytes:
    fragment, at, placement, items = serving
    return struct.pack("<16sqII", fragment, at, placement, len(items)) + struct.pack(f"<{len(items)}I", *items)


@given(STEPS)
def test_a_log_has_what_a_list_has(steps: list[Serving | None]) -> None:
    log, kept = ServedLog(), list[Serving]()
    for step in steps:
        if step is not None:
            log.add(*step)
            kept.append(step)
        elif kept:
            log.drop()
            kept.pop(0)
    assert len(log) == len(kept)
    for fragment in FRAGMENTS:
        assert log.of(fragment) == [(at, items) for key, at, _, items in kept if key == fragment]
    assert b"".join(log.rows(100)) == b"".join(map(packed, kept))


@given(st.lists(SERVING, max_size=60), st.integers(0, 600))
def test_rows_are_as_long_as_they_may_be_and_read_back_the_same(servings: list[Serving], bytes_max: int) -> None:
    log, again = ServedLog(), ServedLog()
    for serving in servings:
        log.add(*serving)
    rows = log.rows(bytes_max)
    for number, row in enumerate(rows):
        items = struct.unpack_from("<I", row, SERVING_BYTES - 4)[0]
        assert len(row) <= bytes_max or len(row) == SERVING_BYTES + 4 * items
        if number:  # The first serving of a row did not fit into the one before it.
            assert len(rows[number - 1]) + SERVING_BYTES + 4 * items > bytes_max
        again.extend(b"head" + row, 4)
    assert again.rows(bytes_max) == rows


@given(st.lists(SERVING, max_size=40))
def test_list_entries_keep_the_order_of_the_servings(servings: list[Serving]) -> None:
    expected: dict[bytes, bytes] = {}
    found: dict[bytes, bytearray] = {}
    for serving in servings:
        fragment, at, _, items = serving
        entries = b"".join(struct.pack("<II", item, min(at // 1000, 2**32 - 1)) for item in items)
        expected[fragment] = expected.get(fragment, b"") + entries
        entries_by_fragment(packed(serving), found)
    assert found == expected


def test_what_is_before_a_place_is_dropped_and_memory_used_again() -> None:
    log = ServedLog()
    for n in range(10_000):
        log.add(FRAGMENTS[n % 3], n, 0, (n, n + 1))
        if n == 4_999:
            place = log.end
    log.drop_before(place)
    assert len(log) == 5_000
    assert log.of(FRAGMENTS[0])[0] == (5_001, (5_001, 5_002))
    log.drop_before(log.end)
    assert len(log) == 0
    assert log.of(FRAGMENTS[0]) == []
    log.add(FRAGMENTS[0], 7, 0, ())
    assert log.of(FRAGMENTS[0]) == [(7, ())]


def test_bytes_that_are_no_servings_are_refused() -> None:
    good = packed((FRAGMENTS[1], 1, 2, (3, 4)))
    for bad in (good[:-1], good + b"\0", good[:28] + b"\xff\xff\xff\xff" + good[32:]):
        with pytest.raises(ValueError, match="expected packed servings"):
            ServedLog().extend(bad)
        with pytest.raises(ValueError, match="expected packed servings"):
            entries_by_fragment(bad, {})
    with pytest.raises(ValueError, match="expected a fragment of 16 bytes"):
        ServedLog().of(b"short")
    with pytest.raises(ValueError, match="expected a start"):
        ServedLog().extend(good, 100)
    with pytest.raises(IndexError):
        ServedLog().drop()

"""Counts of mentions against a Counter: list chunks, servings and numbers, over and over in one table."""

from __future__ import annotations

import struct
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.native.history import CHUNK_HEADER_BYTES
from tailorbird.native.mentions import MentionCount
from tailorbird.native.scoring import ItemTable, Prior
from tailorbird.native.servings import ServedLog

FRAGMENTS = [bytes([n]) * 16 for n in range(3)]
NUMBERS = st.integers(0, 12) | st.integers(0, 2**32 - 1)
SECONDS = st.integers(0, 20)
CHUNK = st.lists(st.tuples(NUMBERS, SECONDS), max_size=60)
SERVING = st.tuples(st.sampled_from(FRAGMENTS), st.integers(0, 20_999), st.lists(NUMBERS, max_size=8))


def packed(entries: list[tuple[int, int]]) -> bytes:
    return bytes(CHUNK_HEADER_BYTES) + b"".join(struct.pack("<II", *entry) for entry in entries)


def table_of(count: int) -> ItemTable:
    table = ItemTable(0, 0)
    for number in range(count):
        table.put(number, f"item-{number}", True, 1, 0, 0, (), None)
    return table


@given(st.lists(st.tuples(CHUNK, st.lists(SERVING, max_size=20), st.lists(NUMBERS, max_size=20), SECONDS), max_size=4))
def test_counts_are_those_of_a_counter_and_start_over_when_cleared(
    rounds: list[tuple[list[tuple[int, int]], list[tuple[bytes, int, list[int]]], list[int], int]],
) -> None:
    counted = MentionCount()
    for entries, servings, numbers, since_s in rounds:
        counted.clear()
        log = ServedLog()
        for fragment, at, items in servings:
            log.add(fragment, at, 0, items)
        counted.add_chunk(packed(entries), since_s)
        counted.add_served(log, FRAGMENTS[1], since_s)
        counted.add(numbers)
        expected = Counter([item for item, time_s in entries if time_s >= since_s] + numbers)
        for fragment, at, items in servings:
            if fragment == FRAGMENTS[1] and at // 1_000 >= since_s:
                expected.update(items)
        assert counted.counts() == expected


@given(st.lists(st.integers(0, 9) | st.just(2**32 - 1), max_size=60), st.integers(1, 9))
def test_what_was_mentioned_often_enough_is_excluded_and_nothing_else(numbers: list[int], times: int) -> None:
    counted, table = MentionCount(), table_of(8)
    counted.add(numbers)
    table.begin()
    counted.exclude(table, times)
    found = Counter(numbers)
    left = [number for number in range(8) if found[number] < times]
    winners, ranked, *_ = table.rank(None, 8, 0, Prior())
    assert sorted(winner[0] for winner in winners) == left
    assert sorted(ranked) == left


def test_a_table_that_grew_is_let_go_of_and_counts_again() -> None:
    counted = MentionCount()
    counted.add(range(50_000))
    assert len(counted.counts()) == 50_000
    counted.clear()
    assert counted.counts() == {}
    counted.exclude(table_of(1), 1)
    counted.add([7, 7])
    assert counted.counts() == {7: 2}


def test_what_is_no_chunk_no_fragment_and_no_number_of_times_is_refused() -> None:
    counted = MentionCount()
    for size in (0, 7, 9, 15):
        with pytest.raises(ValueError, match=f"chunks of 8 bytes and 8 an entry, got {size}"):
            counted.add_chunk(bytes(size), 0)
    with pytest.raises(ValueError, match="a fragment of 16 bytes, got 3"):
        counted.add_served(ServedLog(), b"abc", 0)
    with pytest.raises(ValueError, match="times of at least 1, got 0"):
        counted.exclude(table_of(1), 0)
    assert counted.counts() == {}

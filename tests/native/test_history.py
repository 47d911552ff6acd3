"""Lists as they are stored, read against plain struct unpacking."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.native import history

U32 = st.integers(0, 2**32 - 1)
ENTRIES = st.lists(st.tuples(U32, U32), max_size=6)


def chunk_of(entries: list[tuple[int, int]]) -> bytes:
    return bytes(history.CHUNK_HEADER_BYTES) + b"".join(struct.pack("<II", *entry) for entry in entries)


@given(entries=ENTRIES, since_s=U32)
def test_a_chunk_gives_its_entries_in_order_and_none_older_than_asked(
    entries: list[tuple[int, int]], since_s: int
) -> None:
    expected = [(item, time_s) for item, time_s in entries if time_s >= since_s]
    items, times = history.read_chunk(chunk_of(entries), since_s)
    assert items.tolist() == [item for item, _ in expected]
    assert times.tolist() == [1000 * time_s for _, time_s in expected]


@pytest.mark.parametrize("size", [0, 7, 9, 23])
def test_a_chunk_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"expected chunks of 8 bytes and 8 an entry, got {size} bytes"):
        history.read_chunk(bytes(size), 0)


def test_each_item_stands_once_at_its_newest_mention_newest_first() -> None:
    first = np.array([7, 8, 7], np.uint32), np.array([1_000, 3_000, 2_000], np.int64)
    second = np.array([9, 8], np.uint32), np.array([3_000, 500], np.int64)
    items, weights = history.distinct_newest([first, second], 10, 1_000.0)
    assert items.tolist() == [8, 9, 7]
    assert weights.tolist() == [1.0, 1.0, 0.5]
    assert history.distinct_newest([first, second], 2, 0.0)[0].tolist() == [8, 9]

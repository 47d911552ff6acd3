"""XXH64 against the `xxhash` package, its oracle."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.native.hashing import xxh64

SEEDS = st.integers(min_value=0, max_value=2**64 - 1)


@given(data=st.binary(max_size=300), seed=SEEDS)
def test_xxh64_equals_the_reference(data: bytes, seed: int) -> None:
    assert xxh64(data, seed) == xxhash.xxh64_intdigest(data, seed=seed)


@pytest.mark.parametrize("length", range(100))
def test_xxh64_equals_the_reference_at_every_length_around_a_stripe(length: int) -> None:
    # 0x80 and above in every position: a signed read of a byte would show.
    data = bytes((255 - index) & 0xFF for index in range(length))
    assert xxh64(data) == xxhash.xxh64_intdigest(data)


@given(data=st.binary(min_size=40, max_size=200), offset=st.integers(min_value=0, max_value=39))
def test_xxh64_reads_unaligned_bytes_and_only_its_own_span(data: bytes, offset: int) -> None:
    span = memoryview(data)[offset:]
    assert xxh64(span) == xxhash.xxh64_intdigest(bytes(span))


def test_xxh64_of_the_published_vectors() -> None:
    # From the algorithm's public description and its widely published check values.
    assert xxh64(b"") == 0xEF46DB3751D8E999
    assert xxh64(b"abc") == 0x44BC2CF5AD770999


def test_xxh64_takes_any_byte_buffer() -> None:
    expected = xxh64(b"tailorbird")
    assert xxh64(bytearray(b"tailorbird")) == expected
    assert xxh64(np.frombuffer(b"tailorbird", dtype=np.uint8)) == expected


@pytest.mark.parametrize("wrong", ["text", 7, None])
def test_xxh64_refuses_what_is_no_byte_buffer(wrong: object) -> None:
    with pytest.raises(TypeError):
        xxh64(wrong)  # type: ignore[arg-type]


def test_xxh64_refuses_bytes_that_are_not_contiguous() -> None:
    with pytest.raises(BufferError, match="contiguous"):
        xxh64(memoryview(b"every other byte")[::2])


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_xxh64_refuses_a_seed_outside_64_bits(seed: int) -> None:
    with pytest.raises(OverflowError):
        xxh64(b"", seed)

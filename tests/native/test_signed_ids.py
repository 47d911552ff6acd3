"""Signed ids against hashlib and base64."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import blake2b
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.native.signed_ids import CountedIds, IdSigner


@given(
    key=st.binary(min_size=1, max_size=64),
    person=st.binary(max_size=16),
    body=st.binary(min_size=1, max_size=80),
    signature_bytes=st.integers(1, 16),
)
def test_an_id_is_its_body_and_a_keyed_hash(key: bytes, person: bytes, body: bytes, signature_bytes: int) -> None:
    signer = IdSigner(key, person, signature_bytes)
    if (len(body) + signature_bytes) % 3:
        with pytest.raises(ValueError, match="expected an id of 3"):
            signer.text(body)
        return
    signature = blake2b(body, digest_size=signature_bytes, key=key, person=person).digest()
    assert signer.text(body) == urlsafe_b64encode(body + signature).decode()


@pytest.mark.parametrize(
    ("key", "person", "count"), [(b"", b"p", 3), (b"k" * 65, b"p", 3), (b"k", b"p" * 17, 3), (b"k", b"", 17)]
)
def test_what_cannot_sign_is_refused(key: bytes, person: bytes, count: int) -> None:
    with pytest.raises(ValueError, match="expected a key"):
        IdSigner(key, person, count)


@pytest.mark.parametrize("size", [0, 98, 200])
def test_a_body_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="expected an id"):
        IdSigner(b"key", b"", 1).text(b"x" * size)


@given(at=st.integers(-(2**63), 2**63 - 1), first=st.integers(0, 2**32 - 1))
def test_counted_ids_say_a_time_and_a_count(at: int, first: int) -> None:
    signer = IdSigner(b"key", b"person", 10)
    ids = CountedIds(signer, 3, first)
    found = [ids.next(at) for _ in range(3)]
    assert found == [signer.text(pack("<BqIx", 3, at, (first + i) % 2**32)) for i in range(3)]

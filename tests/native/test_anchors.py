"""Plain identifiers hashed natively are hashed as everywhere else; what is not plain is left alone."""

from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailorbird.engine.errors import CallerError
from tailorbird.engine.identifiers import NAMESPACES, IdentifierHasher
from tailorbird.native.anchors import PlainHasher

KEY = bytes(range(32))
PLAIN = st.text("abcXYZ0129_.:-", min_size=1, max_size=70)
ANYTHING = st.one_of(
    PLAIN,
    st.text(max_size=50),
    st.sampled_from(
        ["000", "0-0", "111", "-1", "null", "9774d56d682e549c", "guest", "u1", "user 7", "é12", "12\u0000", "a@b.c"]
    ),
    st.uuids().map(str),
    st.uuids().map(lambda u: u.hex),
)


@given(
    text=PLAIN, key=st.binary(min_size=1, max_size=64), person=st.binary(max_size=16), prefix=st.binary(max_size=128)
)
@example(text="user-1234567890", key=KEY, person=b"anchor", prefix=b"x" * 128)
def test_a_digest_is_hashlib_s(text: str, key: bytes, person: bytes, prefix: bytes) -> None:
    found = PlainHasher(key, person, prefix).digest(text)
    expected = blake2b(prefix + text.encode(), digest_size=16, key=key, person=person).digest()
    assert found in (None, expected)
    assert (
        found is not None
        or not any(c in "129" for c in text)
        or len(text) < 3
        or len(text) > 64
        or len(set(text)) < 2
        or (len(text) in (16, 32, 36, 38, 45))
    )


@given(text=ANYTHING, namespace=st.sampled_from(sorted(NAMESPACES)))
def test_an_identifier_has_one_key_whichever_way_it_is_hashed(text: str, namespace: str) -> None:
    one, other = IdentifierHasher(KEY), IdentifierHasher(KEY)
    one._plain = dict.fromkeys(NAMESPACES)
    try:
        expected = one.anchor(namespace, text).key
    except CallerError as error:
        with pytest.raises(CallerError) as caught:
            other.anchor(namespace, text)
        assert caught.value.reason == error.reason
        assert other.keys(namespace, [text, "user-17"])[0] == b""
        return
    assert other.anchor(namespace, text).key == expected
    assert IdentifierHasher(KEY).keys(namespace, [text]) == [expected]


def test_what_a_tenant_refuses_stays_refused() -> None:
    hasher = IdentifierHasher(KEY, refused_extra=["test-*", "house-1"])
    assert hasher.keys("user_id", ["test-17", "house-1", "house-2"])[:2] == [b"", b""]
    assert hasher.keys("user_id", ["house-2"]) == [hasher.anchor("user_id", "house-2").key]


def test_an_unknown_namespace_is_refused_even_for_nobody() -> None:
    for values in ([], ["user-17"]):
        with pytest.raises(CallerError, match="UNKNOWN_NAMESPACE"):
            IdentifierHasher(KEY).keys("shoe_size", values)


@pytest.mark.parametrize(
    ("key", "person", "prefix"),
    [(b"", b"", b""), (b"k" * 65, b"", b""), (b"k", b"p" * 17, b""), (b"k", b"", b"x" * 129)],
)
def test_a_key_that_cannot_be_is_refused(key: bytes, person: bytes, prefix: bytes) -> None:
    with pytest.raises(ValueError, match="expected a key"):
        PlainHasher(key, person, prefix)

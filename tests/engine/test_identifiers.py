"""Identifiers: canonical forms, refused values, anchors."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.engine.errors import CallerError, ConfigurationError
from tailorbird.engine.identifiers import NAMESPACES, IdentifierError, IdentifierHasher, Namespace, namespaces_with

KEY = bytes(range(32))
UUID = "4fc9a0f0-9297-46a0-9ddf-79786194f7e9"

PLACEHOLDERS = [
    "null", "undefined", "none", "nan", "anonymous", "guest", "unknown", "true", "0", "-1", "[object Object]",
    "NULL", "Undefined", "NaN", "None", "  null ", '"null"', "'undefined'", "`none`", '\\"null\\"', "(null)", "<null>",
    "{}", '""', "-", "--", "00000", "0-0", "00000000-0000-0000-0000-000000000000",
    "{00000000-0000-0000-0000-000000000000}", "00000000000000000000000000000000", "11", "aaaa", "AaAa", "xxxxxxxx",
    "......", "test@test.com", "Test@shop.de", "noreply@shop.com", "jane@example.com", "jane@EXAMPLE.co.uk",
    '"test@test.com"',
]  # fmt: skip
SAME = [
    ("email", "  Jane.Doe@Shop.COM ", "jane.doe@shop.com"),
    ("email", "jane@münchen.de", "jane@xn--mnchen-3ya.de"),
    ("email", "jane@XN--MNCHEN-3YA.de", "jane@xn--mnchen-3ya.de"),
    ("email", "jane.doe+shop@gmail.com", "jane.doe+shop@gmail.com"),
    ("email", "JÖRG@shop.com", "jörg@shop.com"),
    ("phone", "+49 (30) 1234567", "+49301234567"),
    ("phone", "tel:+49-30-1234567", "+49301234567"),
    ("phone", "+49 30 1234567 ext. 12", "+49301234567;ext=12"),
    ("device_id", UUID.upper(), UUID),
    ("device_id", UUID.replace("-", ""), UUID),
    ("device_id", "{" + UUID.upper() + "}", UUID),
    ("anonymous_id", "urn:uuid:" + UUID, UUID),
    ("anonymous_id", "Cookie-7f", "Cookie-7f"),
    ("anonymous_id", "x" + UUID[1:], "x" + UUID[1:]),
    ("user_id", " Jane ", "Jane"),
    ("user_id", "7", "7"),
    ("user_id", "1-1", "1-1"),
    ("user_id", UUID.upper(), UUID.upper()),
    ("user_id", "Jose\u0301", "Jos\u00e9"),
    ("crm_id", "C-0017850", "C-0017850"),
    ("loyalty_card", "6335 0012", "6335 0012"),
]
INVALID = [
    ("email", "jane"),
    ("email", "jane@"),
    ("email", "a b@shop.com"),
    ("email", "jane@localhost"),
    ("phone", "030 1234567"),
    ("phone", "+49"),
    ("phone", "call me"),
    ("user_id", ""),
    ("user_id", " \t\n"),
    ("user_id", "a\x00b"),
    ("user_id", "a\nb"),
    ("user_id", "a\ud800b"),
    ("user_id", "u" * 511 + "é"),
    ("user_id", "ab" * 5_000_000),
]


@pytest.fixture(scope="module")
def hasher() -> IdentifierHasher:
    return IdentifierHasher(KEY)


def reason_of(hasher: IdentifierHasher, namespace: str, raw: str) -> str:
    with pytest.raises(IdentifierError) as caught:
        hasher.anchor(namespace, raw)
    assert isinstance(caught.value, CallerError)
    return caught.value.reason


@pytest.mark.parametrize("namespace", ["user_id", "crm_id", "loyalty_card", "device_id", "anonymous_id"])
@pytest.mark.parametrize("raw", PLACEHOLDERS)
def test_placeholders_are_refused_in_every_namespace(hasher: IdentifierHasher, namespace: str, raw: str) -> None:
    assert reason_of(hasher, namespace, raw) == "REFUSED_VALUE"


@pytest.mark.parametrize(
    ("namespace", "raw"),
    [
        ("email", "test@test.com"),
        ("email", "null"),
        ("phone", "0"),
        ("phone", "+49 000 000 000"),
        ("anonymous_id", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF"),
        ("device_id", "9774D56D682E549C"),
    ],
)
def test_bogus_contacts_and_devices_are_refused(hasher: IdentifierHasher, namespace: str, raw: str) -> None:
    assert reason_of(hasher, namespace, raw) == "REFUSED_VALUE"


@pytest.mark.parametrize(("namespace", "raw", "canonical"), SAME)
def test_spellings_of_one_value_have_one_anchor(
    hasher: IdentifierHasher, namespace: str, raw: str, canonical: str
) -> None:
    assert hasher.canonical(namespace, raw) == canonical
    assert hasher.anchor(namespace, raw) == hasher.anchor(namespace, canonical)


@pytest.mark.parametrize(("namespace", "raw"), INVALID, ids=range(len(INVALID)))
def test_unusable_values_are_invalid(hasher: IdentifierHasher, namespace: str, raw: str) -> None:
    assert reason_of(hasher, namespace, raw) == "INVALID_VALUE"


@pytest.mark.parametrize("namespace", ["ip", "fingerprint", "cookie", ""])
def test_a_namespace_that_is_not_declared_is_unknown(hasher: IdentifierHasher, namespace: str) -> None:
    assert reason_of(hasher, namespace, "abc") == "UNKNOWN_NAMESPACE"


def test_messages_never_repeat_the_value(hasher: IdentifierHasher) -> None:
    for namespace, raw in [
        ("email", "jane@secret"),
        ("email", "test@secret.com"),
        ("phone", "secret"),
        ("user_id", "secret\0"),
    ]:
        with pytest.raises(IdentifierError) as caught:
            hasher.anchor(namespace, raw)
        assert "secret" not in str(caught.value)


def test_no_identifier_is_missing(hasher: IdentifierHasher) -> None:
    with pytest.raises(IdentifierError) as caught:
        hasher.anchors({})
    assert caught.value.reason == "MISSING_IDENTIFIER"


def test_anchors_come_best_first_and_ties_by_key() -> None:
    table = namespaces_with({name: Namespace(name, 9, False, 5, 3) for name in ("kiosk", "car")})
    hasher = IdentifierHasher(KEY, table)
    found = hasher.anchors({"kiosk": "k1", "anonymous_id": "c1", "car": "w1", "email": "a@shop.com", "user_id": "u1"})
    assert [anchor.namespace for anchor in found][:3] == ["user_id", "email", "anonymous_id"]
    assert found[3].key < found[4].key


def test_the_same_value_differs_by_namespace_key_and_use(hasher: IdentifierHasher) -> None:
    key = hasher.anchor("user_id", "jane").key
    assert len(key) == len(hasher.person_id(key)) == len(hasher.message_key("web", "1")) == 16
    assert (
        len(
            {
                key,
                hasher.anchor("crm_id", "jane").key,
                hasher.person_id(key),
                IdentifierHasher(KEY[::-1]).anchor("user_id", "jane").key,
            }
        )
        == 4
    )
    assert hasher.message_key("we", "b1") != hasher.message_key("web", "1")


def test_hashes_do_not_change_between_releases(hasher: IdentifierHasher) -> None:
    assert hasher.anchor("user_id", "jane").key.hex() == "3cb3fc03d7655e10d624513324710b08"
    assert hasher.person_id(hasher.anchor("user_id", "jane").key).hex() == "63a1b21ba27c8e35eda417efe69e2bc2"
    assert hasher.message_key("web", "m-1").hex() == "d8235c54e1133739e82f62dc9e9a10d2"


def test_a_small_memory_gives_the_same_anchors(hasher: IdentifierHasher) -> None:
    small = IdentifierHasher(KEY, cached_max=2)
    for number in [1, 2, 3, 1, 4, 2, 5, 1, 1]:
        assert small.anchor("user_id", f"u{number}") == hasher.anchor("user_id", f"u{number}")
    small.forget()
    assert small.anchor("user_id", "u1") == hasher.anchor("user_id", "u1")


def test_configuration_adds_refused_values_and_patterns() -> None:
    hasher = IdentifierHasher(KEY, refused_extra=["Kiosk", "demo-*"])
    assert reason_of(hasher, "user_id", "KIOSK") == "REFUSED_VALUE"
    assert reason_of(hasher, "user_id", "Demo-17") == "REFUSED_VALUE"
    assert hasher.anchor("user_id", "my-demo-17")


def test_a_region_reads_national_numbers() -> None:
    assert IdentifierHasher(KEY, phone_region="DE").canonical("phone", "030 1234567") == "+49301234567"


@pytest.mark.parametrize(
    "namespace",
    [
        Namespace("ip", 8, False, 5, 3),
        Namespace("kiosk", 0, False, 5, 3),
        Namespace("kiosk", 8, False, 0, 3),
        Namespace("kiosk", 8, True, 2, 3),
    ],
)
def test_a_bad_namespace_is_a_configuration_error(namespace: Namespace) -> None:
    with pytest.raises(ConfigurationError, match="BAD_NAMESPACE"):
        namespaces_with({namespace.name: namespace})


def test_a_short_key_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="BAD_KEY"):
        IdentifierHasher(b"short")


@given(
    namespace=st.sampled_from(sorted(NAMESPACES)),
    raw=st.text(max_size=40)
    | st.emails()
    | st.builds("{}@münchen.de".format, st.text(max_size=8))
    | st.uuids().map(str),
)
def test_any_text_is_hashed_or_refused_with_a_reason(namespace: str, raw: str) -> None:
    hasher = IdentifierHasher(KEY)
    try:
        canonical = hasher.canonical(namespace, raw)
    except IdentifierError as error:
        reason = error.reason
    else:
        reason = ""
        assert hasher.canonical(namespace, canonical) == canonical == unicodedata.normalize("NFC", canonical)
        assert hasher.anchor(namespace, raw) == hasher.anchor(namespace, canonical)
    assert reason in {"", "INVALID_VALUE", "REFUSED_VALUE"}

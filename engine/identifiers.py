"""Identifiers: the namespaces, their canonical forms, the values nobody is known by, and the keyed hashes stored."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NoReturn, cast

from tailorbird.engine.errors import CallerError, ConfigurationError
from tailorbird.engine.facts import Anchor
from tailorbird.native.anchors import PlainHasher
from tailorbird.native.signed_ids import IdSigner

HASH_BYTES = 16
DECISION_SIGNATURE_BYTES = 10
VALUE_BYTES_MAX = 512


@dataclass(frozen=True, slots=True)
class Namespace:
    """The rules of one kind of identifier.

    `priority` 1 is best. A person never has two values of a `unique` namespace, nor more than `per_person_max` of any,
    nor more than `rate_max` of them first linked within `rate_days` (0 sets no rate). A value linked to `generic_at` or
    more values of one unique namespace is shared by several people and joins nobody (0, or a unique namespace: never).
    `holds_state` is False for what seldom is the best identifier of an event, such as an e-mail address: these do not
    count towards a person's fragments.
    """

    name: str
    priority: int
    unique: bool
    per_person_max: int
    generic_at: int
    rate_max: int = 0
    rate_days: int = 0
    holds_state: bool = True


NAMESPACES: Mapping[str, Namespace] = {
    namespace.name: namespace
    for namespace in (
        Namespace("user_id", 1, True, 1, 1),
        Namespace("crm_id", 2, True, 1, 1),
        Namespace("email", 3, False, 100, 2, rate_max=5, rate_days=365, holds_state=False),
        Namespace("phone", 4, False, 100, 3, rate_max=3, rate_days=365, holds_state=False),
        Namespace("loyalty_card", 5, False, 100, 2, rate_max=5, rate_days=365),
        Namespace("device_id", 6, False, 100, 3, rate_max=5, rate_days=365),
        Namespace("anonymous_id", 7, False, 50, 2, rate_max=5, rate_days=7),
    )
}
NEVER_A_KEY = frozenset({"ip", "fingerprint"})

# What programs write where there is no identifier; compared trimmed, in lower case, without quotes and brackets.
_PLACEHOLDERS = frozenset(
    {"null", "undefined", "none", "nan", "nil", "anonymous", "guest", "unknown", "true", "false", "0", "-1"}
    | {"[object object]", "[object undefined]", "[object null]"}
    | {"9774d56d682e549c"}  # The ANDROID_ID that a faulty Android release gave to every device.
)
_WRAPPING_TEXT = "\"'`\\(){}<>“”‘’ \t"
_WRAPPING = frozenset(_WRAPPING_TEXT)
_ZERO = frozenset("0-")
_NOBODY = ("test", "noreply", "no-reply")


def namespaces_with(declared: Mapping[str, Namespace]) -> dict[str, Namespace]:
    """Return the built-in table with `declared` added or replacing. Raises `ConfigurationError` BAD_NAMESPACE."""
    for name, namespace in declared.items():
        if not name or name in NEVER_A_KEY:
            _bad_namespace(name, "a name other than ip and fingerprint, which identify nobody")
        if name != namespace.name:
            _bad_namespace(name, f"the declared name, got {namespace.name!r}")
        if namespace.priority < 1 or namespace.per_person_max < 1:
            _bad_namespace(name, "priority and per_person_max of 1 or more")
        if namespace.unique and namespace.per_person_max != 1:
            _bad_namespace(name, "per_person_max 1 where unique")
    return {**NAMESPACES, **declared}


def _bad_namespace(name: str, expected: str) -> NoReturn:
    raise ConfigurationError("BAD_NAMESPACE", f"expected {expected}, in identity.namespaces.{name}")


class IdentifierError(CallerError):
    """An identifier cannot be used. The message names the namespace and never the value, so that it may be logged."""


class IdentifierHasher:
    """Turns raw identifiers into anchors with one tenant's secret `key` (16 to 64 bytes).

    `refused_extra` are further refused values, compared like the built-in ones; `*` stands for any characters.
    `phone_region` (ISO 3166 alpha-2) reads numbers without a country code. The latest anchors are remembered, at least
    `cached_max` and at most twice as many per namespace.
    """

    def __init__(
        self,
        key: bytes,
        namespaces: Mapping[str, Namespace] = NAMESPACES,
        refused_extra: Collection[str] = (),
        *,
        phone_region: str = "",
        cached_max: int = 4096,
    ) -> None:
        if not 16 <= len(key) <= 64:
            raise ConfigurationError("BAD_KEY", f"expected an identity key of 16 to 64 bytes, got {len(key)}")
        self.namespaces = namespaces
        extra = {value.strip().lower() for value in refused_extra}
        self._refused = _PLACEHOLDERS | {value for value in extra if "*" not in value}
        patterns = sorted(value for value in extra if "*" in value)
        self._refused_pattern = re.compile("|".join(map(_glob, patterns)), re.DOTALL) if patterns else None
        self._priorities = {name: namespace.priority for name, namespace in namespaces.items()}
        self._forms: dict[str, Callable[[str], str]] = {
            "email": _email,
            "phone": lambda value: _phone(value, phone_region),
            "device_id": _device,
            "anonymous_id": _device,
        }
        self._cached_max = cached_max
        self._recent: dict[str, dict[str, Anchor]] = {name: {} for name in namespaces}
        self._older: dict[str, dict[str, Anchor]] = {name: {} for name in namespaces}
        # The personalisation keeps the uses of one key apart; copying a prepared state saves half the hashing.
        self._anchor_states = {name: blake2b(digest_size=HASH_BYTES, key=key, person=b"anchor") for name in namespaces}
        for name, state in self._anchor_states.items():
            state.update(name.encode() + b"\0")
        # What is plain is its own canonical form and no placeholder of ours: hashed natively, unless more are refused.
        self.plain = {
            name: PlainHasher(key, b"anchor", name.encode() + b"\0")
            if not extra and name not in ("email", "phone")
            else None
            for name in namespaces
        }
        self.plain_person = PlainHasher(key, b"person", b"")  # whose digests `person_id` gives
        self._message_state = blake2b(digest_size=HASH_BYTES, key=key, person=b"message")
        self._person_state = blake2b(digest_size=HASH_BYTES, key=key, person=b"person")
        self._decision_state = blake2b(digest_size=DECISION_SIGNATURE_BYTES, key=key, person=b"decision")
        self.decision_signer = IdSigner(
            key, b"decision", DECISION_SIGNATURE_BYTES
        )  # signs as `decision_signature` does

    def anchor(self, namespace: str, raw: str) -> Anchor:
        """Return the anchor of one identifier: equal for every spelling with the same canonical form.

        Raises `IdentifierError` with reason UNKNOWN_NAMESPACE, INVALID_VALUE (empty, over 512 bytes, control
        characters, no e-mail address, no phone number) or REFUSED_VALUE (a placeholder that many people would share).
        """
        recent = self._recent.get(namespace)
        if recent is None:
            self._unknown(namespace)
        anchor = recent.get(raw)
        if anchor is not None:
            return anchor
        anchor = self._older[namespace].get(raw)
        if anchor is None:
            plain = self.plain[namespace]
            digest = plain.digest(raw) if plain is not None else None
            if digest is None:
                state = self._anchor_states[namespace].copy()
                state.update(self._canonical_bytes(namespace, raw))
                digest = state.digest()
            anchor = Anchor(namespace, digest)
        if len(recent) >= self._cached_max:
            self._older[namespace] = recent
            self._recent[namespace] = recent = {}
        recent[raw] = anchor
        return anchor

    def keys(self, namespace: str, values: Sequence[str]) -> list[bytes]:
        """Return the anchor keys of many identifiers, an empty one where nobody can be known by it.

        Raises `IdentifierError` UNKNOWN_NAMESPACE. Nothing is remembered.
        """
        if namespace not in self.plain:
            self._unknown(namespace)
        plain = self.plain[namespace]
        found: list[bytes | None] = plain.digests(values) if plain is not None else [None for _ in values]
        if None in found:
            for place, value in enumerate(values):
                if found[place] is None:
                    try:
                        found[place] = self.anchor(namespace, value).key
                    except IdentifierError:
                        found[place] = b""
        return cast("list[bytes]", found)

    def anchors(self, identifiers: Mapping[str, str]) -> tuple[Anchor, ...]:
        """Return the anchors best first (priority, then key). Raises as `anchor`, and MISSING_IDENTIFIER for none."""
        if not identifiers:
            known = ", ".join(self.namespaces)
            raise IdentifierError(
                "MISSING_IDENTIFIER", f"expected at least one identifier of {known}; got none; send the one at hand"
            )
        found = [self.anchor(namespace, raw) for namespace, raw in identifiers.items()]
        if len(found) > 1:
            priorities = self._priorities
            found.sort(key=lambda anchor: (priorities[anchor.namespace], anchor.key))
        return tuple(found)

    def canonical(self, namespace: str, raw: str) -> str:
        """Return the canonical form that is hashed. Raises as `anchor`."""
        if namespace not in self.namespaces:
            self._unknown(namespace)
        return self._canonical_bytes(namespace, raw).decode()

    def message_key(self, source: str, message_id: str) -> bytes:
        """Return the 16-byte key by which repeats of a message are refused. Raises `IdentifierError` INVALID_VALUE."""
        try:
            source_bytes, id_bytes = source.encode(), message_id.encode()
        except UnicodeEncodeError:
            _invalid("message_id", "text without lone surrogates")
        state = self._message_state.copy()
        state.update(len(source_bytes).to_bytes(4, "little") + source_bytes + id_bytes)
        return state.digest()

    def person_id(self, best_key: bytes) -> bytes:
        """Return the opaque 16-byte id of the person whose best identifier's anchor key is `best_key`."""
        state = self._person_state.copy()
        state.update(best_key)
        return state.digest()

    def decision_signature(self, body: bytes) -> bytes:
        """Return what shows that a decision id is of this directory (decision_id.py)."""
        state = self._decision_state.copy()
        state.update(body)
        return state.digest()

    def forget(self) -> None:
        """Drop every remembered raw value, as an erasure asks."""
        for name in self.namespaces:
            self._recent[name] = {}
            self._older[name] = {}

    def _canonical_bytes(self, namespace: str, raw: str) -> bytes:
        """Return the canonical form as UTF-8, the common case by a few cheap checks. Raises as `anchor`."""
        if not isinstance(raw, str):
            _invalid(namespace, f"a string, got {type(raw).__name__}")
        if len(raw) > VALUE_BYTES_MAX:
            _invalid(namespace, f"at most {VALUE_BYTES_MAX} bytes, got {len(raw)} characters")
        value = raw.strip()
        if not value:
            _invalid(namespace, "a value, got an empty one")
        if not (value.isascii() and value.isprintable()):
            value = _text(namespace, value)
        self._refuse(namespace, value)
        form = self._forms.get(namespace)
        if form is not None:
            value = form(value)
        encoded = value.encode()
        if len(encoded) > VALUE_BYTES_MAX:
            _invalid(namespace, f"at most {VALUE_BYTES_MAX} bytes, got {len(encoded)}")
        return encoded

    def _refuse(self, namespace: str, value: str) -> None:
        """Raise REFUSED_VALUE for a value that stands for nobody in particular; `value` is trimmed and not empty."""
        lowered = value.lower()
        first = lowered[0]
        # A lone character other than 0 and - is kept: "7" is a customer number, "77" already looks typed.
        if (
            lowered in self._refused
            or (first in _ZERO and not value.strip("0-"))
            or (lowered[-1] == first and len(lowered) > 1 and lowered.count(first) == len(lowered))
            or ("@" in lowered and _is_nobody(lowered))
            or (self._refused_pattern is not None and self._refused_pattern.fullmatch(lowered) is not None)
        ):
            _refused(namespace)
        if first in _WRAPPING or value[-1] in _WRAPPING:
            bare = value.strip(_WRAPPING_TEXT)
            if not bare:
                _refused(namespace)
            self._refuse(namespace, bare)

    def _unknown(self, namespace: str) -> NoReturn:
        if namespace in NEVER_A_KEY:
            advice = f"{namespace} is shared by many people and identifies nobody; send it as context"
        else:
            advice = "correct the name or declare it under identity.namespaces"
        known = ", ".join(self.namespaces)
        raise IdentifierError("UNKNOWN_NAMESPACE", f"expected a namespace of {known}; got {namespace[:64]!r}; {advice}")


def _invalid(namespace: str, expected: str) -> NoReturn:
    raise IdentifierError(
        "INVALID_VALUE", f"expected {expected}, in identifier {namespace}; correct it or leave it out"
    )


def _refused(namespace: str) -> NoReturn:
    raise IdentifierError(
        "REFUSED_VALUE",
        f"expected a value of one person, got a placeholder or test value, in identifier {namespace}; "
        "leave the identifier out where nobody is known",
    )


def _is_nobody(address: str) -> bool:
    local, _, domain = address.rpartition("@")
    return local in _NOBODY or domain.startswith("example.")


def _glob(pattern: str) -> str:
    return ".*".join(map(re.escape, pattern.split("*")))


def _text(namespace: str, value: str) -> str:
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs"):
            _invalid(namespace, "text without control characters and lone surrogates")
    return unicodedata.normalize("NFC", value)


def _email(value: str) -> str:
    """Return the address in lower case, its domain in IDNA; providers' own rules (dots, tags) are not applied."""
    # Imported at first use: the two libraries take 50 ms and some megabytes that many sites never need.
    from email_validator import EmailNotValidError, validate_email

    try:
        address = validate_email(value, check_deliverability=False)
    except EmailNotValidError:
        # The library's own text may repeat the address.
        _invalid("email", "an e-mail address that can receive mail, such as name@shop.com")
    canonical = unicodedata.normalize("NFC", f"{address.local_part}@{address.ascii_domain}".lower())
    if _is_nobody(canonical):
        _refused("email")
    return canonical


def _phone(value: str, region: str) -> str:
    """Return the number in E.164, with `;ext=` where it has an extension (a switchboard is not one person)."""
    from phonenumbers import NumberParseException, PhoneNumberFormat, format_number, is_possible_number, parse

    expected = "a phone number with + and country code" + (f", or one of region {region}" if region else "")
    try:
        number = parse(value, region or None)
    except NumberParseException:
        _invalid("phone", expected)
    # Possible, not valid: a number range opened after the library's release is still someone's.
    if not is_possible_number(number):
        _invalid("phone", expected)
    if len(set(str(number.national_number))) == 1:
        _refused("phone")
    canonical: str = format_number(number, PhoneNumberFormat.E164)
    return f"{canonical};ext={number.extension}" if number.extension else canonical


def _device(value: str) -> str:
    """Return a UUID or advertising id, however it is spelt, in lower case with dashes, and anything else unchanged."""
    length = len(value)
    if length == 36:
        if value[8] == value[13] == value[18] == value[23] == "-" and _is_uuid(value.replace("-", "")):
            return value.lower()
    elif length in (32, 38, 45):
        digits = value.lower().removeprefix("urn:uuid:").strip("{}").replace("-", "")
        if _is_uuid(digits):
            return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
    return value


def _is_uuid(digits: str) -> bool:
    """Return whether these are 32 hexadecimal digits. Raises REFUSED_VALUE when they are all the same."""
    if len(digits) != 32:
        return False
    try:
        # The length of the result sees through the blanks that fromhex allows.
        if len(bytes.fromhex(digits)) != 16:
            return False
    except ValueError:
        return False
    if digits[0] == digits[-1] and len(set(digits.lower())) == 1:
        _refused("device_id")
    return True

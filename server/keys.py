"""Keys of callers: made at random, kept as hashes, each for one tenant and some scopes.

A key is written `tb_ID_SECRET`. The file of a data directory, `access-keys.json`, holds the id, a hash of the secret, and
what the key is for; a secret of 256 random bits needs no slow hash. The service reads the file again when it changes, so
that a revoked key is refused within a second.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import msgspec

from tailorbird.engine.directory import write_durably
from tailorbird.engine.errors import (
    CallerError,
    Damaged,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)

FILE = "access-keys.json"
PREFIX = "tb"
ID_BYTES, SECRET_BYTES = 6, 32
DEFAULT_TENANT = "default"
NAME_CHARACTERS_MAX = 100
LOOK_S = 1.0  # how often the file is looked at
BURST_S = 1.0  # how much of its rate a key that was silent may use at once


class Scope(StrEnum):
    """What a key may be used for."""

    INGEST = "ingest"
    DECIDE = "decide"
    PROFILE = "profile"
    ADMIN = "admin"


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is kept. Times are milliseconds since 1970 UTC, 0: never. Limits of 0 are none."""

    id: str
    secret_hash: str
    scopes: tuple[Scope, ...]
    tenant: str = DEFAULT_TENANT
    name: str = ""
    created: int = 0
    expires: int = 0
    revoked: int = 0
    calls_per_s_max: int = 0
    message_bytes_max: int = 0


class KeyFile:
    """The keys of one data directory."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE

    def read(self) -> list[Key]:
        """Return all keys. Raises `Damaged` DAMAGED_KEYS."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=list[Key])
        except FileNotFoundError:
            return []
        except msgspec.DecodeError as error:
            raise Damaged(
                "DAMAGED_KEYS", f"expected keys in {self.path}, got: {error}; restore it from a backup"
            ) from error

    def create(
        self,
        scopes: Sequence[Scope],
        now: int,
        *,
        name: str = "",
        tenant: str = DEFAULT_TENANT,
        expires: int = 0,
        calls_per_s_max: int = 0,
        message_bytes_max: int = 0,
    ) -> tuple[str, Key]:
        """Return a new key as its holder writes it, which is nowhere kept, and as it is kept."""
        if not scopes:
            raise CallerError("BAD_KEY", f"expected at least one scope of {', '.join(Scope)}, got none")
        if len(name) > NAME_CHARACTERS_MAX:
            raise CallerError(
                "BAD_KEY", f"expected a name of at most {NAME_CHARACTERS_MAX} characters, got {len(name)}"
            )
        if min(calls_per_s_max, message_bytes_max) < 0 or 0 < expires <= now:
            raise CallerError("BAD_KEY", "expected limits of 0 or more and an expiry ahead, got others")
        key_id, secret = secrets.token_hex(ID_BYTES), secrets.token_hex(SECRET_BYTES)
        key = Key(
            id=key_id,
            secret_hash=_hash(secret),
            scopes=tuple(dict.fromkeys(scopes)),
            tenant=tenant,
            name=name,
            created=now,
            expires=expires,
            calls_per_s_max=calls_per_s_max,
            message_bytes_max=message_bytes_max,
        )
        with self._locked():
            self._write([*self.read(), key])
        return f"{PREFIX}_{key_id}_{secret}", key

    def revoke(self, key_id: str, now: int) -> Key:
        """Put a key out of force for good. Raises `NotFound` UNKNOWN_KEY."""
        with self._locked():
            keys = self.read()
            for index, key in enumerate(keys):
                if key.id == key_id:
                    if not key.revoked:
                        keys[index] = key = msgspec.structs.replace(key, revoked=now)
                        self._write(keys)
                    return key
        raise NotFound(
            "UNKNOWN_KEY", f"expected the id of a key, got {key_id[:40]!r}; `tailorbird keys list` shows them"
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other commands from writing what this one has not read."""
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, keys: list[Key]) -> None:
        write_durably(self.path, msgspec.json.format(msgspec.json.encode(keys)), mode=0o600)


class Admission(Protocol):
    """What lets calls in by their key."""

    def admit(self, text: str | None, scope: Scope, size_bytes: int) -> Key: ...

    def check(self, text: str | None, scope: Scope) -> Key: ...


class Gate:
    """Lets calls in by their key, for one tenant. Not for several threads."""

    def __init__(self, file: KeyFile, tenant: str = DEFAULT_TENANT) -> None:
        self._file = file
        self.tenant = tenant
        self._looked_s = -LOOK_S
        self._stamp: tuple[int, int] | None = None
        self._keys: dict[str, Key] = {}
        self._allowance: dict[str, tuple[float, float]] = {}  # calls left, and when that was

    def holds(self, key_id: str) -> bool:
        """Tell whether a key of that id stands in this file. Raises `Damaged` DAMAGED_KEYS, as all that follow."""
        self._look()
        return key_id in self._keys

    def knows(self, key_id: str) -> bool:
        """Tell whether it does, as a key for this tenant."""
        self._look()
        return (key := self._keys.get(key_id)) is not None and key.tenant == self.tenant

    def admit(self, text: str | None, scope: Scope, size_bytes: int) -> Key:
        """Return the key of a call. Raises `Unauthenticated`, `PermissionDenied`, or `ResourceExhausted` for its limits.

        `text` is what the caller showed, None for nothing. Nothing of it is repeated in an error.
        """
        key = self.check(text, scope)
        if 0 < key.message_bytes_max < size_bytes:
            raise ResourceExhausted(
                "KEY_MESSAGE_TOO_LARGE",
                f"expected at most message_bytes_max = {key.message_bytes_max} of key {key.id}, got {size_bytes}; split it",
            )
        if key.calls_per_s_max:
            self._take(key, time.monotonic())
        return key

    def check(self, text: str | None, scope: Scope) -> Key:
        """Return the key of a call that goes on, whatever its limits. Raises `Unauthenticated` and `PermissionDenied`."""
        self._look()
        if text is None:
            raise Unauthenticated(
                "MISSING_KEY", "expected metadata `authorization: Bearer tb_...`, got none; send a key"
            )
        prefix, _, rest = text.partition("_")
        key_id, _, secret = rest.partition("_")
        if prefix != PREFIX or len(key_id) != 2 * ID_BYTES or len(secret) != 2 * SECRET_BYTES or not secret.isascii():
            raise Unauthenticated("MALFORMED_KEY", f"expected a key of the form {PREFIX}_ID_SECRET, got something else")
        key = self._keys.get(key_id)
        # A key that is not known is compared as well: how long a refusal takes tells nothing.
        if not hmac.compare_digest(_hash(secret), key.secret_hash if key is not None else _NO_HASH) or key is None:
            raise Unauthenticated(
                "UNKNOWN_KEY", "expected a key of this service, got one that is none; ask for a new one"
            )
        wall_ms = time.time_ns() // 1_000_000
        if key.revoked:
            raise Unauthenticated(
                "REVOKED_KEY", f"expected a key in force, got {key.id}, which was revoked; use another"
            )
        if 0 < key.expires <= wall_ms:
            raise Unauthenticated(
                "EXPIRED_KEY", f"expected a key in force, got {key.id}, which has expired; use another"
            )
        if key.tenant != self.tenant:
            raise PermissionDenied("WRONG_TENANT", f"expected a key of this tenant, got {key.id}, which is another's")
        if scope not in key.scopes:
            raise PermissionDenied(
                "WRONG_SCOPE", f"expected a key with the scope {scope}, got {key.id} with {', '.join(key.scopes)}"
            )
        return key

    def _take(self, key: Key, now_s: float) -> None:
        rate = key.calls_per_s_max
        left, since_s = self._allowance.get(key.id, (rate * BURST_S, now_s))
        left = min(rate * BURST_S, left + (now_s - since_s) * rate)
        if left < 1.0:
            raise ResourceExhausted(
                "RATE_LIMITED",
                f"expected at most calls_per_s_max = {rate} of key {key.id}, got more; send it again a little later",
            )
        self._allowance[key.id] = left - 1.0, now_s

    def _look(self) -> None:
        """Read the file again, every `LOOK_S` and where it is another one."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        try:
            found = self._file.path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
        except FileNotFoundError:
            stamp = None
        if stamp != self._stamp or not self._keys:
            self._keys = {}  # a file that cannot be read lets nobody in
            self._keys = {key.id: key for key in self._file.read()}
            self._stamp = stamp


def id_in(text: str | None) -> str:
    """Return the id in what a caller shows, empty where there is none."""
    return text.split("_", 2)[1] if text is not None and text.count("_") > 1 else ""


def _hash(secret: str) -> str:
    return blake2b(secret.encode(), digest_size=32, person=b"tailorbird-key").hexdigest()


_NO_HASH = _hash("")

"""Keys: made, kept and taken back; and the matrix of every wrong key against every method there is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from google.protobuf import descriptor_pool

from tailorbird.engine import Engine
from tailorbird.engine.errors import CallerError, Damaged, InternalError, NotFound, ResourceExhausted, Unauthenticated
from tailorbird.server import guard, health
from tailorbird.server.cli import main
from tailorbird.server.guard import guarded, rule_of
from tailorbird.server.handlers import SERVICES
from tailorbird.server.keys import Gate, Key, KeyFile, Scope
from tailorbird.server.serve import ServeOptions, Service
from tailorbird.server.statuses import REASON_KEY
from tailorbird.server.transport import Unary
from tests.server.conftest import Running, Serving

OPEN_SERVICES = (health.SERVICE, "grpc.reflection.v1alpha.ServerReflection")
NOW = time.time_ns() // 1_000_000
PERMISSION, UNKNOWN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path)


def methods() -> Iterator[tuple[str, bool, bool]]:
    """Yield the path of every method the service describes, and whether its requests and its answers are streams."""
    pool = descriptor_pool.Default()  # type: ignore[no-untyped-call]
    for service in (*SERVICES, *OPEN_SERVICES):
        for method in pool.FindServiceByName(service).methods:
            yield f"/{service}/{method.name}", method.client_streaming, method.server_streaming


def call(running: Running, path: str, requests: bool, answers: bool, key: str | None) -> tuple[grpc.StatusCode, str]:
    """Return the code and reason of a call with an empty request."""
    metadata = [] if key is None else [("authorization", f"Bearer {key}")]
    sent: Any = iter([b""]) if requests else b""
    kind = ("stream" if requests else "unary") + "_" + ("stream" if answers else "unary")
    try:
        made = getattr(running.channel, kind)(path)(sent, metadata=metadata, timeout=5)
        if answers:
            next(iter(made), None)
            made.cancel()
    except grpc.RpcError as error:
        return error.code(), dict(error.trailing_metadata() or ()).get(REASON_KEY, "")
    return grpc.StatusCode.OK, ""


def rewrite(keys: KeyFile, key_id: str, **changes: Any) -> None:
    """Change a stored key behind everybody's back."""
    changed = [msgspec.structs.replace(key, **changes) if key.id == key_id else key for key in keys.read()]
    keys._write(changed)


# ---- the matrix ------------------------------------------------------------------------------------------------------


def test_every_wrong_key_is_refused_by_every_method(shop: Path, serving: Serving) -> None:
    keys = KeyFile(shop)
    everything = tuple(Scope)
    good, _ = keys.create(everything, NOW)
    expired, expired_key = keys.create(everything, NOW)
    revoked, revoked_key = keys.create(everything, NOW)
    others, _ = keys.create(everything, NOW, tenant="another")
    rewrite(keys, expired_key.id, expires=NOW - 1)
    keys.revoke(revoked_key.id, NOW)
    forged = good[:-1] + ("0" if good[-1] != "0" else "1")
    wrong: list[tuple[str | None, grpc.StatusCode, str]] = [
        (None, UNKNOWN, "MISSING_KEY"),
        ("tb_1_2", UNKNOWN, "MALFORMED_KEY"),
        (forged, UNKNOWN, "UNKNOWN_KEY"),
        (expired, UNKNOWN, "EXPIRED_KEY"),
        (revoked, UNKNOWN, "REVOKED_KEY"),
        (others, PERMISSION, "WRONG_TENANT"),
    ]
    by_scope = {scope: keys.create([other for other in Scope if other is not scope], NOW)[0] for scope in Scope}
    with serving() as running:
        seen = set()
        for path, requests, answers in methods():
            scope = rule_of(path)
            seen.add(path)
            if scope is guard.OPEN:
                assert call(running, path, requests, answers, None)[0] not in (UNKNOWN, PERMISSION), path
                continue
            for key, code, reason in [*wrong, (by_scope[scope], PERMISSION, "WRONG_SCOPE")]:
                assert call(running, path, requests, answers, key) == (code, reason), (path, reason)
            assert call(running, path, requests, answers, good)[0] not in (UNKNOWN, PERMISSION), path
        assert "/tailorbird.v1.DecisionService/DecideBatch" in seen


def test_a_method_without_a_rule_cannot_be_served(keys: KeyFile) -> None:
    async def nothing(request: bytes, context: object) -> bytes:
        return request

    with pytest.raises(InternalError, match="NO_RULE.*a rule for /tailorbird.v1.New/Method"):
        guarded({"/tailorbird.v1.New/Method": Unary(nothing)}, Gate(keys))


def test_a_revoked_key_is_refused_by_a_service_that_runs(shop: Path, serving: Serving) -> None:
    keys = KeyFile(shop)
    text, key = keys.create([Scope.DECIDE], NOW)
    path = "/tailorbird.v1.DecisionService/Decide"
    with serving() as running:
        assert call(running, path, False, False, text)[1] == "UNKNOWN_PLACEMENT"
        keys.revoke(key.id, NOW)
        for _ in range(100):
            if (refused := call(running, path, False, False, text))[0] is UNKNOWN:
                break
            time.sleep(0.05)
        assert refused == (UNKNOWN, "REVOKED_KEY")


def test_without_keys_nobody_is_asked_for_one(running: Running) -> None:
    assert call(running, "/tailorbird.v1.DecisionService/Decide", False, False, None)[1] == "UNKNOWN_PLACEMENT"


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_a_key_past_its_rate_or_size_is_told_which_limit(keys: KeyFile) -> None:
    text, key = keys.create([Scope.DECIDE], NOW, calls_per_s_max=3, message_bytes_max=10)
    gate = Gate(keys)
    for _ in range(3):
        gate.admit(text, Scope.DECIDE, 10)
    with pytest.raises(ResourceExhausted, match=f"RATE_LIMITED.*calls_per_s_max = 3 of key {key.id}"):
        gate.admit(text, Scope.DECIDE, 10)
    with pytest.raises(ResourceExhausted, match=f"message_bytes_max = 10 of key {key.id}, got 11"):
        gate.admit(text, Scope.DECIDE, 11)


# ---- the file --------------------------------------------------------------------------------------------------------


def test_a_secret_is_nowhere_kept_and_nobody_else_reads_the_file(keys: KeyFile) -> None:
    text, key = keys.create([Scope.INGEST, Scope.INGEST], NOW, name="till 7")
    assert text.split("_")[2] not in keys.path.read_text()
    assert keys.path.stat().st_mode & 0o777 == 0o600
    assert (keys.read(), key.scopes) == ([key], (Scope.INGEST,))


def test_a_refusal_repeats_nothing_of_the_key(keys: KeyFile) -> None:
    text, _ = keys.create([Scope.DECIDE], NOW)
    gate = Gate(keys)
    for shown in (text[:-1] + "x", "tb_secret", f"{text}é"):
        with pytest.raises(Unauthenticated) as caught:
            gate.admit(shown, Scope.DECIDE, 0)
        assert text.split("_")[2][:16] not in caught.value.message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda keys: keys.create([], NOW), "at least one scope of ingest, decide, profile, admin"),
        (lambda keys: keys.create([Scope.DECIDE], NOW, name="x" * 101), "at most 100 characters, got 101"),
        (lambda keys: keys.create([Scope.DECIDE], NOW, expires=NOW), "an expiry ahead"),
        (lambda keys: keys.create([Scope.DECIDE], NOW, calls_per_s_max=-1), "limits of 0 or more"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(keys: KeyFile, make: Callable[[KeyFile], Key], message: str) -> None:
    with pytest.raises(CallerError, match=message):
        make(keys)
    assert keys.read() == []


def test_a_damaged_file_lets_nobody_in(keys: KeyFile) -> None:
    text, _ = keys.create([Scope.DECIDE], NOW)
    keys.path.write_text("[{")
    with pytest.raises(Damaged, match="DAMAGED_KEYS.*restore it from a backup"):
        Gate(keys).admit(text, Scope.DECIDE, 0)


def test_keys_are_made_listed_and_revoked_by_the_command(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(shop)]
    assert (
        main(["keys", "create", "--scope", "decide", "--scope", "ingest", "--name", "web", "--expires", "90d", *data])
        == 0
    )
    text = capsys.readouterr().out.splitlines()[0]
    (key,) = KeyFile(shop).read()
    assert Gate(KeyFile(shop)).admit(text, Scope.INGEST, 0) == key
    assert main(["keys", "revoke", key.id, *data]) == 0
    assert main(["keys", "list", *data]) == 0
    listed = capsys.readouterr().out.splitlines()[-1]
    assert listed.startswith(f"{key.id}  decide,ingest")
    assert "revoked" in listed
    assert text.split("_")[2] not in listed
    with pytest.raises(NotFound, match="UNKNOWN_KEY"):
        KeyFile(shop).revoke("0" * 12, NOW)
    assert main(["keys", "revoke", "0" * 12, *data]) == 2
    assert main(["keys", "create", "--scope", "all", *data]) == 2
    assert "a scope of ingest, decide, profile, admin, got 'all'" in capsys.readouterr().err


def test_with_keys_other_addresses_may_be_listened_on(shop: Path) -> None:
    async def listens() -> bool:
        with Engine.open(shop) as engine:
            service = Service(engine, ServeOptions(listen="0.0.0.0:0"))
            await asyncio.gather(*(writer.close() for writer in service._writers.values()))
            return service.asks_for_keys

    with pytest.raises(CallerError, match="LISTEN_NOT_LOOPBACK.*tailorbird keys create"):
        asyncio.run(listens())
    KeyFile(shop).create([Scope.DECIDE], NOW)
    assert asyncio.run(listens())

"""Keys: made, kept and taken back; and the matrix of every wrong key against every method there is."""

from __future__ import annotations

import asyncio
import hmac
import importlib
import pkgutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from google.protobuf import descriptor_pool

import tailorbird.v1
from tailorbird.engine import Engine
from tailorbird.engine.errors import CallerError, Damaged, InternalError, NotFound, ResourceExhausted, Unauthenticated
from tailorbird.server import guard, health, reflection
from tailorbird.server.cli import main
from tailorbird.server.guard import guarded, rule_of
from tailorbird.server.handlers import build_table
from tailorbird.server.keys import LOOK_S, Gate, Key, KeyFile, Scope
from tailorbird.server.serve import ServeOptions, Service
from tailorbird.server.statuses import REASON_KEY
from tailorbird.server.transport import CallContext, ServerLimits, ServerStream, Unary
from tailorbird.server.transport.choice import GRPCIO, NATIVE, has_native
from tailorbird.server.writer import GroupWriter
from tests.server.conftest import Running, Serving, running_service

OPEN_SERVICES = (health.SERVICE, *reflection.SERVICES)
NOW = time.time_ns() // 1_000_000
PERMISSION, UNKNOWN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path)


def described_services() -> list[str]:
    """Return every service of our protos, whether it is served or not."""
    found = []
    for module in pkgutil.iter_modules(tailorbird.v1.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"tailorbird.v1.{module.name}").DESCRIPTOR
            found += [service.full_name for service in file.services_by_name.values()]
    return found


def methods() -> Iterator[tuple[str, bool, bool]]:
    """Yield the path of every method that is described, and whether its requests and its answers are streams."""
    pool = descriptor_pool.Default()  # type: ignore[no-untyped-call]
    for service in (*described_services(), *OPEN_SERVICES):
        # Of reflection's two versions, which differ in their package alone, the pool has the older.
        for method in pool.FindServiceByName(service.replace(reflection.V1 + ".", reflection.ALPHA + ".")).methods:
            yield f"/{service}/{method.name}", method.client_streaming, method.server_streaming


def call(
    running: Running,
    path: str,
    requests: bool,
    answers: bool,
    key: str | None,
    others: tuple[tuple[str, str], ...] = (),
) -> tuple[grpc.StatusCode, str]:
    """Return the code and reason of a call with an empty request, its key and other metadata."""
    metadata = [*others] if key is None else [("authorization", f"Bearer {key}"), *others]
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


@pytest.mark.parametrize("transport", [GRPCIO, NATIVE])
def test_every_wrong_key_is_refused_by_every_method(shop: Path, transport: str) -> None:
    if transport == NATIVE and not has_native():
        pytest.skip("libnghttp2 was missing when the kernels were built")
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
        ("x", UNKNOWN, "MALFORMED_KEY"),
        ("tb_1_2", UNKNOWN, "MALFORMED_KEY"),
        (forged, UNKNOWN, "UNKNOWN_KEY"),
        (expired, UNKNOWN, "EXPIRED_KEY"),
        (revoked, UNKNOWN, "REVOKED_KEY"),
        (others, PERMISSION, "WRONG_TENANT"),
    ]
    by_scope = {scope: keys.create([other for other in Scope if other is not scope], NOW)[0] for scope in Scope}
    refusals = {UNKNOWN, PERMISSION, grpc.StatusCode.UNIMPLEMENTED}
    with running_service(shop, transport=transport) as running:
        seen = set()
        for path, requests, answers in methods():
            scope = rule_of(path)
            seen.add(path)
            if scope is guard.OPEN:
                assert path.startswith("/grpc."), path
                assert call(running, path, requests, answers, None)[0] not in refusals, path
                continue
            for key, code, reason in [*wrong, (by_scope[scope], PERMISSION, "WRONG_SCOPE")]:
                assert call(running, path, requests, answers, key) == (code, reason), (path, reason)
            assert call(running, path, requests, answers, good)[0] not in refusals, path
        assert {"/tailorbird.v1.DecisionService/DecideBatch", "/grpc.health.v1.Health/List"} <= seen
        assert len(seen) == len(list(methods()))
    assert {path for path in seen if path.startswith("/tailorbird.")} == api_paths(shop)


def api_paths(shop: Path) -> set[str]:
    """Return the paths of the handler table that is served."""

    async def built() -> set[str]:
        with Engine.open(shop) as engine:
            writer = GroupWriter(engine, ServerLimits())
            await writer.close()
            return set(build_table(engine, writer))

    return asyncio.run(built())


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


@pytest.mark.parametrize("transport", [GRPCIO, NATIVE])
def test_limits_of_a_key_are_kept_by_the_service_for_that_key_alone(shop: Path, transport: str) -> None:
    if transport == NATIVE and not has_native():
        pytest.skip("libnghttp2 was missing when the kernels were built")
    keys = KeyFile(shop)
    # One call a second at most: a service that took a second for the three calls would have to be asked again.
    slow, slow_key = keys.create([Scope.DECIDE], NOW, calls_per_s_max=1)
    small, small_key = keys.create([Scope.DECIDE, Scope.INGEST], NOW, message_bytes_max=8)
    path, too_much = "/tailorbird.v1.DecisionService/Decide", grpc.StatusCode.RESOURCE_EXHAUSTED
    with running_service(shop, transport=transport) as running:
        found = {call(running, path, False, False, slow)[1] for _ in range(100)}
        assert found == {"UNKNOWN_PLACEMENT", "RATE_LIMITED"}
        assert call(running, path, False, False, small)[1] == "UNKNOWN_PLACEMENT"
        metadata = [("authorization", f"Bearer {small}")]
        with pytest.raises(grpc.RpcError, match=f"message_bytes_max = 8 of key {small_key.id}, got 9") as caught:
            running.channel.unary_unary(path)(b"x" * 9, metadata=metadata, timeout=5)
        assert caught.value.code() is too_much
        stream = running.channel.stream_stream("/tailorbird.v1.SignalService/IngestStream")
        answers = stream(iter([b"", b"x" * 9]), metadata=metadata, timeout=30)
        with pytest.raises(grpc.RpcError) as caught:
            assert len(list(answers)) <= 1
        assert caught.value.code() is too_much
        assert dict(caught.value.trailing_metadata())[REASON_KEY] == "KEY_MESSAGE_TOO_LARGE"
    assert slow_key.id != small_key.id


def test_a_stream_of_answers_ends_when_its_key_is_revoked(keys: KeyFile) -> None:
    text, key = keys.create([Scope.PROFILE], NOW)
    gate = Gate(keys)

    async def watch(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        yield b"1"
        keys.revoke(key.id, NOW)
        gate._looked_s = -LOOK_S
        yield b"2"

    table = guarded({"/tailorbird.v1.FeatureService/WatchSegments": ServerStream(watch)}, gate)
    handler = table["/tailorbird.v1.FeatureService/WatchSegments"]
    assert isinstance(handler, ServerStream)

    async def watches() -> None:
        context = CallContext(method="/", peer="", metadata=(("authorization", f"Bearer {text}"),))
        answers = handler.function(b"", context)
        assert await anext(answers) == b"1"
        with pytest.raises(Unauthenticated, match="REVOKED_KEY"):
            await anext(answers)

    asyncio.run(watches())


def test_secrets_are_compared_in_constant_time_also_of_keys_nobody_has(
    keys: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, _ = keys.create([Scope.DECIDE], NOW)
    compared = []
    compare = hmac.compare_digest

    def noted(one: str, other: str) -> bool:
        compared.append(len(one) == len(other))
        return compare(one, other)

    monkeypatch.setattr("tailorbird.server.keys.hmac.compare_digest", noted)
    gate = Gate(keys)
    gate.check(text, Scope.DECIDE)
    for shown in (text[:-1] + ("0" if text[-1] != "0" else "1"), f"tb_{'0' * 12}_{'0' * 64}"):
        with pytest.raises(Unauthenticated, match="UNKNOWN_KEY"):
            gate.check(shown, Scope.DECIDE)
    assert compared == [True] * 3


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
            return service.face.asks_for_keys

    with pytest.raises(CallerError, match="LISTEN_NOT_LOOPBACK.*tailorbird keys create"):
        asyncio.run(listens())
    KeyFile(shop).create([Scope.DECIDE], NOW)
    assert asyncio.run(listens())

"""Several tenants in one service: whose call it is, and that nobody reaches another's data."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tailorbird.engine import Engine, Item
from tailorbird.engine.errors import (
    CallerError,
    Damaged,
    InternalError,
    NotFound,
    PermissionDenied,
    TailorbirdError,
    Unauthenticated,
)
from tailorbird.server.guard import OPEN, rule_of
from tailorbird.server.keys import Gate, KeyFile, Scope
from tailorbird.server.statuses import REASON_KEY
from tailorbird.server.tenants import METADATA, TENANTS_MAX, Gates, by_tenant, chooser, parse_tenants
from tailorbird.server.transport import (
    Bidirectional,
    CallContext,
    ClientStream,
    HandlerTable,
    ServerStream,
    Unary,
)
from tailorbird.server.transport.choice import GRPCIO, NATIVE, has_native
from tailorbird.v1 import (
    decision_service_pb2,
    decision_service_pb2_grpc,
    profile_service_pb2,
    profile_service_pb2_grpc,
    signal_service_pb2,
    signal_service_pb2_grpc,
)
from tests.server.conftest import CONFIGURATION, Running, running_service, serving_process
from tests.server.test_keys import call, methods
from tests.server.test_service import USER, order

NOW = 1_700_000_000_000
Metadata = list[tuple[str, str]]


@pytest.fixture
def shops(tmp_path: Path) -> dict[str, Path]:
    """Return two tenants' directories, each with an item of its own."""
    found = {}
    for tenant in ("red", "blue"):
        found[tenant] = tmp_path / tenant
        found[tenant].mkdir()
        (found[tenant] / "tailorbird.yaml").write_text(CONFIGURATION)
        with Engine.open(found[tenant]) as engine:
            engine.put_items([Item(id=f"{tenant}-mug")])
    return found


@pytest.fixture(params=[GRPCIO, NATIVE])
def transport(request: pytest.FixtureRequest) -> str:
    if request.param == NATIVE and not has_native():
        pytest.skip("libnghttp2 was missing when the kernels were built")
    return str(request.param)


def offered(running: Running, metadata: Metadata) -> list[str]:
    stub = decision_service_pb2_grpc.DecisionServiceStub(running.channel)
    answer = stub.Decide(decision_service_pb2.DecideRequest(placement="home"), metadata=metadata, timeout=30)
    return [item.item_id for item in answer.items]


def refused(running: Running, metadata: Metadata) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        offered(running, metadata)
    return caught.value.code(), dict(caught.value.trailing_metadata())[REASON_KEY]


def bearer(key: str, **others: str) -> Metadata:
    return [("authorization", f"Bearer {key}"), *others.items()]


# ---- whose call it is ------------------------------------------------------------------------------------------------


def test_without_keys_metadata_says_whose_call_it_is_and_the_first_is_the_default(
    shops: dict[str, Path], transport: str
) -> None:
    with running_service(shops, transport=transport) as running:
        assert offered(running, []) == ["red-mug"]
        assert offered(running, [(METADATA, "blue")]) == ["blue-mug"]
        assert offered(running, [(METADATA, "red")]) == ["red-mug"]
        assert refused(running, [(METADATA, "green")]) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_TENANT")


def test_a_key_opens_its_own_tenant_and_no_other(shops: dict[str, Path], transport: str) -> None:
    texts = {name: KeyFile(path).create(tuple(Scope), NOW, tenant=name)[0] for name, path in shops.items()}
    stray, _ = KeyFile(shops["red"]).create(tuple(Scope), NOW, tenant="blue")
    no_decide, _ = KeyFile(shops["blue"]).create([Scope.INGEST], NOW, tenant="blue")
    unknown, denied = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
    with running_service(shops, transport=transport) as running:
        for name, text in texts.items():
            assert offered(running, bearer(text)) == [f"{name}-mug"]
            assert offered(running, [*bearer(text), (METADATA, name)]) == [f"{name}-mug"]
        # Whether there is such a tenant is not told to one who is not its own.
        for other in ("blue", "green"):
            assert refused(running, [*bearer(texts["red"]), (METADATA, other)]) == (denied, "WRONG_TENANT")
        assert refused(running, bearer(stray)) == (denied, "WRONG_TENANT")
        assert refused(running, bearer(no_decide)) == (denied, "WRONG_SCOPE")
        assert refused(running, []) == (unknown, "MISSING_KEY")
        assert refused(running, [(METADATA, "red")]) == (unknown, "MISSING_KEY")
        # A key of one with the other's secret, and one in neither file.
        mixed = "_".join(["tb", texts["red"].split("_")[1], texts["blue"].split("_")[2]])
        assert refused(running, bearer(mixed)) == (unknown, "UNKNOWN_KEY")
        # A key made while it runs is let in, one that is revoked no longer.
        KeyFile(shops["blue"]).revoke(texts["blue"].split("_")[1], NOW)
        made, _ = KeyFile(shops["red"]).create(tuple(Scope), NOW, tenant="red")
        for _ in range(200):
            try:
                assert offered(running, bearer(made)) == ["red-mug"]
                assert refused(running, bearer(texts["blue"])) == (unknown, "REVOKED_KEY")
            except (grpc.RpcError, pytest.fail.Exception):
                time.sleep(0.05)
                continue
            break
        else:
            pytest.fail("the files of keys were not read again")


def test_no_method_reaches_another_tenant(shops: dict[str, Path], transport: str) -> None:
    texts = {name: KeyFile(path).create(tuple(Scope), NOW, tenant=name)[0] for name, path in shops.items()}
    stray, _ = KeyFile(shops["red"]).create(tuple(Scope), NOW, tenant="blue")
    with running_service(shops, transport=transport) as running:
        for path, requests, answers in methods():
            if rule_of(path) is OPEN:
                continue
            for key, metadata in (
                (texts["red"], ((METADATA, "blue"),)),
                (texts["blue"], ((METADATA, "x"),)),
                (stray, ()),
            ):
                found = call(running, path, requests, answers, key, metadata)
                assert found == (grpc.StatusCode.PERMISSION_DENIED, "WRONG_TENANT"), path


def test_what_is_written_for_one_tenant_is_in_its_directory_alone(shops: dict[str, Path], transport: str) -> None:
    with running_service(shops, transport=transport) as running:
        signals = signal_service_pb2_grpc.SignalServiceStub(running.channel)
        profiles = profile_service_pb2_grpc.ProfileServiceStub(running.channel)
        request = signal_service_pb2.IngestRequest(signals=[order("m1", "blue-mug")])
        blue = [(METADATA, "blue")]
        unary = signals.Ingest(request, metadata=blue, timeout=30)
        stream_request = signal_service_pb2.IngestStreamRequest(signals=[order("m2", "blue-mug")], source="s")
        (streamed,) = list(signals.IngestStream(iter([stream_request]), metadata=blue, timeout=30))
        assert streamed.position > unary.position
        asked = profile_service_pb2.GetProfileRequest(identifiers=USER, min_position=streamed.position)
        assert profiles.GetProfile(asked, metadata=blue, timeout=30).bought_count == 2
        with pytest.raises(grpc.RpcError) as caught:
            profiles.GetProfile(profile_service_pb2.GetProfileRequest(identifiers=USER), timeout=30)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    for tenant, is_known in (("red", False), ("blue", True)):
        with Engine.open(shops[tenant]) as engine:
            try:
                found = engine.profile({"user_id": "u1"}) is not None
            except NotFound:
                found = False
            assert found is is_known


# ---- the table -------------------------------------------------------------------------------------------------------


def named_table(name: bytes) -> HandlerTable:
    async def unary(request: bytes, context: CallContext) -> bytes:
        return name + request

    async def gather(requests: AsyncIterator[bytes], context: CallContext) -> bytes:
        return name + b"".join([each async for each in requests])

    async def scatter(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        yield name + request

    async def echo(requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
        async for each in requests:
            yield name + each

    return {
        "/u": Unary(unary, prompt=True),
        "/c": ClientStream(gather),
        "/s": ServerStream(scatter),
        "/b": Bidirectional(echo),
    }


def test_every_kind_of_call_goes_to_its_tenants_handler() -> None:
    table = by_tenant({"a": named_table(b"a"), "b": named_table(b"b")}, chooser(["a", "b"]))
    one, many, out, both = table["/u"], table["/c"], table["/s"], table["/b"]
    assert isinstance(one, Unary)
    assert one.prompt
    assert isinstance(many, ClientStream)
    assert isinstance(out, ServerStream)
    assert isinstance(both, Bidirectional)

    async def requests() -> AsyncIterator[bytes]:
        yield b"1"

    async def calls() -> None:
        for name in ("a", "b"):
            context = CallContext(method="/", peer="", metadata=((METADATA, name),))
            expected = f"{name}1".encode()
            assert await one.function(b"1", context) == expected
            assert context.tenant == name
            assert await many.function(requests(), context) == expected
            assert [each async for each in out.function(b"1", context)] == [expected]
            assert [each async for each in both.function(requests(), context)] == [expected]

    asyncio.run(calls())


def test_tables_that_differ_cannot_be_put_together() -> None:
    one = named_table(b"a")
    for other in ({**one, "/u": one["/c"]}, {"/u": one["/u"]}, {**one, "/more": one["/u"]}):
        with pytest.raises(InternalError, match="TABLES_DIFFER"):
            by_tenant({"a": one, "b": other}, chooser(["a", "b"]))


def test_the_tenant_of_a_key_stands_whatever_metadata_says() -> None:
    choose = chooser(["a", "b"])
    assert choose(CallContext(method="/", peer="", tenant="b")) == "b"
    with pytest.raises(PermissionDenied, match="WRONG_TENANT"):
        choose(CallContext(method="/", peer="", tenant="b", metadata=((METADATA, "a"),)))
    with pytest.raises(NotFound, match="UNKNOWN_TENANT") as caught:
        choose(CallContext(method="/", peer="", metadata=((METADATA, "alice@example.com"),)))
    assert "alice" not in caught.value.message


def test_the_same_key_in_two_directories_opens_the_one_it_is_for(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    text, _ = KeyFile(one).create([Scope.DECIDE], NOW, tenant="other")
    shutil.copytree(one, other)
    gates = Gates([Gate(KeyFile(one), "one"), Gate(KeyFile(other), "other")])
    assert gates.admit(text, Scope.DECIDE, 0).tenant == "other"
    (other / "access-keys.json").unlink()
    fresh = Gates([Gate(KeyFile(one), "one"), Gate(KeyFile(other), "other")])
    errors: list[tuple[str | None, type[TailorbirdError], str]] = [
        (text, PermissionDenied, "WRONG_TENANT"),
        (None, Unauthenticated, "MISSING_KEY"),
        ("tb_x", Unauthenticated, "MALFORMED_KEY"),
    ]
    for shown, kind, reason in errors:
        with pytest.raises(kind, match=reason):
            fresh.check(shown, Scope.DECIDE)


def test_a_damaged_file_of_keys_is_its_own_tenants_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {name: KeyFile(tmp_path / name) for name in ("one", "other", "third")}
    texts = {}
    for name, file in files.items():
        file.path.parent.mkdir()
        texts[name], _ = file.create([Scope.DECIDE], NOW, tenant=name)
    files["one"].path.write_text("[{")
    gates = Gates([Gate(file, name) for name, file in files.items()])
    for name in ("other", "third"):
        assert gates.admit(texts[name], Scope.DECIDE, 0).tenant == name
    with pytest.raises((Unauthenticated, Damaged)):
        gates.admit(texts["one"], Scope.DECIDE, 0)
    assert "the keys of tenant one cannot be read" in caplog.text
    assert set(gates._found) == {text.split("_")[1] for name, text in texts.items() if name != "one"}


@pytest.mark.parametrize(
    "texts", [["a"], ["=x"], ["a="], ["A=x"], ["a b=x"], ["a=x", "a=y"], ["a=x", "b=./x"], ["-a=x"]]
)
def test_tenants_that_make_no_sense_are_refused(texts: list[str]) -> None:
    with pytest.raises(CallerError, match="BAD_TENANT.*--tenant"):
        parse_tenants(texts)


def test_tenants_are_bounded() -> None:
    texts = [f"t{number}=d{number}" for number in range(TENANTS_MAX + 1)]
    assert len(parse_tenants(texts[:-1])) == TENANTS_MAX
    with pytest.raises(CallerError, match=f"at most {TENANTS_MAX} tenants"):
        parse_tenants(texts)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_serve_takes_several_tenants_and_tells_them_apart(shops: dict[str, Path], tmp_path: Path) -> None:
    named = [part for name, path in shops.items() for part in ("--tenant", f"{name}={path}")]
    with serving_process(tmp_path, *named, "--access-log") as process:
        with grpc.insecure_channel(process.address) as channel:
            running = Running(channel, process.address)
            assert offered(running, [(METADATA, "blue")]) == ["blue-mug"]
            assert offered(running, []) == ["red-mug"]
            refused(running, [(METADATA, "green")])
        with urllib.request.urlopen(f"{process.metrics}/metrics", timeout=10) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        lines = [json.loads(line) for line in process.errors.read_text().splitlines()]
    assert re.search(r"log positions red at \d+, blue at \d+", process.told())
    samples = [sample for family in families for sample in family.samples]
    decided = {
        (sample.labels["tenant"], sample.labels["code"]): sample.value
        for sample in samples
        if sample.name == "tailorbird_calls_total" and sample.labels["method"].endswith("/Decide") and sample.value
    }
    assert decided == {("red", "OK"): 1.0, ("blue", "OK"): 1.0, ("", "NOT_FOUND"): 1.0}
    for name in ("tailorbird_log_position", "tailorbird_ingest_lag_seconds", "tailorbird_category_stale"):
        assert {sample.labels["tenant"] for sample in samples if sample.name == name} == {"red", "blue"}
    calls = [line["tenant"] for line in lines if line["logger"] == "tailorbird.access"]
    assert sorted(calls) == ["", "blue", "red"]


def test_serve_refuses_data_beside_tenants(shops: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from tailorbird.server.cli import main

    named = [part for name, path in shops.items() for part in ("--tenant", f"{name}={path}")]
    assert main(["serve", "--data", str(shops["red"]), *named]) == 2
    assert "BAD_TENANT" in capsys.readouterr().err
    assert main(["serve", "--tenant", "red", "--tenant", f"blue={shops['blue']}"]) == 2
    assert "expected NAME=DIR" in capsys.readouterr().err


def test_a_tenant_without_a_key_is_said_to_be_out_of_reach(shops: dict[str, Path], tmp_path: Path) -> None:
    text, _ = KeyFile(shops["red"]).create(tuple(Scope), NOW, tenant="red")
    KeyFile(shops["blue"]).create(tuple(Scope), NOW)  # for the tenant `default`, who is not served here
    named = [part for name, path in shops.items() for part in ("--tenant", f"{name}={path}")]
    with serving_process(tmp_path, *named) as process, grpc.insecure_channel(process.address) as channel:
        running = Running(channel, process.address)
        assert offered(running, bearer(text)) == ["red-mug"]
        assert refused(running, [(METADATA, "blue")])[1] == "MISSING_KEY"
    assert "tenant red has no key" not in process.told()
    assert "WARNING: tenant blue has no key of its own, so nobody reaches it" in process.told()

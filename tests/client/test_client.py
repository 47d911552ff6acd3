"""The typed client against the whole service, its methods against the descriptors, and retries by themselves."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

pytest.importorskip("tailorbird.native.http2_client", reason="libnghttp2 was missing when the kernels were built")

from tailorbird.client import AsyncClient, CallError, Channel, Client, RetryPolicy, api
from tailorbird.client.exchange import Outcome
from tailorbird.client.method import Method
from tailorbird.client.retries import Attempts, Budget
from tailorbird.native.http2_client import timeout_text
from tailorbird.server.handlers import SERVICES
from tailorbird.v1 import (
    catalog_service_pb2,
    consent_pb2,
    decision_service_pb2,
    decision_service_pb2_grpc,
    identity_pb2,
    profile_service_pb2,
    signal_pb2,
    signal_service_pb2,
)
from tests.server.conftest import CONFIGURATION, Serving, running_service

PERSON = [identity_pb2.Identifier(namespace="user_id", value="17")]
MUG = catalog_service_pb2.PutItemsRequest(items=[catalog_service_pb2.Item(id="mug")], message_id="c1")
GRANTED = consent_pb2.ConsentChoice(
    entries=[
        consent_pb2.ConsentEntry(data_type=data_type, state=consent_pb2.CONSENT_STATE_GRANTED)
        for data_type in (consent_pb2.DATA_TYPE_BEHAVIOURAL, consent_pb2.DATA_TYPE_TRANSACTIONAL)
    ]
)


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    """Return what starts the service over a small shop."""
    (tmp_path / "tailorbird.yaml").write_text(CONFIGURATION)
    return lambda: running_service(tmp_path)


def described() -> dict[str, tuple[str, str]]:
    """Return every method of the API with the names of its messages, as the descriptors have them."""
    from google.protobuf import descriptor_pool

    pool = descriptor_pool.Default()
    services = [pool.FindServiceByName(name) for name in SERVICES]
    return {
        f"/{service.full_name}/{method.name}": (method.input_type.full_name, method.output_type.full_name)
        for service in services
        for method in service.methods
    }


def test_every_method_of_the_api_is_there_with_its_messages() -> None:
    methods = [value for value in vars(api).values() if isinstance(value, Method)]
    assert {method.path for method in methods} == set(described())
    for kind in (Client, AsyncClient):
        client = kind("127.0.0.1:1")
        calls = {call._method.path for name, call in vars(client).items() if name != "channel"}
        assert calls == set(described())
    for method in methods:
        answer = method.read(b"")
        assert answer.DESCRIPTOR.full_name == described()[method.path][1]


def order(message_id: str, source_offset: int | None = None) -> signal_pb2.Signal:
    return signal_pb2.Signal(
        type="order_completed",
        message_id=message_id,
        event_time_ms=time.time_ns() // 1_000_000,
        identifiers=PERSON,
        products=[signal_pb2.ProductLine(product_id="mug")],
        consent=GRANTED,
        source="" if source_offset is None else "file",
        source_offset=source_offset,
    )


def test_the_blocking_client_speaks_to_the_whole_service(serving: Serving) -> None:
    with serving() as service, Client(service.address) as client:
        put = client.put_items(MUG)
        answer = client.ingest(signal_service_pb2.IngestRequest(signals=[order("m1")]))
        assert answer.position > put.position
        streamed = list(
            client.ingest_stream(
                signal_service_pb2.IngestStreamRequest(signals=[order(f"s{n}", n)], source="file") for n in range(3)
            )
        )
        assert [found.source_offset for found in streamed] == [0, 1, 2]
        profile = client.get_profile(
            profile_service_pb2.GetProfileRequest(identifiers=PERSON, min_position=streamed[-1].position)
        )
        assert profile.features
        request = decision_service_pb2.DecideRequest(placement="home", candidate_ids=["mug"])
        assert [item.item_id for item in client.decide(request).items] == ["mug"]
        with pytest.raises(CallError) as caught:
            client.decide(decision_service_pb2.DecideRequest(placement="nowhere"))
        assert caught.value.reason == "UNKNOWN_PLACEMENT"


def test_the_asyncio_client_speaks_to_the_whole_service(serving: Serving) -> None:
    async def work(address: str) -> None:
        async with AsyncClient(address) as client:
            await client.put_items(MUG)
            request = decision_service_pb2.DecideRequest(placement="home", candidate_ids=["mug"])
            answers = await asyncio.gather(*(client.decide(request) for _ in range(50)))
            assert {answer.items[0].item_id for answer in answers} == {"mug"}

    with serving() as service:
        asyncio.run(work(service.address))


def test_generated_stubs_take_the_channel(serving: Serving) -> None:
    with serving() as service, Channel(service.address) as channel:
        stub = decision_service_pb2_grpc.DecisionServiceStub(channel)
        answer = stub.Decide(decision_service_pb2.DecideRequest(placement="home"), timeout=10)
        assert answer.decision_id


def test_waits_grow_evenly_drawn_up_to_the_bound_and_end_with_the_attempts() -> None:
    policy = RetryPolicy(attempts_max=6, backoff_s=0.1, backoff_max_s=0.3, multiplier=2, budget=1_000)
    drawn = []
    for seed in range(200):
        attempts = Attempts(policy, Budget(policy), None, random.Random(seed))
        waits = []
        while (wait_s := attempts.wait_s(Outcome(14))) is not None:
            waits.append(wait_s)
        drawn.append(waits)
    assert {len(waits) for waits in drawn} == {5}
    for place, ceiling_s in enumerate([0.1, 0.2, 0.3, 0.3, 0.3]):
        found = [waits[place] for waits in drawn]
        assert 0 <= min(found) < 0.1 * ceiling_s
        assert 0.9 * ceiling_s < max(found) <= ceiling_s


def test_what_was_not_begun_is_repeated_whatever_the_policy_and_at_once() -> None:
    policy = RetryPolicy(codes=frozenset())
    attempts = Attempts(policy, Budget(policy), None, random.Random(1))
    assert attempts.wait_s(Outcome(8, is_unprocessed=True)) == 0.0
    assert attempts.wait_s(Outcome(14)) is None


def test_the_service_may_ask_to_wait_or_not_to_come_back() -> None:
    policy = RetryPolicy()

    def wait_s(pushback: str, deadline_s: float | None = None) -> float | None:
        trailing = (("grpc-retry-pushback-ms", pushback),)
        return Attempts(policy, Budget(policy), deadline_s, random.Random(1)).wait_s(Outcome(14, trailing=trailing))

    assert wait_s("250") == 0.25
    assert wait_s("-1") is None
    assert wait_s("soon") is None
    assert wait_s("250", time.monotonic() + 0.1) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, b"1m"),
        (0.0000001, b"1m"),
        (1.5, b"1500m"),
        (29.999998, b"30000m"),
        (99_999.999, b"99999999m"),
        (1e6, b"1000000S"),
        (1e12, b"99999999S"),
    ],
)
def test_timeouts_fit_eight_digits(seconds: float, text: bytes) -> None:
    assert timeout_text(seconds) == text

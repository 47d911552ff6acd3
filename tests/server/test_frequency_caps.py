"""Impressions and caps over the service: two devices of one person, by every method that decides."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tailorbird.v1 import (
    catalog_service_pb2,
    catalog_service_pb2_grpc,
    consent_pb2,
    decision_service_pb2,
    decision_service_pb2_grpc,
    identity_pb2,
    signal_pb2,
    signal_service_pb2,
    signal_service_pb2_grpc,
)
from tests.server.conftest import Running

NOW_MS = time.time_ns() // 1_000_000
PHONE, LAPTOP, ACCOUNT = [
    identity_pb2.Identifier(namespace=namespace, value=value)
    for namespace, value in (("device_id", "phone-0001"), ("device_id", "laptop-0002"), ("user_id", "u-88001"))
]
GRANTED = consent_pb2.ConsentChoice(
    entries=[
        consent_pb2.ConsentEntry(data_type=data_type, state=consent_pb2.CONSENT_STATE_GRANTED)
        for data_type in (consent_pb2.DATA_TYPE_BEHAVIOURAL, consent_pb2.DATA_TYPE_DEVICE)
    ]
)
CONFIGURATION = """\
version: 1
placements:
  - {name: unseen, k: 1, retrieve: {whole_catalogue: true}, exclude: {shown: 1h}, record_served: false}
  - name: teaser
    k: 1
    retrieve: {whole_catalogue: true}
    exclude: {}
    caps: {shown: {times: 2, window: 1d}, served: {times: 3, window: 1d}}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    directory = tmp_path / "shop"
    directory.mkdir()
    (directory / "tailorbird.yaml").write_text(CONFIGURATION)
    return directory


class Visitor:
    """One person, whose phone and laptop log into the same account."""

    def __init__(self, running: Running) -> None:
        self.decisions = decision_service_pb2_grpc.DecisionServiceStub(running.channel)
        self._signals = signal_service_pb2_grpc.SignalServiceStub(running.channel)
        self._count = 0
        catalog = catalog_service_pb2_grpc.CatalogServiceStub(running.channel)
        items = [catalog_service_pb2.Item(id=item_id) for item_id in ("a", "b", "c")]
        catalog.PutItems(catalog_service_pb2.PutItemsRequest(message_id="p1", items=items))
        for device in (PHONE, LAPTOP):
            self.send(self.signal("page_viewed", [device, ACCOUNT]))

    def signal(self, kind: str, who: Sequence[identity_pb2.Identifier], *product_ids: str) -> signal_pb2.Signal:
        self._count += 1
        return signal_pb2.Signal(
            type=kind,
            event_time_ms=NOW_MS,
            identifiers=who,
            message_id=f"m{self._count}",
            products=[signal_pb2.ProductLine(product_id=product_id) for product_id in product_ids],
            consent=GRANTED,
        )

    def send(self, signal: signal_pb2.Signal) -> None:
        response = self._signals.Ingest(signal_service_pb2.IngestRequest(signals=[signal]))
        assert [outcome.status for outcome in response.outcomes] == [signal_service_pb2.SIGNAL_STATUS_APPLIED]

    def offered(self, placement: str, device: identity_pb2.Identifier, *candidates: str) -> str:
        asked = decision_service_pb2.DecideRequest(placement=placement, identifiers=[device], candidate_ids=candidates)
        return offered(self.decisions.Decide(asked))


def offered(response: decision_service_pb2.DecideResponse) -> str:
    return "".join(item.item_id for item in response.items) or "-"


def test_what_one_device_was_shown_the_other_is_not_offered(running: Running) -> None:
    visitor = Visitor(running)
    assert visitor.offered("unseen", PHONE) == visitor.offered("unseen", LAPTOP) == "a"
    visitor.send(visitor.signal("items_shown", [PHONE], "a"))
    for candidates in ((), ("c", "b", "a")):
        assert visitor.offered("unseen", PHONE, *candidates) == visitor.offered("unseen", LAPTOP, *candidates) == "b"
    visitor.send(visitor.signal("items_shown", [LAPTOP], "b", "c"))
    assert visitor.offered("unseen", PHONE) == visitor.offered("unseen", LAPTOP) == "-"


@pytest.mark.parametrize("candidates", [(), ("c", "b", "a")])
def test_an_item_is_offered_until_its_cap_on_both_devices_together(
    running: Running, candidates: tuple[str, ...]
) -> None:
    visitor = Visitor(running)
    found = "".join(visitor.offered("teaser", device, *candidates) for device in (PHONE, LAPTOP) * 2)
    assert found == "aaab"
    visitor.send(visitor.signal("items_shown", [PHONE], "b"))
    assert visitor.offered("teaser", LAPTOP, *candidates) == "b"
    visitor.send(visitor.signal("items_shown", [LAPTOP], "b"))
    assert visitor.offered("teaser", PHONE, *candidates) == "c"


def test_a_batch_and_a_page_keep_to_the_caps_and_count_the_events_they_bring(running: Running) -> None:
    visitor = Visitor(running)
    ask = decision_service_pb2.DecideRequest
    seen = visitor.signal("items_shown", [PHONE], "a", "a")
    batch = decision_service_pb2.DecideBatchRequest(
        requests=[
            ask(placement="teaser", identifiers=[device], events=events)
            for device, events in ((PHONE, []), (LAPTOP, []), (PHONE, [seen]), (LAPTOP, []), (PHONE, []))
        ]
    )
    answer = visitor.decisions.DecideBatch(batch)
    # The third brings impressions of its own.
    assert "".join(offered(outcome.decision) for outcome in answer.outcomes)[:3] == "aab"
    parts = [decision_service_pb2.PagePart(placement="teaser")] * 3
    twice_b = visitor.signal("items_shown", [LAPTOP], "a", "a", "b", "b")
    page = decision_service_pb2.DecidePageRequest(parts=parts, identifiers=[LAPTOP], events=[twice_b])
    assert [offered(decision) for decision in visitor.decisions.DecidePage(page).decisions] == ["c", "-", "-"]

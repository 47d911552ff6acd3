"""Sessions read as signals: every event by its type, malformed ones told, files that break off."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tailorbird.engine.consent import ConsentChoice
from tailorbird.engine.errors import CallerError
from tailorbird.engine.signals import Signal
from tailorbird.server.sources.batch import Counts
from tailorbird.server.sources.otto import TYPES, read


def session(number: int, *events: tuple[int, int, str]) -> str:
    return (
        json.dumps({"session": number, "events": [{"aid": a, "ts": t, "type": kind} for a, t, kind in events]}) + "\n"
    )


def test_every_event_is_a_signal_of_its_type(tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    path.write_text(session(5, (11, 1_000, "clicks"), (12, 2_000, "carts"), (12, 3_000, "orders")))
    consent = ConsentChoice(granted=1)
    (batch,) = read(path, consent=consent)
    viewed, added, ordered = batch.signals
    assert (viewed.type, viewed.event_time, viewed.properties) == ("product_viewed", 1_000, {"product_id": "11"})
    assert (added.type, added.properties) == ("product_added", {"product_id": "12"})
    assert (ordered.type, ordered.properties["products"]) == ("order_completed", [{"product_id": "12"}])
    assert [signal.identifiers for signal in batch.signals] == [{"anonymous_id": "session-5"}] * 3
    assert [signal.source_offset for signal in batch.signals] == [0, 1, 2]
    assert {signal.consent for signal in batch.signals} == {consent}
    assert [item.id for item in batch.items] == ["11", "12"]


@pytest.mark.parametrize(
    "bad",
    [
        "not json\n",
        '{"session": 1}\n',
        '{"session": 1, "events": 5}\n',
        session(1, (1, 1, "wishes")),
        '{"session": 1, "events": [{"aid": "x", "ts": 1, "type": "clicks"}]}\n',
        '{"session": 1, "events": [{"aid": 1, "type": "clicks"}]}\n',
    ],
)
def test_a_malformed_line_or_event_is_told_and_the_rest_is_read(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    path.write_text(session(1, (1, 1, "clicks")) + bad + session(2, (2, 2, "clicks")))
    counts = Counts()
    signals = [signal for batch in read(path, counts=counts) for signal in batch.signals]
    assert [signal.identifiers["anonymous_id"] for signal in signals] == ["session-1", "session-2"]
    assert counts.malformed == 1
    assert counts.problems[0].line == 2


def test_bad_utf8_stops_with_its_place_after_giving_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    path.write_bytes(session(1, (1, 1, "clicks")).encode() + b'{"session": "\xff"}\n')
    signals: list[Signal] = []
    with pytest.raises(CallerError, match=r"BAD_UTF8.*0xff.*line 2"):
        signals.extend(signal for batch in read(path) for signal in batch.signals)
    assert len(signals) == 1


def test_counts_per_type_equal_the_real_files(data_dir: Path) -> None:
    path = data_dir / "otto" / "sessions.jsonl"
    expected = Counter(event["type"] for line in path.read_text().splitlines() for event in json.loads(line)["events"])
    counts = Counts()
    signals = [signal for batch in read(path, counts=counts) for signal in batch.signals]
    assert counts.used == expected
    assert counts.signals == {TYPES[kind]: count for kind, count in expected.items()}
    assert Counter(signal.type for signal in signals) == counts.signals

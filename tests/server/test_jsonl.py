"""JSON Lines are read one by one: what is no signal is told with its line, and the reading goes on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tailorbird.engine.consent import Basis, parse_choice
from tailorbird.engine.errors import CallerError
from tailorbird.server.sources.jsonl import SHOWN_BYTES_MAX, BadLine, SignalLine, read_lines

GOOD = {"type": "page_viewed", "event_time": 1_316_000_000_000, "identifiers": {"anonymous_id": "a"}}
LINE_MAX = 10_000


def read(path: Path, data: bytes) -> list[SignalLine | BadLine]:
    path.write_bytes(data)
    return list(read_lines(path, LINE_MAX))


def line(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode() + b"\n"


def test_a_signal_is_read_whole(tmp_path: Path) -> None:
    consent = {"choice": "granted:behavioural", "basis": "contract", "notice": "n1"}
    (entry,) = read(tmp_path / "a", line(message_id="m", properties={"x": [1]}, source="s", consent=consent))
    assert isinstance(entry, SignalLine)
    assert entry.signal.properties == {"x": [1]}
    assert entry.signal.consent is not None
    assert entry.signal.consent.notice == "n1"
    assert entry.signal.consent.granted == parse_choice("granted:behavioural").granted
    assert entry.signal.consent.basis is Basis.CONTRACT


@pytest.mark.parametrize(
    ("bad", "reason", "said"),
    [
        (b"{", "BAD_JSON", "JSON"),
        (b'{"type": "a\xff"}', "BAD_UTF8", "bad byte at 11"),
        (b"[]", "BAD_FIELD", "expected `object`"),
        (line(event_time="soon"), "BAD_FIELD", "$.event_time"),
        (line(identifiers={"user_id": 7}), "BAD_FIELD", "$.identifiers"),
        (line(propertys={}), "BAD_FIELD", "propertys"),
        (line(consent={"choice": "granted:everything"}), "BAD_CONSENT", "everything"),
        (line(properties={"x": "y" * 20_000}), "LINE_TOO_LONG", "limits.signal_bytes_max = 10000"),
    ],
)
def test_a_bad_line_is_told_with_its_number_and_the_rest_is_read(
    tmp_path: Path, bad: bytes, reason: str, said: str
) -> None:
    before, found, after = read(tmp_path / "a", line() + b"\n" + bad.rstrip(b"\n") + b"\n" + line())
    assert isinstance(before, SignalLine)
    assert isinstance(after, SignalLine)
    assert isinstance(found, BadLine)
    assert (found.line_number, after.line_number, found.reason) == (3, 4, reason)
    assert said in found.message
    assert len(found.text) <= SHOWN_BYTES_MAX


def test_ten_megabytes_in_one_field_are_passed_over(tmp_path: Path) -> None:
    found, after = read(tmp_path / "a", line(properties={"x": "y" * 10_000_000}) + line())
    assert isinstance(found, BadLine)
    assert found.reason == "LINE_TOO_LONG"
    assert isinstance(after, SignalLine)


def test_a_compressed_file_is_read_and_a_truncated_one_is_told(tmp_path: Path) -> None:
    # Incompressible ids, so that half of the bytes hold about half of the lines.
    lines = b"".join(line(message_id=f"{n * 2_654_435_761 % 2**32:x}") for n in range(2_000))
    packed = gzip.compress(lines)
    assert len(read(tmp_path / "a.gz", packed)) == 2_000
    (tmp_path / "b.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(CallerError, match="after line") as caught:
        list(read_lines(tmp_path / "b.gz", LINE_MAX))
    assert caught.value.reason == "DAMAGED_INPUT"


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(CallerError) as caught:
        list(read_lines(tmp_path / "none", LINE_MAX))
    assert caught.value.reason == "NO_INPUT_FILE"

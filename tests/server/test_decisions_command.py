"""`tailorbird decisions` beside a service, as an operator uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from tailorbird.engine.requests import Reason
from tailorbird.server.cli import main
from tailorbird.v1 import signal_pb2
from tests.server.conftest import Running, Serving
from tests.server.test_service import USER, decide, ingest, item_ids, order, put_items


@pytest.fixture
def decided(serving: Serving, shop: Path) -> dict[str, list[str]]:
    """Return the items of three decisions by id; a service made them and has stopped."""
    with serving() as running:
        put_items(running)
        ingest(running, order("m1", "mug"))
        answers = [
            decide(running, identifiers=USER),
            decide(running),
            decide(running, identifiers=USER, request_id="r1"),
        ]
        click(running, answers[0].decision_id)
    return {answer.decision_id: item_ids(answer) for answer in answers}


def click(running: Running, decision_id: str) -> None:
    clicked = order("m2", "lamp")
    clicked.type = "recommendation_clicked"
    del clicked.products[:]
    clicked.properties.append(signal_pb2.Property(name="product_id", string_value="lamp"))
    clicked.properties.append(signal_pb2.Property(name="decision_id", string_value=decision_id))
    ingest(running, clicked)


def said(capsys: pytest.CaptureFixture[str], shop: Path, *arguments: str, code: int = 0) -> str:
    """Run a verb; return what it printed, or its error."""
    capsys.readouterr()
    assert main(["decisions", *arguments, "--data", str(shop)]) == code
    captured = capsys.readouterr()
    return captured.err if code == 2 else captured.out


def test_the_newest_decisions_are_listed(
    decided: dict[str, list[str]], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(capsys, shop, "tail").splitlines()
    assert [line.split("  ")[1] for line in lines] == list(decided)
    assert said(capsys, shop, "tail", "--count", "1").splitlines() == lines[-1:]


def test_decisions_are_followed_as_they_are_made(decided: dict[str, list[str]], serving: Serving, shop: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("tailorbird")),
        "decisions",
        "tail",
        "--count",
        "1",
        "--follow",
        "--data",
        str(shop),
    ]
    with subprocess.Popen([*command], stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        try:
            assert list(decided)[-1] in following.stdout.readline()
            with serving() as running:
                made = decide(running).decision_id
                assert made in following.stdout.readline()
        finally:
            following.kill()


def test_a_decision_is_shown_with_what_came_of_it(
    decided: dict[str, list[str]], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _, by_request = decided
    text = said(capsys, shop, "show", first)
    assert "asked for home with daypart=" in text
    assert "1 outcome(s) within 7d" in text
    assert "recommendation_clicked  lamp" in text
    found = json.loads(said(capsys, shop, "show", first, "--json"))
    assert [item["id"] for item in found["decisions"][0]["items"]] == decided[first]
    assert found["outcomes"][0]["items"] == ["lamp"]
    assert "0 outcome(s)" in said(capsys, shop, "show", by_request)


def test_an_id_nobody_gave_is_refused(
    decided: dict[str, list[str]], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = next(iter(decided)).swapcase()
    assert "BAD_DECISION_ID" in said(capsys, shop, "show", forged, code=2)
    assert "BAD_DECISION_ID" in said(capsys, shop, "replay", "--decision", "x", code=2)


def test_decisions_are_replayed_all_one_and_by_time(
    decided: dict[str, list[str]], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "3 identical to the bit, 0 different" in said(capsys, shop, "replay")
    assert "1 identical to the bit" in said(capsys, shop, "replay", "--decision", next(iter(decided)))
    assert "0 identical to the bit" in said(capsys, shop, "replay", "--until", "2020-01-01")
    assert "3 identical to the bit" in said(capsys, shop, "replay", "--since", "2020-01-01")


def test_another_way_to_decide_ends_the_replay_non_zero(
    decided: dict[str, list[str]], shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailorbird.engine.decider.reasons_of", lambda code: (Reason.MODEL,))
    text = said(capsys, shop, "replay", code=1)
    assert f"DIFFERENT {next(iter(decided))} at position" in text
    assert "items[0].reasons: logged" in text


def test_decisions_are_exported_to_parquet(
    decided: dict[str, list[str]], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shop / "decisions.parquet"
    assert "3 decision(s)" in said(capsys, shop, "export", "--parquet", str(file))
    rows = parquet.read_table(file).to_pylist()
    assert {row["decision_id"]: row["items"] for row in rows} == decided


def test_a_parquet_file_that_cannot_be_written_is_told(
    decided: dict[str, list[str]], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decisions", "export", "--parquet", str(shop / "no" / "file"), "--data", str(shop)]) == 1
    assert "FILE_WRITE_FAILED" in capsys.readouterr().err


def test_a_persons_decisions_are_erased(
    decided: dict[str, list[str]], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "2 decision(s) overwritten" in said(capsys, shop, "erase", "--id", "user_id=u1")
    assert "erased with the person" in said(capsys, shop, "show", next(iter(decided)))
    assert "2 not replayed: erased with the person" in said(capsys, shop, "replay")

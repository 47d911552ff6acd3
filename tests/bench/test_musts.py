"""What a benchmark must keep to, and a command that ends non-zero where it does not."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tailorbird.bench import crash, powerfail, quality
from tailorbird.bench.musts import Must, missed
from tailorbird.server.cli import main

RATIO = Must("ratio", at_least=1.5)
COUNT = Must("count", at_most=0)
WHOLE = {"lost": 0, "doubled": 0, "unclean_starts": 0, "hash_mismatches": 0}
GOOD = {"ndcg10_known": 1.1, "ndcg10_anonymous": 2.0, "ndcg10_cold": 1.03, "ndcg10_cold_abroad": 1.8}
RATIOS = {f"{name}_over_popularity": ratio for name, ratio in GOOD.items()}


def test_a_bound_itself_is_kept_and_what_is_beyond_it_is_told() -> None:
    assert missed({"ratio": 1.5, "count": 0}, [RATIO, COUNT]) == []
    assert missed({"ratio": 1.49, "count": 1}, [RATIO, COUNT]) == [
        "expected ratio of at least 1.5, got 1.49",
        "expected count of at most 0, got 1",
    ]


@pytest.mark.parametrize("results", [{}, {"ratio": None}, {"ratio": float("nan")}, {"ratio": "2"}])
def test_a_result_that_is_missing_or_no_number_is_missed(results: dict[str, object]) -> None:
    assert len(missed(results, [RATIO])) == 1


@pytest.mark.parametrize("bench", [crash, powerfail])
@pytest.mark.parametrize("name", WHOLE)
def test_every_broken_promise_of_a_crash_is_a_missed_must(bench: ModuleType, name: str) -> None:
    assert missed(WHOLE, bench.MUSTS) == []
    assert missed({**WHOLE, name: 1}, bench.MUSTS) == [f"expected {name} of at most 0, got 1"]


@pytest.mark.parametrize("name", RATIOS)
def test_decisions_must_beat_popularity(name: str) -> None:
    assert missed(RATIOS, quality.MUSTS) == []
    assert len(missed({**RATIOS, name: RATIOS[name] - 0.01}, quality.MUSTS)) == 1


def test_a_missed_must_ends_the_command_non_zero_after_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    command = ["bench", "crash", "--kills", "1", "--json", str(report)]
    assert main([*command, "--check"]) == 0
    monkeypatch.setattr(crash, "MUSTS", (Must("kills", at_least=2),))
    assert main(command) == 0
    report.unlink()
    capsys.readouterr()
    assert main([*command, "--check"]) == 1
    assert capsys.readouterr().err == "missed: crash: expected kills of at least 2, got 1\n"
    assert report.is_file()

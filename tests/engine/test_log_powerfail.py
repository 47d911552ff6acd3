"""The local log after power failures and kills, and a log that lies, which both tests must catch."""

from __future__ import annotations

import sys

import pytest

from tailorbird.bench.crash import crashes
from tailorbird.bench.powerfail import power_failures
from tailorbird.native import build_flags

recorded = pytest.mark.skipif(
    sys.platform != "linux" or build_flags.sanitized(), reason="the recorder is preloaded: Linux, no sanitizer"
)

KEPT = {"lost": 0, "doubled": 0, "unclean_starts": 0, "hash_mismatches": 0, "details": []}


@recorded
def test_the_log_keeps_its_promises_through_power_failures() -> None:
    results = power_failures("tailorbird.bench.log_workload", 150, seed=11)
    assert {key: results[key] for key in KEPT} == KEPT
    assert results["images"] == 150
    losses = results["images_with_losses"]
    assert isinstance(losses, int)
    assert losses >= 20


@recorded
def test_a_promise_given_before_the_sync_is_found_out(
    monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    results = power_failures("tests.engine.eager_log_workload", 30, seed=12)
    lost = results["lost"]
    assert isinstance(lost, int)
    assert lost > 0


@pytest.mark.crash
def test_the_log_keeps_its_promises_through_kills() -> None:
    results = crashes("tailorbird.bench.log_workload", 5, seed=13)
    assert {key: results[key] for key in KEPT} == KEPT
    assert (results["kills"], results["starts"]) == (5, 6)

"""The whole engine through power failures and kills: nothing lost or doubled, clean starts, equal hashes."""

from __future__ import annotations

import sys

import pytest

from tailorbird.bench.crash import crashes
from tailorbird.bench.powerfail import ENGINE_SUBJECT, power_failures
from tailorbird.native import build_flags

NOTHING = {"lost": 0, "doubled": 0, "unclean_starts": 0, "hash_mismatches": 0, "details": []}


@pytest.mark.skipif(
    sys.platform != "linux" or build_flags.sanitized(), reason="the recorder is preloaded: Linux, no sanitizer"
)
def test_the_engine_keeps_its_promises_through_power_failures() -> None:
    results = power_failures(ENGINE_SUBJECT, 40, seed=21)
    assert {key: results[key] for key in NOTHING} == NOTHING
    assert results["images"] == 40


@pytest.mark.crash
def test_the_engine_keeps_its_promises_through_kills() -> None:
    results = crashes(ENGINE_SUBJECT, 20, seed=22)
    assert {key: results[key] for key in NOTHING} == NOTHING
    assert (results["kills"], results["starts"]) == (20, 21)

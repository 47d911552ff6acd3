"""The two benches and the demo, run small: every figure is there and sane. No time is asserted."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from types import ModuleType

import pytest

from tailorbird.bench import demo, engine, ingest, rpc, stages, workload
from tailorbird.bench.world import World, WorldSettings
from tailorbird.engine.configuration import parse_configuration
from tailorbird.engine.errors import PreconditionFailed
from tailorbird.engine.feature_compiler import compile_features
from tailorbird.server.transport.choice import has_native


def options(module: ModuleType, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(arguments)


def assert_positive(results: dict[str, object], *names: str) -> None:
    for name in names:
        value = results[name]
        assert isinstance(value, int | float), name
        assert math.isfinite(value), name
        assert value > 0, name


def test_workload_r_has_64_features_that_fit_a_head() -> None:
    features = compile_features(parse_configuration(workload.configuration_text()), 1)
    assert len(features.features) == workload.DIMENSION == 64
    assert features.layout.packed_bytes_max < 1_900
    assert len(workload.item_id(99_999).encode()) == 12


def test_bench_engine_reports_every_figure_and_uses_a_prepared_directory_again(tmp_path: Path) -> None:
    small = ["--people", "200", "--items", "3000", "--blocks", "2", "--calls", "5", "--data", str(tmp_path / "r")]
    for _ in range(2):
        results = engine.run(options(engine, *small))
        for count in (100, 1_000):
            assert_positive(
                results,
                f"decide_{count}_over_numpy",
                f"decide_{count}_over_numpy_by_block",
                f"decide_{count}_p50_us",
                f"decide_{count}_p99_us",
                f"numpy_{count}_p50_us",
            )
        assert_positive(results, "decide_retrieved_p50_us", "decide_retrieved_p99_us", "lookup_us")
        assert_positive(results, "profile_read_over_lmdb_get", "profile_read_p50_us", "lmdb_get_p50_us")
        assert results["method"]
    with pytest.raises(PreconditionFailed, match="OTHER_WORKLOAD"):
        engine.run(options(engine, *small, "--seed", "65"))


def test_bench_stages_clocks_every_stage_and_leaves_the_engine_as_it_was(tmp_path: Path) -> None:
    small = ["--people", "200", "--items", "3000", "--blocks", "1", "--calls", "5", "--data", str(tmp_path / "r")]
    results = stages.run(options(stages, *small))
    for count in (100, 1_000):
        names = ("whole", "transaction", "follow", "identifier", "person", "lists", "known", "rank", "estimate")
        names += ("quick", "encoded")
        assert_positive(results, *(f"{name}_{count}_us" for name in names), f"decide_{count}_over_estimate")
        assert f"rest_{count}_us" in results


def test_a_clock_is_taken_off_again_and_counts_failures_too() -> None:
    class Owner:
        def fail(self) -> None:
            raise ValueError("as the test has it")

    owner, clock = Owner(), stages.Clock()
    take_off = stages._patched(owner, "fail", clock)
    with pytest.raises(ValueError, match="as the test has it"):
        owner.fail()
    take_off()
    assert len(clock.spent_ns) == 1
    assert vars(owner) == {}


def test_bench_ingest_reports_every_figure(tmp_path: Path) -> None:
    small = ["--people", "300", "--groups", "2", "--breakdown", "--data", str(tmp_path)]
    results = ingest.run(options(ingest, *small))
    assert_positive(results, "events_per_s", "events_per_s_over_lmdb_put", "lmdb_events_per_s", "private_bytes")
    assert_positive(results, "person_record_bytes", "written_bytes_per_event", "anonymous_bytes")
    assert results["events"] == 2_000
    assert results["breakdown_us_per_event"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2 or not has_native(), reason="needs two cores and the native transport"
)
def test_bench_rpc_reports_every_figure() -> None:
    results = rpc.run(options(rpc, "--people", "200", "--items", "2000", "--blocks", "1", "--seconds", "1"))
    assert_positive(results, *rpc.RATIOS, *(case.name for case in rpc.CASES))


def test_the_demo_repeats_nothing_and_forgets_when_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shop = str(tmp_path / "shop")
    assert demo.run(options(demo, "--signals", "8000", "--data", shop)) == 0
    shown = capsys.readouterr().out
    for expected in ("seed 20250303", "first visit", "comes back", "logs in", "withdraws", "tier", "µs"):
        assert expected in shown
    with pytest.raises(PreconditionFailed, match="ALREADY_THERE"):
        demo.run(options(demo, "--data", shop))


def test_the_demo_is_told_of_a_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    shown = demo._Demo(None, World(WorldSettings(people=2, items=3)), demo._Clock(0))  # type: ignore[arg-type]
    shown._check("of it is offered again", {"item-0000001"})
    assert shown.fault_count == 1
    assert "NOT AS IT SHOULD BE" in capsys.readouterr().out

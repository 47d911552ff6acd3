"""The benches and the demo, run small: every figure is there and sane. No time is asserted."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tailorbird.bench import demo, engine, ingest, overload, plot, rpc, rpc_sweep, soak, stages, workload
from tailorbird.bench.load_results import LoadResults
from tailorbird.bench.musts import missed
from tailorbird.bench.report import RAW, write_report
from tailorbird.bench.rpc_subject import Holdings
from tailorbird.bench.world import World, WorldSettings
from tailorbird.engine.configuration import parse_configuration
from tailorbird.engine.errors import PreconditionFailed
from tailorbird.engine.feature_compiler import compile_features
from tailorbird.native import histogram
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


served = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2 or not has_native(), reason="needs two cores and the native transport"
)


@served
def test_bench_rpc_reports_every_figure_and_draws_its_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_sweep, "SHARES", (0.2, 0.4))
    monkeypatch.setattr(rpc_sweep, "IN_FLIGHT", ((1, 1), (2, 2)))
    small = ["--people", "200", "--items", "2000", "--blocks", "1", "--seconds", "0.3"]
    results = rpc.run(options(rpc, *small, "--sweep", "--plots", str(tmp_path)))
    assert_positive(results, *rpc.RATIOS, *(case.name for case in rpc.CASES), "tail_over_echo_tail")
    assert_positive(results, *(f"{name}_{part}_us" for name in rpc.OPEN for part in ("p50", "p99", "p999")))
    assert_positive(results, "client_p50_us", "grpcio_client_p50_us")
    assert {must.name for must in rpc.MUSTS} <= {*rpc.RATIOS, "client_over_grpcio_client_p50"} <= set(results)
    for name in rpc.OPEN:
        for sweep, rows in (("by_rate", rpc_sweep.SHARES), ("by_in_flight", rpc_sweep.IN_FLIGHT)):
            measured = results[f"{name}_{sweep}"]
            assert isinstance(measured, list)
            assert len(measured) == len(rows)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        f"{name}-by-{what}.png" for name in ("decide", "echo") for what in ("in-flight", "rate")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("*.png"))
    shown = capsys.readouterr().out
    assert "decide: latency from when a call was due" in shown
    assert "o p50_us" in shown
    raw = results[RAW]
    assert isinstance(raw, dict)
    assert {case.name for case in rpc.CASES} | {"decide_open", "echo_open"} == set(raw)
    assert all(sum(run["histogram_counts"]) > 0 for runs in raw.values() for run in runs)
    report = tmp_path / "rpc.json"
    write_report("rpc", results, report)
    assert "histogram_counts" not in capsys.readouterr().out
    assert json.loads(report.read_text())["results"][RAW] == raw


@served
def test_bench_overload_reports_every_figure() -> None:
    small = ["--people", "200", "--items", "2000", "--blocks", "1", "--seconds", "1"]
    results = overload.run(options(overload, *small))
    assert_positive(results, "peak_rps", "goodput_5x_closed", "goodput_2x_open", "calm_p99_us", "open_2x_p99_us")
    assert {must.name for must in overload.MUSTS} <= set(results)


@served
def test_bench_soak_finds_nothing_that_fails_or_grows() -> None:
    results = soak.run(options(soak, "--people", "200", "--items", "2000", "--minutes", "0.1"))
    for name in ("failed_calls", "lost_connections", "descriptor_growth", "reader_slot_growth"):
        assert results[name] == 0, name
    connections, calls = results["connections"], results["calls"]
    assert isinstance(connections, int)
    assert isinstance(calls, int)
    assert connections > 20 * soak.CONNECTIONS - 1
    assert calls > 0


@pytest.mark.parametrize(
    ("name", "grown"),
    [
        ("memory_growth_mib", {"private_bytes": 2 * soak.MIB}),
        ("descriptor_growth", {"descriptors": 1}),
        ("reader_slot_growth", {"reader_slots": 1}),
    ],
)
def test_what_grows_in_a_soak_misses_a_must(name: str, grown: dict[str, int]) -> None:
    held = Holdings(private_bytes=100, mapped_bytes=10, anonymous_bytes=80, descriptors=20, reader_slots=2, objects=200)
    quiet = LoadResults(
        {"started": 10, "connections": 1, "failures": 0, "goaways": 0, "dropped": 0, "late": 0},
        np.zeros((1, histogram.BUCKET_COUNT), np.uint32),
        histogram.empty(),
        np.array([[10] + [0] * 17], np.uint32),
        np.array([10], np.uint32),
        np.array([10], np.uint32),
        1.0,
    )
    quiet.latency__wb[0, 500] = 10
    assert missed(soak.figures([quiet] * 10, [held] * 10, 2.0), soak.MUSTS) == []
    more = replace(held, **{key: getattr(held, key) + value for key, value in grown.items()})
    (fault,) = missed(soak.figures([quiet] * 10, [held] * 5 + [more] * 5, 2.0), soak.MUSTS)
    assert name in fault
    # Before the first minute is over, anything may grow.
    assert missed(soak.figures([quiet] * 10, [held] * 2 + [more] * 8, 2.0), soak.MUSTS) == []


def test_recovery_is_the_first_window_from_which_calls_are_quick_again() -> None:
    def windows(*slow: int, failed: int = -1) -> LoadResults:
        latency__wb = np.zeros((40, histogram.BUCKET_COUNT), np.uint32)
        statuses__ws = np.zeros((40, 18), np.uint32)
        for window in range(40):
            duration_ns = 200_000_000 if window in slow else 1_000_000
            histogram.record(latency__wb[window], np.full(100, duration_ns))
            statuses__ws[window, 8 if window == failed else 0] = 100
        every = np.full(40, 100, np.uint32)
        return LoadResults({}, latency__wb, histogram.empty(), statuses__ws, every, every, 0.1)

    assert overload.recovery_s(windows(*range(10, 20)), 10, 20) == 0
    assert overload.recovery_s(windows(*range(10, 25)), 10, 20) == pytest.approx(0.5)
    assert overload.recovery_s(windows(*range(10, 40)), 10, 20) == pytest.approx(2.0)
    assert overload.recovery_s(windows(*range(10, 20), failed=20), 10, 20) == pytest.approx(0.1)


def test_a_chart_has_its_highest_above_and_its_lowest_below() -> None:
    rows = [{"rps": 100.0, "p50_us": 10.0}, {"rps": 200.0, "p50_us": 1_000.0}]
    lines = plot.Chart("what is measured", "rps", ("p50_us",), rows).text().splitlines()
    assert lines[0] == "what is measured"
    assert lines[1].split() == ["1,000", "|" + " " * (plot.WIDTH - 1) + "o"] or lines[1].endswith("o")
    assert lines[plot.HEIGHT].split() == ["10", "|o"]
    assert "rps across; o p50_us" in lines[-1]
    assert "nothing was measured" in plot.Chart("t", "rps", ("p50_us",), []).text()


def test_plots_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PreconditionFailed, match=r"pip install 'tailorbird\[plots\]'"):
        rpc_sweep.require_plots()


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

"""The bench of the service, run small: every figure is there and sane. No time is asserted."""

from __future__ import annotations

import argparse
import math
import os

from tailorbird.bench import service


def test_bench_service_reports_every_figure() -> None:
    parser = argparse.ArgumentParser()
    service.add_arguments(parser)
    small = ["--people", "100", "--items", "500", "--blocks", "1", "--seconds", "0.5"]
    results = service.run(parser.parse_args([*small, "--orders", "20", "--served", "10", "--restarts", "1"]))
    figures = ["decide_p99_with_ingest_over_without", "ingest_max_signals_per_s", "ingest_beside_signals_per_s"]
    figures += ["ack_to_visible_p99_ms", "served_items", "rolling_restart_calls"]
    for name in figures:
        value = results[name]
        assert isinstance(value, int | float), name
        assert math.isfinite(value), name
        assert value > 0, name
    assert results["served_repeat_violations"] == results["rolling_restart_failed_calls"] == 0
    if len(os.sched_getaffinity(0)) < service.CORES_TO_SCALE:
        assert results["scaling_2_workers"] is None
        assert results["scaling_2_workers_reason"]

"""`tailorbird bench rpc --sweep`: latency over the rate (open loop), and calls a second over the calls in flight (closed)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tailorbird.bench import plot
from tailorbird.bench.load import Generator, LoadPlan, Target
from tailorbird.engine.errors import PreconditionFailed

# Of the closed loop's calls a second.
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
IN_FLIGHT = ((1, 1), (2, 1), (4, 1), (4, 2), (4, 4), (8, 4), (16, 4), (32, 4), (64, 4))
QUANTILES = {"p50_us": 0.5, "p99_us": 0.99, "p999_us": 0.999}
Row = dict[str, float]


def sweep(
    generator: Generator, targets: dict[str, Target], saturation: dict[str, float], seconds: float, plots: Path | None
) -> dict[str, object]:
    """Return rows by target, and show them. With `plots`, PNG files are written there as well."""
    results: dict[str, object] = {}
    for name, target in targets.items():
        rates = [_at_rate(generator, target, share * saturation[name], seconds) for share in SHARES]
        in_flight = [_in_flight(generator, target, shape, seconds) for shape in IN_FLIGHT]
        results |= {f"{name}_by_rate": rates, f"{name}_by_in_flight": in_flight}
        charts = (
            plot.Chart(f"{name}: latency from when a call was due, open loop", "rps", tuple(QUANTILES), rates),
            plot.Chart(f"{name}: calls a second over calls in flight, closed loop", "in_flight", ("rps",), in_flight),
        )
        for number, chart in enumerate(charts):
            print(chart.text())
            if plots is not None:
                chart.write_png(plots / f"{name}-{'by-rate' if number == 0 else 'by-in-flight'}.png")
    return results


def require_plots() -> None:
    """Raise `PreconditionFailed` NO_PLOTS without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PreconditionFailed("NO_PLOTS", "expected matplotlib, got none; pip install 'tailorbird[plots]'")


def _at_rate(generator: Generator, target: Target, rate: float, seconds: float) -> Row:
    plan = LoadPlan(connections=16, streams=50, phases=((rate, seconds),))
    done = generator.run(target, plan)
    quantiles = {name: done.quantile_us(quantile) for name, quantile in QUANTILES.items()}
    return {"rps": rate, **quantiles, "late": done.counters["late"] / done.counters["started"]}


def _in_flight(generator: Generator, target: Target, shape: tuple[int, int], seconds: float) -> Row:
    connections, streams = shape
    done = generator.run(target, LoadPlan(connections=connections, streams=streams, seconds=seconds))
    quantiles = {name: done.quantile_us(quantile) for name, quantile in QUANTILES.items()}
    return {"in_flight": connections * streams, "rps": done.rate(), **quantiles}

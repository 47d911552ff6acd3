"""What came of a run of the load generator: latencies as histograms, calls by status, by window of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tailorbird.engine.errors import InternalError
from tailorbird.native import histogram

NS_PER_US = 1_000.0
# Statuses of gRPC by their number, and what got none.
STATUSES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED", "broken"),
)
PERCENTS = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)


@dataclass(frozen=True, slots=True)
class LoadResults:
    """Arrays are by window `w` of `window_s`: answered calls by bucket `b` of their latency, calls by status `s`, calls
    answered within their deadline (all by when they were due), calls answered (by when they were). `counters` are those of
    native/load_calls.h; `service__b` holds answered calls by their time since they were sent."""

    counters: dict[str, int]
    latency__wb: NDArray[np.uint32]
    service__b: NDArray[np.uint32]
    statuses__ws: NDArray[np.uint32]
    good__w: NDArray[np.uint32]
    done__w: NDArray[np.uint32]
    window_s: float

    def quantile_us(self, quantile: float, first: int = 0, end: int | None = None) -> float:
        """Return a quantile (0 to 1) of the latency from when calls were due, microseconds, over windows [first, end)."""
        return histogram.quantile_ns(self.latency__wb[first:end].sum(0, dtype=np.uint64), quantile) / NS_PER_US

    def service_quantile_us(self, quantile: float) -> float:
        """Return a quantile of the time since calls were sent: what a closed loop would have told."""
        return histogram.quantile_ns(self.service__b.astype(np.uint64), quantile) / NS_PER_US

    def rate(self, first: int = 0, end: int | None = None) -> float:
        """Return calls answered a second; of windows that were cut short, too little."""
        done = self.done__w[first:end]
        return float(done.sum(dtype=np.uint64)) / (len(done) * self.window_s)

    def good_rate(self, first: int = 0, end: int | None = None) -> float:
        """Return calls answered within their deadline, a second of being due."""
        good = self.good__w[first:end]
        return float(good.sum(dtype=np.uint64)) / (len(good) * self.window_s)

    def statuses(self) -> dict[str, int]:
        """Return the calls by status, those that came only."""
        counts = self.statuses__ws.sum(0, dtype=np.uint64)
        return {name: int(count) for name, count in zip(STATUSES, counts, strict=True) if count}

    def all_answered(self) -> Self:
        """Return itself. Raises `InternalError` LOAD_FAILED unless every call was answered, and there was one."""
        statuses = self.statuses()
        if set(statuses) != {"OK"} or self.counters["failures"] or self.counters["dropped"]:
            told = {name: count for name, count in self.counters.items() if count}
            raise InternalError("LOAD_FAILED", f"expected answers to all calls, got {statuses}, counted {told}")
        return self

    def report(self) -> dict[str, object]:
        """Return the run as a JSON report keeps it: percentiles, statuses, counters, and the histogram itself."""
        counts__b = self.latency__wb.sum(0, dtype=np.uint64)
        filled = np.flatnonzero(counts__b)
        return {
            "percentiles_us": {f"{percent:g}": self.quantile_us(percent / 100) for percent in PERCENTS},
            "statuses": self.statuses(),
            "counters": {name: count for name, count in self.counters.items() if count},
            "histogram_us": (histogram.middles_ns()[filled] / NS_PER_US).round(4).tolist(),
            "histogram_counts": counts__b[filled].tolist(),
        }

    @classmethod
    def merged(cls, runs: Sequence[Self]) -> Self:
        """Return runs of one plan as one: their windows behind each other, their counters added."""
        names = runs[0].counters
        arrays = {
            name: np.concatenate([getattr(run, name) for run in runs]) for name in _ARRAYS if name != "service__b"
        }
        return cls(
            counters={name: sum(run.counters[name] for run in runs) for name in names},
            service__b=np.sum([run.service__b for run in runs], axis=0, dtype=np.uint32),
            window_s=runs[0].window_s,
            **arrays,
        )

    def to_wire(self) -> dict[str, Any]:
        """Return it as plain values; `from_wire` reads them."""
        arrays = {name: getattr(self, name).tobytes() for name in _ARRAYS}
        return {"counters": self.counters, "window_s": self.window_s, "windows": len(self.good__w), **arrays}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """Return what `to_wire` has written."""
        arrays = {name: np.frombuffer(wire[name], np.uint32) for name in _ARRAYS}
        for name in ("latency__wb", "statuses__ws"):
            arrays[name] = arrays[name].reshape(wire["windows"], -1)
        return cls(counters=wire["counters"], window_s=wire["window_s"], **arrays)


_ARRAYS = ("latency__wb", "service__b", "statuses__ws", "good__w", "done__w")

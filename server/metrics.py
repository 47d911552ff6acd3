"""What the service tells Prometheus: calls by method and status, how long they took, and where the engine stands.

Nothing here names a person: labels are methods and statuses alone.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tailorbird.engine import Engine
from tailorbird.server.endpoint import Endpoint, Readiness, always_ready
from tailorbird.server.engine_metrics import EngineCollector, FeatureAges, TenantLabels, WriterCollector
from tailorbird.server.transport import CallContext, HandlerTable
from tailorbird.server.watching import Ended, Sizes, code_name, watched
from tailorbird.server.writer import GroupWriter

# Seconds: a decision is tens of microseconds, a write milliseconds, a large batch or a stream longer.
BUCKETS = (25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 1.0, 5.0, 30.0)


class MethodCalls:
    """The calls of one method that have ended: how many by status, and how long they took."""

    __slots__ = ("buckets", "by_code", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.by_code = {"OK": 0}
        self.seconds = 0.0

    def end(self, seconds: float, code: str) -> None:
        """Count a call. On the event loop alone; whoever collects may be a call behind."""
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds
        self.by_code[code] = self.by_code.get(code, 0) + 1


class Calls(Collector):
    """All calls by method. The library's own counters lock, and try one bucket after the other: 1.6 instead of 0.5 µs a call."""

    def __init__(self, labels: TenantLabels) -> None:
        self.labels = labels
        self._methods: dict[tuple[str, str], MethodCalls] = {}

    def of(self, path: str, tenant: str = "") -> MethodCalls:
        """Return what counts the calls of a method, of a tenant or of none that could be told."""
        found = self._methods.get((path, tenant))
        return found if found is not None else self._methods.setdefault((path, tenant), MethodCalls())

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        names, values = self.labels.names, self.labels.values
        calls = CounterMetricFamily(
            "tailorbird_calls", "Calls that have ended, by status.", labels=names("method", "code")
        )
        seconds = HistogramMetricFamily(
            "tailorbird_call_seconds",
            "From a whole request to its answer; of streams, to their end.",
            labels=names("method"),
        )
        bounds = [*(str(limit) for limit in BUCKETS), "+Inf"]
        for (path, tenant), method in list(self._methods.items()):
            for code, count in list(method.by_code.items()):
                calls.add_metric(values(tenant, path, code), count)
            seconds.add_metric(
                values(tenant, path), list(zip(bounds, accumulate(method.buckets), strict=True)), method.seconds
            )
        yield calls
        yield seconds


class Metrics:
    """The figures of one service, and the port they are read at. Its engine, or several by tenant."""

    def __init__(
        self,
        engines: Engine | Mapping[str, Engine],
        readiness: Readiness = always_ready,
        writers: Mapping[str, GroupWriter] | None = None,
        *,
        tells_tenants: bool = False,
    ) -> None:
        """`writers` are there in a process that writes. Tenants are told apart where there are several, here or, `tells_tenants`,
        in other processes of the service."""
        named = engines if isinstance(engines, Mapping) else {"": engines}
        labels = TenantLabels(tells_tenants or len(named) > 1)
        self.registry = CollectorRegistry()
        self._calls = Calls(labels)
        self.feature_ages = FeatureAges(named, labels)
        for collector in (EngineCollector(named, labels), self.feature_ages, self._calls):
            self.registry.register(collector)
        if writers is not None:
            self.registry.register(WriterCollector(writers, labels))
        ProcessCollector(registry=self.registry)  # memory, processor time, open files; where there is a /proc
        self._endpoint = Endpoint(self.registry, readiness)

    def serve(self, address: str) -> int:
        """Answer HTTP at `host:port`, see endpoint.py; return the port. Raises `CallerError` BAD_ADDRESS, LISTEN_FAILED."""
        return self._endpoint.start(address)

    def close(self) -> None:
        """Answer no more; idempotent."""
        self._endpoint.close()

    def metered(self, table: HandlerTable) -> HandlerTable:
        """Return the table with every call counted and timed; with one tenant every method is told from the start."""
        if not self._calls.labels.are_told:
            for path in table:
                self._calls.of(path)
        return watched(table, self._begin)

    def _begin(self, context: CallContext) -> Ended:
        began_s = time.perf_counter()

        def ended(sizes: Sizes, error: BaseException | None) -> None:
            # Whose call it is has been told by now, where it was let in.
            calls = self._calls.of(context.method, context.tenant if self._calls.labels.are_told else "")
            calls.end(time.perf_counter() - began_s, code_name(context, error))

        return ended

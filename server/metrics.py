"""What the service tells Prometheus: calls by method and status, how long they took, and where the engine stands.

Nothing here names a person: labels are methods and statuses alone.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import accumulate

import numpy as np
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tailorbird.engine import Engine
from tailorbird.engine.consent import DataType
from tailorbird.engine.errors import CallerError
from tailorbird.engine.feature_table import FeatureTable
from tailorbird.server.lanes import Lane
from tailorbird.server.statuses import code_of
from tailorbird.server.transport import (
    Bidirectional,
    CallContext,
    ClientStream,
    Handler,
    HandlerTable,
    ServerStream,
    Unary,
)
from tailorbird.server.writer import GroupWriter

# Seconds: a decision is tens of microseconds, a write milliseconds, a large batch or a stream longer.
BUCKETS = (25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 1.0, 5.0, 30.0)


# Seconds: an event just taken in, up to a batch of last month.
AGE_BUCKETS = (1.0, 10.0, 60.0, 600.0, 3_600.0, 6 * 3_600.0, 86_400.0, 2 * 86_400.0, 7 * 86_400.0, 30 * 86_400.0)


class FeatureAges(Collector):
    """How old the values were that features were read as, by category of data. Of unknown ages nothing is counted."""

    def __init__(self) -> None:
        self._limits = np.array(AGE_BUCKETS) * 1_000.0
        self._counts = {category: np.zeros(len(AGE_BUCKETS) + 1, np.int64) for category in DataType}
        self._sums = dict.fromkeys(DataType, 0.0)

    def observe(self, table: FeatureTable) -> None:
        """Count a table that was read."""
        places = np.searchsorted(self._limits, table.ages_ms)
        known = table.ages_ms >= 0
        for column, categories in enumerate(table.categories):
            counts = np.bincount(places[known[:, column], column], minlength=len(AGE_BUCKETS) + 1)
            total = float(table.ages_ms[known[:, column], column].sum()) / 1e3
            for category in categories:
                self._counts[category] += counts
                self._sums[category] += total

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram."""
        family = HistogramMetricFamily(
            "tailorbird_feature_age_seconds", "Age of feature values when they were read.", labels=["category"]
        )
        bounds = [*(str(limit) for limit in AGE_BUCKETS), "+Inf"]
        for category, counts in self._counts.items():
            buckets = list(zip(bounds, np.cumsum(counts).tolist(), strict=True))
            family.add_metric([category.name.lower()], buckets, self._sums[category])
        yield family


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

    def __init__(self) -> None:
        self._methods: dict[str, MethodCalls] = {}

    def of(self, path: str) -> MethodCalls:
        """Return what counts the calls of a method."""
        return self._methods.setdefault(path, MethodCalls())

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        calls = CounterMetricFamily("tailorbird_calls", "Calls that have ended, by status.", labels=["method", "code"])
        seconds = HistogramMetricFamily(
            "tailorbird_call_seconds",
            "From a whole request to its answer; of streams, to their end.",
            labels=["method"],
        )
        bounds = [*(str(limit) for limit in BUCKETS), "+Inf"]
        for path, method in self._methods.items():
            for code, count in list(method.by_code.items()):
                calls.add_metric([path, code], count)
            seconds.add_metric([path], list(zip(bounds, accumulate(method.buckets), strict=True)), method.seconds)
        yield calls
        yield seconds


class EngineCollector(Collector):
    """The engine's own figures, read when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        engine = self._engine
        yield GaugeMetricFamily("tailorbird_log_position", "The next position of the log.", engine.position)
        yield GaugeMetricFamily(
            "tailorbird_newest_event_seconds",
            "The newest event time in the state, Unix time.",
            engine.latest_event_time / 1e3,
        )
        yield GaugeMetricFamily(
            "tailorbird_servings_waiting", "Servings that wait to be written.", engine.servings_waiting_count
        )
        yield CounterMetricFamily(
            "tailorbird_servings_dropped",
            "Servings forgotten because they could not be written.",
            engine.servings_dropped_count,
        )
        log = engine.decision_log
        yield CounterMetricFamily(
            "tailorbird_decisions_logged", "Decisions written to the decision log.", log.logged_count if log else 0
        )
        yield CounterMetricFamily(
            "tailorbird_decisions_unlogged",
            "Decisions that could not be written to the decision log.",
            log.dropped_count if log else 0,
        )
        ages = GaugeMetricFamily(
            "tailorbird_category_age_seconds", "Since the newest event of each category of data.", labels=["category"]
        )
        stale = GaugeMetricFamily(
            "tailorbird_category_stale", "1 where that is more than its declared freshness.", labels=["category"]
        )
        past = engine.stale_categories()
        for category, age in engine.category_ages_ms().items():
            name = category.name.lower()
            if age >= 0:
                ages.add_metric([name], age / 1e3)
            stale.add_metric([name], float(category in past))
        yield ages
        yield stale


class LaneCollector(Collector):
    """How much waits in the lanes of the writer."""

    def __init__(self, writer: GroupWriter) -> None:
        self._writer = writer

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        waiting = GaugeMetricFamily(
            "tailorbird_lane_bytes", "Bytes that wait to be written, or are being written.", labels=["lane"]
        )
        for lane in Lane:
            waiting.add_metric([lane], self._writer.waiting_bytes(lane))
        yield waiting


class Metrics:
    """The figures of one process, and the port they are read at."""

    def __init__(self, engine: Engine, writer: GroupWriter | None = None) -> None:
        """`writer` is there in the process that writes."""
        self.registry = CollectorRegistry()
        self._calls = Calls()
        self.feature_ages = FeatureAges()
        self.registry.register(EngineCollector(engine))
        if writer is not None:
            self.registry.register(LaneCollector(writer))
        self.registry.register(self.feature_ages)
        self.registry.register(self._calls)
        self._stop: Callable[[], None] | None = None

    def serve(self, address: str) -> int:
        """Answer `GET /metrics` at `host:port`, in a thread; return the port. Raises `CallerError` LISTEN_FAILED."""
        port, self._stop = answer_prometheus(self.registry, address)
        return port

    def close(self) -> None:
        """Answer no more; idempotent."""
        if self._stop is not None:
            self._stop()
            self._stop = None

    def metered(self, table: HandlerTable) -> HandlerTable:
        """Return the table with every call counted and timed."""
        return {path: self._metered(path, handler) for path, handler in table.items()}

    def _metered(self, path: str, handler: Handler) -> Handler:
        calls = self._calls.of(path)

        def ended(began_s: float, error: BaseException | None) -> None:
            calls.end(time.perf_counter() - began_s, "OK" if error is None else code_of(error).name)

        match handler:
            case Unary(unary, prompt):

                async def metered_unary(request: bytes, context: CallContext) -> bytes:
                    began_s = time.perf_counter()
                    try:
                        answer = await unary(request, context)
                    except BaseException as error:
                        ended(began_s, error)
                        raise
                    ended(began_s, None)
                    return answer

                return Unary(metered_unary, prompt)
            case ClientStream(client_stream):

                async def metered_client_stream(requests: AsyncIterator[bytes], context: CallContext) -> bytes:
                    began_s = time.perf_counter()
                    try:
                        answer = await client_stream(requests, context)
                    except BaseException as error:
                        ended(began_s, error)
                        raise
                    ended(began_s, None)
                    return answer

                return ClientStream(metered_client_stream)
            case ServerStream(server_stream):

                async def metered_server_stream(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
                    async for answer in _until_its_end(server_stream(request, context), ended):
                        yield answer

                return ServerStream(metered_server_stream)
            case Bidirectional(bidirectional):

                async def metered_bidirectional(
                    requests: AsyncIterator[bytes], context: CallContext
                ) -> AsyncIterator[bytes]:
                    async for answer in _until_its_end(bidirectional(requests, context), ended):
                        yield answer

                return Bidirectional(metered_bidirectional)


def answer_prometheus(registry: CollectorRegistry, address: str) -> tuple[int, Callable[[], None]]:
    """Answer `GET /metrics` at `host:port`, in a thread; return the port, and what ends it. Raises `CallerError` LISTEN_FAILED."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or address.startswith(("unix:", "fd:")):
        raise CallerError("BAD_ADDRESS", f"expected host:port for metrics, got {address!r} in --metrics")
    try:
        server, thread = start_http_server(int(port), addr=host.strip("[]"), registry=registry)
    except OSError as error:
        raise CallerError(
            "LISTEN_FAILED",
            f"expected a free address for metrics, got {address}: {error}; choose another with --metrics",
        ) from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return int(server.server_port), stop


async def _until_its_end(
    answers: AsyncIterator[bytes], ended: Callable[[float, BaseException | None], None]
) -> AsyncIterator[bytes]:
    """Yield the answers of a stream; tell how it ended."""
    began_s = time.perf_counter()
    try:
        async for answer in answers:
            yield answer
    except BaseException as error:
        ended(began_s, None if isinstance(error, GeneratorExit) else error)
        raise
    ended(began_s, None)

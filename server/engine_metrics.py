"""The engines' own figures for Prometheus, read when they are asked for; labelled by tenant where there are several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tailorbird.engine import Engine
from tailorbird.engine.consent import DataType
from tailorbird.engine.feature_table import FeatureTable
from tailorbird.server.lanes import Lane
from tailorbird.server.writer import GroupWriter

# Seconds: an event just taken in, up to a batch of last month.
AGE_BUCKETS = (1.0, 10.0, 60.0, 600.0, 3_600.0, 6 * 3_600.0, 86_400.0, 2 * 86_400.0, 7 * 86_400.0, 30 * 86_400.0)


class TenantLabels:
    """The label `tenant`, there only where there are several."""

    def __init__(self, are_told: bool) -> None:
        self.are_told = are_told

    def names(self, *others: str) -> list[str]:
        """Return the names of labels, `others` behind the tenant's."""
        return ["tenant", *others] if self.are_told else [*others]

    def values(self, tenant: str, *others: str) -> list[str]:
        """Return their values for a tenant."""
        return [tenant, *others] if self.are_told else [*others]


class FeatureAges(Collector):
    """How old the values were that features were read as, by category of data. Of unknown ages nothing is counted."""

    def __init__(self, tenants: Mapping[str, object], labels: TenantLabels) -> None:
        self._labels = labels
        self._limits = np.array(AGE_BUCKETS) * 1_000.0
        self._counts = {
            (tenant, category): np.zeros(len(AGE_BUCKETS) + 1, np.int64) for tenant in tenants for category in DataType
        }
        self._sums = dict.fromkeys(self._counts, 0.0)

    def of(self, tenant: str) -> Callable[[FeatureTable], None]:
        """Return what counts a table that was read of a tenant's."""
        return lambda table: self._observe(tenant, table)

    def _observe(self, tenant: str, table: FeatureTable) -> None:
        places = np.searchsorted(self._limits, table.ages_ms)
        known = table.ages_ms >= 0
        for column, categories in enumerate(table.categories):
            counts = np.bincount(places[known[:, column], column], minlength=len(AGE_BUCKETS) + 1)
            total = float(table.ages_ms[known[:, column], column].sum()) / 1e3
            for category in categories:
                self._counts[tenant, category] += counts
                self._sums[tenant, category] += total

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram."""
        family = HistogramMetricFamily(
            "tailorbird_feature_age_seconds",
            "Age of feature values when they were read.",
            labels=self._labels.names("category"),
        )
        bounds = [*(str(limit) for limit in AGE_BUCKETS), "+Inf"]
        for (tenant, category), counts in self._counts.items():
            buckets = list(zip(bounds, np.cumsum(counts).tolist(), strict=True))
            labels = self._labels.values(tenant, category.name.lower())
            family.add_metric(labels, buckets, self._sums[tenant, category])
        yield family


# Name, what it says, how it is read. Counters end in what they count; Prometheus adds `_total`.
Figure = tuple[str, str, Callable[[Engine], float]]
GAUGES: tuple[Figure, ...] = (
    ("tailorbird_log_position", "The next position of the log.", lambda engine: engine.position),
    (
        "tailorbird_newest_event_seconds",
        "The newest event time in the state, Unix time.",
        lambda engine: engine.latest_event_time / 1e3,
    ),
    (
        "tailorbird_servings_waiting",
        "Servings that wait to be written.",
        lambda engine: engine.servings_waiting_count,
    ),
)
COUNTERS: tuple[Figure, ...] = (
    (
        "tailorbird_servings_dropped",
        "Servings forgotten because they could not be written.",
        lambda engine: engine.servings_dropped_count,
    ),
    (
        "tailorbird_decisions_logged",
        "Decisions written to the decision log.",
        lambda engine: log.logged_count if (log := engine.decision_log) else 0,
    ),
    (
        "tailorbird_decisions_unlogged",
        "Decisions that could not be written to the decision log.",
        lambda engine: log.dropped_count if (log := engine.decision_log) else 0,
    ),
)


class EngineCollector(Collector):
    """Where each engine stands."""

    def __init__(self, engines: Mapping[str, Engine], labels: TenantLabels) -> None:
        self._engines = engines
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        labels, engines = self._labels, self._engines.items()
        for kind, figures in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, text, read in figures:
                family = kind(name, text, labels=labels.names())
                for tenant, engine in engines:
                    family.add_metric(labels.values(tenant), read(engine))
                yield family
        tiers = CounterMetricFamily(
            "tailorbird_decisions", "Decisions by the tier that carried them.", labels=labels.names("tier")
        )
        ages = GaugeMetricFamily(
            "tailorbird_category_age_seconds",
            "Since the newest event of each category of data.",
            labels=labels.names("category"),
        )
        stale = GaugeMetricFamily(
            "tailorbird_category_stale",
            "1 where that is more than its declared freshness.",
            labels=labels.names("category"),
        )
        for tenant, engine in engines:
            for tier, count in engine.tier_counts.items():
                tiers.add_metric(labels.values(tenant, tier), count)
            past = engine.stale_categories()
            for category, age in engine.category_ages_ms().items():
                told = labels.values(tenant, category.name.lower())
                if age >= 0:
                    ages.add_metric(told, age / 1e3)
                stale.add_metric(told, float(category in past))
        yield from (tiers, ages, stale)


class WriterCollector(Collector):
    """What waits to be written, and for how long."""

    def __init__(self, writers: Mapping[str, GroupWriter], labels: TenantLabels) -> None:
        self._writers = writers
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        labels = self._labels
        lag = GaugeMetricFamily(
            "tailorbird_ingest_lag_seconds",
            "How long the oldest write has waited that no decision sees yet.",
            labels=labels.names(),
        )
        waiting = GaugeMetricFamily(
            "tailorbird_writes_waiting_bytes",
            "Of writes that wait for their turn or are being written, by lane.",
            labels=labels.names("lane"),
        )
        for tenant, writer in self._writers.items():
            lag.add_metric(labels.values(tenant), writer.lag_s)
            for lane in Lane:
                waiting.add_metric(labels.values(tenant, lane), writer.waiting_bytes(lane))
        yield from (lag, waiting)

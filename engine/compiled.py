"""A configuration in force: everything derived from it once, immutable, and used by the writer and by deciders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from tailorbird.engine.configuration import Configuration, parse_configuration
from tailorbird.engine.consent import DataType, Purpose, bit
from tailorbird.engine.durations import duration_ms
from tailorbird.engine.errors import ConfigurationError
from tailorbird.engine.feature_compiler import compile_features
from tailorbird.engine.features import CONTEXT_PREFIX, FeatureSet, Place, UpdateProgram
from tailorbird.engine.identifiers import Namespace, namespaces_with
from tailorbird.engine.vocabulary import ItemList, Kind, SignalType
from tailorbird.native import record


@dataclass(frozen=True, slots=True)
class SignalPlan:
    """What one signal type does: the bits it needs, the features it updates, the list and the counts it adds to."""

    type: SignalType
    update: UpdateProgram
    collect: int
    profile: int
    measure: int
    adds_to: ItemList | None
    count_weight: float
    item_properties: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompiledConfiguration:
    """One version of the configuration."""

    version: int
    layout_version: int
    text: str
    configuration: Configuration
    features: FeatureSet
    plans: Mapping[str, SignalPlan]
    namespaces: Mapping[str, Namespace]
    exclusion_windows_ms: Mapping[str, Mapping[ItemList, int]]
    cap_windows_ms: Mapping[str, Mapping[ItemList, int]]
    served_window_ms: int  # the longest for which a placement looks back at what was served
    event_age_max_ms: int
    event_ahead_max_ms: int
    duplicate_window_ms: int
    tick_ms: int
    count_dimensions: tuple[str, ...]
    freshness_ms: Mapping[DataType, int]
    segments: tuple[str, ...]
    context_names: frozenset[str]

    def same_layout(self, other: CompiledConfiguration) -> bool:
        """Return whether records of the two versions are stored alike."""
        return self.features.same_layout(other.features)


def compile_configuration(
    text: str, version: int, layout_version: int, warming: frozenset[str] = frozenset()
) -> CompiledConfiguration:
    """Return a configuration text compiled; features of `warming` must not speak yet. Raises `ConfigurationError`."""
    configuration = parse_configuration(text)
    features = compile_features(configuration, layout_version, warming)
    plans = {
        name: SignalPlan(
            signal_type,
            features.programs[name],
            bit(signal_type.category, Purpose.COLLECT),
            bit(signal_type.category, Purpose.PROFILE),
            bit(signal_type.category, Purpose.MEASURE),
            signal_type.adds_to,
            configuration.statistics.signals.get(name, 0.0),
            tuple(n for n, kind in signal_type.properties.items() if kind is Kind.ITEM and n != "product_id"),
        )
        for name, signal_type in configuration.signal_types().items()
    }
    _check_kinds(configuration, features)
    windows = {
        placement.name: {
            kind: duration_ms(window, f"exclude in placement {placement.name!r}")
            for kind, window in placement.exclude.items()
        }
        for placement in configuration.placements
    }
    cap_windows = {
        placement.name: {
            kind: duration_ms(cap.window, f"caps.{kind.value} in placement {placement.name!r}")
            for kind, cap in placement.caps.items()
        }
        for placement in configuration.placements
    }
    limits, statistics = configuration.limits, configuration.statistics
    return CompiledConfiguration(
        version=version,
        layout_version=layout_version,
        text=text,
        configuration=configuration,
        features=features,
        plans=plans,
        namespaces=namespaces_of(configuration),
        exclusion_windows_ms=windows,
        cap_windows_ms=cap_windows,
        served_window_ms=max(
            (window.get(ItemList.SERVED, 0) for window in (*windows.values(), *cap_windows.values())), default=0
        ),
        event_age_max_ms=duration_ms(limits.event_age_max, "limits.event_age_max"),
        event_ahead_max_ms=duration_ms(limits.event_ahead_max, "limits.event_ahead_max"),
        duplicate_window_ms=duration_ms(limits.duplicate_window, "limits.duplicate_window"),
        tick_ms=duration_ms(statistics.tick, "statistics.tick"),
        freshness_ms=configuration.freshness_ms(),
        context_names=_context_names(configuration, features),
        segments=tuple(feature.name for feature in features.features if feature.is_segment),
        count_dimensions=tuple(dict.fromkeys(name for names in statistics.levels for name in names)),
    )


def _context_names(configuration: Configuration, features: FeatureSet) -> frozenset[str]:
    """Return the names of the context that popularity or a feature is kept by."""
    read = {feature.aggregate.reads for feature in features.features}
    dimensions = {name for names in configuration.statistics.levels for name in names}
    return frozenset(
        dimensions | {name.removeprefix(CONTEXT_PREFIX) for name in read if name.startswith(CONTEXT_PREFIX)}
    )


def _check_kinds(configuration: Configuration, features: FeatureSet) -> None:
    """Raise `ConfigurationError` where a placement uses a feature for what its aggregate cannot say."""

    def check(placement: str, use: str, names: list[str], aggregates: str, *ops: int) -> None:
        for name in names:
            feature = features.by_name[name]
            if feature.place is not Place.HEAD:
                raise ConfigurationError(
                    "BAD_PLACEMENT",
                    f"expected {use} to name features kept in the head, got {name!r}, which is "
                    f"{'derived' if feature.place is Place.DERIVED else 'kept with the lists; declare it `store: head`'}, in "
                    f"placement {placement!r}",
                )
            if not (feature.is_number if not ops else feature.op in ops):
                raise ConfigurationError(
                    "BAD_PLACEMENT",
                    f"expected {use} to name features of {aggregates}, got {name!r}, which is {feature.aggregate.name}, in "
                    f"placement {placement!r}",
                )

    for placement in configuration.placements:
        rank = placement.rank
        check(placement.name, "exclude_recent", placement.exclude_recent, "last_k", record.LAST_K)
        check(placement.name, "rank.recent", rank.recent, "last_k", record.LAST_K)
        check(placement.name, "rank.affinity", list(rank.affinity.values()), "decayed_top_k", record.TOP_K)
        if rank.vector is not None:
            check(placement.name, "rank.vector.features", rank.vector.features, "one number")


def namespaces_of(configuration: Configuration) -> dict[str, Namespace]:
    """Return the identifier namespaces: the built-in ones and those declared."""
    return namespaces_with(
        {
            name: Namespace(name, **msgspec.structs.asdict(rule))
            for name, rule in configuration.identity.namespaces.items()
        }
    )

"""Features by declaration: the compiler from `features:` to the native record layout, and what feeds each signal type.

Nothing about a feature is known anywhere else: the layout, the update programs, the consent bits and the value kinds all
come from the declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from tailorbird.engine.configuration import Configuration, FeatureDeclaration
from tailorbird.engine.consent import DataType, Purpose, bit
from tailorbird.engine.durations import duration_ms
from tailorbird.engine.errors import ConfigurationError
from tailorbird.engine.expressions import Aggregate, parse_aggregate
from tailorbird.engine.vocabulary import PRODUCT_FIELDS, Kind, SignalType
from tailorbird.native import record

HEAD_BYTES_MAX = 1_900
CONTEXT_PREFIX = "context."
ITEM_PREFIX = "item."


class ValueKind(Enum):
    """What a feature's slot holds: nothing, a number, a symbol (a hashed text), or an item number."""

    NONE = "none"
    NUMBER = "number"
    SYMBOL = "symbol"
    ITEM = "item"


@dataclass(frozen=True, slots=True)
class Feature:
    """One compiled feature. `required` are the consent bits to read it, `admit` those to update it."""

    index: int
    name: str
    aggregate: Aggregate
    op: int
    value_kind: ValueKind
    signals: tuple[str, ...]
    required: int
    admit: int
    max_age_ms: int
    half_life_ms: float
    k: int

    @property
    def definition(self) -> tuple[object, ...]:
        """What makes two declarations the same stored feature."""
        return (self.name, self.op, self.aggregate.reads, self.signals, self.half_life_ms, self.k, str(self.aggregate))


@dataclass(frozen=True, slots=True)
class SlotReader:
    """Where one slot of an update program comes from."""

    reads: str
    kind: ValueKind


@dataclass(frozen=True, slots=True)
class UpdateProgram:
    """What one signal type updates: the native program and the slots it wants, in order."""

    program: int
    slots: tuple[SlotReader, ...]


@dataclass(frozen=True)
class FeatureSet:
    """All features of a configuration with their record layout."""

    features: tuple[Feature, ...]
    layout: record.RecordLayout
    programs: Mapping[str, UpdateProgram]
    index: Mapping[str, int]

    def mapping_from(self, older: FeatureSet) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Return, per feature, the index of the same definition in an older set, -1 where there is none."""
        known = {feature.definition: feature.index for feature in older.features}
        return np.array([known.get(feature.definition, -1) for feature in self.features], np.int32)


# aggregate name -> (native op, needs a field, allowed value kinds, options)
_AGGREGATES: dict[str, tuple[int, frozenset[ValueKind], frozenset[str]]] = {
    "count": (record.COUNT, frozenset({ValueKind.NONE}), frozenset()),
    "sum": (record.SUM, frozenset({ValueKind.NUMBER}), frozenset()),
    "last": (record.LAST, frozenset({ValueKind.NUMBER, ValueKind.SYMBOL}), frozenset()),
    "time_since": (record.TIME_SINCE, frozenset({ValueKind.NONE}), frozenset()),
    "decayed_count": (record.DECAYED, frozenset({ValueKind.NONE}), frozenset({"half_life", "weights"})),
    "decayed_sum": (record.DECAYED, frozenset({ValueKind.NUMBER}), frozenset({"half_life", "weights"})),
    "decayed_top_k": (record.TOP_K, frozenset({ValueKind.SYMBOL}), frozenset({"half_life", "weights", "k"})),
    "last_k": (record.LAST_K, frozenset({ValueKind.ITEM}), frozenset({"k"})),
}


def compile_features(configuration: Configuration, layout_version: int) -> FeatureSet:
    """Return the compiled features. Raises `ConfigurationError` naming the feature, what was expected and what came."""
    types = configuration.signal_types()
    features = tuple(
        _compile(index, declaration, configuration, types) for index, declaration in enumerate(configuration.features)
    )
    layout = record.RecordLayout(
        layout_version,
        bytes(feature.op for feature in features),
        k=np.array([feature.k for feature in features], np.uint32),
        half_life_ms=np.array([feature.half_life_ms for feature in features], np.float64),
        required=np.array([feature.required for feature in features], np.uint64),
        admit=np.array([feature.admit for feature in features], np.uint64),
        max_age_ms=np.array([feature.max_age_ms for feature in features], np.int64),
    )
    if layout.packed_bytes_max > HEAD_BYTES_MAX:
        sizes = ", ".join(f"{feature.name} {_bytes_max(feature)}" for feature in features)
        raise ConfigurationError(
            "HEAD_TOO_LARGE",
            f"expected a profile head of at most {HEAD_BYTES_MAX} bytes, got {layout.packed_bytes_max}, from {sizes}; "
            "lower k or drop features",
        )
    programs = {name: _program(name, features, layout) for name in types}
    return FeatureSet(features, layout, programs, {feature.name: feature.index for feature in features})


def _bytes_max(feature: Feature) -> int:
    fixed = {record.COUNT: 16, record.SUM: 16, record.LAST: 24, record.TIME_SINCE: 8, record.DECAYED: 16}
    if feature.op in fixed:
        return fixed[feature.op]
    return 16 * feature.k + (16 if feature.op == record.TOP_K else 8)


def _compile(
    index: int, declaration: FeatureDeclaration, configuration: Configuration, types: Mapping[str, SignalType]
) -> Feature:
    where = f"feature {declaration.name!r}"
    aggregate = parse_aggregate(declaration.aggregate, where)
    if aggregate.name not in _AGGREGATES:
        raise ConfigurationError(
            "UNKNOWN_AGGREGATE", f"expected one of {', '.join(_AGGREGATES)}, got {aggregate.name!r}, in {where}"
        )
    op, kinds, options = _AGGREGATES[aggregate.name]
    _check_options(aggregate, options, declaration.signals(), where)
    kind = _value_kind(aggregate, declaration, configuration, types, where)
    if aggregate.name == "last_k" and kind is ValueKind.SYMBOL:
        raise ConfigurationError("BAD_AGGREGATE", f"expected last_k of an item id such as product_id, in {where}")
    if aggregate.name == "decayed_top_k" and kind is ValueKind.ITEM:
        kind = ValueKind.SYMBOL
    if kind not in kinds:
        expected = " or ".join(sorted(k.value for k in kinds))
        raise ConfigurationError(
            "BAD_AGGREGATE",
            f"expected a field of kind {expected} for {aggregate.name}, got {aggregate.reads or 'no field'} "
            f"({kind.value}), in {where}",
        )
    categories = {types[name].category for name in declaration.signals()}
    if declaration.category is not None:
        if declaration.category.upper() not in DataType.__members__:
            known = ", ".join(t.name.lower() for t in DataType)
            raise ConfigurationError(
                "BAD_CATEGORY", f"expected one of {known}, got {declaration.category!r}, in {where}"
            )
        categories.add(DataType[declaration.category.upper()])
    if aggregate.reads.startswith(CONTEXT_PREFIX):
        categories.add(DataType.CONTEXTUAL)
    required = admit = 0
    for category in categories:
        required |= bit(category, Purpose.PERSONALISE)
        admit |= bit(category, Purpose.PROFILE)
    return Feature(
        index=index,
        name=declaration.name,
        aggregate=aggregate,
        op=op,
        value_kind=kind,
        signals=tuple(declaration.signals()),
        required=required,
        admit=admit,
        max_age_ms=duration_ms(declaration.max_age, f"max_age of {where}") if declaration.max_age else 0,
        half_life_ms=float(aggregate.durations.get("half_life", 0)),
        k=int(aggregate.numbers.get("k", 16 if "k" in options else 0)),
    )


def _check_options(aggregate: Aggregate, options: frozenset[str], signals: list[str], where: str) -> None:
    given = {*aggregate.numbers, *aggregate.durations, *(["weights"] if aggregate.weights else [])}
    for option in sorted(given - options):
        known = ", ".join(sorted(options)) or "none"
        raise ConfigurationError(
            "BAD_AGGREGATE", f"expected options of {known} for {aggregate.name}, got {option!r}, in {where}"
        )
    if "half_life" in options and aggregate.durations.get("half_life", 0) <= 0:
        raise ConfigurationError("BAD_AGGREGATE", f"expected half_life=<duration> for {aggregate.name}, in {where}")
    maximum = record.LAST_K_MAX if aggregate.name == "last_k" else record.TOP_K_MAX
    k = aggregate.numbers.get("k", 1)
    if not 1 <= k <= maximum or k != int(k):
        raise ConfigurationError("BAD_AGGREGATE", f"expected k from 1 to {maximum}, got {k:g}, in {where}")
    for name, weight in aggregate.weights.items():
        if name not in signals or weight <= 0:
            raise ConfigurationError(
                "BAD_AGGREGATE",
                f"expected positive weights of this feature's signals, got {name}: {weight:g}, in {where}",
            )


def _value_kind(
    aggregate: Aggregate,
    declaration: FeatureDeclaration,
    configuration: Configuration,
    types: Mapping[str, SignalType],
    where: str,
) -> ValueKind:
    """Return the kind of the field read, the same in every signal of the feature."""
    reads = aggregate.reads
    if not reads:
        return ValueKind.NONE
    if reads.startswith(CONTEXT_PREFIX):
        return ValueKind.SYMBOL
    if reads.startswith(ITEM_PREFIX):
        if reads.removeprefix(ITEM_PREFIX) not in configuration.attributes:
            raise ConfigurationError(
                "UNKNOWN_ATTRIBUTE",
                f"expected {ITEM_PREFIX} one of {configuration.attributes}, got {reads!r}, in {where}",
            )
        return ValueKind.SYMBOL
    kinds = set()
    for name in declaration.signals():
        properties = types[name].properties
        kind = properties.get(reads)
        if kind is None and Kind.PRODUCTS in properties.values():
            kind = PRODUCT_FIELDS.get(reads)
        if kind is None and reads in configuration.attributes:
            kind = Kind.STRING
        if kind is None:
            raise ConfigurationError(
                "UNKNOWN_PROPERTY", f"expected a property of {name!r} or an item attribute, got {reads!r}, in {where}"
            )
        kinds.add(
            {Kind.STRING: ValueKind.SYMBOL, Kind.ITEM: ValueKind.ITEM, Kind.PRODUCTS: ValueKind.NONE}.get(
                kind, ValueKind.NUMBER
            )
        )
    if len(kinds) > 1:
        raise ConfigurationError(
            "BAD_AGGREGATE",
            f"expected {reads!r} to be of one kind in all signals of {where}, got {sorted(k.value for k in kinds)}",
        )
    return kinds.pop()


def _program(signal: str, features: tuple[Feature, ...], layout: record.RecordLayout) -> UpdateProgram:
    slots: list[SlotReader] = []
    entries: list[tuple[int, int, float]] = []
    for feature in features:
        if signal not in feature.signals:
            continue
        slot = -1
        if feature.value_kind is not ValueKind.NONE:
            reader = SlotReader(feature.aggregate.reads, feature.value_kind)
            if reader not in slots:
                slots.append(reader)
            slot = slots.index(reader)
        entries.append((feature.index, slot, feature.aggregate.weights.get(signal, 1.0)))
    return UpdateProgram(layout.add_program(entries), tuple(slots))


def slot_values(
    program: UpdateProgram,
    properties: Mapping[str, Any],
    context: Mapping[str, str],
    lines: list[Mapping[str, Any]],
    symbol_of: Callable[[str], int],
    item_of: Callable[[str], int],
    attribute_of: Callable[[str, str], str | None],
) -> tuple[object, ...]:
    """Return the slot values of one event, None or () where the event does not say.

    A property of the event itself comes first; then the field of each product line; then, for a line that lacks it, the
    attribute of its item in the catalogue (`attribute_of(item id, attribute)`).
    """
    values: list[object] = []
    for reader in program.slots:
        reads, kind = reader.reads, reader.kind
        found: list[Any]
        if reads.startswith(CONTEXT_PREFIX):
            found = [context.get(reads[len(CONTEXT_PREFIX) :])]
        elif reads.startswith(ITEM_PREFIX):
            found = [
                attribute_of(line["product_id"], reads[len(ITEM_PREFIX) :]) for line in lines if "product_id" in line
            ]
        else:
            own = properties.get(reads)
            if own is not None:
                found = [own]
            else:
                found = []
                for line in lines:
                    value = line.get(reads)
                    if value is None and kind is ValueKind.SYMBOL and "product_id" in line:
                        value = attribute_of(line["product_id"], reads)
                    found.append(value)
        if kind is ValueKind.SYMBOL:
            converted: list[object] = [symbol_of(str(value)) for value in found if value is not None]
        elif kind is ValueKind.ITEM:
            converted = [item_of(value) for value in found if value is not None]
        else:
            converted = [float(value) for value in found if value is not None]
        values.append(converted[0] if len(converted) == 1 else tuple(converted) if converted else None)
    return tuple(values)

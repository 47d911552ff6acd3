"""The compiler from `features:` to the native record layouts and update programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tailorbird.engine.aggregates import AGGREGATES, AggregateKind, ValueKind
from tailorbird.engine.configuration import Configuration, FeatureDeclaration
from tailorbird.engine.consent import DataType, Purpose, bit
from tailorbird.engine.durations import duration_ms
from tailorbird.engine.errors import ConfigurationError
from tailorbird.engine.expressions import Aggregate, parse_aggregate
from tailorbird.engine.features import CONTEXT_PREFIX, DERIVED, ITEM_PREFIX, Feature, FeatureSet, Place, layout_of
from tailorbird.engine.formulas import in_order, parse_formula
from tailorbird.engine.money import Money
from tailorbird.engine.update_programs import update_program
from tailorbird.engine.vocabulary import PRODUCT_FIELDS, Kind, SignalType, push_type
from tailorbird.native import record

HEAD_BYTES_MAX = 1_900
LISTS_BYTES_MAX = 16_384
HEAD_FEATURE_BYTES = 256  # a window or sketch that may take more is kept with the lists
CLUSTERS_MAX = 100
_MINUTE, _HOUR, _DAY = 60_000, 3_600_000, 86_400_000
_PLACES = {Place.HEAD: "a profile head", Place.LISTS: "a record with the lists"}


def compile_features(
    configuration: Configuration, layout_version: int, warming: frozenset[str] = frozenset()
) -> FeatureSet:
    """Return the compiled features, of which `warming` must not speak yet.

    Raises `ConfigurationError` naming the feature, what was expected and what came.
    """
    types = configuration.signal_types()
    money = Money(configuration.money.currency, configuration.money.rates)
    features: list[Feature] = []
    indices = dict.fromkeys(Place, 0)
    for declaration in configuration.features:
        if declaration.formula is not None or declaration.learned_from:
            feature = _derived(indices[Place.DERIVED], declaration)
        else:
            feature = _compile(indices, declaration, configuration, types)
        indices[feature.place] += 1
        features.append(feature)
    derived_order, features = _linked(features)
    layout = layout_of(features, Place.HEAD, layout_version, warming)
    lists_layout = layout_of(features, Place.LISTS, layout_version, warming)
    for place, found, limit, advice in (
        (Place.HEAD, layout, HEAD_BYTES_MAX, "lower k, or keep some with `store: lists`"),
        (Place.LISTS, lists_layout, LISTS_BYTES_MAX, "lower k or precision, or take a longer hop"),
    ):
        if found.packed_bytes_max > limit:
            sizes = ", ".join(f"{f.name} {f.bytes_max}" for f in features if f.place is place)
            raise ConfigurationError(
                f"{place.name}_TOO_LARGE",
                f"expected {_PLACES[place]} of at most {limit} bytes, got {found.packed_bytes_max}, from {sizes}; "
                f"{advice}, or drop features",
            )
    programs = {name: update_program(signal, features, layout, lists_layout, money) for name, signal in types.items()}
    return FeatureSet(
        features=tuple(features),
        layout=layout,
        lists_layout=lists_layout,
        programs=programs,
        index={feature.name: feature.index for feature in features if feature.place is Place.HEAD},
        money=money,
        derived_order=derived_order,
        by_name={feature.name: feature for feature in features},
    )


def refuse_changed(current: FeatureSet, earlier: Sequence[FeatureSet], features: FeatureSet) -> None:
    """Raise `ConfigurationError` FEATURE_CHANGED where a name and version once meant another definition.

    What is in force stays as it is, whatever was declared before the first event.
    """
    for feature in features.features:
        in_force = current.by_name.get(feature.name)
        if in_force is not None and in_force.definition == feature.definition:
            continue
        for older in earlier:
            known = older.by_name.get(feature.name)
            if known is not None and known.version == feature.version and known.definition != feature.definition:
                raise ConfigurationError(
                    "FEATURE_CHANGED",
                    f"expected feature {feature.name!r} version {feature.version} as it was first declared, got another "
                    "definition; definitions never change: declare it with a version it has not had yet",
                )


def _derived(index: int, declaration: FeatureDeclaration) -> Feature:
    where = f"feature {declaration.name!r}"
    if declaration.segment and (declaration.formula is None or declaration.default not in (None, 0.0, 1.0)):
        raise ConfigurationError(
            "BAD_SEGMENT", f"expected a formula of a segment, and a default of 0 or 1, got something else, in {where}"
        )
    if declaration.clusters and (not 2 <= declaration.clusters <= CLUSTERS_MAX or not declaration.learned_from):
        raise ConfigurationError(
            "BAD_CLUSTERS",
            f"expected 2 to {CLUSTERS_MAX} clusters beside `learned_from`, got {declaration.clusters}, in {where}",
        )
    given = {
        "aggregate": declaration.aggregate,
        "signal": declaration.signals(),
        "window": declaration.window,
        "hop": declaration.hop,
        "max_age": declaration.max_age,
        "store": declaration.store,
        "category": declaration.category,
        "pushed": declaration.pushed,
        "compute: batch": declaration.compute == "batch",
    }
    for name, value in given.items():
        if value:
            raise ConfigurationError(
                "BAD_FORMULA", f"expected either a formula or `learned_from`, or {name}, got both, in {where}"
            )
    if declaration.formula is not None and declaration.learned_from:
        raise ConfigurationError("BAD_FORMULA", f"expected either a formula or `learned_from`, got both, in {where}")
    formula = parse_formula(declaration.formula, where) if declaration.formula is not None else None
    return Feature(
        index=index,
        name=declaration.name,
        version=_version(declaration, where),
        place=Place.DERIVED,
        is_segment=declaration.segment,
        clusters=declaration.clusters,
        aggregate=Aggregate("formula" if formula is not None else "score"),
        op=DERIVED,
        value_kind=ValueKind.NUMBER,
        signals=(),
        categories=(),
        required=0,
        admit=0,
        max_age_ms=0,
        half_life_ms=0.0,
        k=0,
        default=0.0 if declaration.segment and declaration.default is None else _default(declaration, where),
        formula=formula,
        learned_from=tuple(dict.fromkeys(declaration.learned_from)),
    )


def _linked(features: list[Feature]) -> tuple[tuple[str, ...], list[Feature]]:
    """Check what formulas read and return the order to compute them in, and the features with what follows from it."""
    by_name = {feature.name: feature for feature in features}
    for feature in features:
        for name in feature.reads:
            read = by_name.get(name)
            where = f"in feature {feature.name!r}"
            if read is None:
                raise ConfigurationError("UNKNOWN_FEATURE", f"expected a declared feature, got {name!r}, {where}")
            if not (read.is_number or (feature.learned_from and read.op in (record.LAST, record.FIRST))):
                raise ConfigurationError(
                    "BAD_FORMULA",
                    f"expected features of one number{' or text' if feature.learned_from else ''}, got {name!r}, which is "
                    f"{read.aggregate.name} of {read.aggregate.reads}, {where}",
                )
    for feature in features:
        if feature.is_segment and any(by_name[name].learned_from for name in feature.reads):
            raise ConfigurationError(
                "BAD_SEGMENT",
                f"expected a segment of what the log alone says, got one of a learned score, in feature {feature.name!r}; "
                "declare it without `segment`, and its changes are not told",
            )
    order = in_order({feature.name: feature.reads for feature in features if feature.place is Place.DERIVED})
    for name in order:
        feature = by_name[name]
        read_features = [by_name[read] for read in feature.reads]
        required = 0
        for read in read_features:
            required |= read.required
        categories = tuple(dict.fromkeys(c for read in read_features for c in read.categories))
        by_name[name] = replace(feature, required=required, categories=categories)
    return tuple(order), [by_name[feature.name] for feature in features]


def _version(declaration: FeatureDeclaration, where: str) -> int:
    if declaration.version < 1:
        raise ConfigurationError(
            "BAD_VERSION", f"expected a version of at least 1, got {declaration.version}, in {where}"
        )
    return declaration.version


def _default(declaration: FeatureDeclaration, where: str) -> float:
    if declaration.default is None:
        return math.nan
    if not math.isfinite(declaration.default):
        raise ConfigurationError("BAD_DEFAULT", f"expected a finite default, got {declaration.default}, in {where}")
    return declaration.default


def _compile(
    indices: Mapping[Place, int],
    declaration: FeatureDeclaration,
    configuration: Configuration,
    types: Mapping[str, SignalType],
) -> Feature:
    where = f"feature {declaration.name!r}"
    if declaration.segment:
        raise ConfigurationError("BAD_SEGMENT", f"expected a formula of a segment, got none, in {where}")
    if declaration.aggregate is None and not declaration.signals() and declaration.pushed and declaration.category:
        return _placed(_pushed(declaration, where), declaration, indices)
    if declaration.aggregate is None or not declaration.signals():
        raise ConfigurationError(
            "BAD_AGGREGATE",
            f"expected an aggregate and its signals, a formula, or `pushed` and a category, got none of them, in {where}",
        )
    aggregate = parse_aggregate(declaration.aggregate, where)
    kind = AGGREGATES.get(aggregate.name)
    if kind is None:
        raise ConfigurationError(
            "UNKNOWN_AGGREGATE", f"expected one of {', '.join(AGGREGATES)}, got {aggregate.name!r}, in {where}"
        )
    _check_options(aggregate, kind, declaration.signals(), where)
    value_kind, is_money = _value_kind(aggregate, declaration, configuration, types, where)
    if aggregate.name == "last_k" and value_kind is ValueKind.SYMBOL:
        raise ConfigurationError("BAD_AGGREGATE", f"expected last_k of an item id such as product_id, in {where}")
    if aggregate.name in ("decayed_top_k", "distinct") and value_kind is ValueKind.ITEM:
        value_kind = ValueKind.SYMBOL
    if value_kind not in kind.kinds:
        expected = " or ".join(sorted(k.value for k in kind.kinds))
        raise ConfigurationError(
            "BAD_AGGREGATE",
            f"expected a field of kind {expected} for {aggregate.name}, got {aggregate.reads or 'no field'} "
            f"({value_kind.value}), in {where}",
        )
    window_ms, hop_ms = _window(declaration, kind, aggregate.name, where)
    default = _default(declaration, where)
    if not math.isnan(default) and (
        not kind.is_number or (value_kind is ValueKind.SYMBOL and kind.op != record.DISTINCT)
    ):
        raise ConfigurationError("BAD_DEFAULT", f"expected a default only where the feature is one number, in {where}")
    categories = _categories(declaration, aggregate, types, where)
    required = admit = 0
    for category in categories:
        required |= bit(category, Purpose.PERSONALISE)
        admit |= bit(category, Purpose.PROFILE)
    option, k, _, _ = kind.k
    if window_ms and kind.op == record.DISTINCT:
        k = record.PRECISION_MIN  # registers for every hop
    feature = Feature(
        index=0,
        name=declaration.name,
        version=_version(declaration, where),
        place=Place.HEAD,
        aggregate=aggregate,
        op=kind.window_op if window_ms else kind.op,
        value_kind=value_kind,
        signals=tuple(declaration.signals()),
        categories=categories,
        required=required,
        admit=admit,
        max_age_ms=duration_ms(declaration.max_age, f"max_age of {where}") if declaration.max_age else 0,
        half_life_ms=float(aggregate.durations.get("half_life", 0)),
        k=int(aggregate.numbers.get(option, k)),
        window_ms=window_ms,
        hop_ms=hop_ms,
        quantile=aggregate.numbers.get("q", 0.5),
        default=default,
        is_money=is_money,
    )
    if declaration.push_kind is not None:
        feature = _with_pushes(feature, declaration, configuration, types, where)
    return _placed(feature, declaration, indices)


def _pushed(declaration: FeatureDeclaration, where: str) -> Feature:
    """Return a feature whose values all come from elsewhere."""
    (category,) = _categories(declaration, Aggregate("last"), {}, where)
    return Feature(
        index=0,
        name=declaration.name,
        version=_version(declaration, where),
        place=Place.HEAD,
        aggregate=Aggregate("last"),
        op=record.LAST,
        value_kind=ValueKind.SYMBOL if declaration.pushed == "text" else ValueKind.NUMBER,
        signals=(push_type(category),),
        categories=(category,),
        required=bit(category, Purpose.PERSONALISE),
        admit=bit(category, Purpose.PROFILE),
        max_age_ms=duration_ms(declaration.max_age, f"max_age of {where}") if declaration.max_age else 0,
        half_life_ms=0.0,
        k=0,
        default=_default(declaration, where),
    )


def _with_pushes(
    feature: Feature,
    declaration: FeatureDeclaration,
    configuration: Configuration,
    types: Mapping[str, SignalType],
    where: str,
) -> Feature:
    """Return the feature as it takes values from elsewhere: beside its signals, or, computed in batches, instead of them."""
    category = configuration.push_category(declaration, types)
    assert category is not None
    if declaration.compute == "batch":
        if not feature.is_number or declaration.pushed == "text" or declaration.store == "lists":
            raise ConfigurationError(
                "BAD_AGGREGATE", f"expected a number, kept in the head, of what is computed in batches, in {where}"
            )
        return replace(
            feature,
            op=record.LAST,
            value_kind=ValueKind.NUMBER,
            is_money=False,
            half_life_ms=0.0,
            k=0,
            signals=(push_type(category),),
            sources=feature.signals,
        )
    kind = ValueKind.SYMBOL if declaration.pushed == "text" else ValueKind.NUMBER
    if feature.op != record.LAST or feature.value_kind is not kind:
        raise ConfigurationError(
            "BAD_AGGREGATE",
            f"expected `pushed` only beside `last` of a {declaration.pushed}, got {feature.aggregate.name} of a "
            f"{feature.value_kind.value}, in {where}",
        )
    return replace(feature, signals=(*feature.signals, push_type(category)))


def _placed(feature: Feature, declaration: FeatureDeclaration, indices: Mapping[Place, int]) -> Feature:
    """Return the feature where it is kept: what may grow large and no ranking reads goes with the lists."""
    (bytes_max,) = layout_of([feature], None, 0).bytes_max
    large = (feature.window_ms or feature.op in (record.DISTINCT, record.QUANTILE)) and bytes_max > HEAD_FEATURE_BYTES
    place = Place(declaration.store) if declaration.store else Place.LISTS if large else Place.HEAD
    return replace(feature, place=place, index=indices[place], bytes_max=bytes_max)


def _window(declaration: FeatureDeclaration, kind: AggregateKind, name: str, where: str) -> tuple[int, int]:
    """Return window and hop in ms, 0 where there is none."""
    if declaration.window is None:
        if declaration.hop is not None:
            raise ConfigurationError("BAD_WINDOW", f"expected a window for the hop, got none, in {where}")
        return 0, 0
    if not kind.window_op:
        known = ", ".join(known for known, other in AGGREGATES.items() if other.window_op)
        raise ConfigurationError("BAD_WINDOW", f"expected a window only for {known}, got {name}, in {where}")
    window = duration_ms(declaration.window, f"window of {where}")
    hop = duration_ms(declaration.hop, f"hop of {where}") if declaration.hop else default_hop(window)
    hops_max = record.TILES_MAX - 1
    if window < 1_000 or not 1_000 <= hop <= window or window > hops_max * hop:
        raise ConfigurationError(
            "BAD_WINDOW",
            f"expected a window and hop of at least 1s, the window 1 to {hops_max} hops, got {declaration.window} in hops "
            f"of {declaration.hop or f'{hop} ms'}, in {where}",
        )
    return window, hop


def default_hop(window_ms: int) -> int:
    """Return the hop of a window in ms: 5 minutes up to an hour, an hour up to a day, then days, no more than 95 of them."""
    if window_ms <= _HOUR:
        return min(5 * _MINUTE, window_ms)
    if window_ms <= _DAY:
        return _HOUR
    return _DAY * -(-window_ms // (_DAY * (record.TILES_MAX - 1)))


def _categories(
    declaration: FeatureDeclaration, aggregate: Aggregate, types: Mapping[str, SignalType], where: str
) -> tuple[DataType, ...]:
    """Return the kinds of data the feature draws on."""
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
    return tuple(sorted(categories))


def _check_options(aggregate: Aggregate, kind: AggregateKind, signals: list[str], where: str) -> None:
    given = {*aggregate.numbers, *aggregate.durations, *(["weights"] if aggregate.weights else [])}
    for option in sorted(given - kind.options):
        known = ", ".join(sorted(kind.options)) or "none"
        raise ConfigurationError(
            "BAD_AGGREGATE", f"expected options of {known} for {aggregate.name}, got {option!r}, in {where}"
        )
    if "half_life" in kind.options and aggregate.durations.get("half_life", 0) <= 0:
        raise ConfigurationError("BAD_AGGREGATE", f"expected half_life=<duration> for {aggregate.name}, in {where}")
    if not 0.0 <= aggregate.numbers.get("q", 0.5) <= 1.0:
        raise ConfigurationError("BAD_AGGREGATE", f"expected q from 0 to 1, got {aggregate.numbers['q']:g}, in {where}")
    option, default, low, high = kind.k
    k = aggregate.numbers.get(option, default)
    if not low <= k <= high or k != int(k):
        raise ConfigurationError("BAD_AGGREGATE", f"expected {option} from {low} to {high}, got {k:g}, in {where}")
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
) -> tuple[ValueKind, bool]:
    """Return the kind of the field read, the same in every signal of the feature, and whether it is money."""
    reads = aggregate.reads
    if not reads:
        return ValueKind.NONE, False
    if reads.startswith(CONTEXT_PREFIX):
        return ValueKind.SYMBOL, False
    if reads.startswith(ITEM_PREFIX):
        if reads.removeprefix(ITEM_PREFIX) not in configuration.attributes:
            raise ConfigurationError(
                "UNKNOWN_ATTRIBUTE",
                f"expected {ITEM_PREFIX} one of {configuration.attributes}, got {reads!r}, in {where}",
            )
        return ValueKind.SYMBOL, False
    kinds, money = set(), set()
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
        money.add(kind is Kind.MONEY)
        kinds.add(
            {Kind.STRING: ValueKind.SYMBOL, Kind.ITEM: ValueKind.ITEM, Kind.PRODUCTS: ValueKind.NONE}.get(
                kind, ValueKind.NUMBER
            )
        )
    if len(kinds) > 1 or len(money) > 1:
        raise ConfigurationError(
            "BAD_AGGREGATE",
            f"expected {reads!r} to be of one kind in all signals of {where}, got "
            f"{sorted(k.value for k in kinds) if len(kinds) > 1 else ['money', 'number']}",
        )
    return kinds.pop(), money.pop()


def is_money_in(types: Mapping[str, SignalType], signals: Sequence[str], reads: str) -> bool:
    """Return whether a field is an amount of money in signals that all declare it alike."""
    return any((types[name].properties.get(reads) or PRODUCT_FIELDS.get(reads)) is Kind.MONEY for name in signals)

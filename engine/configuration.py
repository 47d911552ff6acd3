"""The configuration: `tailorbird.yaml` read, validated whole, and held immutable.

Anything unknown, misspelt or of a wrong type is refused with its place in the file and, where one is near, the name that
was probably meant. `feature_compiler.py` compiles the declarations into the record layout.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec
import yaml

from tailorbird.engine.consent import DataType, Jurisdiction
from tailorbird.engine.durations import duration_ms
from tailorbird.engine.errors import ConfigurationError
from tailorbird.engine.vocabulary import ECOMMERCE, ItemList, Kind, SignalType, push_type

LIST_WINDOW_MAX = "100y"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Limits(_Section, frozen=True):
    """Every bound has a name, and the name appears in the error."""

    signal_bytes_max: int = 256 * 1024
    field_bytes_max: int = 8 * 1024
    properties_max: int = 128
    products_max: int = 2_000
    batch_signals_max: int = 10_000
    candidates_max: int = 10_000
    batch_decisions_max: int = 256
    batch_candidates_max: int = 64_000
    page_placements_max: int = 16
    items_per_put_max: int = 100_000
    k_max: int = 200
    event_age_max: str = "20y"
    event_ahead_max: str = "5m"
    duplicate_window: str = "24h"
    map_bytes: int = 64 * 1024**3
    list_entries_max: int = 2_000
    symbols_max: int = 10_000_000
    features_people_max: int = 1_000


class SignalDeclaration(_Section, frozen=True):
    """A signal type of the user's own, beside the built-in vocabulary."""

    name: str
    category: str
    properties: dict[str, Kind] = {}
    required: list[str] = []
    adds_to: ItemList | None = None
    refunds: bool = False


class FeatureDeclaration(_Section, frozen=True):
    """A feature: which signals feed it and how they are aggregated, or what it is derived from.

    - `formula`: arithmetic over other features; with `segment`, a rule that is true of who belongs, whose changes are told
    - `learned_from`: the features that a trained model reads; `tailorbird train score` makes it, or, with `clusters`, how many
      kinds of people there are, `tailorbird train clusters`
    - `pushed`: what kind of value may be sent for it from elsewhere
    - `compute: batch`: it is sent by `tailorbird features materialize`, which aggregates files, and by nothing else

    A definition never changes: what differs in more than `max_age`, `default` and `description` has another `version`.
    """

    name: str
    aggregate: str | None = None
    signal: str | list[str] = []
    formula: str | None = None
    learned_from: list[str] = []
    clusters: int = 0
    segment: bool = False
    version: int = 1
    window: str | None = None
    hop: str | None = None
    category: str | None = None
    max_age: str | None = None
    default: float | None = None
    store: Literal["head", "lists"] | None = None
    pushed: Literal["number", "text"] | None = None
    compute: Literal["stream", "batch"] = "stream"
    description: str = ""

    def signals(self) -> list[str]:
        return [self.signal] if isinstance(self.signal, str) else self.signal

    @property
    def push_kind(self) -> Kind | None:
        """The kind of value that may be pushed, None where none may."""
        if self.pushed == "text":
            return Kind.STRING
        return Kind.NUMBER if self.pushed or self.compute == "batch" else None


class MoneyDeclaration(_Section, frozen=True):
    """The currency that sums of money are kept in, and what a unit of each other one is worth in it."""

    currency: str = ""
    rates: dict[str, float] = {}


class ContextDeclaration(_Section, frozen=True):
    """What context is derived with: the MaxMind database for addresses, and the hosts of the shop's own sites."""

    location_database: str = ""
    own_hosts: list[str] = []


class Statistics(_Section, frozen=True):
    """Popularity: which signals count how much, how fast they fade, and the context levels, coarse to fine."""

    signals: dict[str, float] = msgspec.field(default_factory=lambda: {"order_completed": 1.0})
    half_life: str = "14d"
    levels: list[list[str]] = msgspec.field(default_factory=lambda: [["country"], ["country", "device", "daypart"]])
    strength: float = 200.0
    tick: str = "1s"


class Retrieve(_Section, frozen=True):
    """How many candidates each retriever may bring; `whole_catalogue` scores every item instead (up to 20,000)."""

    whole_catalogue: bool = False
    cooccurrence: int = 800
    popular: int = 800
    affinity: int = 300
    new: int = 100


class Vector(_Section, frozen=True):
    """A linear model per item: the person's features (log1p or as they are) against the item's embedding."""

    features: list[str]
    transform: str = "log1p"


class Rank(_Section, frozen=True):
    """What refines popularity: the items the person had to do with, affinities to item attributes, a vector."""

    recent: list[str] = []
    bought: bool = True
    affinity: dict[str, str] = {}
    vector: Vector | None = None


class Cap(_Section, frozen=True):
    """How often one item may be mentioned to one person within a window, on all devices and placements together."""

    times: int
    window: str


class Placement(_Section, frozen=True):
    """A named slot with its own policy. `exclude` and `caps` say which of served and shown they follow."""

    name: str
    k: int = 10
    retrieve: Retrieve = Retrieve()
    rank: Rank = Rank()
    exclude: dict[ItemList, str] = msgspec.field(
        default_factory=lambda: {ItemList.BOUGHT: "365d", ItemList.SERVED: "30m"}
    )
    exclude_recent: list[str] = []
    caps: dict[ItemList, Cap] = {}
    where: dict[str, list[str]] = {}
    tags: list[str] = []
    require_stock: bool = True
    record_served: bool = True
    fallback: list[str] = []


class NamespaceDeclaration(_Section, frozen=True):
    """An identifier namespace of the user's own, or a change to a built-in one."""

    priority: int
    unique: bool = False
    per_person_max: int = 5
    generic_at: int = 3
    rate_max: int = 0
    rate_days: int = 0
    holds_state: bool = True


class Identity(_Section, frozen=True):
    """Identity rules: namespaces, further refused values, the region of phone numbers without a country code."""

    namespaces: dict[str, NamespaceDeclaration] = {}
    refused_values: list[str] = []
    phone_region: str = ""


class DecisionLogDeclaration(_Section, frozen=True):
    """What a service keeps of its decisions, in each deciding process.

    `candidates_sampled` is the share of decisions whose given candidates are kept whole; `outcome_window` how long after a
    decision its outcomes are looked for. What is older than `age_max`, or the oldest beyond `bytes_max`, goes a segment at a
    time.
    """

    enabled: bool = True
    age_max: str = "30d"
    bytes_max: int = 4 * 1024**3
    segment_bytes: int = 64 * 1024**2
    buffer_bytes: int = 1024**2
    candidates_sampled: float = 0.01
    outcome_window: str = "7d"


class Configuration(_Section, frozen=True):
    """The whole of `tailorbird.yaml`."""

    version: int
    jurisdiction: Jurisdiction = Jurisdiction.OPT_IN
    zone: str = "UTC"
    limits: Limits = Limits()
    identity: Identity = Identity()
    vocabulary: str = "ecommerce"
    signals: list[SignalDeclaration] = []
    attributes: list[str] = msgspec.field(default_factory=lambda: ["category", "brand"])
    embedding_dimension: int = 0
    statistics: Statistics = Statistics()
    context: ContextDeclaration = ContextDeclaration()
    money: MoneyDeclaration = MoneyDeclaration()
    freshness: dict[str, str] = {}
    features: list[FeatureDeclaration] = []
    placements: list[Placement] = []
    decision_log: DecisionLogDeclaration = DecisionLogDeclaration()
    state_sync: str = "commit"

    def signal_types(self) -> dict[str, SignalType]:
        """Return every signal type by name: the vocabulary's and the declared ones."""
        types = dict(ECOMMERCE) if self.vocabulary == "ecommerce" else {}
        for declaration in self.signals:
            types[declaration.name] = SignalType(
                declaration.name,
                DataType[declaration.category.upper()],
                dict(declaration.properties),
                tuple(declaration.required),
                declaration.adds_to,
                declaration.refunds,
            )
        pushed: dict[DataType, dict[str, Kind]] = {}
        for feature in self.features:
            category = self.push_category(feature, types)
            if feature.push_kind is not None and category is not None:
                pushed.setdefault(category, {})[feature.name] = feature.push_kind
        for category, properties in pushed.items():
            name = push_type(category)
            types[name] = SignalType(name, category, properties, pushes=True)
        return types

    def freshness_ms(self) -> dict[DataType, int]:
        """Return the freshness target of each category that has one, in ms."""
        return {
            DataType[category.upper()]: duration_ms(target, f"freshness.{category}")
            for category, target in self.freshness.items()
        }

    @staticmethod
    def push_category(feature: FeatureDeclaration, types: Mapping[str, SignalType]) -> DataType | None:
        """Return the kind of data a pushed value is: as declared, else that of the feature's first signal."""
        if feature.category is not None:
            return DataType.__members__.get(feature.category.upper())
        first = types.get(feature.signals()[0]) if feature.signals() else None
        return first.category if first is not None else None


def parse_configuration(text: str, source: str = "tailorbird.yaml") -> Configuration:
    """Return the validated configuration. Raises `ConfigurationError` with the place, what was expected and what came."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError("BAD_YAML", f"expected YAML in {source}, got: {error}") from None
    if not isinstance(document, dict):
        raise ConfigurationError(
            "BAD_CONFIGURATION",
            f"expected a mapping with at least `version: 1` in {source}, got {type(document).__name__}",
        )
    try:
        configuration = msgspec.convert(document, Configuration, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigurationError("BAD_CONFIGURATION", f"{_explain(str(error), document)}, in {source}") from None
    _check(configuration, source)
    return configuration


def read_configuration(path: Path) -> tuple[Configuration, str]:
    """Return the configuration of a file and its text."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            "NO_CONFIGURATION", f"expected a configuration at {path}, found none; `tailorbird init DIR` writes one"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError("BAD_YAML", f"expected UTF-8 in {path}, got a bad byte at {error.start}") from None
    return parse_configuration(text, str(path)), text


def _explain(message: str, document: object) -> str:
    """Return msgspec's message with the nearest known name where a field is unknown."""
    unknown = re.search(r"unknown field `([^`]*)`(?: - at `\$([^`]*)`)?", message)
    if unknown is None:
        return message[:1].lower() + message[1:]
    section: type[msgspec.Struct] = Configuration
    for word in re.findall(r"\.([a-z_]+)", unknown[2] or ""):
        for known in msgspec.structs.fields(section):
            if known.name == word:
                found = re.search(r"configuration\.(\w+)", str(known.type))
                section = globals()[found[1]] if found else section
    names = [known.name for known in msgspec.structs.fields(section)]
    near = difflib.get_close_matches(unknown[1], names, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(names)}"
    return f"unknown field `{unknown[1]}` at `${unknown[2] or ''}`{hint}"


def _near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _unique(names: list[str], what: str, source: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
            raise ConfigurationError(
                "BAD_NAME", f"expected {what} names of a-z, 0-9 and _ (at most 63), got {name!r}, in {source}"
            )
        if name in seen:
            raise ConfigurationError(
                "DUPLICATE_NAME",
                f"expected {what} names to differ, got two {what}s named {name!r}, in {source}; rename one",
            )
        seen.add(name)


def _check(configuration: Configuration, source: str) -> None:
    """Check what the types cannot say."""
    if configuration.version != 1:
        raise ConfigurationError(
            "BAD_CONFIGURATION", f"expected `version: 1`, got {configuration.version}, in {source}"
        )
    if configuration.vocabulary not in ("ecommerce", "none"):
        raise ConfigurationError(
            "BAD_CONFIGURATION",
            f"expected `vocabulary` ecommerce or none, got {configuration.vocabulary!r}, in {source}",
        )
    if configuration.state_sync not in ("commit", "interval"):
        raise ConfigurationError(
            "BAD_CONFIGURATION",
            f"expected `state_sync` commit or interval, got {configuration.state_sync!r}, in {source}",
        )
    _unique([s.name for s in configuration.signals], "signal", source)
    _unique([f.name for f in configuration.features], "feature", source)
    _unique([p.name for p in configuration.placements], "placement", source)
    _unique(configuration.attributes, "attribute", source)
    categories = [t.name.lower() for t in list(DataType)[:5]]
    for declaration in configuration.signals:
        if declaration.category not in categories:
            raise ConfigurationError(
                "BAD_CATEGORY",
                f"expected a category of {', '.join(categories)}, got {declaration.category!r} in signal "
                f"{declaration.name!r}{_near(declaration.category, categories)}, in {source}",
            )
        for name in declaration.required:
            if name not in declaration.properties:
                raise ConfigurationError(
                    "UNKNOWN_PROPERTY",
                    f"expected `required` to name declared properties, got {name!r} in signal {declaration.name!r}, in {source}",
                )
    signals = list(configuration.signal_types())
    for name in configuration.statistics.signals:
        if name not in signals:
            raise ConfigurationError(
                "UNKNOWN_SIGNAL",
                f"expected a declared signal, got {name!r} in statistics{_near(name, signals)}, in {source}",
            )
    _check_numbers(configuration, source)
    _check_decision_log(configuration.decision_log, source)
    for category, target in configuration.freshness.items():
        if category not in categories:
            raise ConfigurationError(
                "BAD_CATEGORY",
                f"expected a category of {', '.join(categories)}, got {category!r} in freshness"
                f"{_near(category, categories)}, in {source}",
            )
        if duration_ms(target, f"freshness.{category}") == 0:
            raise ConfigurationError(
                "BAD_DURATION", f"expected freshness.{category} above 0, got {target!r}, in {source}"
            )
    for limit in ("event_age_max", "event_ahead_max", "duplicate_window"):
        duration_ms(getattr(configuration.limits, limit), f"limits.{limit}")
    features = [f.name for f in configuration.features]
    for feature in configuration.features:
        for name in feature.signals():
            if name not in signals:
                raise ConfigurationError(
                    "UNKNOWN_SIGNAL",
                    f"expected a declared signal, got {name!r} in feature {feature.name!r}{_near(name, signals)}, in {source}",
                )
    for placement in configuration.placements:
        _check_placement(placement, configuration, features, source)


def _check_numbers(configuration: Configuration, source: str) -> None:
    statistics, limits = configuration.statistics, configuration.limits
    for name in limits.__struct_fields__:
        value = getattr(limits, name)
        if isinstance(value, int) and value < 1:
            raise ConfigurationError("BAD_LIMIT", f"expected limits.{name} of at least 1, got {value}, in {source}")
    if duration_ms(statistics.half_life, "statistics.half_life") == 0:
        raise ConfigurationError("BAD_DURATION", f"expected statistics.half_life above 0, got 0, in {source}")
    duration_ms(statistics.tick, "statistics.tick")
    weights = {f"statistics.signals.{name}": weight for name, weight in statistics.signals.items()}
    for name, number in {"statistics.strength": statistics.strength, **weights}.items():
        if not (math.isfinite(number) and number > 0):
            raise ConfigurationError(
                "BAD_CONFIGURATION", f"expected {name} finite and above 0, got {number}, in {source}"
            )
    if configuration.embedding_dimension < 0:
        raise ConfigurationError(
            "BAD_CONFIGURATION",
            f"expected embedding_dimension of at least 0, got {configuration.embedding_dimension}, in {source}",
        )
    try:
        ZoneInfo(configuration.zone)
    except (OSError, ValueError, KeyError):
        raise ConfigurationError(
            "BAD_CONFIGURATION",
            f"expected `zone` as a time zone such as Europe/London, got {configuration.zone!r}, in {source}; correct it, or "
            "install the zones (tzdata)",
        ) from None


def _check_decision_log(declaration: DecisionLogDeclaration, source: str) -> None:
    for name in ("age_max", "outcome_window"):
        if duration_ms(getattr(declaration, name), f"decision_log.{name}") == 0:
            raise ConfigurationError("BAD_DURATION", f"expected decision_log.{name} above 0, got 0, in {source}")
    for name, least, most in (
        ("buffer_bytes", 4_096, 2**30),
        ("segment_bytes", 4_096, 2**30),
        ("bytes_max", 2 * declaration.segment_bytes, 2**63),
    ):
        value = getattr(declaration, name)
        if not least <= value <= most:
            raise ConfigurationError(
                "BAD_LIMIT", f"expected decision_log.{name} from {least} to {most}, got {value}, in {source}"
            )
    if not 0.0 <= declaration.candidates_sampled <= 1.0:
        raise ConfigurationError(
            "BAD_CONFIGURATION",
            f"expected decision_log.candidates_sampled from 0 to 1, got {declaration.candidates_sampled}, in {source}",
        )


def _check_cap(kind: ItemList, cap: Cap, limits: Limits, where: str) -> None:
    if kind is ItemList.BOUGHT:
        raise ConfigurationError(
            "BAD_CAP",
            f"expected caps of served or shown, got {kind.value!r}, {where}; what was bought is left to `exclude`",
        )
    # A list that drops its oldest mentions never counts more of them than it holds.
    if not 1 <= cap.times <= limits.list_entries_max:
        raise ConfigurationError(
            "BAD_CAP",
            f"expected times from 1 to limits.list_entries_max = {limits.list_entries_max}, got {cap.times}, in caps.{kind.value} "
            f"{where}; to offer nothing, leave the placement out",
        )
    if duration_ms(cap.window, f"caps.{kind.value} {where}") == 0:
        raise ConfigurationError(
            "BAD_DURATION", f"expected a window above 0, got {cap.window!r}, in caps.{kind.value} {where}"
        )


def _check_placement(placement: Placement, configuration: Configuration, features: list[str], source: str) -> None:
    where = f"in placement {placement.name!r}, in {source}"
    if not 1 <= placement.k <= configuration.limits.k_max:
        raise ConfigurationError(
            "BAD_PLACEMENT",
            f"expected k from 1 to limits.k_max = {configuration.limits.k_max}, got {placement.k}, {where}",
        )
    for window in placement.exclude.values():
        duration_ms(window, f"exclude {where}")
    for kind, cap in placement.caps.items():
        _check_cap(kind, cap, configuration.limits, where)
    for attribute in (*placement.where, *placement.rank.affinity):
        if attribute not in configuration.attributes:
            raise ConfigurationError(
                "UNKNOWN_ATTRIBUTE",
                f"expected one of `attributes`, got {attribute!r}{_near(attribute, configuration.attributes)}, {where}",
            )
    vector = placement.rank.vector
    named = [
        *placement.exclude_recent,
        *placement.rank.recent,
        *placement.rank.affinity.values(),
        *(vector.features if vector else []),
    ]
    for name in named:
        if name not in features:
            raise ConfigurationError(
                "UNKNOWN_FEATURE", f"expected a declared feature, got {name!r}{_near(name, features)}, {where}"
            )
    if vector is not None:
        if vector.transform not in ("log1p", "identity"):
            raise ConfigurationError(
                "BAD_PLACEMENT", f"expected a transform of log1p or identity, got {vector.transform!r}, {where}"
            )
        if len(vector.features) != configuration.embedding_dimension:
            raise ConfigurationError(
                "BAD_PLACEMENT",
                f"expected as many vector features as embedding_dimension = {configuration.embedding_dimension}, "
                f"got {len(vector.features)}, {where}",
            )

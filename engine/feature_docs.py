"""What the declarations say, written out for people: one table of every feature, from the declarations themselves."""

from __future__ import annotations

import math

from tailorbird.engine.aggregates import AGGREGATES
from tailorbird.engine.compiled import CompiledConfiguration
from tailorbird.engine.configuration import FeatureDeclaration
from tailorbird.engine.durations import duration_text
from tailorbird.engine.features import Feature, Place

COLUMNS = ("feature", "says", "from", "data", "kept", "stale after", "else")


def feature_rows(compiled: CompiledConfiguration) -> list[tuple[str, ...]]:
    """Return a row per feature, in the order of `COLUMNS`."""
    declarations = {declaration.name: declaration for declaration in compiled.configuration.features}
    return [_row(feature, declarations[feature.name]) for feature in compiled.features.features]


def features_markdown(compiled: CompiledConfiguration) -> str:
    """Return the declarations as a page in Markdown."""
    features = compiled.features
    lines = ["# Features", "", _table_line(COLUMNS), _table_line(("---",) * len(COLUMNS))]
    lines += [_table_line(row) for row in feature_rows(compiled)]
    head, lists = features.layout.packed_bytes_max, features.lists_layout.packed_bytes_max
    lines += ["", f"A profile head takes at most {head} bytes, the record with the lists at most {lists}."]
    for place in (Place.HEAD, Place.LISTS):
        sizes = ", ".join(f"{feature.name} {feature.bytes_max}" for feature in features.kept(place))
        if sizes:
            lines.append(f"Bytes at most in the {place}: {sizes}.")
    if compiled.configuration.freshness:
        targets = ", ".join(f"{category} {target}" for category, target in compiled.configuration.freshness.items())
        lines.append(f"Freshness targets by category: {targets}.")
    return "\n".join(lines) + "\n"


def _table_line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _row(feature: Feature, declaration: FeatureDeclaration) -> tuple[str, ...]:
    name = feature.name if feature.version == 1 else f"{feature.name} (version {feature.version})"
    says = declaration.description or _says(feature, declaration)
    if declaration.description:
        says += f": {_says(feature, declaration)}"
    sources = feature.sources or feature.signals
    default = "" if math.isnan(feature.default) else f"{feature.default:g}"
    kept = str(feature.place)
    if feature.bytes_max:
        kept += f", {feature.bytes_max} bytes"
    stale = duration_text(feature.max_age_ms) if feature.max_age_ms else ""
    data = ", ".join(category.name.lower() for category in feature.categories)
    return name, says, ", ".join(sources), data, kept, stale, default


def _says(feature: Feature, declaration: FeatureDeclaration) -> str:
    """Return in words what the feature tells of a person."""
    if feature.formula is not None:
        return f"`{feature.formula.text}`"
    if feature.learned_from:
        what = f"which of {feature.clusters} kinds of people" if feature.clusters else "a learned probability"
        return f"{what}, from {', '.join(feature.learned_from)}"
    if declaration.aggregate is None:
        return "the last value sent for it"
    kind = AGGREGATES[feature.aggregate.name]
    says = kind.says.format(f"`{feature.aggregate.reads}`")
    if feature.half_life_ms:
        says += f", by half in {duration_text(round(feature.half_life_ms))}"
    if feature.window_ms:
        says += f", in the last {duration_text(feature.window_ms)} (hops of {duration_text(feature.hop_ms)})"
    if feature.aggregate.weights:
        weights = ", ".join(f"{name} {weight:g}" for name, weight in feature.aggregate.weights.items())
        says += f"; weights {weights}"
    if feature.sources:
        says += ", computed in batches"
    return says

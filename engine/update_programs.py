"""Update programs: which values of an event feed which features, and how they are read from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tailorbird.engine.aggregates import ValueKind
from tailorbird.engine.consent import Purpose, bit
from tailorbird.engine.features import (
    CONTEXT_PREFIX,
    ITEM_PREFIX,
    Feature,
    FeatureSet,
    Place,
    SlotReader,
    UpdateProgram,
    layout_of,
)
from tailorbird.engine.money import CURRENCY, Money
from tailorbird.engine.symbols import symbol_of as symbol_number
from tailorbird.engine.vocabulary import SignalType
from tailorbird.native import record


def update_program(
    signal: SignalType,
    features: Sequence[Feature],
    layout: record.RecordLayout,
    lists_layout: record.RecordLayout,
    money: Money,
) -> UpdateProgram:
    """Add what signals of one type update to the layouts of head and lists, and return it."""
    slots, folds = _folds(signal, features, money)
    head = [(feature.index, slot, weight) for feature, slot, weight in folds if feature.place is Place.HEAD]
    lists = [(feature.index, slot, weight) for feature, slot, weight in folds if feature.place is Place.LISTS]
    return UpdateProgram(
        layout.add_program(head),
        lists_layout.add_program(lists),
        bool(lists),
        any(reader.money is not None for reader in slots),
        slots,
    )


def _folds(
    signal: SignalType, features: Sequence[Feature], money: Money
) -> tuple[tuple[SlotReader, ...], list[tuple[Feature, int, float]]]:
    """Return the slots one signal type fills, and which feature takes which of them (-1: none) with what weight."""
    slots: list[SlotReader] = []
    folds: list[tuple[Feature, int, float]] = []
    for feature in features:
        if signal.name not in feature.signals:
            continue
        slot = -1
        if feature.value_kind is not ValueKind.NONE:
            reader = _slot_reader(feature, signal, money)
            if reader not in slots:
                slots.append(reader)
            slot = slots.index(reader)
        folds.append((feature, slot, feature.aggregate.weights.get(signal.name, 1.0)))
    return tuple(slots), folds


def _slot_reader(feature: Feature, signal: SignalType, money: Money) -> SlotReader:
    """Return where a feature's values come from in signals of one type."""
    hashed = feature.op in (record.DISTINCT, record.WINDOW_DISTINCT)
    reads = feature.name if signal.pushes else feature.aggregate.reads
    if not feature.is_money:
        return SlotReader(reads, feature.value_kind, hashed)
    return SlotReader(reads, feature.value_kind, hashed, money, -1.0 if signal.refunds else 1.0)


def history_layout(features: FeatureSet, names: Sequence[str], purpose: Purpose | None = None) -> record.RecordLayout:
    """Return the layout of records that hold the named features alone, wherever they are kept.

    With a `purpose`, events count and values are read only where consent covers it, not personalisation.
    """
    named = [features.by_name[name] for name in names]
    if purpose is not None:
        for place, feature in enumerate(named):
            required = sum(bit(category, purpose) for category in feature.categories)
            named[place] = replace(feature, required=required, admit=feature.admit | required)
    return layout_of(named, None, 1)


def history_programs(
    types: Mapping[str, SignalType], features: FeatureSet, names: Sequence[str], layout: record.RecordLayout
) -> dict[str, UpdateProgram]:
    """Return what each signal type that feeds one of the named features folds into records of their layout."""
    named = [features.by_name[name] for name in names]
    programs = {}
    for name, signal in types.items():
        slots, folds = _folds(signal, named, features.money)
        if folds:
            entries = [(named.index(feature), slot, weight) for feature, slot, weight in folds]
            programs[name] = UpdateProgram(layout.add_program(entries), -1, False, False, slots)
    return programs


def history_mapping(features: FeatureSet, names: Sequence[str], place: Place) -> npt.NDArray[np.int32]:
    """Return, per feature of a place, its number among the named ones, -1 where it is none of them."""
    return np.array(
        [names.index(feature.name) if feature.name in names else -1 for feature in features.kept(place)], np.int32
    )


def slot_values(
    program: UpdateProgram,
    properties: Mapping[str, Any],
    context: Mapping[str, str],
    lines: list[Mapping[str, Any]],
    symbol_of: Callable[[str], int],
    item_of: Callable[[str], int],
    attribute_of: Callable[[str, str], str | None],
    kept_currency: str,
) -> tuple[object, ...]:
    """Return the slot values of one event, None or () where the event does not say.

    A property of the event itself comes first; then the field of each product line; then, for a line that lacks it, the
    attribute of its item in the catalogue (`attribute_of(item id, attribute)`). Raises `CallerError` NO_RATE.
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
            number_of = symbol_number if reader.hashed else symbol_of
            converted: list[object] = [number_of(str(value)) for value in found if value is not None]
        elif kind is ValueKind.ITEM:
            converted = [item_of(value) for value in found if value is not None]
        elif reader.money is not None:
            money, currency = reader.money, properties.get(CURRENCY)
            amounts = [money.amount(float(value), currency, kept_currency) for value in found if value is not None]
            # What is taken back is negative, however the sender writes it.
            converted = [-abs(amount) if reader.sign < 0.0 else amount for amount in amounts]
        else:
            converted = [float(value) for value in found if value is not None]
        values.append(converted[0] if len(converted) == 1 else tuple(converted) if converted else None)
    return tuple(values)

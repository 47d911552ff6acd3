"""Declarations over tables: the same aggregates as expressions of Ibis, for DuckDB in process or Spark beyond one machine.

A table has a row per event: `type`, `event_time` (ms since 1970 UTC), a column per kind of identifier, and a column per property
that a feature reads, named as the declaration names it (`revenue`, `context.device`, `item.category`). The engine groups and adds
up; what needs our own kernels (distinct counts, quantiles) is gathered per person and finished by them. Counts and sums are the
stream's to the bit; decayed values differ by the order of addition. Of `first` and `last` among events of one time either may win.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tailorbird.engine.aggregates import AGGREGATES
from tailorbird.engine.errors import CallerError
from tailorbird.engine.feature_compiler import is_money_in
from tailorbird.engine.feature_table import values_of
from tailorbird.engine.features import Feature, FeatureSet
from tailorbird.engine.money import CURRENCY, minor_units
from tailorbird.engine.symbols import symbol_of
from tailorbird.engine.vocabulary import SignalType
from tailorbird.native import record
from tailorbird.native.feature_rows import FeatureColumns, FeatureRows
from tailorbird.native.record import Record, RecordView

UNITS = record.SUM_UNITS_PER_ONE
_LN2 = math.log(2.0)


class BatchFeatures:
    """The named features as one grouping of a table of events, as of `at` (ms).

    `table` is an Ibis table. Raises `CallerError` BAD_TABLE for a column that is not there or is of another type, NOT_A_NUMBER for
    a feature that is more than one number.
    """

    def __init__(
        self,
        features: FeatureSet,
        types: Mapping[str, SignalType],
        names: Sequence[str],
        table: Any,
        namespace: str,
        at: int,
        currency: str = "",
    ) -> None:
        """`currency` is that of the sums of the state, where none is declared."""
        import ibis

        self._ibis = ibis
        self._set = features
        self._types = types
        self._at = at
        self._currency = features.money.currency or currency
        self.features = [features.by_name[name] for name in names]
        _check_columns(table, {"type": "string", "event_time": "int64", namespace: "string"})
        self._table = table.filter((table.event_time <= at) & table[namespace].notnull())
        measures: dict[str, Any] = {}
        for feature in self.features:
            if feature.aggregate.name not in AGGREGATES or not AGGREGATES[feature.aggregate.name].is_number:
                raise CallerError(
                    "NOT_A_NUMBER",
                    f"expected features of one number, got {feature.name!r}, {feature.aggregate.name}, to compute in batches",
                )
            measures |= {f"{feature.name}__{part}": value for part, value in self._measures(feature).items()}
        self.expression = self._table.group_by(person=self._table[namespace]).aggregate(**measures)

    def rows(self, columns: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield (person, values) of the executed expression's columns; a feature nothing feeds has no value."""
        finishers = [_finisher(feature, self._at) for feature in self.features]
        for row, person in enumerate(columns["person"]):
            values = {}
            for feature, finish in zip(self.features, finishers, strict=True):
                parts = {
                    part: columns[f"{feature.name}__{part}"][row]
                    for part in ("ever", "count", "value", "all")
                    if f"{feature.name}__{part}" in columns
                }
                value = finish(parts) if parts["ever"] else None
                if value is not None:
                    values[feature.name] = value
            yield person, values

    # ---- expressions ---------------------------------------------------------------------------------------------

    def _measures(self, feature: Feature) -> dict[str, Any]:
        """Return the parts of a feature: `ever`, how many events feed it, and of those its window touches `count`, `value`, `all`."""
        table, name = self._table, feature.aggregate.name
        signals = feature.sources or tuple(s for s in feature.signals if not self._types[s].pushes)
        fed = table.type.isin(signals)
        value: Any = None
        if feature.aggregate.reads:
            value = self._value(feature, signals)
            fed = fed & value.notnull()
        inside = fed
        if feature.window_ms:
            hop = feature.hop_ms
            inside = fed & (table.event_time >= (self._at - feature.window_ms) // hop * hop)
        found = {"ever": table.count(where=fed), "count": table.count(where=inside)}
        if name in ("sum", "mean"):
            found["value"] = _half_even(self._ibis, value * float(UNITS)).sum(where=inside)
        elif name in ("min", "max"):
            found["value"] = getattr(value, name)(where=inside)
        elif name in ("first", "last"):
            found["value"] = (value.argmin if name == "first" else value.argmax)(table.event_time, where=inside)
        elif name == "time_since":
            found["value"] = table.event_time.max(where=inside)
        elif name in ("decayed_count", "decayed_sum"):
            found["value"] = self._decayed(feature, signals, value).sum(where=inside)
        elif name in ("distinct", "quantile"):
            found["all"] = value.collect(where=inside)
        return found

    def _value(self, feature: Feature, signals: Sequence[str]) -> Any:
        reads = feature.aggregate.reads
        is_text = AGGREGATES[feature.aggregate.name].op == record.DISTINCT
        _check_columns(self._table, {reads: "string" if is_text else "number"})
        column = self._table[reads]
        if is_text:
            return column
        value = column.cast("float64")
        value = self._ibis.cases((value.isnan() | value.isinf(), self._ibis.null()), else_=value)
        if is_money_in(self._types, signals, reads):
            value = self._amount(value, signals)
        return value

    def _amount(self, value: Any, signals: Sequence[str]) -> Any:
        """Return an amount in whole minor units of the currency of sums, negative where it is taken back."""
        money, ibis, table = self._set.money, self._ibis, self._table
        if CURRENCY in table.columns and self._currency:
            rates = {self._currency: 1.0, **money.rates}
            known = ((table[CURRENCY] == code, rate) for code, rate in rates.items())
            nothing = ibis.null().cast("float64")  # what cannot be converted the stream refuses
            value = value * ibis.cases((table[CURRENCY].isnull(), 1.0), *known, else_=nothing)
        minor = minor_units(self._currency)
        value = _half_even(ibis, value * minor).cast("float64") / minor
        refunds = [name for name in signals if self._types[name].refunds]
        return ibis.cases((table.type.isin(refunds), -value.abs()), else_=value) if refunds else value

    def _decayed(self, feature: Feature, signals: Sequence[str], value: Any) -> Any:
        ibis, table = self._ibis, self._table
        half_life = float(feature.aggregate.durations["half_life"])
        faded = ((table.event_time - self._at).cast("float64") * (_LN2 / half_life)).exp()
        weights = feature.aggregate.weights
        if weights:
            faded = faded * ibis.cases(
                *((table.type == name, float(weights.get(name, 1.0))) for name in signals), else_=1.0
            )
        return faded if value is None else faded * value


def _check_columns(table: Any, expected: Mapping[str, str]) -> None:
    schema = table.schema()
    for name, kind in expected.items():
        found = schema.get(name)
        fits = found is not None and (
            found.is_numeric() if kind == "number" else found.is_integer() if kind == "int64" else found.is_string()
        )
        if not fits:
            raise CallerError(
                "BAD_TABLE",
                f"expected a column {name!r} of type {kind}, got {'none' if found is None else found}; the table has "
                f"{', '.join(table.columns)}",
            )


def _half_even(ibis: Any, value: Any) -> Any:
    """Round to int64, halves to even, by exact steps alone: engines' own rounding differs."""
    whole = value.floor().cast("float64")
    rest = value - whole
    up = (rest > 0.5) | ((rest == 0.5) & (whole - (whole / 2.0).floor().cast("float64") * 2.0 == 1.0))
    return (whole + ibis.cases((up, 1.0), else_=0.0)).cast("int64")


# ---- finishing -------------------------------------------------------------------------------------------------------


def _finisher(feature: Feature, at: int) -> Any:
    """Return what makes a feature's number of its parts; None where there is nothing to say."""
    name = feature.aggregate.name
    if name in ("distinct", "quantile"):
        return _NativeFinish(feature)
    match name:
        case "count":
            return lambda parts: float(parts["count"])
        case "sum":
            return lambda parts: (int(parts["value"]) if parts["count"] else 0) / UNITS
        case "mean":
            return lambda parts: int(parts["value"]) / UNITS / parts["count"] if parts["count"] else None
        case "time_since":
            return lambda parts: (at - int(parts["value"])) / 1_000
    return lambda parts: float(parts["value"]) if parts["count"] else None


class _NativeFinish:
    """Folds what was gathered into a record of one feature, and reads it as the service would."""

    def __init__(self, feature: Feature) -> None:
        kind = AGGREGATES[feature.aggregate.name]
        option, default, _, _ = kind.k
        k = feature.k or int(
            feature.aggregate.numbers.get(option, record.PRECISION_MIN if feature.window_ms else default)
        )
        self._is_text = kind.op == record.DISTINCT
        self._layout = record.RecordLayout(
            1,
            bytes([kind.op]),
            k=np.array([k], np.uint32),
            half_life_ms=np.zeros(1),
            required=np.zeros(1, np.uint64),
            admit=np.zeros(1, np.uint64),
            max_age_ms=np.zeros(1, np.int64),
            quantile=np.array([feature.aggregate.numbers.get("q", 0.5)]),
        )
        self._program = self._layout.add_program([(0, 0, 1.0)])
        self._view = RecordView()
        self._rows = FeatureRows(1, 1)
        self._column = FeatureColumns(self._layout, np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, np.uint8))

    def __call__(self, parts: Mapping[str, Any]) -> float | None:
        gathered = parts["all"]
        if gathered is None or len(gathered) == 0:
            return 0.0 if self._is_text else None
        values = tuple(symbol_of(str(v)) for v in set(gathered)) if self._is_text else tuple(float(v) for v in gathered)
        folded = Record(self._layout)
        folded.update(self._program, 0, 0, (values,), 0)
        self._view.load(self._layout, folded.pack())
        self._rows.read(0, self._view, self._column, 0, 0)
        return float(values_of(self._rows)[0, 0])

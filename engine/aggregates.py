"""The aggregates a feature may be declared with: what each reads, which options it takes, what keeps it natively."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tailorbird.native import record


class ValueKind(Enum):
    """What a feature's slot holds: nothing, a number, a symbol (a hashed text), or an item number."""

    NONE = "none"
    NUMBER = "number"
    SYMBOL = "symbol"
    ITEM = "item"


@dataclass(frozen=True, slots=True)
class AggregateKind:
    """One aggregate. `says` what it tells of a person; `k` is the option that bounds its size, with default and limits."""

    op: int
    says: str
    kinds: frozenset[ValueKind]
    options: frozenset[str] = frozenset()
    window_op: int = 0
    k: tuple[str, int, int, int] = ("", 0, 0, 0)
    exact: bool = True

    @property
    def is_number(self) -> bool:
        """Whether it is read as one number, unless its values are texts."""
        return self.op not in (record.TOP_K, record.LAST_K)


_NONE = frozenset({ValueKind.NONE})
_NUMBER = frozenset({ValueKind.NUMBER})
_ANY = frozenset({ValueKind.NUMBER, ValueKind.SYMBOL})
_KEY = frozenset({ValueKind.SYMBOL, ValueKind.ITEM})
_DECAY = frozenset({"half_life", "weights"})
_PRECISION = ("precision", 8, record.PRECISION_MIN, record.PRECISION_MAX)

AGGREGATES: dict[str, AggregateKind] = {
    "count": AggregateKind(record.COUNT, "how many events", _NONE, window_op=record.WINDOW_COUNT),
    "sum": AggregateKind(record.SUM, "the sum of {}", _NUMBER, window_op=record.WINDOW_SUM),
    "mean": AggregateKind(record.MEAN, "the mean of {}", _NUMBER, window_op=record.WINDOW_MEAN),
    "min": AggregateKind(record.MIN, "the smallest {}", _NUMBER, window_op=record.WINDOW_MIN),
    "max": AggregateKind(record.MAX, "the largest {}", _NUMBER, window_op=record.WINDOW_MAX),
    "first": AggregateKind(record.FIRST, "the first {}", _ANY),
    "last": AggregateKind(record.LAST, "the last {}", _ANY),
    "time_since": AggregateKind(record.TIME_SINCE, "seconds since the last event", _NONE),
    "distinct": AggregateKind(
        record.DISTINCT,
        "how many different {}, off by 1.04 / sqrt(2^precision) as a rule",
        _KEY,
        frozenset({"precision"}),
        window_op=record.WINDOW_DISTINCT,
        k=_PRECISION,
    ),
    "quantile": AggregateKind(
        record.QUANTILE,
        "the value of {} below which a share q of all lies, within 1.1 %",
        _NUMBER,
        frozenset({"q", "k"}),
        k=("k", 64, 1, record.QUANTILE_BINS_MAX),
    ),
    "decayed_count": AggregateKind(record.DECAYED, "how many events, fading", _NONE, _DECAY, exact=False),
    "decayed_sum": AggregateKind(record.DECAYED, "the sum of {}, fading", _NUMBER, _DECAY, exact=False),
    "decayed_top_k": AggregateKind(
        record.TOP_K,
        "the {} met most, fading",
        frozenset({ValueKind.SYMBOL}),
        _DECAY | {"k"},
        k=("k", 16, 1, record.TOP_K_MAX),
        exact=False,
    ),
    "last_k": AggregateKind(
        record.LAST_K,
        "the last different {}",
        frozenset({ValueKind.ITEM}),
        frozenset({"k"}),
        k=("k", 16, 1, record.LAST_K_MAX),
    ),
}

"""What the reason codes of the native ranking stand for: numbers of base 6, a reason a digit (native/scoring.h)."""

from __future__ import annotations

from tailorbird.engine.requests import Reason

_DIGITS = {
    1: Reason.POPULAR_IN_CONTEXT,
    2: Reason.MODEL,
    3: Reason.AFFINITY,
    4: Reason.BOUGHT_TOGETHER,
    5: Reason.POPULAR,
}
_ONE: dict[int, tuple[Reason, ...]] = {0: (Reason.NEW,), **{code: (reason,) for code, reason in _DIGITS.items()}}
# What rests on the item, and not on the context alone.
OF_THE_ITEM = frozenset({Reason.AFFINITY, Reason.BOUGHT_TOGETHER})


def reasons_of(code: int) -> tuple[Reason, ...]:
    """Return the reasons of a code, strongest first."""
    if code in _ONE:
        return _ONE[code]
    found: list[Reason] = []
    while code:
        code, digit = divmod(code, 6)
        found.append(_DIGITS[digit])
    return tuple(reversed(found))

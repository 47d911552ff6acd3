"""Amounts of money: minor units of one currency, by configured rates, and never a mixture.

An amount is rounded, half to even, to the minor units of the currency that sums are kept in: cents, or yen, which have none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from tailorbird.engine.errors import CallerError, ConfigurationError

CURRENCY = "currency"  # the property that names an event's currency
# Minor units per unit as powers of ten, where they are not two (ISO 4217).
_NONE = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_THREE = "BHD IQD JOD KWD LYD OMR TND"
_EXPONENTS = dict.fromkeys(_NONE.split(), 0) | dict.fromkeys(_THREE.split(), 3) | {"CLF": 4, "UYW": 4}


def minor_units(currency: str) -> float:
    """Return how many minor units make a unit of a currency, 100 of one that is not known."""
    return 10.0 ** _EXPONENTS.get(currency, 2)


class Money:
    """The currency of sums, and what a unit of each other currency is worth in it.

    Where none is declared, it is the one that the first amount came in: `kept`, which the state remembers.
    """

    def __init__(self, currency: str, rates: Mapping[str, float]) -> None:
        """Raises `ConfigurationError` BAD_MONEY."""
        if rates and not currency:
            raise ConfigurationError("BAD_MONEY", "expected money.currency, that rates convert to, got rates alone")
        for code in (currency, *rates) if currency else ():
            if not re.fullmatch("[A-Z]{3}", code):
                raise ConfigurationError(
                    "BAD_MONEY", f"expected currencies as three letters such as EUR, got {code!r} in `money`"
                )
        for code, rate in rates.items():
            if code == currency or not (math.isfinite(rate) and rate > 0):
                raise ConfigurationError(
                    "BAD_MONEY", f"expected rates above 0 of other currencies than {currency}, got {code}: {rate}"
                )
        self.currency = currency
        self.rates = dict(rates)

    def rate(self, currency: str | None, kept: str) -> float:
        """Return what a unit of a currency is worth; none named is the currency of sums. Raises `CallerError` NO_RATE."""
        sums = self.currency or kept
        if not currency or not sums or currency == sums:
            return 1.0
        rate = self.rates.get(currency)
        if rate is None:
            raise CallerError(
                "NO_RATE",
                f"expected amounts in {', '.join((sums, *self.rates))}, got {currency!r:.20}; "
                f"declare its rate: `money: {{currency: {sums}, rates: ...}}`",
            )
        return rate

    def amount(self, value: float, currency: str | None, kept: str) -> float:
        """Return an amount in units of the currency of sums, a whole number of minor units. Raises as `rate`."""
        minor = minor_units(self.currency or kept or currency or "")
        return round(value * self.rate(currency, kept) * minor) / minor

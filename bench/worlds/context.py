"""The contexts of the generated shop, and what they truly do to clicks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.bench.worlds.catalogue import CATEGORIES

Floats = NDArray[np.float32]

DIMENSIONS: dict[str, tuple[str, ...]] = {
    "country": ("GB", "DE", "US", "JP"),
    "device": ("mobile", "desktop", "tablet"),
    "daypart": ("night", "morning", "afternoon", "evening"),
    "weather": ("clear", "clouds", "rain", "snow"),
    "referrer": ("direct", "search", "social", "email"),
}
COUNTRY_SHARES = (0.4, 0.3, 0.2, 0.1)
COUNTRY_UTC_HOURS = (0, 1, -5, 9)
WEATHER_SHARES = (0.4, 0.25, 0.25, 0.1)
REFERRER_SHARES = (0.35, 0.35, 0.2, 0.1)
# Share of each local hour in a day's visits: quiet before dawn, busiest after work.
HOUR_SHARES = np.array([2, 1, 1, 1, 1, 2, 3, 4, 5, 5, 5, 5, 6, 5, 5, 5, 5, 6, 7, 8, 8, 7, 5, 3], dtype=np.float64)

# What is meant to be seen: log-odds added to every item of a category. Everything else is drawn, and smaller.
_MEANT: dict[tuple[str, str], dict[str, float]] = {
    ("weather", "clear"): {"swimwear": 1.2, "garden": 1.0, "running": 0.6, "rainwear": -1.0},
    ("weather", "clouds"): {"books": 0.4, "running": 0.3},
    ("weather", "rain"): {"rainwear": 1.8, "books": 0.7, "garden": -1.0, "swimwear": -0.8},
    ("weather", "snow"): {"knitwear": 1.8, "coffee": 0.5, "garden": -1.5, "swimwear": -1.2},
    ("daypart", "morning"): {"coffee": 1.4, "running": 0.9, "wine": -1.2},
    ("daypart", "afternoon"): {"garden": 0.6, "toys": 0.7, "kitchen": 0.4},
    ("daypart", "evening"): {"wine": 1.4, "kitchen": 0.6, "coffee": -0.8},
    ("daypart", "night"): {"gadgets": 1.0, "books": 0.6, "garden": -0.6},
    ("device", "mobile"): {"skincare": 0.7, "toys": 0.3},
    ("device", "desktop"): {"gadgets": 0.7, "kitchen": 0.3},
    ("device", "tablet"): {"books": 0.5, "toys": 0.4},
    ("referrer", "social"): {"skincare": 0.6, "swimwear": 0.4},
    ("referrer", "email"): {"wine": 0.4, "coffee": 0.4},
}


@dataclass(frozen=True, slots=True)
class ContextEffects:
    """Log-odds of a click: `category` by dimension, value x category; `country_item` by country x item."""

    category: dict[str, Floats]
    country_item: Floats

    def category_log_odds(self, codes: Mapping[str, int]) -> Floats:
        """Return the summed effects of the given dimensions on each category; a dimension not given adds nothing."""
        total = np.zeros(len(CATEGORIES), dtype=np.float32)
        for dimension, code in codes.items():
            total += self.category[dimension][code]
        return total


def draw_effects(rng: np.random.Generator, item_count: int, strength: float) -> ContextEffects:
    """Return the effects of one world, all scaled by `strength`.

    Drawn are N(0, 0.5) for country x category, N(0, 0.15) for the other dimensions, N(0, 0.7) for country x item.
    """
    category = {}
    for dimension, values in DIMENSIONS.items():
        deviation = 0.5 if dimension == "country" else 0.15
        effects = rng.normal(0.0, deviation, (len(values), len(CATEGORIES)))
        for code, value in enumerate(values):
            for name, log_odds in _MEANT.get((dimension, value), {}).items():
                effects[code, CATEGORIES.index(name)] += log_odds
        category[dimension] = (strength * effects).astype(np.float32)
    country_item = strength * rng.normal(0.0, 0.7, (len(DIMENSIONS["country"]), item_count))
    return ContextEffects(category, country_item.astype(np.float32))


def context_codes(context: Mapping[str, str]) -> dict[str, int]:
    """Return the value numbers of a context; keys the world does not know are ignored, as they change nothing.

    Raises `ValueError` for a value a known dimension does not have.
    """
    codes = {}
    for dimension, values in DIMENSIONS.items():
        if dimension not in context:
            continue
        if context[dimension] not in values:
            raise ValueError(f"expected {dimension} of {', '.join(values)}, got {context[dimension]!r}")
        codes[dimension] = values.index(context[dimension])
    return codes


def daypart_codes(local_hour__v: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the dayparts' numbers: night 0-5, morning 6-11, afternoon 12-17, evening 18-23."""
    return local_hour__v // 6

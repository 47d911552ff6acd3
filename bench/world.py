"""The generated shop: people, items and contexts with a known truth, so that the right answer to a decision is known.

In each visit a person is shown `exposures` items drawn uniformly from those on offer, and clicks each of them with

    P(click | person p, context x, item i) = sigmoid(intercept + attraction_i
        + sum over the dimensions of x of effect[dimension, value, category_i] + country_effect[country, i]
        + taste_category[p, category_i] + taste_brand[p, brand_i] + taste_style[p] . style_i)

A click is a `product_viewed`. Because what is shown is uniform, the share of an item's views in a context is
proportional to its true click probability there: nothing but the truth has to be learned. `worlds/` holds the
distributions: `context.py` what weather, daypart, device, country and referrer do; `catalogue.py` the items;
`people.py` tastes, households and devices; `visits.py` turns visits into signals. Everything is drawn from numpy
Generators seeded with `WorldSettings.seed`: two worlds of equal settings are equal, signal for signal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from tailorbird.bench.worlds.catalogue import CATEGORIES, Catalogue, draw_catalogue, item_id, item_index
from tailorbird.bench.worlds.context import DIMENSIONS, ContextEffects, context_codes, draw_effects
from tailorbird.bench.worlds.people import People, crm_id, draw_people, user_id
from tailorbird.bench.worlds.visits import Visits
from tailorbird.engine.consent import ConsentChoice, parse_choice
from tailorbird.engine.items import Item
from tailorbird.engine.signals import Signal

Floats = NDArray[np.float32]

CONSENT = parse_choice("granted:behavioural,contextual,transactional,preference,demographic,device")
# Averages over people take this many of a country at most; people are exchangeable, so the first ones are a sample.
_PEOPLE_AVERAGED_MAX = 4096
_CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSettings:
    """Sizes, strengths and shares of a world. `start` is milliseconds since 1970 UTC; shares are in [0, 1].

    `cookie_churn` is the chance that a device clears its cookies before a visit; `refusing_share` of the people never
    consent; `duplicate_share` of the signals are sent twice; `late_share` of them up to 6 hours late.
    """

    seed: int = 20_250_303
    people: int = 200
    items: int = 300
    brands: int = 24
    style_dimension: int = 6
    embedding_dimension: int = 0
    start: int = 1_740_960_000_000  # 2025-03-03, a Monday
    visits_per_person_day: float = 0.3
    exposures: int = 40
    click_rate: float = 0.06
    context_strength: float = 1.0
    taste_strength: float = 1.0
    account_share: float = 0.6
    crm_share: float = 0.5
    shared_tablet_share: float = 0.15
    cookie_churn: float = 0.03
    refusing_share: float = 0.0
    duplicate_share: float = 0.0
    late_share: float = 0.0


class World:
    """A generated shop. Attributes are the drawn parts; methods give the signals and the truth."""

    def __init__(self, settings: WorldSettings | None = None) -> None:
        self.settings = s = settings or WorldSettings()
        self.catalogue: Catalogue = draw_catalogue(
            self.rng(1),
            item_count=s.items,
            brand_count=s.brands,
            style_dimension=s.style_dimension,
            embedding_dimension=s.embedding_dimension,
            start=s.start,
        )
        self.effects: ContextEffects = draw_effects(self.rng(2), s.items, s.context_strength)
        self.people: People = draw_people(
            self.rng(3),
            people_count=s.people,
            brand_count=s.brands,
            style_dimension=s.style_dimension,
            taste_strength=s.taste_strength,
            account_share=s.account_share,
            crm_share=s.crm_share,
            shared_tablet_share=s.shared_tablet_share,
            refusing_share=s.refusing_share,
        )
        self.intercept = self._intercept()

    def rng(self, *stream: int) -> np.random.Generator:
        """Return the generator of one numbered stream of randomness of this world."""
        return np.random.default_rng([self.settings.seed, *stream])

    def items(self) -> Iterator[Item]:
        """Yield the whole catalogue, sold out and scheduled items included."""
        return self.catalogue.items()

    def signals(self, count: int) -> Iterator[Signal]:
        """Yield the first `count` signals in the order they are sent; memory does not grow with `count`."""
        return islice(Visits(self).signals(), count)

    def identifiers(self, person: int) -> dict[str, str]:
        """Return what a logged-in person is known by; empty without an account."""
        if not self.people.has_account__p[person]:
            return {}
        known = {"user_id": user_id(person)}
        if self.people.has_crm__p[person]:
            known["crm_id"] = crm_id(person)
        return known

    def consent(self, person: int) -> ConsentChoice | None:
        """Return the choice a person makes on each new device and at each login; None for those who never consent."""
        return None if self.people.refuses__p[person] else CONSENT

    def country(self, person: int) -> str:
        """Return where a person lives, and visits from."""
        return DIMENSIONS["country"][int(self.people.country__p[person])]

    def click_probability(self, person: int | None, context: Mapping[str, str], item: str) -> float:
        """Return the true P(click) of one item; see `click_probability__i`."""
        return float(self.click_probability__i(person, context)[item_index(item)])

    def click_probability__i(self, person: int | None, context: Mapping[str, str]) -> Floats:
        """Return the true P(click) of every item.

        Without a person: the mean over the people who could be visiting in this context, each weighed by how often they
        do, that is those of the country where it is given, by activity and share of visits on the device. Without a
        country everybody visits from home. Another dimension that is not given adds no effect.
        """
        codes = context_codes(context)
        return self._mean_over_people__i(codes) if person is None else self._click_probability__pi([person], codes)[0]

    def best_items(
        self,
        person: int | None,
        context: Mapping[str, str],
        k: int,
        *,
        exclude: Collection[str] = (),
        at: int | None = None,
    ) -> list[str]:
        """Return the k items with the highest P(click) of those on offer `at` (None: of all), ties by id."""
        probability__i = self.click_probability__i(person, context)
        if at is not None:
            probability__i[~self.catalogue.on_offer__i(at)] = -1.0
        probability__i[[item_index(item) for item in exclude]] = -1.0
        order = np.argsort(-probability__i, kind="stable")[:k]
        return [item_id(int(i)) for i in order if probability__i[i] >= 0.0]

    def expected_clicks(self, person: int | None, context: Mapping[str, str], items: Collection[str]) -> float:
        """Return the true expected number of clicks when `items` are shown once each."""
        shown = [item_index(item) for item in items]
        return float(self.click_probability__i(person, context)[shown].sum(dtype=np.float64))

    def _click_probability__pi(self, people: Sequence[int] | NDArray[np.intp], codes: Mapping[str, int]) -> Floats:
        c, p, effects = self.catalogue, self.people, self.effects
        log_odds__pi: Floats = p.taste_category__pc[people][:, c.category__i]
        log_odds__pi += p.taste_brand__pb[people][:, c.brand__i]
        log_odds__pi += p.taste_style__pd[people] @ c.style__id.T
        country__p = np.full(len(people), codes["country"]) if "country" in codes else p.country__p[people]
        log_odds__pi += effects.country_item[country__p] + effects.category["country"][country__p][:, c.category__i]
        others = {dimension: code for dimension, code in codes.items() if dimension != "country"}
        log_odds__pi += self.intercept + c.attraction__i + effects.category_log_odds(others)[c.category__i]
        return sigmoid(log_odds__pi)

    def _mean_over_people__i(self, codes: Mapping[str, int]) -> Floats:
        p = self.people
        weight__p = p.activity__p.copy()
        if "country" in codes:
            weight__p *= p.country__p == codes["country"]
        if "device" in codes:
            weight__p *= p.device_share__p(codes["device"])
        chosen = np.flatnonzero(weight__p)[:_PEOPLE_AVERAGED_MAX]
        if len(chosen) == 0:  # Nobody visits in such a context: as if everybody did.
            chosen, weight__p = np.arange(min(len(p), _PEOPLE_AVERAGED_MAX)), p.activity__p
        total__i = np.zeros(len(self.catalogue))
        for begin in range(0, len(chosen), _CHUNK):
            some = chosen[begin : begin + _CHUNK]
            total__i += weight__p[some] @ self._click_probability__pi(some, codes)
        mean__i: Floats = (total__i / weight__p[chosen].sum()).astype(np.float32)
        return mean__i

    def _intercept(self) -> np.float32:
        """Return the intercept at which the mean P(click) over drawn people, contexts and items is `click_rate`."""
        rng = self.rng(4)
        self.intercept = np.float32(0.0)
        sample = []
        for person in rng.integers(0, self.settings.people, 64):
            codes = {name: int(rng.integers(len(values))) for name, values in DIMENSIONS.items() if name != "country"}
            probability__i = self._click_probability__pi([int(person)], codes)[0, :: max(1, self.settings.items // 256)]
            sample.append(np.log(probability__i / (1.0 - probability__i)))
        log_odds, low, high = np.concatenate(sample), -30.0, 30.0
        for _ in range(40):
            middle = (low + high) / 2
            mean = sigmoid(log_odds + np.float32(middle)).mean()
            low, high = (middle, high) if mean < self.settings.click_rate else (low, middle)
        return np.float32((low + high) / 2)


def sigmoid(log_odds: Floats) -> Floats:
    """Return 1 / (1 + exp(-x))."""
    return np.reciprocal(np.float32(1.0) + np.exp(-log_odds))


__all__ = ["CATEGORIES", "CONSENT", "DIMENSIONS", "World", "WorldSettings", "sigmoid"]

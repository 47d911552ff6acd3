"""Visits to the generated shop, day by day, and the signals they send."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.bench.worlds.catalogue import CATEGORIES, DAY_MS, brand_name, item_id
from tailorbird.bench.worlds.context import (
    COUNTRY_UTC_HOURS,
    DIMENSIONS,
    HOUR_SHARES,
    REFERRER_SHARES,
    WEATHER_SHARES,
    daypart_codes,
)
from tailorbird.bench.worlds.people import AGE_BANDS, DESKTOP, MOBILE, TABLET, cookie, crm_id, user_id
from tailorbird.engine.signals import Signal

if TYPE_CHECKING:
    from tailorbird.bench.world import World

HOUR_MS = 3_600_000
ADD_SHARE = 0.3  # of the clicks that put the item into the cart
ORDER_SHARE = 0.6  # of the carts that are bought
SEARCH_SHARE, WISH_SHARE, REVIEW_SHARE, PREFERENCE_SHARE = 0.15, 0.05, 0.2, 0.02
LOGIN_SHARE = 0.5  # of the visits not yet logged in, by people with an account
LOGOUT_SHARE = 0.8  # of the visits on a shared tablet that were logged in
_BLOCK = 256


class Visits:
    """One run of a world from its start: who is logged in on which device, and which cookie it carries."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng(10)
        devices = world.people.device_count
        self._generation = [0] * devices
        self._logged_in = [-1] * devices
        self._asked = [False] * devices
        self._sent = 0

    def signals(self) -> Iterator[Signal]:
        """Yield signals without end, in the order they are sent. Only visits that overlap are held in memory."""
        pending: list[tuple[int, int, Signal]] = []
        settings, order = self.world.settings, 0
        for begin, visit in self._visits():
            while pending and pending[0][0] <= begin:
                yield heapq.heappop(pending)[2]
            for signal in visit:
                send_time, again = signal.event_time, False
                if settings.late_share and self.rng.random() < settings.late_share:
                    send_time += int(self.rng.integers(1, 6 * HOUR_MS))
                if settings.duplicate_share:
                    again = self.rng.random() < settings.duplicate_share
                for copy in range(1 + again):
                    order += 1
                    heapq.heappush(pending, (send_time + copy * 30_000, order, signal))

    def _visits(self) -> Iterator[tuple[int, Iterator[Signal]]]:
        """Yield (begin, signals) of every visit, in the order they begin."""
        s, people = self.world.settings, self.world.people
        reach__p = np.cumsum(people.activity__p)
        hour_share = HOUR_SHARES / HOUR_SHARES.sum()
        day = 0
        while True:
            midnight = s.start + day * DAY_MS
            count = max(1, int(self.rng.poisson(s.visits_per_person_day * s.people)))
            person__v = np.searchsorted(reach__p, self.rng.random(count) * reach__p[-1], side="right")
            country__v = people.country__p[person__v]
            local_hour__v = self.rng.choice(24, count, p=hour_share)
            hour__v = (local_hour__v - np.array(COUNTRY_UTC_HOURS)[country__v]) % 24
            begin__v = midnight + hour__v * HOUR_MS + self.rng.integers(0, HOUR_MS, count)
            weather = self.rng.choice(len(WEATHER_SHARES), (len(COUNTRY_UTC_HOURS), 4), p=WEATHER_SHARES)
            daypart__v = daypart_codes(local_hour__v)
            codes__dv = np.stack(
                [
                    country__v,
                    self._devices(person__v),
                    daypart__v,
                    weather[country__v, daypart__v],
                    self.rng.choice(len(REFERRER_SHARES), count, p=REFERRER_SHARES),
                ]
            )
            order = np.argsort(begin__v, kind="stable")
            offered = np.flatnonzero(self.world.catalogue.on_offer__i(midnight))
            for first in range(0, count, _BLOCK):
                some = order[first : first + _BLOCK]
                shown__ve, clicked__ve = self._clicks(person__v[some], codes__dv[:, some], offered)
                for place, v in enumerate(some):
                    clicks = shown__ve[place][clicked__ve[place]].tolist()
                    codes = codes__dv[:, v].tolist()
                    yield int(begin__v[v]), self._visit(int(person__v[v]), int(begin__v[v]), codes, clicks)
            day += 1

    def _devices(self, person__v: NDArray[np.intp]) -> NDArray[np.int32]:
        """Return the kind of device of each visit, equally likely over those the person has."""
        owned__vk = self.world.people.devices__pk[person__v] >= 0
        wanted__v = (self.rng.random(len(person__v)) * owned__vk.sum(axis=1)).astype(np.int32)
        kinds: NDArray[np.int32] = (owned__vk.cumsum(axis=1) > wanted__v[:, None]).argmax(axis=1).astype(np.int32)
        return kinds

    def _clicks(
        self, person__v: NDArray[np.intp], codes__dv: NDArray[np.int64], offered: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return what each visit was shown and what of it was clicked, by the formula of `world.py`."""
        world, c, p = self.world, self.world.catalogue, self.world.people
        shown = offered[self.rng.integers(0, len(offered), (len(person__v), world.settings.exposures))]
        category = c.category__i[shown]
        log_odds = world.intercept + c.attraction__i[shown] + world.effects.country_item[codes__dv[0][:, None], shown]
        for dimension, code__v in zip(DIMENSIONS, codes__dv, strict=True):
            log_odds += world.effects.category[dimension][code__v[:, None], category]
        log_odds += p.taste_category__pc[person__v[:, None], category]
        log_odds += p.taste_brand__pb[person__v[:, None], c.brand__i[shown]]
        log_odds += np.einsum("vd,ved->ve", p.taste_style__pd[person__v], c.style__id[shown])
        return shown, self.rng.random(shown.shape) < 1.0 / (1.0 + np.exp(-log_odds))

    def _visit(self, person: int, begin: int, codes: list[int], clicks: list[int]) -> Iterator[Signal]:
        """Yield one visit's signals: home page, login, search, views, cart, order, review, logout."""
        rng, people = self.rng, self.world.people
        context = {name: values[code] for (name, values), code in zip(DIMENSIONS.items(), codes, strict=True)}
        kind = codes[1]
        device = int(people.devices__pk[person, kind])
        if rng.random() < self.world.settings.cookie_churn:
            self._generation[device] += 1
            self._logged_in[device], self._asked[device] = -1, False
        if kind != MOBILE and self._logged_in[device] not in (-1, person):
            self._logged_in[device] = -1  # Somebody else of the household: they log out whoever forgot to.
            yield self._signal(
                "logged_out", begin - 1000, {"anonymous_id": self._cookie(device)}, {}, context, person, device
            )
        anonymous = {"anonymous_id": self._cookie(device)}
        clock = begin
        known = {**anonymous, "user_id": user_id(person)} if self._logged_in[device] == person else anonymous
        yield self._signal("page_viewed", clock, known, {"name": "home", "path": "/"}, context, person, device)
        if known is anonymous and people.has_account__p[person] and rng.random() < LOGIN_SHARE:
            clock += 10_000
            self._logged_in[device] = person
            self._asked[device] = False  # The login asks again: the choice then stands for the account too.
            known = {**anonymous, "user_id": user_id(person)}
            traits = {"age_band": AGE_BANDS[people.age_band__p[person]], "country": context["country"]}
            yield self._signal("identified", clock, known, traits, context, person, device)
        if clicks and rng.random() < SEARCH_SHARE:
            clock += 10_000
            words = {"query": CATEGORIES[self.world.catalogue.category__i[clicks[0]]]}
            yield self._signal("products_searched", clock, known, words, context, person, device)
        cart = []
        for item, (add, wish) in zip(clicks, rng.random((len(clicks), 2)).tolist(), strict=True):
            clock += 20_000
            yield self._signal("product_viewed", clock, known, self._product(item), context, person, device)
            if add < ADD_SHARE and item not in cart:
                cart.append(item)
                line = {**self._product(item), "quantity": 1 + (add < ADD_SHARE / 4)}
                yield self._signal("product_added", clock + 5_000, known, line, context, person, device)
            if wish < WISH_SHARE:
                product = self._product(item)
                yield self._signal("product_added_to_wishlist", clock + 8_000, known, product, context, person, device)
        if cart and rng.random() < ORDER_SHARE:
            clock += 60_000
            yield from self._order(person, device, clock, known, context, cart)
        if known is not anonymous and rng.random() < PREFERENCE_SHARE:
            wishes: dict[str, Any] = {"newsletter": bool(rng.random() < 0.5), "frequency": "weekly"}
            yield self._signal("preferences_updated", clock + 20_000, known, wishes, context, person, device)
        if kind == TABLET and known is not anonymous and rng.random() < LOGOUT_SHARE:
            self._logged_in[device] = -1
            yield self._signal("logged_out", clock + 30_000, known, {}, context, person, device)

    def _order(
        self, person: int, device: int, clock: int, known: dict[str, str], context: dict[str, str], cart: list[int]
    ) -> Iterator[Signal]:
        rng, customer = self.rng, known
        if "user_id" in known and self.world.people.has_crm__p[person]:
            customer = {**known, "crm_id": crm_id(person)}
        lines = [{**self._product(item), "quantity": int(rng.integers(1, 4))} for item in cart]
        revenue = round(sum(line["price"] * line["quantity"] for line in lines), 2)
        order = {"order_id": f"order-{self._sent}", "revenue": revenue, "currency": "GBP", "products": lines}
        yield self._signal("order_completed", clock, customer, order, context, person, device)
        if rng.random() < REVIEW_SHARE:
            review = {"product_id": item_id(cart[0]), "rating": float(rng.integers(3, 6))}
            yield self._signal("product_reviewed", clock + 10_000, known, review, context, person, device)

    def _cookie(self, device: int) -> str:
        return cookie(device, self._generation[device])

    def _product(self, item: int) -> dict[str, Any]:
        c = self.world.catalogue
        return {
            "product_id": item_id(item),
            "category": CATEGORIES[c.category__i[item]],
            "brand": brand_name(int(c.brand__i[item])),
            "price": float(c.price__i[item]),
        }

    def _signal(
        self,
        kind: str,
        event_time: int,
        identifiers: dict[str, str],
        properties: dict[str, Any],
        context: dict[str, str],
        person: int,
        device: int,
    ) -> Signal:
        """Return a signal with a fresh message id; the first of a cookie and of a login carries the person's choice."""
        consent = None if self._asked[device] else self.world.consent(person)
        self._asked[device] = True
        self._sent += 1
        return Signal(
            type=kind,
            event_time=event_time,
            identifiers=identifiers,
            message_id=f"m{self._sent}",
            properties=properties,
            context=context,
            source="desktop-site" if context["device"] == DIMENSIONS["device"][DESKTOP] else "mobile-site",
            consent=consent,
        )
